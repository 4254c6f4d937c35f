"""Keys and values of one attention layer in 8 or 4 bits a number. Knows nothing of rotary positions, as `kv.py`.

A token's key and value are packed once, when they arrive, each head's vector by itself, and every query sees the packed
numbers, those of its own window too. So the same keys and values are stored as the same bits however they are divided
into windows, and a restored cache goes on exactly as the one it was taken from. (Keys that differ in their last bit,
since a batch was computed in another order, may round to neighbouring codes.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx

from mlx_qwen35.caches.kv import Segment, causal_attention, joined_with_room, own_copy
from mlx_qwen35.errors import RequestError

BITS = (8, 4)
# Up to this many rows (queries that share a key head) attend to packed numbers directly; more are worth unpacking.
# On a CPU both cost the same at about 8, measured with D = 64 and 256. On Metal, where nothing was measured, 32 keeps
# a draft window of four tokens packed in the released models (up to 8 query heads to a key head).
PACKED_ROWS = 32 if mx.metal.is_available() else 8


@dataclass(frozen=True)
class Packing:
    """Vectors as codes of `bits`, with a bfloat16 scale and bias for each group of 64 numbers.

    That is 4.5 or 8.5 bits a number. bfloat16 is off by a 512th at most, as a plain bfloat16 cache is. Where 64 does
    not divide the width, groups are of 32 (5 or 9 bits), and where 32 does not, zeros fill the last one up.

    rotated: a Hadamard rotation spreads a channel that is larger than the others over all of them, where it would set
    the scale of its group alone. The dot product with a vector rotated likewise stays what it was.
    """

    bits: int
    rotated: bool = False

    def pack(self, x: mx.array) -> tuple[mx.array, mx.array, mx.array]:
        """x: [..., D] -> codes, uint32 [..., W * bits / 32]; scales and biases, bfloat16 [..., W / group]"""
        x = self.aligned(x)
        codes, scales, biases = mx.quantize(x, group_size=_group_size(x.shape[-1]), bits=self.bits)
        return codes, scales.astype(mx.bfloat16), biases.astype(mx.bfloat16)

    def unpack(self, packed: Sequence[mx.array]) -> mx.array:
        """What `pack` gives -> [..., W], float32, still padded and rotated"""
        return mx.dequantize(*_float32(packed), group_size=self._group(packed[0]), bits=self.bits)

    def multiply(self, x: mx.array, packed: Sequence[mx.array], transpose: bool) -> mx.array:
        """x @ vectors, or x @ vectors.T, without unpacking them. x: float32 -> float32"""
        group = self._group(packed[0])
        return mx.quantized_matmul(x, *_float32(packed), transpose=transpose, group_size=group, bits=self.bits)

    def aligned(self, x: mx.array) -> mx.array:
        """x: [..., D] -> [..., W], float32, padded and rotated: what a dot product with unpacked vectors takes"""
        x = x.astype(mx.float32)
        padding = -x.shape[-1] % 32
        if padding:
            x = mx.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, padding)])
        return _rotated(x) if self.rotated else x

    def _group(self, codes: mx.array) -> int:
        return _group_size(codes.shape[-1] * 32 // self.bits)


class QuantizedKVCache:
    """`kv.KVCache` in 8 or 4 bits: the same methods, and rows of one cache advance together.

    At 4 bits keys are rotated. On the demo model, against the plain cache's 216 answers of 5,152 tokens
    (`python -m examples.benchmarks.kv_quantization`, float32 on a CPU):

                              bits a number   same first choice   KL mean   99th percentile   equal answers
    8 bits                    8.5             100.00 %            5.9e-6    3.6e-5            216
    4 bits                    4.5              99.96 %            4.9e-4    3.7e-3            214
    4 bits, keys not rotated  4.5              99.84 %            6.7e-4    4.1e-3            208

    Rotating values too, or groups of 32 (5 bits), gained nothing in first choices. The demo's keys have no channels
    that dwarf the others; where one does, rotation helps more (tests/caches/test_quantized_kv.py). No released
    checkpoint was measured.
    """

    def __init__(self, bits: int, rotate_keys: bool | None = None) -> None:
        """rotate_keys: None for what was found better. Raises RequestError for other bits than 8 and 4."""
        if bits not in BITS:
            raise RequestError(f"A quantized KV cache takes 8 or 4 bits a number, not {bits}.")
        self.bits = bits
        self.length = 0
        self._keys = Packing(bits, rotated=bits == 4 if rotate_keys is None else rotate_keys)
        self._values = Packing(bits)
        # codes, scales and biases of the keys, then of the values: [B, Hk, capacity, ...]
        self._arrays: list[mx.array] = []

    def attend(self, q: mx.array, k: mx.array, v: mx.array, scale: float) -> mx.array:
        """Append a window, then let its queries see everything up to themselves, as it is stored.

        q: [B, H, T, D]   k, v: [B, Hk, T, D], query head h reads key head h // (H / Hk)
        -> [B, H, T, D] in q's dtype
        """
        self.append(k, v)
        return self.attend_held(q, k.shape[1], scale)

    def append(self, k: mx.array, v: mx.array) -> None:
        """k, v: [B, Hk, T, D]"""
        self._append([*self._keys.pack(k), *self._values.pack(v)])

    def attend_held(self, q: mx.array, kv_heads: int, scale: float) -> mx.array:
        """The last T positions of what is held attend to all of it.   q: [B, H, T, D] -> the same"""
        aligned = self._keys.aligned(q)
        per_key_head = q.shape[1] // kv_heads * q.shape[2]
        if per_key_head <= PACKED_ROWS:
            attended = self._attend_packed(aligned, scale)
        else:
            attended = self._attend_unpacked(aligned.astype(q.dtype), scale)
        return attended[..., : q.shape[3]].astype(q.dtype)

    def _attend_packed(self, q: mx.array, scale: float) -> mx.array:
        """Two quantized products, which read each packed byte once.   q: [B, H, T, W] -> the same, float32"""
        keys, values = self._held()
        (B, H, T, W), Hk = q.shape, keys[0].shape[1]
        scores = self._keys.multiply((q * scale).reshape(B, Hk, -1, W), keys, transpose=True)  # [B, Hk, R * T, L]
        if T > 1:
            visible = mx.arange(self.length) <= mx.arange(self.length - T, self.length)[:, None]
            scores = mx.where(visible, scores.reshape(B, Hk, -1, T, self.length), -mx.inf)
        weights = mx.softmax(scores, axis=-1).reshape(B, Hk, -1, self.length)
        return self._values.multiply(weights, values, transpose=False).reshape(B, H, T, W)

    def _attend_unpacked(self, q: mx.array, scale: float) -> mx.array:
        """Fused attention, one key head after another: only one stands unpacked.   q: [B, H, T, W] -> the same"""
        keys, values = self._held()
        R = q.shape[1] // keys[0].shape[1]
        heads: list[mx.array] = []
        for start in range(0, q.shape[1], R):
            packed = [a[:, start // R : start // R + 1] for a in (*keys, *values)]
            if heads:
                # Else MLX may unpack all heads before it attends to the first.
                packed = mx.depends(packed, heads[-1])
            k, v = self._keys.unpack(packed[:3]).astype(q.dtype), self._values.unpack(packed[3:]).astype(q.dtype)
            heads.append(causal_attention(q[:, start : start + R], k, v, scale))
        return mx.concatenate(heads, axis=1)

    def _held(self) -> tuple[list[mx.array], list[mx.array]]:
        filled = self.state
        return filled[:3], filled[3:]

    def _append(self, window: list[mx.array]) -> None:
        held, new = ([a.shape[3] for a in arrays] for arrays in (self._arrays, window))
        if held and held != new:
            raise ValueError(f"this {self.bits}-bit KV cache holds arrays of width {held} but a window packs to {new}")
        end = self.length + window[0].shape[2]
        if not self._arrays or end > self._arrays[0].shape[2]:
            spans = zip(self.state, window) if self._arrays else zip(window)
            self._arrays = [joined_with_room(span, end) for span in spans]
        else:
            for array, new in zip(self._arrays, window):
                array[:, :, self.length : end] = new
        self.length = end

    def trim(self, n: int) -> int:
        """Forget the last `n` tokens; returns how many were forgotten."""
        n = min(n, self.length)
        self.length -= n
        return n

    def segment(self, start: int, end: int) -> Segment:
        """Copies of what is held of tokens [start, end): codes, scales, biases of the keys, then of the values."""
        return tuple(own_copy(a[:, :, start:end]) for a in self._arrays)

    def load(self, segments: Sequence[Segment]) -> None:
        """Hold exactly these segments, one after another; `attend` raises ValueError if their format is another."""
        self.length = sum(segment[0].shape[2] for segment in segments)
        self._arrays = [joined_with_room(spans, self.length) for spans in zip(*segments)]

    # mlx-lm's cache protocol: what its generate loop asks of a cache.

    @property
    def offset(self) -> int:
        return self.length

    @property
    def state(self) -> list[mx.array]:
        """The filled arrays, for `mx.eval`."""
        return [a[:, :, : self.length] for a in self._arrays]

    @property
    def nbytes(self) -> int:
        return sum(a.nbytes for a in self._arrays)

    def is_trimmable(self) -> bool:
        return True

    def empty(self) -> bool:
        return self.length == 0


def _group_size(width: int) -> int:
    return 64 if width % 64 == 0 else 32


def _float32(packed: Sequence[mx.array]) -> tuple[mx.array, mx.array, mx.array]:
    """Codes as they are; scales and biases in the precision that products are to have."""
    codes, scales, biases = packed
    return codes, scales.astype(mx.float32), biases.astype(mx.float32)


def _rotated(x: mx.array) -> mx.array:
    """Hadamard rotation of the last axis, over the largest power of two that divides it. Its own inverse."""
    width = x.shape[-1]
    block = width & -width
    return mx.hadamard_transform(x.reshape(*x.shape[:-1], -1, block)).reshape(x.shape)
