//! Finding stop strings in a text that comes in pieces.

/// The strings that end an answer.
///
/// The stop that is *complete first* counts, wherever the pieces' boundaries fall; of two that are complete at the same byte, the
/// longer. It is cut off, and so is all that follows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StopStrings {
    stops: Vec<String>,
}

impl StopStrings {
    /// Empty strings stop nothing and are left out.
    pub fn new(stops: impl IntoIterator<Item = String>) -> Self {
        Self { stops: stops.into_iter().filter(|stop| !stop.is_empty()).collect() }
    }

    /// Where the text before the stop ends, if there is one.
    pub(super) fn find(&self, text: &str) -> Option<usize> {
        let matches = self.stops.iter().filter_map(|stop| text.find(stop).map(|start| (start + stop.len(), start)));
        matches.min().map(|(_, start)| start)
    }

    /// Where the earliest stop may have begun: text before it can be shown, what follows has to wait.
    pub(super) fn held_from(&self, text: &str) -> usize {
        let longest = self.stops.iter().map(String::len).max().unwrap_or(0);
        let from = text.len().saturating_sub(longest.saturating_sub(1));
        let begins =
            |at: usize| text.get(at..).is_some_and(|rest| self.stops.iter().any(|stop| stop.starts_with(rest)));
        (from..text.len()).find(|&at| begins(at)).unwrap_or(text.len())
    }
}
