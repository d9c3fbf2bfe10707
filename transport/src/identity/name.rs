//! What nodes, clusters, hosts and certificates are called.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use rustls::pki_types::DnsName;

/// The name of a node, or of a cluster: a DNS label in lower case, so that it needs no escaping anywhere.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(String);

/// Longest name: that of a DNS label.
const MAX_NAME_LEN: usize = 63;

/// A text that is no name. The writer's fault.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no name, expected 1 to {MAX_NAME_LEN} of a-z, 0-9 and -, with a letter or digit at both ends")]
pub struct BadName(pub String);

impl Name {
    /// Its text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Name {
    type Err = BadName;

    fn from_str(text: &str) -> Result<Self, BadName> {
        let known = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        let has_place = (1..=MAX_NAME_LEN).contains(&text.len()) && !text.starts_with('-') && !text.ends_with('-');
        if has_place && text.chars().all(known) { Ok(Self(text.to_owned())) } else { Err(BadName(text.to_owned())) }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// 128 random bits that are drawn when a cluster's authority is made, and stand in every certificate of the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ClusterId(pub [u8; 16]);

impl ClusterId {
    /// Reads 32 lower-case hexadecimal digits; `None` for anything else.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let is_digit = |byte: &u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(byte);
        if text.len() != 32 || !text.bytes().all(|byte| is_digit(&byte)) {
            return None;
        }
        u128::from_str_radix(text, 16).ok().map(|bits| Self(bits.to_be_bytes()))
    }
}

impl fmt::Display for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", u128::from_be_bytes(self.0))
    }
}

/// A certificate's serial number: its octets, most significant first, without leading zeros.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Serial(Vec<u8>);

impl Serial {
    /// From octets as they stand in a certificate.
    pub(super) fn new(octets: &[u8]) -> Self {
        let zeros = octets.iter().take_while(|octet| **octet == 0).count();
        Self(octets.iter().skip(zeros).copied().collect())
    }

    pub(super) fn octets(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Display for Serial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|octet| write!(f, "{octet:02x}"))
    }
}

/// Where a node can be reached: what its certificate says beside its name. Nobody is believed for it; it serves tools that know hosts only.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Host {
    /// An IP address.
    Address(IpAddr),
    /// A DNS name.
    Name(String),
}

/// A text that is no host. The writer's fault.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadHost {
    /// Neither an address nor a name.
    #[error(
        "`{0}` is no host, expected an IP address or a DNS name without port, such as 10.0.0.7 or gpu-1.example.org"
    )]
    Malformed(String),
    /// A name that certificates use for nodes.
    #[error("`{0}` ends in {NODE_DOMAIN}, which is kept for nodes' own names")]
    Reserved(String),
}

/// The domain in which certificates name nodes for TLS; `internal` is kept for private use by ICANN and never resolves outside.
pub(super) const NODE_DOMAIN: &str = "relevo.internal";

impl FromStr for Host {
    type Err = BadHost;

    fn from_str(text: &str) -> Result<Self, BadHost> {
        if let Ok(address) = text.parse() {
            return Ok(Self::Address(address));
        }
        let name = text.to_ascii_lowercase();
        // `10.0.0.300` is an address with a slip, no name.
        let last_label = name.rsplit('.').next().unwrap_or_default();
        let is_number = last_label.bytes().all(|byte| byte.is_ascii_digit());
        if is_number || DnsName::try_from(name.as_str()).is_err() {
            return Err(BadHost::Malformed(text.to_owned()));
        }
        if name.ends_with(NODE_DOMAIN) { Err(BadHost::Reserved(text.to_owned())) } else { Ok(Self::Name(name)) }
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => write!(f, "{address}"),
            Self::Name(name) => f.write_str(name),
        }
    }
}
