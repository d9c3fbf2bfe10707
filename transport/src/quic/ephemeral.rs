//! A certificate authority that lives in memory and as long as its process: for links that do not leave it.

use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};

use crate::crypto::crypto_provider;

/// Issues certificates that nobody outside of this process can have: its key is never written anywhere.
pub struct EphemeralAuthority {
    issuer: Issuer<'static, KeyPair>,
    root: CertificateDer<'static>,
    roots: Arc<RootCertStore>,
    provider: Arc<CryptoProvider>,
}

/// Why there is no certificate. Our bug, or a name that no certificate can carry.
#[derive(Debug, thiserror::Error)]
pub enum EphemeralError {
    /// It cannot be made.
    #[error("no certificate can be made")]
    Certificate(#[from] rcgen::Error),
    /// It cannot be used.
    #[error("the certificate cannot be used")]
    Tls(#[from] rustls::Error),
    /// Those of others could not be checked.
    #[error("peers' certificates cannot be checked")]
    Verifier(#[from] rustls::server::VerifierBuilderError),
}

impl EphemeralAuthority {
    /// A new one, which trusts itself alone.
    ///
    /// # Errors
    /// Our bug.
    pub fn new() -> Result<Self, EphemeralError> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(Vec::<String>::new())?;
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let mut roots = RootCertStore::empty();
        let root = params.self_signed(&key)?.der().clone();
        roots.add(root.clone())?;
        Ok(Self { issuer: Issuer::new(params, key), root, roots: Arc::new(roots), provider: crypto_provider() })
    }

    /// Its own certificate, which members trust.
    pub fn root(&self) -> &CertificateDer<'static> {
        &self.root
    }

    /// What a member listens and dials with: its own certificate, which carries `name` (a DNS name), and mutual TLS 1.3 with other members.
    ///
    /// # Errors
    /// See [`EphemeralError`].
    pub fn admit(&self, name: &str) -> Result<(ServerConfig, ClientConfig), EphemeralError> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(vec![name.to_owned()])?;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let chain: Vec<CertificateDer<'static>> = vec![params.signed_by(&key, &self.issuer)?.der().clone()];
        let key = PrivatePkcs8KeyDer::from(key.serialize_der());
        let verifier =
            WebPkiClientVerifier::builder_with_provider(Arc::clone(&self.roots), Arc::clone(&self.provider)).build()?;
        let tls13 = &[&rustls::version::TLS13];
        let server = ServerConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_protocol_versions(tls13)?
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain.clone(), key.clone_key().into())?;
        let client = ClientConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_protocol_versions(tls13)?
            .with_root_certificates(Arc::clone(&self.roots))
            .with_client_auth_cert(chain, key.into())?;
        Ok((server, client))
    }
}
