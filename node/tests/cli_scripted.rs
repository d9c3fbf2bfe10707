//! `relevo up --device scripted:FILE`: the whole server without a model, and answers that are known to the byte.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that cannot go on fails")]

mod program;

use std::path::{Path, PathBuf};
use std::time::Duration;

use program::{Scrape, Server, finish, post, relevo};
use relevo_actors::clock;
use serde_json::{Value, json};

/// A folder with a file in it.
struct Files(tempfile::TempDir);

impl Files {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn add(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    }

    /// A server with one scripted device.
    fn serve(&self, script: &str) -> Server {
        let path = self.add("script.toml", script);
        Server::start(&["--device", &format!("scripted:{}", path.display())])
    }
}

fn answer(server: &Server, path: &str, body: &Value) -> Value {
    let (status, body) = post(&server.url, path, body);
    assert_eq!(status, 200, "{body}");
    serde_json::from_str(&body).unwrap()
}

fn text(server: &Server, body: &Value) -> String {
    answer(server, "/v1/completions", body)["choices"][0]["text"].as_str().unwrap().to_owned()
}

#[test]
fn an_echo_is_exact_to_the_byte() {
    let files = Files::new();
    let server = files.serve("tokens = \"echo\"\nname = \"parrot\"");
    let whole = answer(&server, "/v1/completions", &json!({"prompt": "héllo", "max_tokens": 8}));
    let (id, created) = (whole["id"].as_str().unwrap(), whole["created"].as_u64().unwrap());
    assert_eq!(
        whole,
        json!({
            "id": id, "object": "text_completion", "created": created, "model": "parrot",
            "choices": [{"index": 0, "text": "hélloh\u{fffd}", "logprobs": null, "finish_reason": "length"}],
            "usage": {
                "prompt_tokens": 6, "completion_tokens": 8, "total_tokens": 14,
                "prompt_tokens_details": {"cached_tokens": 0},
            },
        })
    );
    let tokens = answer(&server, "/tokenize", &json!({"prompt": "a<|end|>é"}));
    assert_eq!(tokens["tokens"], json!([97, 257, 195, 169]));
    let back = answer(&server, "/detokenize", &json!({"tokens": [97, 300, 195, 169]}));
    assert_eq!(back["prompt"], "a t300é");
    let stopped = answer(&server, "/v1/completions", &json!({"prompt": "one two", "max_tokens": 20, "stop": "tw"}));
    assert_eq!(
        (&stopped["choices"][0]["text"], &stopped["choices"][0]["finish_reason"]),
        (&json!("one "), &json!("stop"))
    );
    let hot = json!({"prompt": "abc", "max_tokens": 4, "temperature": 2, "seed": 3, "logprobs": 1});
    let hot = answer(&server, "/v1/completions", &hot);
    assert_eq!(hot["choices"][0]["logprobs"]["token_logprobs"], json!([0.0, 0.0, 0.0, 0.0]));
    assert_eq!(hot["choices"][0]["text"], "abca");
    let unlikely = json!({"prompt": "ab", "max_tokens": 1, "temperature": 0, "logit_bias": {"97": -100, "98": 5}});
    assert_eq!(text(&server, &unlikely), "b", "what shapes real logits shapes these");
    assert_eq!(server.stop("TERM").stderr, "SIGTERM: stopping; once more stops at once\n");
}

