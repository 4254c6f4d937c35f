"""Tiny random Qwen3.5 checkpoints in the original form, config, tokenizer and tensors: the same bytes everywhere.

Written with numpy alone, from the raw bits of a seeded PCG64, so that nothing but the outputs of the outside
reference has to be committed. Knows nothing of torch, MLX, or of what the network computes.
"""

import hashlib
import itertools
import json
import string
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from tests.reference.tiny_cases import CASES, SPECIAL_TOKENS, TinyCase, config
from tests.reference.tiny_tensors import all_tensors

_BYTES = {"F32": 4, "BF16": 2}


def stored_dtype(case: TinyCase, name: str) -> str:
    """The released files keep A_log and the gated norm in float32."""
    return "F32" if name.endswith(("A_log", "linear_attn.norm.weight")) else case.dtype


def _rounded(array: np.ndarray, dtype: str) -> np.ndarray:
    """float32 holding only values that `dtype` can: to the nearest, ties to even."""
    if dtype == "F32":
        return array
    bits = array.view(np.uint32).astype(np.uint64)
    bits += 0x7FFF + ((bits >> np.uint64(16)) & np.uint64(1))
    return (bits & np.uint64(0xFFFF0000)).astype(np.uint32).view(np.float32)


def _to_bytes(rounded: np.ndarray, dtype: str) -> bytes:
    if dtype == "F32":
        return rounded.astype("<f4").tobytes()
    return (rounded.view(np.uint32) >> np.uint32(16)).astype("<u2").tobytes()


def _write_safetensors(path: Path, tensors: dict[str, tuple[str, np.ndarray]]) -> None:
    """By hand, since numpy has no bfloat16 and the bytes must not change with a library's version."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, (dtype, array) in tensors.items():
        end = offset + array.size * _BYTES[dtype]
        header[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.writelines(_to_bytes(array, dtype) for dtype, array in tensors.values())


def _shards(case: TinyCase, names: list[str]) -> Iterator[tuple[str, list[str]]]:
    if case.shards == 1:
        yield "model.safetensors", names
        return
    for i in range(case.shards):
        # The order of words of the small released repositories; only the index says which files there are.
        file = f"model.safetensors-{i + 1:05d}-of-{case.shards:05d}.safetensors"
        yield file, names[i :: case.shards]


def write_checkpoint(name: str, folder: Path) -> Path:
    """Writes the checkpoint `name` into `folder` (made if absent) and returns the folder."""
    return write_case(CASES[name], folder)


def write_case(case: TinyCase, folder: Path) -> Path:
    """The same for a case that is none of the recorded ones."""
    return _write(case, case, config(case), folder)


def write_float32_copy(name: str, folder: Path) -> Path:
    """The same checkpoint, value for value, every tensor in float32 and experts fused.

    The form in which stock mlx-lm can be compared: on CPU it multiplies experts in float32 only, it wants them
    fused, and in any narrower type it rounds the norm weights once more.
    """
    case = CASES[name]
    mtp = "fused" if case.mtp == "separate" else case.mtp
    form = replace(case, dtype="F32", separate_experts=False, mtp=mtp)
    described = config(form)
    described["model_type"] = described["model_type"].removesuffix("_text")  # stock knows no flat checkpoints
    return _write(case, form, described, folder)


def _write_json(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _write_tokenizer(case: TinyCase, folder: Path) -> None:
    """The family's kind, byte-level BPE, over printable ASCII: for tools that want a tokenizer beside the weights."""
    words = ["Ċ", "Ġ", *map(chr, range(33, 127))]  # newline and space, as byte-level vocabularies write them
    pairs = list(itertools.product(string.ascii_lowercase, repeat=2))
    merges = pairs[: case.tokens - len(SPECIAL_TOKENS) - len(words)]
    words += [first + second for first, second in merges]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": True}
    tokenizer = {
        "version": "1.0",
        "added_tokens": [{"id": len(words) + i, "content": text, **flags} for i, text in enumerate(SPECIAL_TOKENS)],
        "pre_tokenizer": byte_level,
        "decoder": byte_level,
        "model": {"type": "BPE", "vocab": {word: i for i, word in enumerate(words)}, "merges": merges},
    }
    _write_json(folder / "tokenizer.json", tokenizer)
    settings = {"tokenizer_class": "Qwen2Tokenizer", "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    _write_json(folder / "tokenizer_config.json", settings)


def _write(case: TinyCase, form: TinyCase, described: dict, folder: Path) -> Path:
    """The values of `case`, rounded as it stores them, in the types and the expert layout of `form`."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    _write_json(folder / "config.json", described)
    _write_tokenizer(case, folder)
    arrays = {k: _rounded(v, stored_dtype(case, k)) for k, v in all_tensors(case)}
    if form.separate_experts != case.separate_experts or form.mtp != case.mtp:
        arrays = _fused(arrays)
    weight_map = {}
    for file, names in _shards(form, list(arrays)):
        _write_safetensors(folder / file, {k: (stored_dtype(form, k), arrays[k]) for k in names})
        weight_map |= dict.fromkeys(names, file)
    if form.shards > 1:
        total = sum(v.size * _BYTES[stored_dtype(form, k)] for k, v in arrays.items())
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        _write_json(folder / "model.safetensors.index.json", index)
    return folder


def _fused(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Experts that stand one by one (`experts.0.gate_proj.weight` ...) stacked as `experts.gate_up_proj` ..."""
    out = dict(arrays)
    for first in [k for k in arrays if k.endswith("experts.0.gate_proj.weight")]:
        at = first.removesuffix("0.gate_proj.weight")
        rows = []
        while f"{at}{len(rows)}.gate_proj.weight" in out:
            rows.append([out.pop(f"{at}{len(rows)}.{part}_proj.weight") for part in ("gate", "up", "down")])
        out[f"{at}gate_up_proj"] = np.stack([np.concatenate([gate, up]) for gate, up, _ in rows])
        out[f"{at}down_proj"] = np.stack([down for _, _, down in rows])
    return out


def file_hashes(folder: Path) -> dict[str, str]:
    """sha256 of each file that write_checkpoint made."""
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(folder.iterdir())}
