"""What calibration saw, on disk: second moments and Hessians of the inputs of every parameter, routing counts.

Parameters with the same input share an entry. Hessians are kept as correlations in half precision, the lower
triangle only: a 122B model has twelve thousand of them. Knows nothing of how they were gathered (calibrate.py).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import mlx.core as mx
import numpy as np

from mlx_qwen35.convert.rounding import Statistics

SUMMARY = "calibration.json"
BLOCK = 128  # inputs whose correlations are kept where no whole Hessian is wanted: the largest group there is
COVERED = 16  # tokens; an expert that saw fewer takes its layer's pooled statistics
# Whose input is also another's: the last parts of a path, and the entry that stands for it.
_SHARED = (
    (re.compile(r"linear_attn\.in_proj_(qkv|z|a|b)"), "linear_attn"),
    (re.compile(r"self_attn\.[qkv]_proj"), "self_attn"),
    (re.compile(r"mlp\.((switch_mlp|shared_expert)\.)?(gate|up)_proj|mlp\.gate|mlp\.shared_expert_gate"), "mlp"),
)


def input_of(parameter: str) -> str:
    """The entry that describes what a parameter's rows are multiplied with.

    >>> input_of("language_model.model.layers.0.linear_attn.in_proj_z.weight")
    'language_model.model.layers.0.linear_attn'
    """
    path = parameter.removesuffix(".weight")
    for pattern, entry in _SHARED:
        if (found := pattern.search(path)) and found.end() == len(path):
            return path[: found.start()] + entry
    return path


@dataclass(frozen=True)
class Moments:
    """Sums over the tokens seen. second: [in], float64

    outer: float32; [in, in], or [in / size, size, size] among neighbours only, or None where nobody wants it
    """

    tokens: int
    second: np.ndarray
    outer: np.ndarray | None = None

    def __add__(self, other: Moments) -> Moments:
        outer = None if self.outer is None or other.outer is None else self.outer + other.outer
        return Moments(self.tokens + other.tokens, self.second + other.second, outer)


class CalibrationStore:
    """A folder of statistics. An entry is `input_of` a parameter, with `:expert` behind it where each has its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._file = lru_cache(maxsize=2)(self._load)
        # The same object for the same entry: rounding prepares a Hessian once for all rows that share it.
        self._entry = lru_cache(maxsize=4)(self._read)

    @property
    def is_complete(self) -> bool:
        return (self.folder / SUMMARY).is_file()

    def statistics(self, parameter: str, expert: int | None = None) -> Statistics:
        """For `round_rows`. Empty for a parameter whose inputs calibration has not seen, as an embedding's."""
        entry = input_of(parameter)
        arrays = self._file(_file_of(entry))
        key = entry
        if expert is not None and f"{entry}:{expert}.tokens" in arrays:
            covered = int(arrays[f"{entry}:{expert}.tokens"][0]) >= COVERED
            key = f"{entry}:{expert}" if covered else entry
        return self._entry(entry, key)

    def _read(self, entry: str, key: str) -> Statistics:
        arrays = self._file(_file_of(entry))
        if f"{key}.second" not in arrays:
            return Statistics()
        tokens, second = int(arrays[f"{key}.tokens"][0]), arrays[f"{key}.second"]
        packed = arrays.get(f"{key}.correlation")
        if packed is None:
            return Statistics(mx.array(second))
        if packed.ndim == 1:
            return Statistics(mx.array(second), hessian=mx.array(_shrunk(packed, second, tokens)))
        blocks = [_shrunk(p, s, tokens) for p, s in zip(packed, second.reshape(len(packed), -1))]
        return Statistics(mx.array(second), blocks=mx.array(np.stack(blocks)))

    def routed(self, parameter: str, experts: int) -> list[int]:
        """How many tokens each expert of a stacked parameter saw; nothing for what is no stack."""
        entry = input_of(parameter)
        arrays = self._file(_file_of(entry))
        if entry not in {key.partition(":")[0] for key in arrays if ":" in key}:
            return []
        keys = [f"{entry}:{e}.tokens" for e in range(experts)]
        return [int(arrays[key][0]) if key in arrays else 0 for key in keys]

    def put(self, part: str, moments: Mapping[str, Moments]) -> None:
        """Keep the entries of one part of the network; whole or not at all."""
        arrays: dict[str, mx.array] = {}
        for key, found in moments.items():
            if not found.tokens:
                continue
            second = (found.second / found.tokens).astype(np.float32)
            arrays[f"{key}.tokens"] = mx.array(np.array([found.tokens], np.int64))
            arrays[f"{key}.second"] = mx.array(second)
            if found.outer is not None:
                arrays[f"{key}.correlation"] = mx.array(_correlations(found.outer / found.tokens, second))
        self.folder.mkdir(parents=True, exist_ok=True)
        target = self.folder / f"{part}.safetensors"
        partial = self.folder / f"{part}.partial.safetensors"
        mx.save_safetensors(str(partial), arrays)
        partial.replace(target)
        self._file.cache_clear()
        self._entry.cache_clear()

    def finish(self, summary: Mapping[str, object]) -> None:
        partial = self.folder / f"{SUMMARY}.partial"
        partial.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
        partial.replace(self.folder / SUMMARY)

    def summary(self) -> dict[str, object]:
        return json.loads((self.folder / SUMMARY).read_text(encoding="utf-8"))

    def has(self, part: str) -> bool:
        return (self.folder / f"{part}.safetensors").is_file()

    def _load(self, name: str) -> dict[str, np.ndarray]:
        path = self.folder / f"{name}.safetensors"
        if not path.is_file():
            return {}
        loaded = mx.load(str(path))
        assert isinstance(loaded, dict)
        return {key: np.array(value) for key, value in loaded.items()}


def _file_of(entry: str) -> str:
    """One file for each layer, so that a layer's statistics are read once and let go."""
    found = re.match(r"(?:language_model\.model\.)?((?:mtp\.)?layers\.\d+|mtp)\b", entry)
    return found.group(1) if found else "head"


def block_size(width: int) -> int:
    """Of the neighbourhoods of `width` inputs: the largest power of two up to BLOCK that divides it."""
    return min(BLOCK, width & -width)


def _correlations(outer: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Of a whole matrix, or of each block"""
    if outer.ndim == 2:
        return _correlation(outer, second)
    return np.stack([_correlation(o, s) for o, s in zip(outer, second.reshape(len(outer), -1))])


def _correlation(outer: np.ndarray, second: np.ndarray) -> np.ndarray:
    """[in, in] second moments -> the lower triangle of their correlations, [in * (in + 1) / 2], float16"""
    scale = 1 / np.sqrt(np.maximum(second, 1e-30))
    return (outer * scale[:, None] * scale)[np.tril_indices(len(second))].astype(np.float16)


def _shrunk(packed: np.ndarray, second: np.ndarray, tokens: int) -> np.ndarray:
    """The Hessian, its off-diagonal shrunk by n / (n + dim): what few tokens say of correlations is mostly noise."""
    dim = len(second)
    scale = np.sqrt(second)
    matrix = np.zeros((dim, dim), np.float32)
    matrix[np.tril_indices(dim)] = packed
    matrix = (matrix + np.tril(matrix, -1).T) * np.float32(tokens / (tokens + dim))
    np.fill_diagonal(matrix, 1)
    return matrix * scale[:, None] * scale
