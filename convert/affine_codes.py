"""MLX's affine format in numpy: codes, the packed bitstream, scales rounded as they are stored. Chooses nothing.

A weight is `scale * code + bias`, one scale and bias a group of neighbours in a row. Codes of a row lie one after
the other, lowest bits first, in 32-bit words; every width (2, 3, 4, 5, 6, 8) is laid out so.
"""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from mlx_qwen35.convert.packing import Packing

Floats = NDArray[np.float32]
Codes = NDArray[np.uint8]
Weights = Floats | NDArray[np.uint16]  # the latter are the bits of bfloat16, which numpy does not know


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

    def take(self, other: Grouped, where: NDArray[np.bool_]) -> None:
        """Replace by `other` where `where` says so: [N] for whole rows, [N, groups] for groups."""
        for name in ("codes", "scales", "biases"):
            getattr(self, name)[where] = getattr(other, name)[where]


def top_code(packing: Packing) -> int:
    return (1 << packing.bits) - 1


def as_floats(weights: Weights) -> Floats:
    if weights.dtype == np.float32:
        return weights.view(np.float32)
    return np.left_shift(weights, 16, dtype=np.uint32).view(np.float32)


def stored(values: Floats, dtype: mx.Dtype) -> Floats:
    """float32 values rounded to what `dtype` holds, still float32; to nearest, ties to even."""
    if dtype == mx.float16:
        return values.astype(np.float16).astype(np.float32)
    if dtype != mx.bfloat16:
        return values
    bits = values.view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).view(np.float32)


def stock_scales(low: Floats, high: Floats, top: int, dtype: mx.Dtype) -> Floats:
    """Scales and biases [2, ...] as mx.quantize stores them, of groups with these lowest and highest weights [...].

    The end of the range that is farther from zero is met exactly, and zero has a code of its own.
    """
    far_low = np.abs(low) > np.abs(high)
    scales = np.maximum((high - low) / np.float32(top), np.float32(1e-7))
    scales, edge = np.where(far_low, scales, -scales), np.where(far_low, low, high)
    steps = np.rint(edge / scales)
    scales = np.where(steps == 0, scales, edge / np.where(steps == 0, 1, steps))
    return stored(np.stack([scales, np.where(steps == 0, np.float32(0), edge)]), dtype)


def stock(rows: mx.array, packing: Packing) -> Grouped:
    """rows [N, in] -> what mx.quantize makes of them."""
    packed, scales, biases = mx.quantize(rows, packing.group_size, packing.bits)
    N, groups = scales.shape
    return Grouped(
        unpacked(np.array(packed), packing.bits).reshape(N, groups, packing.group_size),
        np.array(scales.astype(mx.float32)),
        np.array(biases.astype(mx.float32)),
    )


def packed_words(codes: Codes, bits: int) -> NDArray[np.uint32]:
    """codes [..., in] -> [..., in * bits / 32]. `in` is a multiple of 32, so that rows fill whole words."""
    if bits == 8:
        return np.ascontiguousarray(codes).view("<u4")
    if bits in (2, 4):
        in_byte = 8 // bits
        joined = codes[..., ::in_byte].copy("K")  # as codes lie in memory, which need not be row by row
        for place in range(1, in_byte):
            joined |= codes[..., place::in_byte] << (place * bits)
        return np.ascontiguousarray(joined).view("<u4")
    # Eight codes fill `bits` whole bytes.
    words = codes[..., ::8].astype(np.uint64)
    for place in range(1, 8):
        words |= codes[..., place::8].astype(np.uint64) << np.uint64(place * bits)
    words = np.ascontiguousarray(words)
    as_bytes = words.view(np.uint8).reshape(*words.shape, 8)[..., :bits]
    return np.ascontiguousarray(as_bytes).reshape(*codes.shape[:-1], -1).view("<u4")


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
