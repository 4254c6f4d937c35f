"""MLX's affine format in numpy: codes, the packed bitstream, scales rounded as they are stored. Chooses nothing.

A weight is `scale * code + bias`, one scale and bias a group of neighbours in a row. Codes of a row lie one after
the other, lowest bits first, in 32-bit words; every width (2, 3, 4, 5, 6, 8) is laid out so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from mlx_qwen35.convert.packing import Packing

Floats = NDArray[np.float32]
Codes = NDArray[np.uint8]


@dataclass
class Grouped:
    """Rows in the affine format, not packed yet. codes: [N, groups, size]   scales, biases: [N, groups], float32,
    holding values that the stored dtype holds too."""

    codes: Codes
    scales: Floats
    biases: Floats

    def values(self) -> Floats:
        """[N, groups, size], float32: what the codes stand for, as stock mx.dequantize computes it in float32."""
        return self.scales[..., None] * self.codes + self.biases[..., None]

    def rows(self, part: slice) -> Grouped:
        """Some of the rows; a view, so that what is written to it is written here."""
        return Grouped(self.codes[part], self.scales[part], self.biases[part])

    @staticmethod
    def joined(parts: Sequence[Grouped]) -> Grouped:
        if len(parts) == 1:
            return parts[0]
        return Grouped(
            np.concatenate([p.codes for p in parts]),
            np.concatenate([p.scales for p in parts]),
            np.concatenate([p.biases for p in parts]),
        )

    def take(self, other: Grouped, where: NDArray[np.bool_]) -> None:
        """Replace by `other` where `where` says so: [N] for whole rows, [N, groups] for groups."""
        for name in ("codes", "scales", "biases"):
            getattr(self, name)[where] = getattr(other, name)[where]


def top_code(packing: Packing) -> int:
    return (1 << packing.bits) - 1


def stored(values: Floats, dtype: mx.Dtype) -> Floats:
    """float32 values rounded to what `dtype` holds, still float32; to nearest, ties to even."""
    if dtype == mx.float16:
        return values.astype(np.float16).astype(np.float32)
    if dtype != mx.bfloat16:
        return values
    bits = values.view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).view(np.float32)


def stock(rows: mx.array, packing: Packing) -> Grouped:
    """rows [N, in] -> what mx.quantize makes of them."""
    packed, scales, biases = mx.quantize(rows, packing.group_size, packing.bits)
    N, groups = scales.shape
    return Grouped(
        unpacked(np.array(packed), packing.bits).reshape(N, groups, packing.group_size),
        np.array(scales.astype(mx.float32)),
        np.array(biases.astype(mx.float32)),
    )


def as_stored(rows: Grouped, packing: Packing, dtype: mx.Dtype) -> tuple[mx.array, mx.array, mx.array]:
    """-> packed weight [N, words] uint32, scales and biases [N, groups] in `dtype`, laid out as mx.quantize does."""
    N = rows.codes.shape[0]
    packed = mx.array(packed_words(rows.codes.reshape(N, -1), packing.bits))
    return packed, mx.array(rows.scales).astype(dtype), mx.array(rows.biases).astype(dtype)


def packed_words(codes: Codes, bits: int) -> NDArray[np.uint32]:
    """codes [N, in] -> [N, in * bits / 32]. `in` is a multiple of 32, so that rows fill whole words."""
    N, width = codes.shape
    if bits == 8:
        return np.ascontiguousarray(codes).view("<u4")
    if bits in (2, 4):
        in_byte = 8 // bits
        parts = codes.reshape(N, width // in_byte, in_byte)
        joined = parts[..., 0].copy()
        for place in range(1, in_byte):
            joined |= parts[..., place] << (place * bits)
        return joined.view("<u4")
    # Eight codes fill `bits` whole bytes.
    words = np.zeros((N, width // 8), np.uint64)
    for place in range(8):
        words |= codes[:, place::8].astype(np.uint64) << np.uint64(place * bits)
    as_bytes = words.view(np.uint8).reshape(N, width // 8, 8)[..., :bits]
    return np.ascontiguousarray(as_bytes).reshape(N, -1).view("<u4")


def unpacked(words: NDArray[np.uint32], bits: int) -> Codes:
    """The inverse of `packed_words`: [N, words] -> codes [N, words * 32 / bits]"""
    N = words.shape[0]
    as_bytes = np.ascontiguousarray(words).view(np.uint8)
    if bits == 8:
        return as_bytes
    mask = (1 << bits) - 1
    if bits in (2, 4):
        in_byte = 8 // bits
        codes = np.empty((N, as_bytes.shape[1], in_byte), np.uint8)
        for place in range(in_byte):
            codes[..., place] = (as_bytes >> (place * bits)) & mask
        return codes.reshape(N, -1)
    padded = np.zeros((N, as_bytes.shape[1] // bits, 8), np.uint8)
    padded[..., :bits] = as_bytes.reshape(N, -1, bits)
    whole = padded.view("<u8")[..., 0]
    codes = np.empty((*whole.shape, 8), np.uint8)
    for place in range(8):
        codes[..., place] = (whole >> np.uint64(place * bits)) & np.uint64(mask)
    return codes.reshape(N, -1)
