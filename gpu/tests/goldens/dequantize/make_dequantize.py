"""Writes TYPE.bin for each served type: u32 number of elements, u32 number of bytes, the blocks, the elements as f32.

    python -m venv V && V/bin/pip install gguf==0.17.1 numpy==2.2.6 && V/bin/python make_dequantize.py

The elements are gguf.quants.dequantize's. The blocks are its quantize's of normal and of extreme values where it has one, and
random bytes with finite scales (f16 subnormals and negative ones among them) for all.
"""
import numpy as np
from gguf import GGMLQuantizationType as T
from gguf.constants import GGML_QUANT_SIZES
from gguf.quants import dequantize, quantize

rng = np.random.default_rng(20261123)

# Where the f16 scales and minima lie within a block.
HALVES = {T.Q4_0: [0], T.Q4_1: [0, 2], T.Q5_0: [0], T.Q5_1: [0, 2], T.Q8_0: [0],
          T.Q4_K: [0, 2], T.Q5_K: [0, 2], T.Q6_K: [208]}
QUANTISABLE = [T.Q4_0, T.Q4_1, T.Q5_0, T.Q5_1, T.Q8_0]


def finite_halves(count):
    """f16 bit patterns that are neither infinite nor NaN, the smallest and largest among them."""
    bits = rng.integers(0, 1 << 16, count, dtype=np.uint16)
    bits = np.where((bits & 0x7C00) == 0x7C00, bits & 0x83FF, bits)
    special = np.array([0x0000, 0x8000, 0x0001, 0x8001, 0x03FF, 0x0400, 0x7BFF, 0xFBFF], dtype=np.uint16)
    bits[: min(count, len(special))] = special[:count]
    return bits


def random_blocks(ty, count):
    elements, size = GGML_QUANT_SIZES[ty]
    blocks = rng.integers(0, 256, (count, size), dtype=np.uint8)
    for offset in HALVES[ty]:
        blocks[:, offset:offset + 2] = finite_halves(count).view(np.uint8).reshape(count, 2)
    return blocks


def blocks_of(ty):
    if ty == T.F32:
        values = np.concatenate([rng.standard_normal(120), [0.0, -0.0, 1e-45, -1e-38, 3.4e38, -3.4e38, 1.0, -1.0]])
        return values.astype(np.float32).view(np.uint8).reshape(1, -1)
    if ty == T.F16:
        return finite_halves(512).view(np.uint8).reshape(1, -1)
    if ty == T.BF16:
        bits = rng.integers(0, 1 << 16, 512, dtype=np.uint16)
        bits = np.where((bits & 0x7F80) == 0x7F80, bits & 0x807F, bits).astype(np.uint16)
        return bits.view(np.uint8).reshape(1, -1)
    parts = [random_blocks(ty, 24)]
    if ty in QUANTISABLE:
        values = rng.standard_normal((8, 256)).astype(np.float32)
        values[1] *= 1e4
        values[2] *= 1e-5
        values[3] = 0.0
        values[4] = 1.5
        parts.append(quantize(values, ty).reshape(-1, GGML_QUANT_SIZES[ty][1]))
    return np.concatenate(parts)


for ty in [T.F32, T.F16, T.BF16, T.Q4_0, T.Q4_1, T.Q5_0, T.Q5_1, T.Q8_0, T.Q4_K, T.Q5_K, T.Q6_K]:
    blocks = np.ascontiguousarray(blocks_of(ty))
    if ty == T.F32:
        elements = blocks.view(np.float32)
    elif ty == T.F16:
        elements = blocks.view(np.float16).astype(np.float32)
    else:
        with np.errstate(over="ignore", invalid="ignore"):
            elements = dequantize(blocks, ty)
    elements = np.ascontiguousarray(elements, dtype=np.float32).reshape(-1)
    assert np.isfinite(elements).all() or ty in HALVES, ty
    with open(f"{ty.name}.bin", "wb") as out:
        out.write(np.array([elements.size, blocks.size], dtype="<u4").tobytes())
        out.write(blocks.tobytes())
        out.write(elements.tobytes())
    print(ty.name, elements.size, blocks.size, np.isnan(elements).sum())