#[test]
fn a_chat_stream_is_exact_to_the_byte() {
    let files = Files::new();
    let server = files.serve("tokens = \"file\"\nanswers = [\"Hi é!\"]");
    let body = json!({
        "messages": [{"role": "user", "content": "hello"}], "stream": true,
        "stream_options": {"include_usage": true},
    });
    let (status, stream) = post(&server.url, "/v1/chat/completions", &body);
    assert_eq!(status, 200, "{stream}");
    let first: Value = serde_json::from_str(stream.lines().next().unwrap().strip_prefix("data: ").unwrap()).unwrap();
    let (id, created) = (first["id"].as_str().unwrap(), first["created"].as_u64().unwrap());
    let event = |choices: &str, usage: &str| {
        format!(
            "data: {{\"id\":\"{id}\",\"object\":\"chat.completion.chunk\",\"created\":{created},\"model\":\"scripted\",\
             \"choices\":{choices},\"usage\":{usage}}}\n\n"
        )
    };
    let delta = |delta: &str| event(&format!("[{{\"index\":0,\"delta\":{{{delta}}},\"finish_reason\":null}}]"), "null");
    let mut expected = delta("\"role\":\"assistant\",\"content\":\"\"");
    for character in "Hi é!".chars() {
        expected += &delta(&format!("\"content\":\"{character}\""));
    }
    expected += &event("[{\"index\":0,\"delta\":{},\"finish_reason\":\"stop\"}]", "null");
    // `user: hello`, `assistant: ` and a line's end; six bytes and the end of sequence.
    let usage = "{\"prompt_tokens\":23,\"completion_tokens\":7,\"total_tokens\":30,\"prompt_tokens_details\":{\"cached_tokens\":0}}";
    expected += &event("[]", usage);
    expected += "data: [DONE]\n\n";
    assert_eq!(stream, expected);
}

#[test]
fn a_request_names_its_answer_by_its_seed() {
    let files = Files::new();
    let server = files.serve("tokens = \"file\"\nchoose = \"seed\"\nanswers = [\"zero\", [111, 110, 101], \"\"]");
    let say = |seed: u64, more: &[(&str, Value)]| {
        let mut body = json!({"prompt": "x", "max_tokens": 16, "seed": seed});
        for (key, value) in more {
            body[*key] = value.clone();
        }
        answer(&server, "/v1/completions", &body)["choices"].clone()
    };
    let choice =
        |index: u64, text: &str| json!({"index": index, "text": text, "logprobs": null, "finish_reason": "stop"});
    assert_eq!(say(0, &[]), json!([choice(0, "zero")]));
    assert_eq!(say(4, &[]), json!([choice(0, "one")]));
    assert_eq!(say(2, &[]), json!([choice(0, "")]));
    assert_eq!(say(0, &[("n", json!(3))]), json!([choice(0, "zero"), choice(1, "one"), choice(2, "")]));
    let on_and_on = say(0, &[("ignore_eos", json!(true)), ("max_tokens", json!(9))]);
    assert_eq!(on_and_on[0]["text"], "zerozero");
    assert_eq!(on_and_on[0]["finish_reason"], "length");
}

#[test]
fn steps_take_the_time_that_the_formula_says() {
    let files = Files::new();
    let server = files.serve(
        "tokens = \"echo\"\nfixed_us = 1000\nprefill_token_us = 2000\ndecode_token_us = 4000\ncontext_token_ns = 10000",
    );
    let began = clock::now();
    let whole = text(&server, &json!({"prompt": "0123456789", "max_tokens": 5}));
    let took = clock::now().since(began);
    assert_eq!(whole, "01234");
    // A prompt of ten rows, then four steps of one row, over contexts of 10 to 14 tokens.
    let formula = Duration::from_micros(5 * 1000 + 10 * 2000 + 4 * 4000 + 10 * (10 + 11 + 12 + 13 + 14));
    assert!(took >= formula, "{took:?}, at least {formula:?}");
    assert!(took < formula + Duration::from_secs(20), "{took:?}, about {formula:?}");
}

/// Blocks of 2 KiB a layer.
const WIDE: &str =
    "num_layers = 3\nnum_kv_heads = 2\nkey_dim = 16\nvalue_dim = 16\nelement = \"f16\"\nmax_context_tokens = 512\n";

fn two_devices(prefill: &Path, decode: &Path) -> String {
    format!(
        "[router]\ndisaggregate = \"always\"\n\
         [[device]]\nkind = \"scripted:{}\"\nroles = [\"prefill\"]\nkv_memory_mib = 16\n\
         [[device]]\nkind = \"scripted:{}\"\nroles = [\"decode\"]\nkv_memory_mib = 16\n",
        prefill.display(),
        decode.display()
    )
}

