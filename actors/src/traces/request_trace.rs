//! A request's spans over all nodes, as `relevo trace` tells of them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::recent_spans::{ClosedSpan, FieldValue};

/// All that is kept of a request.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct RequestTrace {
    /// Its id within the cluster, such as `request-7`.
    pub request: String,
    /// Its trace, as a collector has it: 32 hexadecimal digits.
    pub trace_id: String,
    /// Who was asked.
    pub nodes: Vec<AskedNode>,
    /// What was done for it, in the order in which it was begun.
    pub spans: Vec<PlacedSpan>,
}

/// A node that may have done something for it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct AskedNode {
    /// Its name.
    pub name: String,
    /// Whether it told; what one that did not has done is missing.
    pub answered: bool,
    /// How far its clock is ahead of the gateway's, in milliseconds, as measured when it was asked: its spans are placed by it. Absent where the clocks
    /// agree as far as that can tell, and are taken as they are.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clock_ahead_ms: Option<f64>,
    /// How far off its spans may be placed for all that, in milliseconds: half the time that it took to answer.
    pub clock_error_ms: f64,
}

/// A span, placed on the gateway's clock.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct PlacedSpan {
    /// What was done.
    pub hop: String,
    /// Where.
    pub node: String,
    /// On which device of that node, if on one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    /// For which answer of the request.
    pub choice: u32,
    /// In which attempt.
    pub attempt: u32,
    /// From the beginning of the first span, in milliseconds.
    pub start_ms: f64,
    /// In milliseconds.
    pub duration_ms: f64,
    /// What else it says.
    pub fields: BTreeMap<String, FieldValue>,
}

/// What a node says of a request, and of its clock.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct NodeSpans {
    /// Nanoseconds since 1970 when it said so.
    pub unix_ns: u64,
    /// In the order in which they closed.
    pub spans: Vec<ClosedSpan>,
}

/// A node's clock, held against this one's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct ClockReading {
    /// What its clock is ahead, in nanoseconds.
    ahead_ns: i64,
    /// How far that may be off.
    error_ns: u64,
}

impl ClockReading {
    /// A node said `theirs` in an answer to what was asked at `asked`, and came `round_trip_ns` later.
    ///
    /// As in NTP (RFC 5905 section 8): the answer was written at any time in between, so the middle is off by half of it at most.
    pub(crate) fn of_answer(asked: u64, theirs: u64, round_trip_ns: u64) -> Self {
        let middle = asked.saturating_add(round_trip_ns / 2);
        let ahead_ns = i64::try_from(i128::from(theirs) - i128::from(middle)).unwrap_or_default();
        Self { ahead_ns, error_ns: round_trip_ns / 2 }
    }

    /// What is known for sure to be wrong, and nothing less: a clock that may be right is believed.
    fn correction_ns(self) -> i64 {
        if self.ahead_ns.unsigned_abs() > self.error_ns { self.ahead_ns } else { 0 }
    }

    /// How it is told.
    pub(crate) fn tell(self, name: String) -> AskedNode {
        let correction = self.correction_ns();
        AskedNode {
            name,
            answered: true,
            clock_ahead_ms: (correction != 0).then(|| milliseconds(correction)),
            clock_error_ms: milliseconds(i64::try_from(self.error_ns).unwrap_or(i64::MAX)),
        }
    }
}

/// Puts the spans of several nodes on one clock, in the order of their beginning.
pub(crate) fn place(told: Vec<(String, ClockReading, Vec<ClosedSpan>)>) -> Vec<PlacedSpan> {
    let mut begun: Vec<(i64, String, ClosedSpan)> = Vec::new();
    for (node, clock, spans) in told {
        for span in spans {
            let start = i64::try_from(span.started_unix_ns).unwrap_or_default();
            begun.push((start.saturating_sub(clock.correction_ns()), node.clone(), span));
        }
    }
    // What began at the same time: the longer one is around the other.
    begun.sort_by_key(|(start, _, span)| (*start, std::cmp::Reverse(span.duration_ns)));
    let first = begun.first().map_or(0, |(start, _, _)| *start);
    begun.into_iter().map(|(start, node, span)| placed(start.saturating_sub(first), node, span)).collect()
}

