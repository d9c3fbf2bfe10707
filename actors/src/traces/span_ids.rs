//! The ids of traces and spans, as every node of a cluster computes them for itself: no node need tell another which span is the parent of its own.
//!
//! They are hashes, keyed so that two clusters that share a collector never meet, of what a span is of: the request, or the stream, or the hop.

use relevo_wire::{RequestId, TraceContext};

use super::recent_spans::ClosedSpan;

/// What the secret is used for here, see [`blake3::derive_key`].
const CONTEXT: &str = "relevo 2026-11 trace ids";

/// Gives spans their ids.
#[derive(Clone, Debug)]
pub struct SpanIds {
    key: [u8; 32],
}

/// Where a span stands in its trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpanPlace {
    /// The client's trace, else the request's own.
    pub trace_id: u128,
    /// This span.
    pub span_id: u64,
    /// The one that it is part of.
    pub parent_id: Option<u64>,
}

impl Default for SpanIds {
    /// For a process that nobody else's spans are held against.
    fn default() -> Self {
        Self::of_secret(&[0; 32])
    }
}

impl SpanIds {
    /// As all have them that know this secret.
    pub fn of_secret(secret: &[u8; 32]) -> Self {
        Self { key: blake3::derive_key(CONTEXT, secret) }
    }

    /// The trace of a request that came with `context`.
    pub fn trace_id(&self, request: RequestId, context: Option<TraceContext>) -> u128 {
        let own = || {
            let bytes: [u8; 16] = self.hash("trace", &request.to_string());
            u128::from_le_bytes(bytes).max(1)
        };
        context.map_or_else(own, |context| context.trace_id)
    }

    /// Where a span of a request that came with `context` stands.
    pub fn place(&self, span: &ClosedSpan, context: Option<TraceContext>) -> SpanPlace {
        let (request, choice) = (span.sequence.request, span.sequence.choice);
        let generation = self.span_id("generation", &request.to_string());
        let gateway = self.span_id("gateway", &format!("{request}/{choice}"));
        let (span_id, parent_id) = match &*span.hop {
            "generation" => (generation, context.map(|context| context.parent_id)),
            "gateway" => (gateway, Some(generation)),
            // Below a hop there is nothing, so that nobody else need find its id. One may be gone through again, elsewhere or later.
            hop => (self.span_id(hop, &format!("{}/{}", span.sequence, self.details(span))), Some(gateway)),
        };
        SpanPlace { trace_id: self.trace_id(request, context), span_id, parent_id }
    }

    fn details(&self, span: &ClosedSpan) -> String {
        let of = |name| span.text(name).unwrap_or_default();
        format!("{}/{}/{}/{}", of("device"), of("from"), of("lease"), span.started_unix_ns)
    }

    fn span_id(&self, hop: &str, of: &str) -> u64 {
        u64::from_le_bytes(self.hash(hop, of)).max(1)
    }

    fn hash<const N: usize>(&self, hop: &str, of: &str) -> [u8; N] {
        let mut id = [0; N];
        let mut hasher = blake3::Hasher::new_keyed(&self.key);
        hasher.update(hop.as_bytes()).update(b"/").update(of.as_bytes()).finalize_xof().fill(&mut id);
        id
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use relevo_wire::SequenceId;

    use super::super::recent_spans::FieldValue;
    use super::*;

    fn span(hop: &'static str, choice: u32, attempt: u32, device: &str) -> ClosedSpan {
        ClosedSpan {
            hop: hop.into(),
            sequence: SequenceId { request: RequestId(7), choice, attempt },
            started_unix_ns: 5,
            duration_ns: 6,
            fields: vec![("device".into(), FieldValue::Text(device.to_owned()))],
        }
    }

    #[test]
    fn nodes_that_know_the_secret_agree_and_no_two_spans_have_one_id() {
        let (here, there) = (SpanIds::of_secret(&[1; 32]), SpanIds::of_secret(&[1; 32]));
        let mut spans = vec![span("generation", 0, 0, "")];
        for choice in 0..2 {
            spans.push(span("gateway", choice, 0, ""));
            for attempt in 0..2 {
                for device in ["device-0@01", "device-0@02"] {
                    spans.extend(["queue", "decode"].map(|hop| span(hop, choice, attempt, device)));
                }
            }
        }
        let ids: BTreeSet<u64> = spans.iter().map(|span| here.place(span, None).span_id).collect();
        assert_eq!(ids.len(), spans.len());
        for span in &spans {
            assert_eq!(here.place(span, None), there.place(span, None));
        }
        let other = SpanIds::of_secret(&[2; 32]);
        assert_ne!(here.trace_id(RequestId(7), None), other.trace_id(RequestId(7), None));
    }

    #[test]
    fn each_hop_is_below_its_stream_and_that_below_its_request_and_that_below_the_client() {
        let ids = SpanIds::default();
        let context = TraceContext { trace_id: 10, parent_id: 11, is_sampled: true };
        let [generation, gateway, decode] =
            [span("generation", 0, 0, ""), span("gateway", 3, 0, ""), span("decode", 3, 2, "d")]
                .map(|span| ids.place(&span, Some(context)));
        assert_eq!([generation.trace_id, gateway.trace_id, decode.trace_id], [10; 3]);
        assert_eq!(generation.parent_id, Some(11));
        assert_eq!(gateway.parent_id, Some(generation.span_id));
        assert_eq!(decode.parent_id, Some(gateway.span_id));
        let alone = ids.place(&span("generation", 0, 0, ""), None);
        assert_eq!((alone.parent_id, alone.trace_id), (None, ids.trace_id(RequestId(7), None)));
    }
}
