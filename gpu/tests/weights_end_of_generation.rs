//! Which tokens end a generation, by what a file names and by what its tokens read.
#![allow(clippy::panic, clippy::unwrap_used, reason = "a test's helpers fail by panicking")]

#[allow(dead_code, reason = "each test binary uses a part of it")]
mod gguf_writer;

use relevo_gpu::weights::ModelFiles;

use gguf_writer::{array, smallest_model};

const NORMAL: i32 = 1;
const CONTROL: i32 = 3;

/// The ids that end a generation of a model with these tokens.
fn ends(tokens: [&str; 5], kinds: Option<[i32; 5]>, named: &[(&str, u32)]) -> Vec<u32> {
    let mut model =
        smallest_model("llama").text("tokenizer.ggml.model", "gpt2").texts("tokenizer.ggml.tokens", &tokens);
    if let Some(kinds) = kinds {
        let bytes: Vec<u8> = kinds.iter().flat_map(|kind| kind.to_le_bytes()).collect();
        model = model.key("tokenizer.ggml.token_type", 9, array(5, 5, &bytes));
    }
    for (key, id) in named {
        model = model.number(&format!("tokenizer.ggml.{key}_token_id"), *id);
    }
    let file = tempfile::Builder::new().suffix(".gguf").tempfile().unwrap();
    std::fs::write(file.path(), model.build()).unwrap();
    let files = ModelFiles::open(file.path()).unwrap_or_else(|error| panic!("{error:?}"));
    files.end_of_generation_ids().to_vec()
}

fn control(tokens: [&str; 5]) -> Vec<u32> {
    ends(tokens, Some([CONTROL; 5]), &[])
}

#[test]
fn every_token_that_the_file_names_ends() {
    let plain = ["a", "b", "c", "d", "e"];
    assert_eq!(ends(plain, None, &[]), [0; 0]);
    assert_eq!(ends(plain, None, &[("eos", 4), ("eot", 1), ("eom", 3)]), [1, 3, 4]);
}

#[test]
fn text_that_reads_like_an_end_is_one_only_as_a_special_token() {
    let tokens = ["a", "<EOT>", "<|im_end|>", "c", "d"];
    assert_eq!(ends(tokens, Some([NORMAL, NORMAL, CONTROL, NORMAL, NORMAL]), &[]), [2]);
    assert_eq!(ends(tokens, None, &[]), [1, 2], "an old file does not say which are special");
}

#[test]
fn of_the_tokens_that_end_a_file_the_first_of_each_group_counts() {
    assert_eq!(control(["<fim_pad>", "<PAD>", "a", "<|file_sep|>", "<|repo_name|>"]), [0, 3, 4]);
}

#[test]
fn markers_within_an_answer_do_not_end_it() {
    assert_eq!(control(["<|return|>", "<|call|>", "<|end|>", "a", "b"]), [0, 1], "gpt-oss parts messages by <|end|>");
    assert_eq!(control(["<|return|>", "c", "<|end|>", "a", "b"]), [0, 2]);
    assert_eq!(control(["</s>", "<|tool_response>", "a", "b", "c"]), [1]);
    assert_eq!(control(["</s>", "d", "a", "b", "c"]), [0]);
}
