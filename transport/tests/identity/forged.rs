//! Strangers: whatever they show, and however they were made, they do not get in.

use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, SanType};
use relevo_transport::identity::{Complaint, Refusal, Role, SubjectError};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, Error, ServerConfig, SignatureScheme};

use super::cluster::Cluster;
use super::meeting::{client, meet, server};

/// Somebody with a certificate, who takes whoever he meets for a friend.
struct Stranger {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

impl Stranger {
    fn new(chain: Vec<CertificateDer<'static>>, key: &KeyPair) -> Self {
        Self { chain, key: PrivateKeyDer::try_from(key.serialize_der()).unwrap() }
    }

    fn client(&self) -> ClientConfig {
        let builder = gullible().with_client_auth_cert(self.chain.clone(), self.key.clone_key());
        with_our_protocol(builder.unwrap())
    }

    fn server(&self) -> ServerConfig {
        let builder = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_no_client_auth();
        let mut config = builder.with_single_cert(self.chain.clone(), self.key.clone_key()).unwrap();
        config.alpn_protocols = vec![b"relevo/1".to_vec()];
        config
    }

    /// What a node of the cluster makes of him when he calls, and when he answers.
    #[track_caller]
    fn refusals(&self, cluster: &Cluster) -> [Refusal; 2] {
        let node = cluster.node("decode-1", &[Role::Decode]);
        let (here, there) = meet(self.client(), server(&node));
        assert!(matches!(here.refusal(), Refusal::ByPeer(_)));
        let called = there.refusal();
        let (here, there) = meet(client(&node, "evil"), self.server());
        assert!(matches!(there.refusal(), Refusal::ByPeer(_)));
        [called, here.refusal()]
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

fn gullible() -> rustls::ConfigBuilder<ClientConfig, rustls::client::WantsClientCert> {
    ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Gullible))
}

fn with_our_protocol(mut config: ClientConfig) -> ClientConfig {
    config.alpn_protocols = vec![b"relevo/1".to_vec()];
    config
}

#[derive(Debug)]
struct Gullible;

impl ServerCertVerifier for Gullible {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}

/// What somebody would write into a certificate to be taken for an operator of the cluster.
fn evil_params(cluster: &Cluster) -> CertificateParams {
    let id = cluster.authority.cluster();
    let mut params = CertificateParams::new([format!("evil.{id}.relevo.internal")]).unwrap();
    let uri = format!("relevo://{id}/node/evil?roles=operator,coordinator");
    params.subject_alt_names.push(SanType::URI(uri.try_into().unwrap()));
    params
}

#[test]
fn a_caller_without_a_certificate_is_refused_and_told() {
    let cluster = Cluster::new();
    let node = cluster.node("decode-1", &[Role::Decode]);
    let nobody = with_our_protocol(gullible().with_no_client_auth());
    let (here, there) = meet(nobody, server(&node));
    assert_eq!(there.refusal(), Refusal::NoCertificate);
    assert_eq!(here.refusal(), Refusal::ByPeer(Complaint::NoCertificate));
}

#[test]
fn a_self_signed_certificate_is_refused_whatever_it_says() {
    let cluster = Cluster::new();
    let key = KeyPair::generate().unwrap();
    let plain = CertificateParams::new(["localhost".to_owned()]).unwrap().self_signed(&key).unwrap();
    let unreadable = Refusal::Unreadable(SubjectError::NoName);
    assert_eq!(Stranger::new(vec![plain.into()], &key).refusals(&cluster), [unreadable.clone(), unreadable]);

    let cluster = Cluster::new();
    let signed = evil_params(&cluster).self_signed(&key).unwrap();
    assert_eq!(
        Stranger::new(vec![signed.into()], &key).refusals(&cluster),
        [Refusal::UnknownAuthority, Refusal::UnknownAuthority]
    );
}

#[test]
fn an_authority_that_calls_itself_ours_is_not() {
    let cluster = Cluster::new();
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name = rcgen::DistinguishedName::new();
    let ours = format!("Relevo cluster test {}", cluster.authority.cluster());
    params.distinguished_name.push(rcgen::DnType::CommonName, ours);
    let authority = params.self_signed(&key).unwrap();
    let issuer = Issuer::new(params, &key);
    let evil = KeyPair::generate().unwrap();
    let forged = evil_params(&cluster).signed_by(&evil, &issuer).unwrap();
    let stranger = Stranger::new(vec![forged.into(), authority.into()], &evil);
    // Its issuer has our authority's name, but not its key.
    let refusal = Refusal::Invalid(CertificateError::BadSignature);
    assert_eq!(stranger.refusals(&cluster), [refusal.clone(), refusal]);
}

#[test]
fn a_node_can_not_sign_for_another() {
    let cluster = Cluster::new();
    cluster.issue("prefill-1", &[Role::Prefill]);
    let read = |file| std::fs::read_to_string(cluster.path("prefill-1").join(file)).unwrap();
    let node_der = CertificateDer::from_pem_slice(read("node.pem").as_bytes()).unwrap();
    let issuer = Issuer::from_ca_cert_der(&node_der, KeyPair::from_pem(&read("node.key")).unwrap()).unwrap();
    // A node's certificate does not allow its key to sign others; a thief does not ask.
    let mut allowed = CertificateParams::default();
    allowed.distinguished_name = rcgen::DistinguishedName::new();
    allowed.distinguished_name.push(rcgen::DnType::CommonName, "prefill-1");
    let issuer = Issuer::new(allowed, issuer.key());
    let evil = KeyPair::generate().unwrap();
    let forged = evil_params(&cluster).signed_by(&evil, &issuer).unwrap();
    for refusal in Stranger::new(vec![forged.into(), node_der], &evil).refusals(&cluster) {
        assert!(matches!(refusal, Refusal::UnknownAuthority | Refusal::Invalid(_)), "{refusal:?}");
    }
}

#[test]
fn a_node_of_another_cluster_is_told_apart_from_a_forger() {
    let (cluster, other) = (Cluster::new(), Cluster::new());
    other.issue("evil", &[Role::Operator]);
    let read = |file| std::fs::read_to_string(other.path("evil").join(file)).unwrap();
    let key = KeyPair::from_pem(&read("node.key")).unwrap();
    let chain = vec![CertificateDer::from_pem_slice(read("node.pem").as_bytes()).unwrap()];
    let (found, expected) = (other.authority.cluster(), cluster.authority.cluster());
    let refusal = Refusal::WrongCluster { found, expected };
    assert_eq!(Stranger::new(chain, &key).refusals(&cluster), [refusal.clone(), refusal]);
}

#[test]
fn the_authority_is_no_node() {
    let cluster = Cluster::new();
    let read = |file| std::fs::read_to_string(cluster.path("ca").join(file)).unwrap();
    let key = KeyPair::from_pem(&read("ca.key")).unwrap();
    let chain = vec![CertificateDer::from_pem_slice(read("ca.pem").as_bytes()).unwrap()];
    let refusal = Refusal::Unreadable(SubjectError::OtherKind);
    assert_eq!(Stranger::new(chain, &key).refusals(&cluster), [refusal.clone(), refusal]);
}

#[test]
fn a_stolen_certificate_without_its_key_is_worth_nothing() {
    let cluster = Cluster::new();
    let node = cluster.node("decode-1", &[Role::Decode]);
    cluster.issue("prefill-1", &[Role::Prefill]);
    let pem = std::fs::read(cluster.path("prefill-1").join("node.pem")).unwrap();
    let chain = vec![CertificateDer::from_pem_slice(&pem).unwrap()];
    let thief = Thief::new(chain, KeyPair::generate().unwrap());
    let mut config = gullible().with_client_cert_resolver(Arc::new(thief));
    config.alpn_protocols = vec![b"relevo/1".to_vec()];
    let (_, there) = meet(config, server(&node));
    assert_eq!(there.refusal(), Refusal::Invalid(CertificateError::BadSignature));
}

/// Shows a certificate and signs with another's key, which rustls would not let him by an ordinary configuration.
#[derive(Debug)]
struct Thief(Arc<rustls::sign::CertifiedKey>);

impl Thief {
    fn new(chain: Vec<CertificateDer<'static>>, key: KeyPair) -> Self {
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let key = provider().key_provider.load_private_key(key).unwrap();
        Self(Arc::new(rustls::sign::CertifiedKey::new(chain, key)))
    }
}

impl rustls::client::ResolvesClientCert for Thief {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<rustls::sign::CertifiedKey>> {
        Some(self.0.clone())
    }

    fn has_certs(&self) -> bool {
        true
    }
}
