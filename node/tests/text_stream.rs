//! Streamed text: whole characters, stop strings wherever the tokens' boundaries fall.
#![allow(clippy::unwrap_used, reason = "a test's helpers fail by panicking")]

use std::sync::{Arc, LazyLock};

use proptest::prelude::*;
use relevo::text::{SpecialTokens, StopStrings, TextStream, Tokenizer};
use relevo_gpu::weights::{GgufVocabulary, TokenKind, TokenizerSource};

/// One token for each byte, in the order of GPT-2's alphabet, and one control token.
static BYTES: LazyLock<Arc<Tokenizer>> = LazyLock::new(|| {
    let printable = |byte: u32| matches!(byte, 0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF);
    let mut others = 0x100;
    let mut tokens: Vec<String> = (0..256_u32)
        .map(|byte| {
            let code = if printable(byte) {
                byte
            } else {
                others += 1;
                others - 1
            };
            char::from_u32(code).unwrap().to_string()
        })
        .collect();
    tokens.push("<|end|>".to_owned());
    let mut kinds = vec![TokenKind::Normal; 256];
    kinds.push(TokenKind::Control);
    let pre = Some("gpt-2".to_owned());
    let vocabulary = GgufVocabulary { model: "gpt2".to_owned(), pre, tokens, kinds, ..GgufVocabulary::default() };
    Arc::new(Tokenizer::open(&TokenizerSource::Gguf(vocabulary)).unwrap())
});

const END: u32 = 256;

fn stream(stops: &[&str]) -> TextStream {
    let stops = StopStrings::new(stops.iter().map(|&stop| stop.to_owned()));
    TextStream::new(Arc::clone(&BYTES), SpecialTokens::Skipped, stops)
}

/// What a stream gives for these bytes as tokens: its pieces, and whether it stopped.
fn run(bytes: &[u8], stops: &[&str]) -> (Vec<String>, bool) {
    let mut stream = stream(stops);
    let mut pieces: Vec<String> = bytes.iter().map(|&byte| stream.push(byte.into()).text).collect();
    let last = stream.finish();
    pieces.push(last.text);
    (pieces, last.stopped)
}

#[test]
fn text_is_shown_as_soon_as_no_stop_can_begin_in_it() {
    let (pieces, stopped) = run(b"ab STOX STOP tail", &["STOP"]);
    assert!(stopped);
    assert_eq!(pieces.concat(), "ab STOX ");
    assert_eq!(pieces[..8], ["a", "b", " ", "", "", "", "STOX", " "]);
}

#[test]
fn text_held_back_for_a_stop_that_does_not_come_is_flushed() {
    let (pieces, stopped) = run(b"ab STO", &["STOP"]);
    assert!(!stopped);
    assert_eq!(pieces.last().unwrap(), "STO");
    assert_eq!(pieces.concat(), "ab STO");
}

#[test]
fn after_a_stop_nothing_comes() {
    let mut stream = stream(&["b"]);
    assert_eq!(stream.push(b'a'.into()).text, "a");
    let stop = stream.push(b'b'.into());
    assert!(stop.stopped && stop.text.is_empty());
    let after = stream.push(b'c'.into());
    assert!(after.stopped && after.text.is_empty());
    assert!(stream.finish().stopped);
}

#[test]
fn the_stop_that_is_complete_first_counts() {
    assert_eq!(run(b"xabcd", &["abcd", "bc"]).0.concat(), "xa");
    assert_eq!(run(b"xabcd", &["bcd", "abcd", "cd"]).0.concat(), "x");
    assert_eq!(run(b"aab", &["ab"]).0.concat(), "a");
    assert_eq!(run(b"abc", &[""]).0.concat(), "abc");
}

#[test]
fn control_tokens_add_no_text_and_part_no_stop() {
    let mut stream = stream(&["ab"]);
    assert_eq!(stream.push(b'a'.into()).text, "");
    assert_eq!(stream.push(END).text, "");
    assert!(stream.push(b'b'.into()).stopped);
}

#[test]
fn a_stop_may_be_made_of_several_bytes_a_character() {
    let (pieces, stopped) = run("ein 🦀 lief".as_bytes(), &["🦀"]);
    assert!(stopped);
    assert_eq!(pieces.concat(), "ein ");
}

#[test]
fn bytes_that_are_no_text_become_replacement_characters() {
    assert_eq!(run(b"a\xFFb\xE2\x82", &[]).0, ["a", "\u{FFFD}", "b", "", "", "\u{FFFD}"]);
    assert_eq!(run(b"\xE2\x82a", &[]).0, ["", "", "\u{FFFD}a", ""]);
}

/// The model: search in the whole text, byte by byte, for the stop that is complete first.
fn expected(text: &str, stops: &[String]) -> (String, bool) {
    for end in 1..=text.len() {
        let longest =
            stops.iter().filter(|stop| text.as_bytes()[..end].ends_with(stop.as_bytes())).map(String::len).max();
        if let Some(len) = longest {
            return (text[..end - len].to_owned(), true);
        }
    }
    (text.to_owned(), false)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_stream_gives_what_a_search_in_the_whole_text_gives(
        text in "[abc é🦀]{0,24}",
        stops in proptest::collection::vec("[abc é🦀]{1,4}", 0..4),
    ) {
        let borrowed: Vec<&str> = stops.iter().map(String::as_str).collect();
        let (pieces, stopped) = run(text.as_bytes(), &borrowed);
        prop_assert_eq!((pieces.concat(), stopped), expected(&text, &stops));
    }

    #[test]
    fn any_bytes_in_a_stream_decode_as_they_do_whole(bytes in proptest::collection::vec(
        prop_oneof![any::<u8>(), Just(0xE2), Just(0x82), Just(0xF0), Just(0x9F), Just(b'a')], 0..40)) {
        let ids: Vec<u32> = bytes.iter().map(|&byte| byte.into()).collect();
        let whole = BYTES.decode(&ids, SpecialTokens::Skipped);
        prop_assert_eq!(run(&bytes, &[]).0.concat(), whole.clone());
        prop_assert_eq!(whole, String::from_utf8_lossy(&bytes));
    }
}
