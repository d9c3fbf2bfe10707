//! `relevo trace REQUEST`: what was done for a request on all nodes, as a tree with times or as JSON.

use relevo_actors::traces::{AskedNode, FieldValue, PlacedSpan, RequestTrace};

use crate::cli::Failure;
use crate::http_client::ServerArgs;
use crate::terminal::{self, Style};

/// Where a gateway tells it, before the request's id.
const TRACE_PATH: &str = "/relevo/trace/";

/// Arguments of `relevo trace`.
#[derive(Debug, clap::Args)]
pub struct TraceArgs {
    /// The id of its answer (chatcmpl-…, cmpl-…), its x-request-id, or its id within the cluster (request-…, as logs have it)
    #[arg(value_parser = request_id)]
    request: String,
    #[command(flatten)]
    server: ServerArgs,
    /// Print the server's own JSON
    #[arg(long)]
    json: bool,
}

/// What the guard takes for a request's id: nothing that a path would have to escape.
fn request_id(text: &str) -> Result<String, String> {
    let is_sane = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.:/".contains(&byte);
    match !text.is_empty() && text.bytes().all(is_sane) {
        true => Ok(text.to_owned()),
        false => Err("expected an id such as chatcmpl-0123 of letters, digits and - _ . : /".to_owned()),
    }
}

/// Asks and prints.
///
/// # Errors
/// See [`Failure`].
pub async fn run(args: &TraceArgs) -> Result<(), Failure> {
    let client = args.server.client()?;
    let path = format!("{TRACE_PATH}{}", args.request);
    if args.json {
        let trace: serde_json::Value = client.get(&path).await?;
        return Ok(terminal::print(trace)?);
    }
    let trace: RequestTrace = client.get(&path).await?;
    Ok(terminal::print(drawing(&trace, Style::of_stdout()))?)
}

/// The whole, as lines for a person.
fn drawing(trace: &RequestTrace, style: Style) -> String {
    let rows: Vec<_> =
        nested(&trace.spans).into_iter().map(|(branch, span)| (format!("{branch}{}", span.hop), span)).collect();
    let width_of = |lengths: &mut dyn Iterator<Item = usize>| lengths.max().unwrap_or(0);
    let hop_width = width_of(&mut rows.iter().map(|(hop, _)| hop.chars().count()));
    let place_width = width_of(&mut rows.iter().map(|(_, span)| place(span).chars().count()));
    let mut lines =
        vec![format!("{}  {}", style.strong(&trace.request), style.faint(format!("trace {}", trace.trace_id)))];
    lines.push(style.faint(format!("  {:>10}  {:>10}", "from ms", "for ms")));
    for (hop, span) in &rows {
        let padding = " ".repeat(hop_width - hop.chars().count());
        let times = format!("  {:>10.3}  {:>10.3}", span.start_ms, span.duration_ms);
        let line = format!("{times}  {hop}{padding}  {:place_width$}  {}", place(span), style.faint(fields(span)));
        lines.push(line.trim_end().to_owned());
    }
    if !trace.spans.iter().any(|span| span.hop == "generation") {
        lines.push("  It is still under way: what is open has no line yet.".to_owned());
    }
    lines.extend(trace.nodes.iter().filter_map(remark));
    lines.join("\n")
}

/// The spans as a tree, each with what is drawn before it: the request, below it its streams, below each its hops. What has no parent (that is still
/// open, or was given up) stands where it would stand below one.
fn nested(spans: &[PlacedSpan]) -> Vec<(&'static str, &PlacedSpan)> {
    let mut drawn: Vec<_> = spans.iter().filter(|span| span.hop == "generation").map(|span| ("", span)).collect();
    let mut choices: Vec<u32> = spans.iter().filter(|span| span.hop != "generation").map(|span| span.choice).collect();
    choices.sort_unstable();
    choices.dedup();
    for (index, choice) in choices.iter().enumerate() {
        let is_last = index + 1 == choices.len();
        let of_stream = |span: &&PlacedSpan| span.choice == *choice && span.hop != "generation";
        let (streams, hops): (Vec<_>, Vec<_>) = spans.iter().filter(of_stream).partition(|span| span.hop == "gateway");
        drawn.extend(streams.into_iter().map(|span| (if is_last { "└─ " } else { "├─ " }, span)));
        let num_hops = hops.len();
        drawn.extend(hops.into_iter().enumerate().map(|(index, span)| {
            let branch = match (is_last, index + 1 == num_hops) {
                (true, true) => "   └─ ",
                (true, false) => "   ├─ ",
                (false, true) => "│  └─ ",
                (false, false) => "│  ├─ ",
            };
            (branch, span)
        }));
    }
    drawn
}

