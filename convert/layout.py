"""Output files: which tensors each holds, where each tensor lies, and the header that says so."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from math import prod
from typing import TypeVar

from mlx_qwen35.models.norms import METADATA_KEY, PLUS_ONE

SHARD_BYTES = 5_000_000_000
ITEM_BYTES = {"BF16": 2, "F16": 2, "F32": 4, "U32": 4, "U8": 1}
METADATA = {"format": "mlx", METADATA_KEY: PLUS_ONE}  # of every safetensors file
MTP_FILE = "mtp/model.safetensors"
T = TypeVar("T")


@dataclass(frozen=True)
class OutputTensor:
    """One tensor of an output file; its data start `begin` bytes after the file's header."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int = 0

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * ITEM_BYTES[self.dtype]


def placed(tensors: list[OutputTensor]) -> dict[str, OutputTensor]:
    """By name, each with its place: the wide types first, so that every tensor is aligned to its own type."""
    found, end = {}, 0
    for tensor in sorted(tensors, key=lambda t: -ITEM_BYTES[t.dtype]):
        found[tensor.name] = replace(tensor, begin=end)
        end += tensor.nbytes
    return found


def header_of(tensors: list[OutputTensor]) -> bytes:
    """The bytes before a file's tensors: the length, and the JSON header padded to a multiple of eight."""
    entries: dict[str, object] = {"__metadata__": METADATA}
    for tensor in sorted(tensors, key=lambda t: (t.begin, t.nbytes)):
        place = [tensor.begin, tensor.begin + tensor.nbytes]
        entries[tensor.name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": place}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def in_shards(items: list[T], nbytes: Callable[[T], int]) -> list[list[T]]:
    """Runs of at most SHARD_BYTES, in order; a larger item gets one of its own."""
    shards: list[list[T]] = [[]]
    filled = 0
    for item in items:
        if shards[-1] and filled + nbytes(item) > SHARD_BYTES:
            shards.append([])
            filled = 0
        shards[-1].append(item)
        filled += nbytes(item)
    return shards


def shard_name(number: int, count: int) -> str:
    """Of shard `number`, counted from 1."""
    return "model.safetensors" if count == 1 else f"model-{number:05d}-of-{count:05d}.safetensors"
