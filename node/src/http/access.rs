//! Who may call: API keys, and the names under which a loopback address may be addressed.

use std::fmt;
use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::Path;

use axum::http::{HeaderMap, Uri, header};
use relevo_wire::TenantId;
use sha2::{Digest, Sha256};
use subtle::{Choice, ConditionallySelectable, ConstantTimeEq};

use super::api_error::ApiError;

/// Shortest key that is accepted: 16 characters of base64 are 96 bits.
const MIN_KEY_CHARS: usize = 16;

/// Longest key and most keys; a look-up compares with all of them.
const MAX_KEY_CHARS: usize = 512;
const MAX_KEYS: usize = 1024;

/// Largest key file that is read.
const MAX_KEY_FILE_BYTES: u64 = 1 << 20;

/// The keys that let a client in, as SHA-256 hashes. Each is a tenant of its own.
pub struct ApiKeys {
    hashes: Vec<[u8; 32]>,
}

/// Why a key file is refused. The operator's fault.
#[derive(Debug, thiserror::Error)]
pub enum KeyFileError {
    /// It cannot be read.
    #[error("cannot read the API key file")]
    Unreadable(#[source] io::Error),
    /// It is too large to be a key file.
    #[error("the API key file has {0} bytes, at most {MAX_KEY_FILE_BYTES} are read")]
    TooLarge(u64),
    /// A line that is no key.
    #[error(
        "line {line} of the API key file has {num_chars} characters, expected a key of {MIN_KEY_CHARS} to {MAX_KEY_CHARS} visible ASCII characters"
    )]
    BadKey {
        /// From 1.
        line: usize,
        /// Of the line.
        num_chars: usize,
    },
    /// No key or too many.
    #[error("the API key file has {0} keys, expected 1 to {MAX_KEYS}, one a line")]
    BadCount(usize),
}

impl ApiKeys {
    /// Reads a key file: one key a line; empty lines and lines that begin with `#` are skipped.
    ///
    /// # Errors
    /// The operator's fault: the file cannot be read, or holds no or bad keys.
    pub fn load(path: &Path) -> Result<Self, KeyFileError> {
        let byte_len = fs::metadata(path).map_err(KeyFileError::Unreadable)?.len();
        if byte_len > MAX_KEY_FILE_BYTES {
            return Err(KeyFileError::TooLarge(byte_len));
        }
        Self::parse(&fs::read_to_string(path).map_err(KeyFileError::Unreadable)?)
    }

    /// Takes the keys from the text of a key file.
    ///
    /// # Errors
    /// As [`ApiKeys::load`].
    pub fn parse(text: &str) -> Result<Self, KeyFileError> {
        let mut hashes = Vec::new();
        for (index, line) in text.lines().enumerate() {
            let key = line.trim();
            if key.is_empty() || key.starts_with('#') {
                continue;
            }
            let num_chars = key.chars().count();
            if !(MIN_KEY_CHARS..=MAX_KEY_CHARS).contains(&num_chars) || !key.bytes().all(|byte| byte.is_ascii_graphic())
            {
                return Err(KeyFileError::BadKey { line: index + 1, num_chars });
            }
            hashes.push(Sha256::digest(key.as_bytes()).into());
        }
        if hashes.is_empty() || hashes.len() > MAX_KEYS {
            return Err(KeyFileError::BadCount(hashes.len()));
        }
        Ok(Self { hashes })
    }

    /// Whose key the `Authorization` header carries.
    ///
    /// The time it takes depends on the number of keys, not on which one matches or how much of it.
    pub(super) fn tenant(&self, headers: &HeaderMap) -> Result<TenantId, ApiError> {
        let value = headers.get(header::AUTHORIZATION).ok_or_else(ApiError::missing_key)?;
        let text = value.to_str().map_err(|_| ApiError::wrong_key())?;
        let (scheme, key) = text.split_once(' ').ok_or_else(ApiError::wrong_key)?;
        if !scheme.eq_ignore_ascii_case("bearer") {
            return Err(ApiError::wrong_key());
        }
        let hash: [u8; 32] = Sha256::digest(key.trim().as_bytes()).into();
        let mut found = Choice::from(0);
        let mut tenant = 0u32;
        for (number, known) in (1u32..).zip(&self.hashes) {
            let equal = known.ct_eq(&hash);
            found |= equal;
            tenant.conditional_assign(&number, equal);
        }
        if bool::from(found) { Ok(TenantId(tenant)) } else { Err(ApiError::wrong_key()) }
    }
}

impl fmt::Debug for ApiKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ApiKeys({} keys)", self.hashes.len())
    }
}

/// Refuses a request whose `Host`, request target or `Origin` names another host than the loopback's (or an allowed one).
///
/// A page on a foreign site can point its own name at 127.0.0.1 (DNS rebinding, as in CVE-2024-28224); the browser
/// then sends that name here.
pub(super) fn check_names(uri: &Uri, headers: &HeaderMap, allowed_hosts: &[String]) -> Result<(), ApiError> {
    let host = headers.get(header::HOST).map(|value| value.to_str().unwrap_or_default());
    for authority in host.into_iter().chain(uri.authority().map(|authority| authority.as_str())) {
        if !is_local(host_of(authority), allowed_hosts) {
            return Err(ApiError::foreign_name("Host"));
        }
    }
    if let Some(origin) = headers.get(header::ORIGIN) {
        let origin = origin.to_str().unwrap_or_default();
        let authority = origin.split_once("://").map_or("", |(_, authority)| authority);
        if !is_local(host_of(authority), allowed_hosts) {
            return Err(ApiError::foreign_name("Origin"));
        }
    }
    Ok(())
}

/// The host of `host`, `host:port`, `[v6]` or `[v6]:port`.
fn host_of(authority: &str) -> &str {
    if let Some(rest) = authority.strip_prefix('[') {
        return rest.split_once(']').map_or("", |(host, _)| host);
    }
    authority.split_once(':').map_or(authority, |(host, _)| host)
}

fn is_local(host: &str, allowed_hosts: &[String]) -> bool {
    host.eq_ignore_ascii_case("localhost")
        || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
        || allowed_hosts.iter().any(|allowed| allowed.eq_ignore_ascii_case(host))
}
