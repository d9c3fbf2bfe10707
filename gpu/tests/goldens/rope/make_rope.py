"""Writes rope.json: inverse frequencies and attention factors out of transformers' own formulas.

    pip download --no-deps transformers==4.57.6 && unzip transformers-*.whl transformers/modeling_rope_utils.py
    python make_rope.py transformers/modeling_rope_utils.py > rope.json        # numpy 2.2.6

The functions are run as they are, over a stand-in for torch that computes in numpy's float64 (torch would compute in float32 and
need 200 MB); so they are exact to about 1e-15 and ours must round to the same f32, give or take its last bit.
"""
import json
import re
import sys
import types

import numpy as np


class Tensor(np.ndarray):
    def to(self, *_, **__):
        return self

    def float(self):
        return self


def tensor(x):
    return np.asarray(x, dtype=np.float64).view(Tensor)


torch = types.SimpleNamespace(
    Tensor=Tensor,
    arange=lambda *a, **_: tensor(np.arange(*a)), int64=None, float=None, float32=None,
    clamp=lambda x, low, high: tensor(np.clip(x, low, high)),
    where=lambda c, a, b: tensor(np.where(c, a, b)), tensor=lambda x, **_: tensor(x))

source = open(sys.argv[1]).read()
source = re.sub(r"^from \.\S+ import .*$", "", source, flags=re.M)
source = source.replace("logger = logging.get_logger(__name__)", "").replace("if is_torch_available():\n    import torch\n", "")
space = {"torch": torch, "PretrainedConfig": object, "is_torch_available": lambda: True,
         "logger": types.SimpleNamespace(warning=lambda *_: None, warning_once=lambda *_: None)}
exec(compile(source, sys.argv[1], "exec"), space)

CASES = {
    "default_64": ({"head_dim": 64, "rope_theta": 100000.0}, None),
    "default_partial": ({"head_dim": 128, "rope_theta": 10000.0, "partial_rotary_factor": 0.5}, None),
    "linear_4": ({"head_dim": 64, "rope_theta": 10000.0}, {"rope_type": "linear", "factor": 4.0}),
    "dynamic_4": ({"head_dim": 64, "rope_theta": 10000.0}, {"rope_type": "dynamic", "factor": 4.0}),
    "llama31_8b": ({"head_dim": 128, "rope_theta": 500000.0, "max_position_embeddings": 131072},
                   {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                    "original_max_position_embeddings": 8192}),
    "qwen25_yarn": ({"head_dim": 128, "rope_theta": 1000000.0, "max_position_embeddings": 131072},
                    {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}),
    "yarn_untruncated": ({"head_dim": 64, "rope_theta": 150000.0, "max_position_embeddings": 131072},
                         {"rope_type": "yarn", "factor": 32.0, "original_max_position_embeddings": 4096, "beta_fast": 32.0,
                          "beta_slow": 1.0, "truncate": False}),
    "yarn_mscale": ({"head_dim": 64, "rope_theta": 10000.0, "max_position_embeddings": 163840},
                    {"rope_type": "yarn", "factor": 40.0, "original_max_position_embeddings": 4096, "mscale": 1.0,
                     "mscale_all_dim": 0.5}),
}

out = {}
for name, (config, scaling) in CASES.items():
    full = {"hidden_size": 8 * config["head_dim"], "num_attention_heads": 8, "max_position_embeddings": 4096} | config
    holder = types.SimpleNamespace(rope_scaling=scaling, **full)
    function = space["ROPE_INIT_FUNCTIONS"][scaling["rope_type"] if scaling else "default"]
    inverse_frequencies, attention_factor = function(holder, None)
    # What depends on the length does so beyond the context only.
    for seq_len in (1, 100, full["max_position_embeddings"]):
        assert (function(holder, None, seq_len=seq_len)[0] == inverse_frequencies).all()
    out[name] = {"config": full | {"rope_scaling": scaling}, "attention_factor": float(attention_factor),
                 "inverse_frequencies": [float(x) for x in inverse_frequencies]}
print(json.dumps(out, indent=1))
