//! "Did you mean": the known name most like what was typed.

/// The name among `known` that is most like `given`, if one is like it at all. Ties go to the first.
pub fn nearest<'a>(given: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let given = given.to_lowercase();
    let mut best: Option<(f64, &str)> = None;
    for name in known {
        let likeness = likeness(&given, &name.to_lowercase());
        if likeness >= LEAST_LIKENESS && best.is_none_or(|(so_far, _)| likeness > so_far) {
            best = Some((likeness, name));
        }
    }
    best.map(|(_, name)| name)
}

/// Below this two names have nothing to do with each other; clap draws its line for flags at 0.7, but a half-typed name is meant, too.
const LEAST_LIKENESS: f64 = 0.6;

/// From 0 to 1: Jaro's measure, or 0.9 if one begins with the other.
fn likeness(given: &str, name: &str) -> f64 {
    let begins = given.len() >= 3 && (name.starts_with(given) || given.starts_with(name));
    strsim::jaro(given, name).max(if begins { 0.9 } else { 0.0 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_is_forgiven_and_a_stranger_is_not() {
        let known = ["smollm2", "Qwen3-0.6B.Q8_0", "threads"];
        assert_eq!(nearest("smolm2", known.into_iter()), Some("smollm2"));
        assert_eq!(nearest("qwen3", known.into_iter()), Some("Qwen3-0.6B.Q8_0"));
        assert_eq!(nearest("thread", known.into_iter()), Some("threads"));
        assert_eq!(nearest("zzzz", known.into_iter()), None);
        assert_eq!(nearest("", known.into_iter()), None);
    }
}
