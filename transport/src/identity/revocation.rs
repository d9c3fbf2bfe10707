//! The authority's list of certificates that are no longer good, signed by it.

use std::collections::BTreeMap;

use rcgen::{CertificateRevocationListParams, Issuer, KeyIdMethod, KeyPair, RevokedCertParams, SerialNumber};
use rustls::pki_types::CertificateRevocationListDer;
use rustls::pki_types::pem::PemObject;
use x509_parser::prelude::FromDer;
use x509_parser::revocation_list::CertificateRevocationList;

use super::moment::Moment;
use super::name::Serial;

/// Which certificates are revoked, since when, and how often the list was written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Revocations {
    /// Grows with each list; of two lists the greater number is the newer.
    pub(super) number: u64,
    pub(super) since: BTreeMap<Serial, Moment>,
}

impl Revocations {
    /// Reads a list in PEM; see [`Self::of_der`].
    pub(super) fn parse(pem: &str) -> Option<Self> {
        Self::of_der(&CertificateRevocationListDer::from_pem_slice(pem.as_bytes()).ok()?)
    }

    /// Reads a list; `None` if it is none, or its number is not one of ours. Its signature is checked by those who are held to it.
    pub(super) fn of_der(der: &[u8]) -> Option<Self> {
        let (_, list) = CertificateRevocationList::from_der(der).ok()?;
        let number = u64::try_from(list.crl_number()?).ok()?;
        let entries = list.iter_revoked_certificates();
        let since = entries
            .map(|entry| (Serial::new(entry.raw_serial()), Moment::of_certificate(entry.revocation_date)))
            .collect();
        Some(Self { number, since })
    }

    /// Signs it.
    ///
    /// * `until`: the list's own end. No one is held to it: a cluster must not stop because a list was not renewed.
    pub(super) fn sign(
        &self,
        issuer: &Issuer<'_, KeyPair>,
        now: Moment,
        until: Moment,
    ) -> Result<String, rcgen::Error> {
        let time = |moment: Moment| moment.date_time().ok_or(rcgen::Error::Time);
        let entry = |(serial, since): (&Serial, &Moment)| {
            Ok(RevokedCertParams {
                serial_number: SerialNumber::from_slice(serial.octets()),
                revocation_time: time(*since)?,
                reason_code: None,
                invalidity_date: None,
            })
        };
        let params = CertificateRevocationListParams {
            this_update: time(now)?,
            next_update: time(until)?,
            crl_number: SerialNumber::from(self.number),
            issuing_distribution_point: None,
            revoked_certs: self.since.iter().map(entry).collect::<Result<_, rcgen::Error>>()?,
            key_identifier_method: KeyIdMethod::Sha256,
        };
        params.signed_by(issuer)?.pem()
    }
}
