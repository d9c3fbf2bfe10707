//! The workers that keep requests open, and what each request showed.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use indicatif::ProgressBar;
use relevo_actors::clock;
use relevo_wire::Instant64;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::ServeArgs;
use crate::bench::random::SplitMix64;
use crate::http_client::{ApiClient, ClientError};

/// First token id of a random prompt: below lie control tokens and single bytes.
const FIRST_TOKEN_ID: u64 = 300;

/// Words of a random chat; each is one token or two in the usual vocabularies.
const WORDS: [&str; 16] = [
    "river", "stone", "light", "garden", "window", "paper", "music", "table", "winter", "bridge", "letter", "silver",
    "forest", "engine", "market", "ocean",
];

/// What all requests together showed.
#[derive(Debug)]
pub(super) struct Measured {
    /// From the first request sent to the last one ended.
    pub(super) wall: Duration,
    /// One for each request, in the order they ended.
    pub(super) outcomes: Vec<Result<Timing, String>>,
}

/// What one request showed.
#[derive(Clone, Debug, Default)]
pub(super) struct Timing {
    /// From the request sent to its first token.
    pub(super) ttft: Duration,
    /// Between two events that bring text.
    pub(super) gaps: Vec<Duration>,
    /// From the first token to the last, over the tokens after the first; `None` if there was one token.
    pub(super) tpot: Option<Duration>,
    /// As the server counts.
    pub(super) prompt_tokens: u64,
    /// As the server counts, else events.
    pub(super) completion_tokens: u64,
}

/// Sends all requests and waits for them.
pub(super) async fn run(args: &Arc<ServeArgs>, client: &ApiClient, model: &str, progress: &ProgressBar) -> Measured {
    let next = Arc::new(AtomicUsize::new(0));
    let start = clock::now();
    let mut workers = JoinSet::new();
    for _ in 0..args.concurrency.get().min(args.requests.get()) {
        let (args, client, model) = (Arc::clone(args), client.clone(), model.to_owned());
        let (next, progress) = (Arc::clone(&next), progress.clone());
        workers.spawn(async move {
            let mut outcomes = Vec::new();
            loop {
                let index = next.fetch_add(1, Ordering::Relaxed);
                if index >= args.requests.get() {
                    return outcomes;
                }
                outcomes.push(request(&args, &client, &model, index).await);
                progress.inc(1);
            }
        });
    }
    let outcomes = workers.join_all().await.into_iter().flatten().collect();
    Measured { wall: clock::now().since(start), outcomes }
}

async fn request(args: &ServeArgs, client: &ApiClient, model: &str, index: usize) -> Result<Timing, String> {
    let (path, body) = body(args, model, index);
    let sent = clock::now();
    let mut events = client.post_stream(path, &body).await.map_err(|error| kind_of(&error))?;
    let mut watch = Watch { sent, first: None, last: sent, timing: Timing::default(), num_events: 0 };
    while let Some(data) = events.next().await.map_err(|error| error.to_string())? {
        if data == "[DONE]" {
            break;
        }
        watch.see(&data, clock::now())?;
    }
    watch.finish()
}

/// What went wrong, without what differs from request to request.
fn kind_of(error: &ClientError) -> String {
    match error {
        ClientError::Refused { status, message, .. } => format!("{status}: {message}"),
        other => other.to_string(),
    }
}

/// A stream under observation.
struct Watch {
    sent: Instant64,
    first: Option<Instant64>,
    last: Instant64,
    timing: Timing,
    num_events: u64,
}

