"""Writes byte_level.json and sentence_piece.json: reduced vocabularies, and the ids that llama.cpp gives 240 strings with them.

    python make_vocabularies.py LLAMA_CPP_MODELS_FOLDER LLAMA_TOKENIZE STRINGS.json      # gguf 0.17.1

The vocabularies are the beginnings of GPT-2's (MIT; ggml-vocab-gpt-2.gguf) and Phi-3's (MIT; ggml-vocab-phi-3.gguf), which llama.cpp
carries for its own tests. One byte-level vocabulary serves all ways to split: only `tokenizer.ggml.pre` is changed.
"""
import json
import os
import subprocess
import sys
import tempfile

from gguf import GGUFReader, GGUFWriter

FOLDER = tempfile.TemporaryDirectory()
MODELS, TOKENIZE, STRINGS = sys.argv[1:]
SPLITS = ["default", "gpt-2", "smollm", "llama-bpe", "qwen2", "qwen35", "tekken", "gpt-4o", "deepseek-v3"]
strings = [s for s in json.load(open(STRINGS))["strings"] if s]


def field(reader, key):
    return reader.fields[f"tokenizer.ggml.{key}"].contents()


def byte_level():
    r = GGUFReader(f"{MODELS}/ggml-vocab-gpt-2.gguf")
    merges = field(r, "merges")[:3000]
    # All bytes, what the merges make, then tokens of our own.
    kept = set(t for t in field(r, "tokens") if len(t) == 1) | set(m.replace(" ", "") for m in merges)
    tokens = [t for t in field(r, "tokens") if t in kept]
    kinds = [1] * len(tokens)
    for text, kind in [("<|endoftext|>", 3), ("<|im_start|>", 3), ("<|im_end|>", 3), ("<tool_call>", 4)]:
        tokens.append(text)
        kinds.append(kind)
    eos = tokens.index("<|endoftext|>")
    return {"model": "gpt2", "tokens": tokens, "kinds": kinds, "merges": merges, "scores": [], "bos": eos, "eos": eos}


def sentence_piece():
    r = GGUFReader(f"{MODELS}/ggml-vocab-phi-3.gguf")
    tokens, kinds, scores = field(r, "tokens"), field(r, "token_type"), field(r, "scores")
    # Specials, bytes and the first pieces; then the single characters, which stand at the end of the file.
    keep = list(range(3500)) + [i for i in range(3500, len(tokens)) if len(tokens[i]) == 1 or kinds[i] == 3]
    return {"model": "llama", "tokens": [tokens[i] for i in keep], "kinds": [kinds[i] for i in keep], "merges": [],
            "scores": [scores[i] for i in keep], "bos": 1, "eos": 2, "unknown": 0}


def ids(vocabulary, pre, text, *flags):
    path = f"{FOLDER.name}/{vocabulary['model']}-{pre}.gguf"
    if not os.path.exists(path):
        w = GGUFWriter(path, "llama")
        w.add_tokenizer_model(vocabulary["model"])
        w.add_tokenizer_pre(pre)
        w.add_token_list(vocabulary["tokens"])
        w.add_token_types(vocabulary["kinds"])
        if vocabulary["merges"]:
            w.add_token_merges(vocabulary["merges"])
        if vocabulary["scores"]:
            w.add_token_scores(vocabulary["scores"])
        w.add_bos_token_id(vocabulary["bos"])
        w.add_eos_token_id(vocabulary["eos"])
        if "unknown" in vocabulary:
            w.add_unk_token_id(vocabulary["unknown"])
        w.write_header_to_file()
        w.write_kv_data_to_file()
        w.close()
    run = subprocess.run([TOKENIZE, "-m", path, "--ids", "--stdin", "--no-escape", "--log-disable", *flags], input=text.encode(),
                         capture_output=True, check=True)
    return json.loads(run.stdout.decode().strip().splitlines()[-1])


def cases(vocabulary, pre):
    out = []
    for text in strings:
        case = {"text": text, "ids": ids(vocabulary, pre, text, "--no-bos")}
        plain = ids(vocabulary, pre, text, "--no-bos", "--no-parse-special")
        if plain != case["ids"]:
            case["ids_special_as_text"] = plain
        out.append(case)
    return out


def write(path, vocabulary, splits):
    result = {"vocabulary": vocabulary, "with_bos": {pre: ids(vocabulary, pre, "Hello world") for pre in splits},
              "cases": {pre: cases(vocabulary, pre) for pre in splits}}
    with open(path, "w") as out:
        json.dump(result, out, ensure_ascii=False, separators=(",", ":"))


write("byte_level.json", byte_level(), SPLITS)
write("sentence_piece.json", sentence_piece(), ["default"])
