//! Two devices, the death of a worker on each, and a reader who sees nothing of it: the real binary over HTTP.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that cannot go on fails")]

mod program;

use program::{DEADLINE, Scrape, Server, default_model};
use relevo::http_client::ApiClient;
use relevo_actors::clock;
use serde_json::{Value, json};

/// Prefill and decode apart. The decode engine dies in the middle of the answer, the prefill actor about when the prompt is run again.
const TWO_DEVICES_THAT_DIE: &str = r#"
[router]
disaggregate = "always"

[[device]]
roles = ["prefill"]
threads = 1
kv_memory_mib = 128

[[device]]
roles = ["decode"]
threads = 1
kv_memory_mib = 128

[testing]
faults = [
  { kind = "panic-engine", device = "cpu1", step = 20 },
  { kind = "panic-actor", actor = "device-0/prefill", message = 7 },
]
"#;

/// One answer out of its events.
#[derive(Debug, Default, PartialEq)]
struct Answer {
    text: String,
    tokens: Vec<Value>,
    logprobs: Vec<Value>,
    finish: Option<String>,
    usage: Value,
}

/// A seeded stream with everything that a draw depends on, read to its end.
fn stream(url: &str) -> Answer {
    let body = json!({
        "prompt": "The lighthouse keeper opened the old book, and on its first page he found",
        "max_tokens": 60, "ignore_eos": true, "stream": true, "stream_options": {"include_usage": true},
        "temperature": 0.9, "top_p": 0.95, "top_k": 50, "min_p": 0.01, "seed": 7,
        "frequency_penalty": 0.3, "presence_penalty": 0.2, "repetition_penalty": 1.1,
        "logprobs": 2, "return_tokens_as_token_ids": true,
    });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let client = ApiClient::new(url, None).unwrap();
        let mut events = client.post_stream("/v1/completions", &body).await.unwrap();
        let mut answer = Answer::default();
        loop {
            let event = tokio::time::timeout(DEADLINE, events.next()).await.unwrap().unwrap();
            let event = event.expect("a stream ends with [DONE]");
            if event == "[DONE]" {
                return answer;
            }
            answer.add(&serde_json::from_str(&event).unwrap());
        }
    })
}

impl Answer {
    fn add(&mut self, event: &Value) {
        assert!(event.get("error").is_none(), "{event}");
        let Some(choice) = event["choices"].get(0) else {
            self.usage = event["usage"].clone();
            return;
        };
        assert_eq!(self.finish, None, "an event after the end: {event}");
        self.text += choice["text"].as_str().unwrap();
        let list = |name: &str| choice["logprobs"][name].as_array().cloned().unwrap_or_default();
        self.tokens.extend(list("tokens"));
        self.logprobs.extend(list("token_logprobs").into_iter().chain(list("top_logprobs")));
        self.finish = choice["finish_reason"].as_str().map(str::to_owned);
    }
}

/// Blocks that are held for somebody.
fn held_blocks(scrape: &Scrape) -> u64 {
    ["active", "leased"]
        .map(|state| scrape.sum("relevo_kv_blocks", &format!("state=\"{state}\"")).expect("the gauge is there"))
        .iter()
        .sum()
}

#[test]
fn a_seeded_stream_over_two_devices_that_die_is_the_one_of_a_single_device() {
    default_model();
    let one = Server::start(&[]);
    let expected = stream(&one.url);
    assert_eq!((expected.tokens.len(), expected.finish.as_deref()), (60, Some("length")));
    assert_eq!(Scrape::of(&one.url).sum("relevo_replays_total", ""), None);
    assert_eq!(one.stop("TERM").stderr, "SIGTERM: stopping; once more stops at once\n");

    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("relevo.toml");
    std::fs::write(&path, TWO_DEVICES_THAT_DIE).unwrap();
    let two = Server::with_config(&path, &["--allow-faults"]);
    assert_eq!(stream(&two.url), expected);

    let scrape = Scrape::of(&two.url);
    for actor in ["device-1/engine", "device-0/prefill"] {
        assert_eq!(scrape.sum("relevo_restarts_total", &format!("actor=\"{actor}\"")), Some(1), "{actor}: {scrape:?}");
    }
    // Twice, if the second death did not fall between two messages that matter.
    assert!(scrape.sum("relevo_replays_total", "").unwrap() >= 1, "{scrape:?}");
    assert_eq!(scrape.sum("relevo_contradicted_tokens_total", ""), None);
    assert!(scrape.sum("relevo_kv_bytes_handed_over_total", "carrier=\"in-process\"").unwrap() > 0, "{scrape:?}");
    assert_eq!(scrape.sum("relevo_kv_bytes_handed_over_total", "carrier=\"same-pool\""), None, "{scrape:?}");
    let began = clock::now();
    while held_blocks(&Scrape::of(&two.url)) > 0 {
        assert!(clock::now().since(began) < DEADLINE, "blocks are held: {:?}", Scrape::of(&two.url));
    }
    let end = two.stop("TERM");
    assert_eq!(end.status.code(), Some(0), "{end:?}");
    assert!(end.stderr.contains("a new epoch begins") && end.stderr.contains("died, is restarted"), "{end:?}");
}
