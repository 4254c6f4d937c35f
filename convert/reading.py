"""Rows of stored tensors by `pread`, decoded: a block at a time, whatever the size of a tensor or file.

Every value that is read is looked at: one that is not finite ends the conversion with its tensor's name. Knows what
bytes mean, and nothing of what becomes of the values.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
import numpy as np

from mlx_qwen35.convert.fp8 import FP8
from mlx_qwen35.errors import CheckpointError
from mlx_qwen35.hub.headers import TensorEntry

_STORED = {
    "BF16": (np.uint16, mx.bfloat16),
    "F16": (np.uint16, mx.float16),
    "F32": (np.uint32, mx.float32),
    FP8: (np.uint8, mx.uint8),
    "U32": (np.uint32, mx.uint32),
    "U8": (np.uint8, mx.uint8),
}
# Without its sign, a stored value of at least this is infinite or not a number. Packed integers are all fine.
_NOT_FINITE = {"BF16": 0x7F80, "F16": 0x7C00, "F32": 0x7F800000, FP8: 0x7F}


@dataclass(frozen=True)
class RowSpan:
    """Rows [first, first + count) of a stored tensor seen as a matrix; for FP8 with the scales of its blocks."""

    entry: TensorEntry
    first: int
    count: int
    scale: TensorEntry | None = None
    block: tuple[int, int] = (0, 0)


class Reader:
    """Files are opened once and kept open until `forget`.

    arrived: called with a file before it is opened; it returns when the file is there
    """

    def __init__(self, arrived: Callable[[Path], None] | None = None) -> None:
        self._arrived = arrived
        self._descriptors: dict[Path, int] = {}

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *_: object) -> None:
        for descriptor in self._descriptors.values():
            os.close(descriptor)

    def forget(self, file: Path) -> None:
        """Close a file; it may be deleted now."""
        if (descriptor := self._descriptors.pop(file, None)) is not None:
            os.close(descriptor)

    def rows(self, span: RowSpan, width: int) -> mx.array:
        """[count, width] in the stored dtype, FP8 decoded to float32. Raises CheckpointError."""
        stored = self._integers(span.entry, span.first, span.count, width)
        self._check_finite(span, stored)
        values = mx.array(stored).view(_STORED[span.entry.dtype][1])
        if span.entry.dtype != FP8:
            return values
        assert span.scale is not None
        return mx.from_fp8(values, mx.float32) * self._scales(span, width)

    def _scales(self, span: RowSpan, width: int) -> mx.array:
        """[count, width], float32: of each value, the scale of its block."""
        assert span.scale is not None
        (high, wide), out = span.block, span.entry.shape[-2]
        rows = np.arange(span.first, span.first + span.count)
        # Stacked matrices each begin with a block of their own.
        blocks = rows // out * -(-out // high) + rows % out // high
        first, across = int(blocks[0]), span.scale.shape[-1]
        part = RowSpan(span.scale, first, int(blocks[-1]) - first + 1)
        scales = self.rows(part, across).astype(mx.float32)
        return mx.repeat(scales, wide, axis=1)[mx.array(blocks - first), :width]

    def _integers(self, entry: TensorEntry, first: int, count: int, width: int) -> np.ndarray:
        integers = _STORED[entry.dtype][0]
        row_bytes = width * np.dtype(integers).itemsize
        raw = self._read(entry, first * row_bytes, count * row_bytes)
        return np.frombuffer(raw, integers).reshape(count, width)

    def _check_finite(self, span: RowSpan, stored: np.ndarray) -> None:
        limit = _NOT_FINITE.get(span.entry.dtype)
        if limit is None or not stored.size:
            return
        magnitudes = stored & stored.dtype.type(np.iinfo(stored.dtype).max >> 1)
        if magnitudes.max() < limit:
            return
        row = span.first + int((magnitudes >= limit).any(axis=1).argmax())
        raise CheckpointError(
            f"{span.entry.name} in {span.entry.file} holds a value that is not finite, in row {row:,}. "
            "The source is damaged: download it again, or use another."
        )

    def _read(self, entry: TensorEntry, start: int, length: int) -> bytes:
        try:
            if entry.file not in self._descriptors:
                if self._arrived:
                    self._arrived(entry.file)
                self._descriptors[entry.file] = os.open(entry.file, os.O_RDONLY)
            raw = os.pread(self._descriptors[entry.file], length, entry.begin + start)
        except OSError as error:
            raise CheckpointError(f"{entry.file} cannot be read: {error.strerror}.") from None
        if len(raw) != length:
            raise CheckpointError(f"{entry.file} ended inside {entry.name}; it changed while it was read.")
        return raw
