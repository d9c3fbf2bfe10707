//! Wall time in certificates: an argument everywhere, never read here.

use std::fmt;
use std::time::Duration;

use rustls::pki_types::UnixTime;
use time::OffsetDateTime;
use x509_parser::time::ASN1Time;

/// Whole seconds since 1970-01-01 UTC, leap seconds not counted. Shown as RFC 3339 has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Moment(pub u64);

impl Moment {
    pub(super) const fn plus(self, span: Duration) -> Self {
        Self(self.0.saturating_add(span.as_secs()))
    }

    pub(super) const fn minus(self, span: Duration) -> Self {
        Self(self.0.saturating_sub(span.as_secs()))
    }

    /// `None` past the year 9999, which certificates cannot tell.
    pub(super) fn date_time(self) -> Option<OffsetDateTime> {
        OffsetDateTime::from_unix_timestamp(i64::try_from(self.0).ok()?).ok()
    }

    /// Of a certificate; what lies before 1970 counts as 1970.
    pub(super) fn of_certificate(time: ASN1Time) -> Self {
        Self(u64::try_from(time.timestamp()).unwrap_or(0))
    }
}

impl From<UnixTime> for Moment {
    fn from(time: UnixTime) -> Self {
        Self(time.as_secs())
    }
}

impl From<Moment> for UnixTime {
    fn from(moment: Moment) -> Self {
        Self::since_unix_epoch(Duration::from_secs(moment.0))
    }
}

impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(at) = self.date_time() else { return write!(f, "{} s after 1970", self.0) };
        let (year, month, day) = at.to_calendar_date();
        let (hour, minute, second) = at.to_hms();
        write!(f, "{year:04}-{:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z", u8::from(month))
    }
}
