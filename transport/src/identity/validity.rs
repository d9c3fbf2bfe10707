//! The time in which a certificate is good, and when in it the next one is to be fetched.

use x509_parser::certificate::X509Certificate;

use super::moment::Moment;

/// From when to when a certificate is good, both seconds included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Validity {
    /// The first second.
    pub not_before: Moment,
    /// The last second.
    pub not_after: Moment,
}

impl Validity {
    pub(super) fn of(certificate: &X509Certificate<'_>) -> Self {
        let validity = certificate.validity();
        Self {
            not_before: Moment::of_certificate(validity.not_before),
            not_after: Moment::of_certificate(validity.not_after),
        }
    }

    /// When a node asks for the next certificate: when a third of the time is left.
    ///
    /// Ten days of thirty: an authority that is away for a long weekend, and a week to mend what is broken, cost nothing.
    pub const fn renewal_at(self) -> Moment {
        let lifetime = self.not_after.0.saturating_sub(self.not_before.0);
        Moment(self.not_after.0 - lifetime / 3)
    }

    /// Whether it is time for [`Self::renewal_at`].
    pub const fn is_renewal_due(self, now: Moment) -> bool {
        now.0 >= self.renewal_at().0
    }
}
