//! The secret that all nodes of a cluster share: drawn with its authority, and copied into each node's folder.
//!
//! It salts prefix caches, so that equal prompts have equal keys on all nodes and nobody outside can tell them, and it keys control sessions.
//! It is no second way in: who holds it and has no certificate is refused like anybody.

use std::fmt;
use std::fmt::Write;

/// 256 random bits.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct ClusterSecret([u8; 32]);

impl ClusterSecret {
    pub(super) fn draw() -> Result<Self, getrandom::Error> {
        let mut octets = [0; 32];
        getrandom::fill(&mut octets)?;
        Ok(Self(octets))
    }

    /// Reads a file of 64 hexadecimal digits, as we or `openssl rand -hex 32` write it; `None` for anything else.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let mut octets = [0; 32];
        let digits = text.trim_ascii_end().as_bytes();
        if digits.len() != 2 * octets.len() {
            return None;
        }
        for (octet, pair) in octets.iter_mut().zip(digits.as_chunks::<2>().0) {
            *octet = digit(pair[0])? << 4 | digit(pair[1])?;
        }
        Some(Self(octets))
    }

    /// What [`Self::parse`] reads.
    pub(super) fn to_text(&self) -> String {
        let mut text = String::new();
        for octet in self.0 {
            let _ = write!(text, "{octet:02x}");
        }
        text.push('\n');
        text
    }

    pub(super) fn octets(&self) -> [u8; 32] {
        self.0
    }
}

fn digit(byte: u8) -> Option<u8> {
    char::from(byte).to_digit(16).and_then(|value| u8::try_from(value).ok())
}

/// Never the secret itself.
impl fmt::Debug for ClusterSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClusterSecret(..)")
    }
}
