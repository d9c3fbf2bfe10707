"""Writes the seeds that the fuzz bodies begin from: small valid models, written by ggml's and Hugging Face's own libraries.

    python -m venv V && V/bin/pip install gguf==0.17.1 numpy==2.2.6 safetensors==0.8.0 && V/bin/python make_corpus.py
"""
import json

import numpy as np
from gguf import GGMLQuantizationType as T
from gguf import GGUFWriter
from gguf.quants import quantize
from safetensors.numpy import save_file

rng = np.random.default_rng(7)
HIDDEN, FFN, HEADS, KV_HEADS, HEAD_DIM, VOCAB = 32, 64, 2, 1, 16, 12
TOKENS = ["<unk>", "<s>", "</s>", "a", "b", "c", "ab", "Ġ", "Ġa", "<|im_end|>", "é", "d"]


def values(*shape):
    return rng.standard_normal(shape).astype(np.float32)


def gguf(path, arch, matrix_type, biases, qk_norm, tied, keys=()):
    w = GGUFWriter(path, arch)
    w.add_name(f"tiny {arch}")
    w.add_block_count(1)
    w.add_context_length(64)
    w.add_embedding_length(HIDDEN)
    w.add_feed_forward_length(FFN)
    w.add_head_count(HEADS)
    w.add_head_count_kv(KV_HEADS)
    w.add_key_length(HEAD_DIM)
    w.add_value_length(HEAD_DIM)
    w.add_layer_norm_rms_eps(1e-5)
    w.add_rope_freq_base(10000.0)
    w.add_tokenizer_model("gpt2")
    w.add_tokenizer_pre("smollm")
    w.add_token_list(TOKENS)
    w.add_token_types([3, 3, 3, 1, 1, 1, 1, 1, 1, 3, 1, 1])
    w.add_token_merges(["a b", "Ġ a"])
    w.add_eos_token_id(2)
    w.add_chat_template("{{ messages[0]['content'] }}")
    w.add_array("test.numbers", [1, 2, 3])
    w.add_bool("test.flag", True)
    for key, value in keys:
        w.add_float32(key, value) if isinstance(value, float) else w.add_string(key, value)

    def matrix(name, n, k):
        data = values(n, k)
        if matrix_type == T.F32:
            w.add_tensor(name, data)
        elif matrix_type == T.F16:
            w.add_tensor(name, data.astype(np.float16))
        else:
            w.add_tensor(name, quantize(data, matrix_type), raw_dtype=matrix_type)

    matrix("token_embd.weight", VOCAB, HIDDEN)
    w.add_tensor("output_norm.weight", values(HIDDEN))
    if not tied:
        matrix("output.weight", VOCAB, HIDDEN)
    b = "blk.0."
    w.add_tensor(b + "attn_norm.weight", values(HIDDEN))
    w.add_tensor(b + "ffn_norm.weight", values(HIDDEN))
    matrix(b + "attn_q.weight", HEADS * HEAD_DIM, HIDDEN)
    matrix(b + "attn_k.weight", KV_HEADS * HEAD_DIM, HIDDEN)
    matrix(b + "attn_v.weight", KV_HEADS * HEAD_DIM, HIDDEN)
    matrix(b + "attn_output.weight", HIDDEN, HEADS * HEAD_DIM)
    matrix(b + "ffn_gate.weight", FFN, HIDDEN)
    matrix(b + "ffn_up.weight", FFN, HIDDEN)
    matrix(b + "ffn_down.weight", HIDDEN, FFN)
    if biases:
        w.add_tensor(b + "attn_q.bias", values(HEADS * HEAD_DIM))
        w.add_tensor(b + "attn_k.bias", values(KV_HEADS * HEAD_DIM))
        w.add_tensor(b + "attn_v.bias", values(KV_HEADS * HEAD_DIM))
    if qk_norm:
        w.add_tensor(b + "attn_q_norm.weight", values(HEAD_DIM))
        w.add_tensor(b + "attn_k_norm.weight", values(HEAD_DIM))
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


gguf("gguf/llama_q4_1.gguf", "llama", T.Q4_1, False, False, True)
gguf("gguf/qwen2_q8_0.gguf", "qwen2", T.Q8_0, True, False, False)
gguf("gguf/qwen3_f16_yarn.gguf", "qwen3", T.F16, False, True, True,
     [("qwen3.rope.scaling.type", "yarn"), ("qwen3.rope.scaling.factor", 4.0)])

CONFIG = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": HIDDEN, "intermediate_size": FFN,
          "num_hidden_layers": 1, "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS, "head_dim": HEAD_DIM,
          "rms_norm_eps": 1e-5, "max_position_embeddings": 64, "vocab_size": VOCAB, "tie_word_embeddings": True,
          "hidden_act": "silu", "eos_token_id": [2, 9], "rope_theta": 10000.0}
LAYER = {"input_layernorm": (HIDDEN,), "post_attention_layernorm": (HIDDEN,), "self_attn.q_proj": (HEADS * HEAD_DIM, HIDDEN),
         "self_attn.k_proj": (KV_HEADS * HEAD_DIM, HIDDEN), "self_attn.v_proj": (KV_HEADS * HEAD_DIM, HIDDEN),
         "self_attn.o_proj": (HIDDEN, HEADS * HEAD_DIM), "mlp.gate_proj": (FFN, HIDDEN), "mlp.up_proj": (FFN, HIDDEN),
         "mlp.down_proj": (HIDDEN, FFN)}
tensors = {f"model.layers.0.{name}.weight": values(*shape) for name, shape in LAYER.items()}
tensors |= {"model.embed_tokens.weight": values(VOCAB, HIDDEN), "model.norm.weight": values(HIDDEN)}
save_file(tensors, "safetensors/llama_f32.safetensors", metadata={"format": "pt"})
save_file({"x": np.arange(6, dtype=np.float16).reshape(2, 3), "ids": np.arange(4), "empty_shape": np.array(1.5, dtype=np.float32)},
          "safetensors/mixed.safetensors")

VARIANTS = {
    "plain": {},
    "llama3": {"rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                                "original_max_position_embeddings": 32}},
    "yarn": {"rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}},
    "parameters": {"rope_theta": None, "rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 5000.0}},
    "window": {"model_type": "mistral", "sliding_window": 8},
    "layer_types": {"model_type": "qwen2", "sliding_window": 8, "use_sliding_window": True, "layer_types": ["sliding_attention"]},
}
for name, changes in VARIANTS.items():
    with open(f"config/{name}.json", "w") as out:
        json.dump(CONFIG | changes, out, indent=1)