fn placed(start_ns: i64, node: String, span: ClosedSpan) -> PlacedSpan {
    let device = span.text("device").map(|device| device.split('@').next().unwrap_or_default().to_owned());
    let fields = span.fields.into_iter().filter(|(name, _)| name != "device");
    PlacedSpan {
        hop: span.hop.into_owned(),
        node,
        device,
        choice: span.sequence.choice,
        attempt: span.sequence.attempt,
        start_ms: milliseconds(start_ns),
        duration_ms: milliseconds(i64::try_from(span.duration_ns).unwrap_or(i64::MAX)),
        fields: fields.map(|(name, value)| (name.into_owned(), value)).collect(),
    }
}

/// To the microsecond, as far as clocks go.
fn milliseconds(nanoseconds: i64) -> f64 {
    (nanoseconds as f64 / 1e3).round() / 1e3
}

#[cfg(test)]
mod tests {
    use relevo_wire::{RequestId, SequenceId};

    use super::*;

    fn span(hop: &'static str, started_unix_ns: u64, duration_ns: u64) -> ClosedSpan {
        let sequence = SequenceId { request: RequestId(1), choice: 0, attempt: 0 };
        let device = ("device".into(), FieldValue::Text("device-0@01ab2f".to_owned()));
        ClosedSpan { hop: hop.into(), sequence, started_unix_ns, duration_ns, fields: vec![device] }
    }

    fn order(spans: &[PlacedSpan]) -> Vec<(&str, f64)> {
        spans.iter().map(|span| (span.hop.as_str(), span.start_ms)).collect()
    }

    #[test]
    fn a_clock_that_is_surely_wrong_is_corrected_and_one_that_may_be_right_is_not() {
        let here = || ("here".to_owned(), ClockReading::default(), vec![span("gateway", 10_000_000, 9_000_000)]);
        // Asked at 50 ms, answered after 2 ms: it should say 51 ms.
        let slow = ClockReading::of_answer(50_000_000, 41_000_000, 2_000_000);
        let there = ("there".to_owned(), slow, vec![span("decode", 2_000_000, 1_000_000)]);
        assert_eq!(order(&place(vec![here(), there])), [("gateway", 0.0), ("decode", 2.0)]);
        let told = slow.tell("there".to_owned());
        assert_eq!((told.clock_ahead_ms, told.clock_error_ms), (Some(-10.0), 1.0));

        let near = ClockReading::of_answer(50_000_000, 51_900_000, 2_000_000);
        let there = ("there".to_owned(), near, vec![span("decode", 12_000_000, 1_000_000)]);
        assert_eq!(order(&place(vec![here(), there])), [("gateway", 0.0), ("decode", 2.0)]);
        assert_eq!(near.tell("there".to_owned()).clock_ahead_ms, None);
    }

    #[test]
    fn what_a_node_says_of_its_clock_overflows_nothing() {
        for theirs in [0, u64::MAX] {
            for asked in [0, u64::MAX] {
                let clock = ClockReading::of_answer(asked, theirs, u64::MAX);
                let _ = clock.tell("n".to_owned());
                let spans = vec![span("decode", u64::MAX, u64::MAX), span("decode", 0, 0)];
                assert_eq!(place(vec![("n".to_owned(), clock, spans)]).len(), 2);
            }
        }
    }

    #[test]
    fn a_device_is_told_beside_its_node() {
        let placed = place(vec![("here".to_owned(), ClockReading::default(), vec![span("decode", 1, 1)])]);
        assert_eq!(placed[0].device.as_deref(), Some("device-0"));
        assert!(placed[0].fields.is_empty());
    }
}
