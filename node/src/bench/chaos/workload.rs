//! The load: streams of mixed kinds, each compared with what a single process says.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::try_join_all;
use relevo_actors::clock;
use relevo_wire::Instant64;
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::subject::Subject;
use crate::bench::random::SplitMix64;
use crate::cli::Failure;
use crate::http_client::{ApiClient, ClientError, EventStream};

/// Pause of a client that was told to come back later.
const AFTER_REFUSAL: Duration = Duration::from_millis(100);

/// Words of prompts.
const WORDS: [&str; 8] = ["river", "stone", "light", "garden", "window", "paper", "music", "table"];

/// One of the requests that are sent over and over.
#[derive(Clone, Debug)]
pub(super) struct Variant {
    body: Value,
    /// Its client hangs up after that many tokens.
    aborts_after: Option<usize>,
    /// Its prompt is long: prefilled anew, it is what a stream waits for.
    is_long: bool,
}

/// How one request ended.
#[derive(Clone, Debug)]
pub(super) struct Outcome {
    pub(super) end: End,
    pub(super) sent: Instant64,
    pub(super) ended: Instant64,
    /// To the first token.
    pub(super) ttft: Option<Duration>,
    /// The longest pause between two tokens, and when it began.
    pub(super) longest_gap: Option<(Instant64, Duration)>,
    pub(super) is_long: bool,
}

/// Its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// With all its tokens.
    Complete,
    /// With other tokens than those of a single process.
    Wrong(String),
    /// Its client hung up.
    Aborted,
    /// It was not accepted: 429 or 503.
    Refused,
    /// It was accepted, and failed.
    Failed(String),
}

impl Variant {
    /// `count` of them: three of eight are long, one of eight hangs up, half are greedy.
    pub(super) fn all(seed: u64, count: u64) -> Arc<[Self]> {
        let mut random = SplitMix64::new(seed ^ 0x6c6f_6164);
        (0..count).map(|index| Self::new(index, &mut random)).collect()
    }

    fn new(index: u64, random: &mut SplitMix64) -> Self {
        let is_long = index % 8 < 3;
        let num_words = if is_long { 150 + random.below(250) } else { 4 + random.below(40) };
        let words: Vec<_> = (0..num_words).map(|_| WORDS[random.below(WORDS.len() as u64) as usize]).collect();
        let max_tokens = 16 + random.below(if is_long { 32 } else { 128 });
        let body = json!({
            "prompt": format!("{index} {}", words.join(" ")),
            "max_tokens": max_tokens, "ignore_eos": true, "stream": true,
            "temperature": if index.is_multiple_of(2) { 0.0 } else { 0.8 }, "seed": index,
            "logprobs": 0, "return_tokens_as_token_ids": true,
        });
        let aborts_after = (index % 8 == 7).then(|| 1 + random.below(max_tokens / 2) as usize);
        Self { body, aborts_after, is_long }
    }
}

/// What each variant's tokens are, one after the other.
pub(super) async fn expected(client: &ApiClient, variants: &[Variant]) -> Result<Arc<[Vec<String>]>, Failure> {
    // All at a time: what shares a batch does not change what is said.
    let streams = variants.iter().map(|variant| async move {
        let mut stream = Watched::begin(client, variant).await?;
        stream.read(None).await.map_err(|reason| Failure::Promise(format!("the single process fails: {reason}")))?;
        Ok::<_, Failure>(stream.tokens)
    });
    Ok(try_join_all(streams).await?.into())
}

/// So many streams at a time.
pub(super) struct Load {
    num_streams: usize,
    variants: Arc<[Variant]>,
    expected: Arc<[Vec<String>]>,
    subject: Arc<Subject>,
}

impl Load {
    pub(super) fn new(
        num_streams: usize,
        variants: Arc<[Variant]>,
        expected: Arc<[Vec<String>]>,
        subject: Arc<Subject>,
    ) -> Self {
        Self { num_streams, variants, expected, subject }
    }

