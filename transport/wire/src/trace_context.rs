//! The trace that a client's request belongs to, as the header `traceparent` names it: W3C Trace Context, level 1, section 3.2.

/// Whose trace a request goes on with, and below which of its spans.
#[derive(Clone, Copy, Debug, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct TraceContext {
    /// Never 0.
    pub trace_id: u128,
    /// The client's span; never 0.
    pub parent_id: u64,
    /// Whether the client keeps the trace; one that it does not keep is exported nowhere.
    pub is_sampled: bool,
}

/// Length of a header of version 0, of which the later versions are continuations.
const HEADER_BYTES: usize = 55;

impl TraceContext {
    /// Reads a header; `None` if it is none, which the standard has ignored.
    pub fn parse(header: &str) -> Option<Self> {
        let (known, rest) = header.split_at_checked(HEADER_BYTES)?;
        let mut parts = known.split('-');
        let version = hexadecimal(parts.next()?, 2)?;
        let trace_id = hexadecimal(parts.next()?, 32)?;
        let parent_id = u64::try_from(hexadecimal(parts.next()?, 16)?).ok()?;
        let flags = hexadecimal(parts.next()?, 2)?;
        let ends_well = rest.is_empty() || version > 0 && rest.starts_with('-');
        let context = Self { trace_id, parent_id, is_sampled: flags & 1 == 1 };
        (version != 0xff && ends_well && parts.next().is_none() && context.is_valid()).then_some(context)
    }

    /// Whether its ids are ids.
    pub(crate) fn is_valid(self) -> bool {
        self.trace_id != 0 && self.parent_id != 0
    }
}

/// Exactly so many lower-case digits.
fn hexadecimal(text: &str, num_digits: usize) -> Option<u128> {
    let is_digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    let is_number = text.len() == num_digits && text.bytes().all(is_digit);
    is_number.then(|| u128::from_str_radix(text, 16).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn the_header_of_the_standard_is_read() {
        let expected = TraceContext {
            trace_id: 0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736,
            parent_id: 0x00f0_67aa_0ba9_02b7,
            is_sampled: true,
        };
        assert_eq!(TraceContext::parse(HEADER), Some(expected));
        let unsampled = HEADER.replace("-01", "-00");
        assert_eq!(TraceContext::parse(&unsampled), Some(TraceContext { is_sampled: false, ..expected }));
        let later = format!("01{}-what-comes-then", &HEADER[2..]);
        assert_eq!(TraceContext::parse(&later), Some(expected), "a later version is read as far as it is known");
    }

    #[test]
    fn what_is_no_header_is_ignored() {
        let ids = "4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7";
        for header in [
            "",
            "00",
            &HEADER[..54],
            &format!("{HEADER}-more"),
            &format!("ff-{ids}-01"),
            &format!("01-{ids}-01more"),
            &format!("00-{}-01", ids.to_uppercase()),
            &format!("00-{}-00f067aa0ba902b7-01", "0".repeat(32)),
            &format!("00-4bf92f3577b34da6a3ce929d0e0e4736-{}-01", "0".repeat(16)),
            "00-+bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            &format!("00-{}-01", ids.replace("00f0", "ö0")),
        ] {
            assert_eq!(TraceContext::parse(header), None, "{header}");
        }
    }
}