#[test]
fn two_scripted_devices_hand_real_bytes_over_and_say_what_one_says() {
    for tokens in ["hash", "echo"] {
        let files = Files::new();
        let script = format!("{WIDE}tokens = \"{tokens}\"\n");
        let bodies: Vec<Value> = (0..4)
            .map(|index| {
                let prompt = format!("{index}: {}", "a prompt of several blocks ".repeat(4));
                json!({"prompt": prompt, "max_tokens": 70, "seed": index, "temperature": 0.8, "logprobs": 0, "return_tokens_as_token_ids": true})
            })
            .collect();
        let say = |server: &Server| -> Vec<Value> {
            let tokens = |body| answer(server, "/v1/completions", body)["choices"][0]["logprobs"]["tokens"].clone();
            bodies.iter().map(tokens).collect()
        };
        let one = files.serve(&script);
        let expected = say(&one);
        assert!(expected.iter().all(|tokens| tokens.as_array().unwrap().len() == 70), "{expected:?}");
        let prefill = files.add("prefill.toml", &script);
        let decode = files.add("decode.toml", &format!("{script}fixed_us = 200\njitter_percent = 50\n"));
        let two = Server::with_config(&files.add("relevo.toml", &two_devices(&prefill, &decode)), &[]);
        assert_eq!(say(&two), expected, "{tokens}");
        let scrape = Scrape::of(&two.url);
        let moved = scrape.sum("relevo_kv_bytes_handed_over_total", "carrier=\"in-process\"").unwrap();
        // Each prompt has 111 tokens: six full blocks and one that is not, of 2 KiB for each of three layers.
        assert_eq!(moved, 4 * 7 * 3 * 2048, "{scrape:?}");
        assert_eq!(scrape.sum("relevo_kv_bytes_handed_over_total", "carrier=\"same-pool\""), None);
    }
}

#[test]
fn a_scripted_engine_dies_and_its_stream_goes_on() {
    let files = Files::new();
    let script = files.add("script.toml", &format!("{WIDE}tokens = \"hash\"\n"));
    let body = json!({"prompt": "to be or not to be", "max_tokens": 60, "seed": 3, "logprobs": 0, "return_tokens_as_token_ids": true});
    let tokens = |server: &Server| answer(server, "/v1/completions", &body)["choices"][0]["logprobs"]["tokens"].clone();
    let whole = Server::start(&["--device", &format!("scripted:{}", script.display())]);
    let expected = tokens(&whole);
    let faults = "[testing]\nfaults = [{ kind = \"panic-engine\", device = \"scripted1\", step = 20 }]\n";
    let config = files.add("relevo.toml", &(two_devices(&script, &script) + faults));
    let broken = Server::with_config(&config, &["--allow-faults"]);
    assert_eq!(tokens(&broken), expected);
    let scrape = Scrape::of(&broken.url);
    assert_eq!(scrape.sum("relevo_restarts_total", "actor=\"device-1/engine\""), Some(1), "{scrape:?}");
    assert_eq!(scrape.sum("relevo_contradicted_tokens_total", ""), None);
}