    /// Sends requests until it is told to stop, and waits for those that are open then.
    pub(super) async fn run(self, seed: u64, stop: CancellationToken) -> Vec<Outcome> {
        let load = Arc::new(self);
        let mut clients = JoinSet::new();
        for client in 0..load.num_streams as u64 {
            let (load, stop) = (Arc::clone(&load), stop.clone());
            let random = SplitMix64::new(seed.wrapping_mul(0x9e37_79b9).wrapping_add(client));
            clients.spawn(async move { load.client(random, &stop).await });
        }
        clients.join_all().await.into_iter().flatten().collect()
    }

    async fn client(&self, mut random: SplitMix64, stop: &CancellationToken) -> Vec<Outcome> {
        let mut outcomes = Vec::new();
        while !stop.is_cancelled() {
            let index = random.below(self.variants.len() as u64) as usize;
            let outcome = self.request(index).await;
            if outcome.end == End::Refused {
                sleep(AFTER_REFUSAL).await;
            }
            outcomes.push(outcome);
        }
        outcomes
    }

    async fn request(&self, index: usize) -> Outcome {
        let (variant, expected) = (&self.variants[index], &self.expected[index]);
        let sent = clock::now();
        let ended = |end, watched: Option<Watched>| Outcome {
            end,
            sent,
            ended: clock::now(),
            ttft: watched.as_ref().and_then(|watched| watched.first).map(|first| first.since(sent)),
            longest_gap: watched.and_then(|watched| watched.longest_gap),
            is_long: variant.is_long,
        };
        let mut stream = match Watched::begin(self.subject.client(), variant).await {
            Ok(stream) => stream,
            Err(ClientError::Refused { status, .. }) if matches!(status.as_u16(), 429 | 503) => {
                return ended(End::Refused, None);
            }
            Err(error) => return ended(End::Failed(error.to_string()), None),
        };
        let read = stream.read(variant.aborts_after).await;
        let end = match read {
            Err(reason) => End::Failed(reason),
            Ok(_) if !expected.starts_with(&stream.tokens) => End::Wrong(format!("variant {index}")),
            Ok(false) => End::Aborted,
            Ok(true) if stream.tokens.len() < expected.len() => {
                End::Wrong(format!("variant {index}: {} of {} tokens", stream.tokens.len(), expected.len()))
            }
            Ok(true) => End::Complete,
        };
        ended(end, Some(stream))
    }
}

/// A stream under observation.
struct Watched {
    events: EventStream,
    tokens: Vec<String>,
    first: Option<Instant64>,
    last: Instant64,
    longest_gap: Option<(Instant64, Duration)>,
}

impl Watched {
    async fn begin(client: &ApiClient, variant: &Variant) -> Result<Self, ClientError> {
        let events = client.post_stream("/v1/completions", &variant.body).await?;
        Ok(Self { events, tokens: Vec::new(), first: None, last: clock::now(), longest_gap: None })
    }

    /// Reads to the end, or until that many tokens have come; whether it was to the end.
    async fn read(&mut self, at_most: Option<usize>) -> Result<bool, String> {
        loop {
            let event = self.events.next().await.map_err(|error| error.to_string())?;
            let event = event.ok_or_else(|| format!("it broke off after {} tokens", self.tokens.len()))?;
            if event == "[DONE]" {
                return Ok(true);
            }
            self.see(&event)?;
            if at_most.is_some_and(|at_most| self.tokens.len() >= at_most) {
                return Ok(false);
            }
        }
    }

    fn see(&mut self, event: &str) -> Result<(), String> {
        let event: Value = serde_json::from_str(event).map_err(|error| error.to_string())?;
        if let Some(message) = event["error"]["message"].as_str() {
            return Err(message.to_owned());
        }
        let tokens = event["choices"][0]["logprobs"]["tokens"].as_array();
        let tokens = tokens.into_iter().flatten().filter_map(Value::as_str).map(str::to_owned);
        let before = self.tokens.len();
        self.tokens.extend(tokens);
        if self.tokens.len() == before {
            return Ok(());
        }
        let now = clock::now();
        let gap = now.since(self.last);
        if self.first.is_none() {
            self.first = Some(now);
        } else if self.longest_gap.is_none_or(|(_, longest)| gap > longest) {
            self.longest_gap = Some((self.last, gap));
        }
        self.last = now;
        Ok(())
    }
}
