"""MLX arrays to bytes and back: what files hold of a sequence, checked against what a model's caches look like."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from mlx_qwen35.caches.rows import SequenceCache, attention_layers, recurrent_layers
from mlx_qwen35.caches.sealed import Blob

DTYPES = {"F32": mx.float32, "BF16": mx.bfloat16, "F16": mx.float16, "U32": mx.uint32, "U8": mx.uint8}
CODES = {dtype: code for code, dtype in DTYPES.items()}
NUMPY = {"F32": np.float32, "BF16": np.uint16, "F16": np.float16, "U32": np.uint32, "U8": np.uint8}

Layers = Sequence[Sequence[mx.array]]  # the arrays of each layer
Shapes = Sequence[Sequence[tuple[str, tuple[int, ...]]]]  # their dtypes and shapes


@dataclass(frozen=True)
class Layouts:
    """What the caches of one format look like. segment: of one token   checkpoint: of any length"""

    segment: Shapes
    checkpoint: Shapes

    @classmethod
    def of(cls, cache: SequenceCache) -> Layouts:
        """Taken from the caches of a sequence of at least one token."""
        segment = [layer.segment(0, 1) for layer in attention_layers(cache)]
        return cls(shapes_of(segment), shapes_of([layer.snapshot() for layer in recurrent_layers(cache)]))


def shapes_of(layers: Layers) -> Shapes:
    return [[(CODES[a.dtype], tuple(a.shape)) for a in layer] for layer in layers]


def blobs_of(layers: Layers, prefix: str = "") -> dict[str, Blob]:
    """Copies of the bytes, named `{prefix}{layer}.{array}`: writers run on other threads, and MLX's arrays do not."""
    return {f"{prefix}{i}.{j}": blob_of(array) for i, layer in enumerate(layers) for j, array in enumerate(layer)}


def arrays_of(
    blobs: Mapping[str, Blob], shapes: Shapes, tokens: int | None = None, prefix: str = ""
) -> list[tuple[mx.array, ...]] | None:
    """What `blobs_of` took; None where anything is missing, or of another dtype or shape than `shapes` says.

    tokens: of a segment, whose token axis is 2; None for a checkpoint
    """
    layers = []
    for i, layer in enumerate(shapes):
        arrays = []
        for j, (code, shape) in enumerate(layer):
            blob = blobs.get(f"{prefix}{i}.{j}")
            wanted = shape if tokens is None else (*shape[:2], tokens, *shape[3:])
            if blob is None or (blob.dtype, tuple(blob.shape)) != (code, wanted):
                return None
            arrays.append(_array(blob))
        layers.append(tuple(arrays))
    return layers


def blob_of(array: mx.array) -> Blob:
    # numpy has no bfloat16.
    raw = array.view(mx.uint16) if array.dtype == mx.bfloat16 else array
    return Blob(CODES[array.dtype], tuple(array.shape), np.array(raw).tobytes())


def _array(blob: Blob) -> mx.array:
    dtype = DTYPES[blob.dtype]
    array = mx.array(np.frombuffer(blob.data, NUMPY[blob.dtype]).reshape(blob.shape))
    return array.view(dtype) if dtype == mx.bfloat16 else array