fn place(span: &PlacedSpan) -> String {
    match &span.device {
        Some(device) => format!("{} {device}", span.node),
        None => span.node.clone(),
    }
}

fn fields(span: &PlacedSpan) -> String {
    let attempt = (span.attempt > 0).then(|| format!("attempt {}", span.attempt));
    let said = span.fields.iter().map(|(name, value)| match value {
        FieldValue::Flag(flag) => format!("{name} {flag}"),
        FieldValue::Count(count) => format!("{name} {count}"),
        FieldValue::Number(number) => format!("{name} {number}"),
        FieldValue::Text(text) => format!("{name} {text}"),
    });
    attempt.into_iter().chain(said).collect::<Vec<_>>().join(", ")
}

/// What is to be known of a node before its times are believed.
fn remark(node: &AskedNode) -> Option<String> {
    let AskedNode { name, answered, clock_ahead_ms, clock_error_ms } = node;
    match clock_ahead_ms {
        _ if !answered => Some(format!("  {name} did not answer: what it has done is missing.")),
        Some(ahead) => Some(format!(
            "  {name}'s clock is {:.3} ms {}, which is taken into account, to {clock_error_ms:.3} ms.",
            ahead.abs(),
            if *ahead > 0.0 { "fast" } else { "slow" }
        )),
        None if *clock_error_ms > 0.0 => {
            Some(format!("  {name}'s clock is taken as it is: it differs by less than {clock_error_ms:.3} ms."))
        }
        None => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(hop: &str, node: &str, times: (f64, f64)) -> PlacedSpan {
        PlacedSpan {
            hop: hop.into(),
            node: node.into(),
            start_ms: times.0,
            duration_ms: times.1,
            ..PlacedSpan::default()
        }
    }

    #[test]
    fn a_request_is_drawn_as_a_tree_with_its_nodes_and_times() {
        let mut gateway = span("gateway", "gw", (0.25, 51.0));
        gateway.fields.insert("tokens".to_owned(), FieldValue::Count(40));
        let decode =
            PlacedSpan { device: Some("device-0".into()), attempt: 1, ..span("decode", "decode-0", (12.5, 38.0)) };
        let second = PlacedSpan { choice: 1, ..span("gateway", "gw", (0.5, 9.0)) };
        let trace = RequestTrace {
            request: "request-7".into(),
            trace_id: "4bf9".into(),
            nodes: vec![
                AskedNode { name: "gw".into(), answered: true, ..AskedNode::default() },
                AskedNode { name: "decode-0".into(), answered: true, clock_ahead_ms: Some(-3.0), clock_error_ms: 0.25 },
                AskedNode { name: "decode-1".into(), answered: true, clock_error_ms: 0.125, ..AskedNode::default() },
                AskedNode { name: "prefill-0".into(), ..AskedNode::default() },
            ],
            spans: vec![
                span("generation", "gw", (0.0, 52.125)),
                gateway,
                second,
                span("route", "gw", (0.25, 0.5)),
                decode,
            ],
        };
        let expected = "\
request-7  trace 4bf9
     from ms      for ms
       0.000      52.125  generation    gw
       0.250      51.000  ├─ gateway    gw                 tokens 40
       0.250       0.500  │  ├─ route   gw
      12.500      38.000  │  └─ decode  decode-0 device-0  attempt 1
       0.500       9.000  └─ gateway    gw
  decode-0's clock is 3.000 ms slow, which is taken into account, to 0.250 ms.
  decode-1's clock is taken as it is: it differs by less than 0.125 ms.
  prefill-0 did not answer: what it has done is missing.";
        assert_eq!(drawing(&trace, Style::plain()), expected);
    }

    #[test]
    fn what_is_still_under_way_is_drawn_as_far_as_it_is_known() {
        let trace = RequestTrace { spans: vec![span("queue", "prefill-0", (0.0, 1.0))], ..RequestTrace::default() };
        let drawn = drawing(&trace, Style::plain());
        assert!(drawn.contains("└─ queue  prefill-0") && drawn.contains("still under way"), "{drawn}");
    }

    #[test]
    fn only_ids_are_asked_for() {
        assert_eq!(request_id("team/a:7").as_deref(), Ok("team/a:7"));
        for text in ["", "a b", "x?y", "é", "a%2e", "a#b"] {
            assert!(request_id(text).is_err(), "{text}");
        }
    }
}
