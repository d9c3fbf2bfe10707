//! Sizes as a person types them: `2GiB`.

use std::fmt;
use std::str::FromStr;

/// A number of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteSize(pub u64);

/// Units and their bytes; a unit is matched without regard to case.
const UNITS: [(&str, u64); 9] = [
    ("B", 1),
    ("KB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("TB", 1_000_000_000_000),
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
];

/// What is wrong with a size. The user's fault.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ByteSizeError {
    /// No number, or one that is not finite and positive.
    #[error("`{0}` does not begin with a number greater than 0, expected a size such as 2GiB or 512MiB")]
    Number(String),
    /// A number without a unit.
    #[error("`{0}` has no unit, expected a size such as 2GiB or 512MiB (units: B, KB, MB, GB, TB, KiB, MiB, GiB, TiB)")]
    NoUnit(String),
    /// A unit that does not exist.
    #[error("unit `{unit}` of `{text}` is unknown, expected B, KB, MB, GB, TB, KiB, MiB, GiB or TiB")]
    Unit {
        /// As typed.
        text: String,
        /// Its unit.
        unit: String,
    },
    /// More than 64 bits hold.
    #[error("`{0}` is more than 16777215 TiB")]
    TooLarge(String),
}

impl FromStr for ByteSize {
    type Err = ByteSizeError;

    fn from_str(text: &str) -> Result<Self, ByteSizeError> {
        let trimmed = text.trim();
        let digits = trimmed.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(trimmed.len());
        let (number, unit) = (&trimmed[..digits], trimmed[digits..].trim());
        let value: f64 = number.parse().map_err(|_| ByteSizeError::Number(text.to_owned()))?;
        if value <= 0.0 || !value.is_finite() {
            return Err(ByteSizeError::Number(text.to_owned()));
        }
        if unit.is_empty() {
            return Err(ByteSizeError::NoUnit(text.to_owned()));
        }
        let (_, factor) = UNITS
            .into_iter()
            .find(|(name, _)| name.eq_ignore_ascii_case(unit))
            .ok_or_else(|| ByteSizeError::Unit { text: text.to_owned(), unit: unit.to_owned() })?;
        let bytes = (value * factor as f64).round();
        if bytes >= u64::MAX as f64 {
            return Err(ByteSizeError::TooLarge(text.to_owned()));
        }
        Ok(Self(bytes as u64))
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&crate::terminal::bytes(self.0))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn sizes_with_a_unit_are_read() {
        let cases = [
            ("2GiB", 2 << 30),
            ("512MiB", 512 << 20),
            ("1.5 gib", 3 << 29),
            ("1GB", 1_000_000_000),
            ("64kib", 64 << 10),
            ("7B", 7),
        ];
        for (text, bytes) in cases {
            assert_eq!(text.parse(), Ok(ByteSize(bytes)), "{text}");
        }
    }

    #[test]
    fn a_wrong_size_says_what_is_wrong_with_it() {
        let says = |text: &str| text.parse::<ByteSize>().unwrap_err().to_string();
        assert!(says("2048").contains("has no unit"), "{}", says("2048"));
        assert!(says("2Gi").contains("unit `Gi`"), "{}", says("2Gi"));
        for text in ["", "GiB", "-2GiB", "0GiB", "1.2.3GiB"] {
            assert!(says(text).contains("does not begin with a number"), "{text}: {}", says(text));
        }
        assert!(says("99999999999TiB").contains("is more than"), "{}", says("99999999999TiB"));
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused_without_a_panic(text in "\\PC{0,12}") {
            let _ = text.parse::<ByteSize>();
        }
    }
}
