//! Tokens become text: whole characters, stop strings, and log-probabilities that fit it.

use proptest::prelude::*;
use relevo_wire::{FinishReason, TokenId};
use serde_json::{Value, json};

use crate::harness::{Reply, World, generates, says};

#[tokio::test]
async fn a_character_leaves_whole_or_not_at_all() {
    let world = World::scripted(|request| says(request, "a😀é")).await;
    let texts: Vec<_> = world
        .complete(json!({"stream": true}))
        .await
        .chunks()
        .iter()
        .map(|chunk| chunk["choices"][0]["text"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(texts, ["a", "😀", "é", ""]);
}

#[tokio::test]
async fn half_a_character_at_the_end_is_a_replacement_character() {
    let world = World::scripted(|request| generates(request, &[97, 0xf0, 0x9f], FinishReason::Length)).await;
    assert_eq!(world.complete(json!({})).await.json()["choices"][0]["text"], "a\u{fffd}");
}

#[tokio::test]
async fn text_that_might_become_a_stop_string_is_held_and_flushed() {
    let world = World::scripted(|request| says(request, "abcabd")).await;
    let reply = world.complete(json!({"stream": true, "stop": ["abd!", "x"]})).await;
    assert_eq!(reply.streamed(0), ("abcabd".to_owned(), "stop".to_owned()));
    let texts: Vec<_> =
        reply.chunks().iter().map(|chunk| chunk["choices"][0]["text"].as_str().unwrap().to_owned()).collect();
    assert_eq!(texts, ["abc", "abd"], "held until it is clear, or the end");
}

#[tokio::test]
async fn a_stop_string_across_tokens_cuts_text_and_log_probabilities() {
    let world = World::scripted(|request| says(request, "hello world")).await;
    for stream in [false, true] {
        let reply = world.complete(json!({"stop": "o w", "logprobs": 0, "stream": stream})).await;
        let (text, tokens) = text_and_tokens(&reply, stream);
        assert_eq!((&*text, &*tokens.concat()), ("hell", "hell"));
    }
}

/// The text of the only answer, and the tokens of its log-probabilities.
fn text_and_tokens(reply: &Reply, stream: bool) -> (String, Vec<String>) {
    let bodies = if stream { reply.chunks() } else { vec![reply.json()] };
    let choices = bodies.iter().map(|body| &body["choices"][0]);
    let text = choices.clone().map(|choice| choice["text"].as_str().unwrap()).collect();
    let tokens = choices
        .flat_map(|choice| choice["logprobs"]["tokens"].as_array().cloned().unwrap_or_default())
        .map(|token| token.as_str().unwrap().to_owned())
        .collect();
    (text, tokens)
}

/// What the text must be, told by the definition: all of it, up to the first place where a stop string is complete.
fn expected(tokens: &[TokenId], stops: &[String]) -> (String, &'static str) {
    let mut text = String::new();
    for end in 0..=tokens.len() {
        let bytes: Vec<u8> = tokens[..end].iter().map(|&token| u8::try_from(token).unwrap()).collect();
        let complete = match std::str::from_utf8(&bytes) {
            Ok(complete) => complete.to_owned(),
            Err(error) if error.error_len().is_none() => {
                std::str::from_utf8(&bytes[..error.valid_up_to()]).unwrap().to_owned()
            }
            Err(_) => unreachable!("the strategy makes valid text"),
        };
        if let Some(at) = stops.iter().filter_map(|stop| complete.find(stop)).min() {
            return (complete[..at].to_owned(), "stop");
        }
        text = complete;
    }
    (text, "length")
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn every_text_is_assembled_as_the_definition_says(
        text in "[abé😀]{0,24}",
        stops in prop::collection::vec("[abé😀]{1,4}", 0..4),
        stream in any::<bool>(),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let tokens: Vec<TokenId> = text.bytes().map(TokenId::from).collect();
            let (want, reason) = expected(&tokens, &stops);
            let world = World::scripted(move |request| {
                generates(request, &text.bytes().map(TokenId::from).collect::<Vec<_>>(), FinishReason::Length)
            })
            .await;
            let mut more = json!({"logprobs": 0, "stream": stream, "return_tokens_as_token_ids": true});
            if !stops.is_empty() {
                more["stop"] = json!(stops);
            }
            let reply = world.complete(more).await;
            let (got, tokens) = text_and_tokens(&reply, stream);
            assert_eq!(got, want);
            let bodies = if stream { reply.chunks() } else { vec![reply.json()] };
            let got_reason: Vec<Value> =
                bodies.iter().map(|body| body["choices"][0]["finish_reason"].clone()).filter(|reason| !reason.is_null()).collect();
            assert_eq!(got_reason, [json!(reason)]);
            let bytes: Vec<u8> = tokens.iter().map(|token| token.strip_prefix("token_id:").unwrap().parse().unwrap()).collect();
            assert_eq!(String::from_utf8(bytes).unwrap(), want, "log-probabilities are those of the text");
        });
    }
}

#[tokio::test]
async fn the_end_token_is_no_text_and_has_no_log_probability() {
    let world = World::scripted(|request| says(request, "a")).await;
    let body = world.complete(json!({"logprobs": 0})).await.json();
    assert_eq!(body["choices"][0]["logprobs"]["tokens"], json!(["a"]));
    assert_eq!(body["usage"]["completion_tokens"], 2, "it was generated all the same");
}