#[test]
fn what_is_wrong_with_a_script_is_said_with_file_key_and_remedy() {
    let files = Files::new();
    let refused = |script: &str, expected: &str| {
        let path = files.add("bad.toml", script);
        let run =
            finish(&mut relevo(["up", "--listen", "127.0.0.1:0", "--device", &format!("scripted:{}", path.display())]));
        assert_eq!(run.status.code(), Some(2), "{script}: {run:?}");
        assert_eq!(run.stderr, format!("relevo: {}: {expected}\n", path.display()), "{script}");
    };
    refused("decode_tokens_us = 3", "unknown key `decode_tokens_us`, did you mean `decode_token_us`?");
    refused("jitter_percent = 200", "jitter_percent is 200, expected 0 to 100");
    refused("num_layers = 0", "num_layers is 0, expected 1 to 256");
    refused("vocab_size = 4294967295", "vocab_size is 4294967295, expected 258 to 262144");
    refused(
        "num_kv_heads = 256\nkey_dim = 4096\nvalue_dim = 4096",
        "num_kv_heads × (key_dim + value_dim) is 256 × (4096 + 4096), expected less: a layer's block of 16 tokens would \
         have 134217728 bytes, at most 16777216 will do",
    );

    let path = |name: &str, text: &str| files.add(name, text).to_str().unwrap().to_owned();
    let other = path("other.toml", "key_dim = 3");
    let good = path("good.toml", "");
    let config = path("relevo.toml", &two_devices(Path::new(&good), Path::new(&other)));
    let large = path("large.toml", "num_layers = 256\nnum_kv_heads = 64\nkey_dim = 1024\nvalue_dim = 1024");
    let device = |file: &str| format!("scripted:{file}");
    let cases: [(&[&str], i32, &str); 6] = [
        (&["--device", "scripted:/nonexistent.toml"], 2, "/nonexistent.toml: No such file or directory"),
        (&["--config", &config], 2, "other.toml: key_dim is not as in"),
        (&["--device", &device(&good), "--model", "smollm2"], 2, "--model is for a device that computes"),
        (&["--device", "cuda"], 2, "`cuda` is no kind of device, expected cpu, scripted:FILE"),
        (
            &["--device", &device(&good), "--max-context", "5000"],
            2,
            "max_context_tokens is 5000, the model was made for 4096",
        ),
        (&["--device", &device(&large), "--kv-memory", "900GiB"], 1, "GiB are available: give the KV cache at most"),
    ];
    for (arguments, code, expected) in cases {
        let run = finish(relevo(["up", "--listen", "127.0.0.1:0"]).args(arguments));
        assert_eq!(run.status.code(), Some(code), "{arguments:?}: {run:?}");
        assert!(run.stderr.contains(expected), "{arguments:?}: {}", run.stderr);
        assert_eq!(run.stdout, "", "{arguments:?}");
    }
    let check = finish(&mut relevo(["config", "--check", &config]));
    assert_eq!(check.status.code(), Some(2), "{check:?}");
    assert!(check.stderr.contains("other.toml: key_dim is not as in"), "{check:?}");
}

/// The document, by the file names that its code blocks begin with.
fn documented(name: &str) -> String {
    let document =
        std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/scripted-device.md")).unwrap();
    let blocks = document.split("```").skip(1).step_by(2);
    let head = format!("toml\n# {name}\n");
    blocks.filter_map(|block| block.strip_prefix(&head)).next().unwrap_or_else(|| panic!("no {name}")).to_owned()
}

#[test]
fn the_documents_examples_run_and_its_table_names_every_key() {
    let document =
        std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/scripted-device.md")).unwrap();
    let in_table: Vec<&str> = document.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next()).collect();
    assert_eq!(in_table, relevo::config::Script::keys().collect::<Vec<_>>());

    let files = Files::new();
    let script = documented("script.toml");
    let server = files.serve(&script);
    let body = json!({"model": "parrot", "messages": [{"role": "user", "content": "hi"}], "seed": 1});
    let chat = answer(&server, "/v1/chat/completions", &body);
    assert_eq!(chat["choices"][0]["message"]["content"], "The second answer.");

    let (prefill, decode) =
        (files.add("prefill.toml", &documented("prefill.toml")), files.add("decode.toml", &documented("decode.toml")));
    let config = documented("relevo.toml");
    let config =
        config.replace("prefill.toml", prefill.to_str().unwrap()).replace("decode.toml", decode.to_str().unwrap());
    let two = Server::with_config(&files.add("relevo.toml", &config), &[]);
    let body = json!({"prompt": "0123456789abcdefgh", "max_tokens": 5, "temperature": 0});
    assert_eq!(text(&two, &body), text(&two, &body));
    assert!(Scrape::of(&two.url).sum("relevo_kv_bytes_handed_over_total", "carrier=\"in-process\"").unwrap() > 0);
}
