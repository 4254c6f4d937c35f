"""Originals in forms that tiny checkpoints do not come in: FP8 in blocks, and foreign quantizations by their names."""

import json
from pathlib import Path

import mlx.core as mx
import numpy as np

from tests.convert.support import all_tensors, write_source
from tests.hub.conftest import safetensors

BLOCK = 32  # smaller than the released 128, so that tiny matrices have several, and some that are cut short
_DTYPES = {mx.bfloat16: "BF16", mx.float32: "F32", mx.uint8: "U8", mx.float16: "F16"}


def stored(value: mx.array, dtype: str = "") -> tuple[str, list[int], bytes]:
    """As `safetensors` takes it."""
    integers = {1: mx.uint8, 2: mx.uint16, 4: mx.uint32}[value.itemsize]
    raw = np.array(mx.contiguous(value).view(integers)).tobytes()
    return dtype or _DTYPES[value.dtype], list(value.shape), raw


def rewrite(folder: Path, tensors: dict[str, tuple[str, list[int], bytes]], config: dict | None = None) -> Path:
    """Replace the weights of a checkpoint, and keys of its config."""
    for file in folder.glob("*.safetensors*"):
        file.unlink()
    (folder / "model.safetensors").write_bytes(safetensors(tensors, {"format": "pt"}))
    if config:
        described = json.loads((folder / "config.json").read_text()) | config
        (folder / "config.json").write_text(json.dumps(described))
    return folder


def e4m3_values() -> np.ndarray:
    """[256], float32: what each byte means, from the format's definition (1 sign, 4 exponent, 3 mantissa bits)."""
    byte = np.arange(256)
    exponent, mantissa = byte >> 3 & 15, byte & 7
    value = np.where(exponent == 0, mantissa * 2.0**-9, (8 + mantissa) * 2.0 ** (exponent - 10.0))
    value[(byte & 127) == 127] = np.nan
    return np.where(byte & 128, -value, value).astype(np.float32)


def write_fp8(name: str, folder: Path) -> tuple[Path, dict[str, np.ndarray]]:
    """An FP8 original made from a bfloat16 one as Qwen makes them, and its weights' true values, float32."""
    write_source(name, folder)
    tensors, truth = {}, {}
    for tensor, value in all_tensors(folder).items():
        if not _is_converted(tensor, value):
            tensors[tensor] = stored(value)
            continue
        codes, scales, truth[tensor] = _to_blocks(np.array(value.astype(mx.float32)))
        tensors[tensor] = ("F8_E4M3", list(codes.shape), codes.tobytes())
        tensors[f"{tensor}_scale_inv"] = stored(scales)
    settings = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [BLOCK, BLOCK]}
    return rewrite(folder, tensors, {"quantization_config": settings}), truth


def _is_converted(name: str, value: mx.array) -> bool:
    kept = ("embed_tokens", "lm_head", "in_proj_a", "in_proj_b", "mtp.fc", ".mlp.gate.", "shared_expert_gate", "visual")
    return value.ndim == 2 and not any(mark in name for mark in kept)


def _to_blocks(weight: np.ndarray) -> tuple[np.ndarray, mx.array, np.ndarray]:
    """[out, in] -> codes, scales in bfloat16, and the values they stand for"""
    grid = tuple(-(-n // BLOCK) for n in weight.shape)
    scales = np.zeros(grid, np.float32)
    for i, j in np.ndindex(grid):
        scales[i, j] = np.abs(weight[i * BLOCK : (i + 1) * BLOCK, j * BLOCK : (j + 1) * BLOCK]).max() / 448
    rounded = mx.array(scales).astype(mx.bfloat16)
    wide = np.repeat(np.repeat(np.array(rounded.astype(mx.float32)), BLOCK, 0), BLOCK, 1)
    wide = wide[: weight.shape[0], : weight.shape[1]]
    values = e4m3_values()
    finite = np.flatnonzero(np.isfinite(values))
    order = finite[np.argsort(values[finite], kind="stable")]
    at = np.clip(np.searchsorted(values[order], weight / wide), 1, len(order) - 1)
    left, right = values[order[at - 1]], values[order[at]]
    nearest = np.where(np.abs(weight / wide - left) <= np.abs(right - weight / wide), at - 1, at)
    codes = order[nearest].astype(np.uint8)
    return codes, rounded, values[codes] * wide