impl Watch {
    fn see(&mut self, data: &str, now: Instant64) -> Result<(), String> {
        let event: Value = serde_json::from_str(data).map_err(|error| format!("an event is no JSON: {error}"))?;
        if let Some(message) = event["error"]["message"].as_str() {
            return Err(format!("error event: {message}"));
        }
        if let Some(count) = event["usage"]["completion_tokens"].as_u64() {
            self.timing.completion_tokens = count;
            self.timing.prompt_tokens = event["usage"]["prompt_tokens"].as_u64().unwrap_or(0);
        }
        let choice = &event["choices"][0];
        let text = choice["text"].as_str().or(choice["delta"]["content"].as_str());
        if text.is_none_or(str::is_empty) {
            return Ok(());
        }
        self.num_events += 1;
        match self.first {
            None => {
                self.first = Some(now);
                self.timing.ttft = now.since(self.sent);
            }
            Some(_) => self.timing.gaps.push(now.since(self.last)),
        }
        self.last = now;
        Ok(())
    }

    fn finish(mut self) -> Result<Timing, String> {
        let first = self.first.ok_or_else(|| "a stream without text".to_owned())?;
        if self.timing.completion_tokens == 0 {
            self.timing.completion_tokens = self.num_events;
        }
        let after_first = u32::try_from(self.timing.completion_tokens - 1).unwrap_or(u32::MAX);
        self.timing.tpot = (after_first > 0).then(|| self.last.since(first) / after_first);
        Ok(self.timing)
    }
}

fn body(args: &ServeArgs, model: &str, index: usize) -> (&'static str, Value) {
    let mut random = SplitMix64::new(args.seed.wrapping_mul(0x9e37_79b9).wrapping_add(index as u64));
    let common = json!({
        "model": model, "max_tokens": args.generate, "temperature": 0, "ignore_eos": true,
        "stream": true, "stream_options": {"include_usage": true},
    });
    let count = 0..args.prompt.get();
    let (path, key, value) = if args.chat {
        let words: Vec<&str> = count.map(|_| WORDS[random.below(WORDS.len() as u64) as usize]).collect();
        ("/v1/chat/completions", "messages", json!([{"role": "user", "content": words.join(" ")}]))
    } else {
        let span = u64::from(args.max_token_id) - FIRST_TOKEN_ID;
        let ids: Vec<u64> = count.map(|_| FIRST_TOKEN_ID + random.below(span)).collect();
        ("/v1/completions", "prompt", json!(ids))
    };
    let mut body = common;
    body[key] = value;
    (path, body)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Instant64 {
        Instant64(ms * 1_000_000)
    }

    fn watch() -> Watch {
        Watch { sent: at(100), first: None, last: at(100), timing: Timing::default(), num_events: 0 }
    }

    #[test]
    fn a_stream_is_timed_by_the_events_that_bring_text() {
        let mut watch = watch();
        watch.see(r#"{"choices":[{"delta":{"role":"assistant","content":""}}]}"#, at(105)).unwrap();
        watch.see(r#"{"choices":[{"delta":{"content":"a"}}]}"#, at(120)).unwrap();
        watch.see(r#"{"choices":[{"text":"b"}]}"#, at(130)).unwrap();
        watch.see(r#"{"choices":[{"text":"c"}]}"#, at(150)).unwrap();
        watch.see(r#"{"choices":[],"usage":{"prompt_tokens":7,"completion_tokens":4}}"#, at(160)).unwrap();
        let timing = watch.finish().unwrap();
        assert_eq!(timing.ttft, Duration::from_millis(20));
        assert_eq!(timing.gaps, [Duration::from_millis(10), Duration::from_millis(20)]);
        assert_eq!(timing.tpot, Some(Duration::from_millis(10)));
        assert_eq!((timing.prompt_tokens, timing.completion_tokens), (7, 4));
    }

    #[test]
    fn an_error_event_and_an_empty_stream_are_failures() {
        assert_eq!(watch().see(r#"{"error":{"message":"shut"}}"#, at(1)).unwrap_err(), "error event: shut");
        assert!(watch().see("{", at(1)).unwrap_err().starts_with("an event is no JSON"));
        assert_eq!(watch().finish().unwrap_err(), "a stream without text");
    }
}
