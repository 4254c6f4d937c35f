"""Quantized keys and values, against attention over the numbers that are stored, however a prompt is divided."""

from __future__ import annotations

from itertools import pairwise

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_qwen35.caches import quantized_kv
from mlx_qwen35.caches.kv import GROWTH, KVCache
from mlx_qwen35.caches.quantized_kv import BITS, QuantizedKVCache
from mlx_qwen35.errors import RequestError

H, HK = 6, 2
# float32 on both sides, sums in another order.
ROUNDING = 2e-6

Window = tuple[mx.array, mx.array, mx.array]


def window(T: int, D: int = 64, seed: int = 0, B: int = 1) -> Window:
    """q, k, v; values stand away from zero, so that a lost bias shows, and heads differ in size."""
    keys = mx.random.split(mx.random.key(seed), 3)
    q = mx.random.normal((B, H, T, D), key=keys[0])
    k, v = (mx.random.normal((B, HK, T, D), key=key) * mx.array([1.0, 3.0])[:, None, None] for key in keys[1:])
    return q, k, v + 0.5


def cut(w: Window, start: int, end: int) -> Window:
    q, k, v = (x[:, :, start:end] for x in w)
    return q, k, v


def attend(cache: KVCache | QuantizedKVCache, w: Window) -> mx.array:
    return cache.attend(*w, scale=w[0].shape[-1] ** -0.5)


def stored(cache: QuantizedKVCache, D: int) -> tuple[np.ndarray, np.ndarray]:
    """The held keys and values as plain numbers [B, Hk, L, D], from the documented layout, in numpy."""
    arrays = [np.array(a.astype(mx.float32)) if a.dtype == mx.bfloat16 else np.array(a) for a in cache.state]
    keys, values = (numbers(*three, bits=cache.bits) for three in (arrays[:3], arrays[3:]))
    if cache.bits == 4:
        keys = keys @ hadamard(keys.shape[-1])
    return keys[..., :D], values[..., :D]


def numbers(codes: np.ndarray, scales: np.ndarray, biases: np.ndarray, bits: int) -> np.ndarray:
    shifts = np.arange(0, 32, bits, dtype=np.uint32)
    loose = ((codes[..., None] >> shifts) & (2**bits - 1)).reshape(*codes.shape[:-1], -1)
    group = loose.shape[-1] // scales.shape[-1]
    return loose * np.repeat(scales, group, -1) + np.repeat(biases, group, -1)


def hadamard(width: int) -> np.ndarray:
    """Sylvester's matrix over the largest power of two in `width`, once for each block; orthonormal, symmetric."""
    block = width & -width
    matrix = np.ones((1, 1))
    while len(matrix) < block:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return np.kron(np.eye(width // block), matrix / block**0.5)


def reference(q: mx.array, keys: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Causal attention in float64, the queries at the end of the text."""
    queries, T, L = np.array(q.astype(mx.float32), np.float64), q.shape[2], keys.shape[2]
    keys, values = (np.repeat(x.astype(np.float64), H // HK, axis=1) for x in (keys, values))
    scores = queries @ keys.swapaxes(-1, -2) * q.shape[-1] ** -0.5
    scores = np.where(np.arange(L) <= np.arange(L - T, L)[:, None], scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True) @ values


def assert_close(ours: mx.array, expected: np.ndarray | mx.array, tolerance: float = ROUNDING) -> None:
    a, b = np.array(ours.astype(mx.float32)), np.array(expected)
    assert a.shape == b.shape
    assert np.abs(a - b).max() <= tolerance * max(1, np.abs(b).max())


def assert_same_bits(ours: QuantizedKVCache, theirs: QuantizedKVCache) -> None:
    assert ours.length == theirs.length
    for a, b in zip(ours.state, theirs.state, strict=True):
        assert mx.array_equal(a, b)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("D", [16, 32, 64, 96, 256])
@pytest.mark.parametrize("T", [1, 2, 7, 33])
def test_attention_is_that_over_the_stored_numbers(bits: int, D: int, T: int) -> None:
    cache = QuantizedKVCache(bits)
    for before in (window(40, D, seed=1), window(T, D, seed=2)):
        ours = attend(cache, before)
        assert_close(ours, reference(before[0], *stored(cache, D)), 4 * ROUNDING)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("B", [1, 3])
@pytest.mark.parametrize("T", [1, 5])
def test_both_forms_of_attention_agree(bits: int, B: int, T: int, monkeypatch: pytest.MonkeyPatch) -> None:
    results = []
    for rows in (0, 10**6):
        monkeypatch.setattr(quantized_kv, "PACKED_ROWS", rows)
        cache = QuantizedKVCache(bits)
        attend(cache, window(20, B=B))
        results.append(attend(cache, window(T, seed=1, B=B)))
    assert_close(results[0], results[1])


@pytest.mark.parametrize(("bits", "step"), [(8, 255), (4, 15)])
def test_a_stored_number_is_half_a_step_away_at_most(bits: int, step: int) -> None:
    cache = QuantizedKVCache(bits, rotate_keys=False)
    _, k, v = w = window(50, 128)
    attend(cache, w)
    arrays = [np.array(a.astype(mx.float32)) if a.dtype == mx.bfloat16 else np.array(a) for a in cache.state]
    for plain, packed in ((k, arrays[:3]), (v, arrays[3:])):
        groups = np.array(plain).reshape(*plain.shape[:3], -1, 64)
        error = np.abs(numbers(*packed, bits=bits).reshape(groups.shape) - groups).max(-1)
        spread = groups.max(-1) - groups.min(-1)
        # Half a step of the codes; MLX's scales keep zero exact, for which it takes up to half a step more;
        # then scale and bias round to bfloat16, by at most a 512th each.
        assert (error <= spread / step + 2 * np.abs(groups).max(-1) / 256).all()


def test_a_large_channel_costs_rotated_keys_less() -> None:
    """What the rotation is for: keys of real checkpoints have a few channels far larger than the rest."""
    q, k, v = window(64, 256)
    k = k * mx.where(mx.arange(256) == 17, 30.0, 1.0)
    plain = np.array(k)

    def error(rotate: bool) -> float:
        cache = QuantizedKVCache(4, rotate_keys=rotate)
        attend(cache, (q, k, v))
        arrays = [np.array(a.astype(mx.float32)) if a.dtype == mx.bfloat16 else np.array(a) for a in cache.state[:3]]
        keys = numbers(*arrays, bits=4)
        return float(np.abs((keys @ hadamard(256) if rotate else keys) - plain)[..., :17].mean())

    assert error(True) < 0.6 * error(False)


@settings(max_examples=25)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=6), st.sampled_from(BITS), st.sampled_from([16, 64]))
def test_any_division_into_windows_is_one_window(lengths: list[int], bits: int, D: int) -> None:
    text = window(sum(lengths), D)
    whole, divided = QuantizedKVCache(bits), QuantizedKVCache(bits)
    at_once = attend(whole, text)
    parts, start = [], 0
    for T in lengths:
        parts.append(attend(divided, cut(text, start, start + T)))
        start += T
    assert_same_bits(divided, whole)
    assert_close(mx.concatenate(parts, axis=2), at_once, 4 * ROUNDING)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("trimmed", [1, 5, 30])
def test_after_a_trim_the_rest_never_happened(bits: int, trimmed: int) -> None:
    text, rest = window(40), window(9, seed=3)
    ours, never = QuantizedKVCache(bits), QuantizedKVCache(bits)
    attend(ours, text)
    assert ours.trim(trimmed) == trimmed
    attend(never, cut(text, 0, 40 - trimmed))
    assert mx.array_equal(attend(ours, rest), attend(never, rest))
    assert_same_bits(ours, never)
    assert ours.trim(1000) == 49 - trimmed
    assert ours.empty()


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("boundaries", [[0, 60], [0, 1, 59, 60], [0, 30, 60]])
def test_restored_is_what_was_saved(bits: int, boundaries: list[int]) -> None:
    text, rest = window(60), window(4, seed=3)
    cold, restored = QuantizedKVCache(bits), QuantizedKVCache(bits)
    attend(cold, text)
    segments = [cold.segment(a, b) for a, b in pairwise(boundaries)]
    restored.load(segments)
    assert_same_bits(restored, cold)
    assert mx.array_equal(attend(restored, rest), attend(cold, rest))
    restored.load([])
    assert restored.empty()
    assert mx.array_equal(attend(restored, text), attend(QuantizedKVCache(bits), text))


@pytest.mark.parametrize("bits", BITS)
def test_a_segment_is_untouched_by_what_comes_after(bits: int) -> None:
    cache, other = QuantizedKVCache(bits), QuantizedKVCache(bits)
    attend(cache, window(20))
    segment = cache.segment(5, 20)
    before = [np.array(a.view(mx.uint8)) for a in segment]
    other.load([segment])
    for changing in (cache, other):
        changing.trim(10)
        mx.eval(attend(changing, window(10, seed=9)))
    for array, was in zip(segment, before):
        assert np.array_equal(np.array(array.view(mx.uint8)), was)


@pytest.mark.parametrize("bits", BITS)
def test_capacity_grows_in_steps_and_keeps_what_it_held(bits: int) -> None:
    text = window(GROWTH + 3, 32)
    cache, whole = QuantizedKVCache(bits), QuantizedKVCache(bits)
    attend(cache, cut(text, 0, GROWTH - 1))
    room = cache.nbytes
    for i in (GROWTH - 1, GROWTH + 1):  # room for one more when two come
        mx.eval(attend(cache, cut(text, i, i + 2)))
    assert cache.nbytes == 2 * room
    attend(whole, text)
    assert_same_bits(cache, whole)


@pytest.mark.parametrize(
    ("bits", "D", "per_number"), [(8, 256, 8.5), (4, 256, 4.5), (4, 64, 4.5), (4, 96, 5), (8, 16, 18)]
)
def test_a_token_takes_what_the_format_says(bits: int, D: int, per_number: float) -> None:
    cache = QuantizedKVCache(bits)
    attend(cache, window(3, D))
    token = 2 * HK * D * per_number / 8
    assert sum(a.nbytes for a in cache.segment(0, 3)) == 3 * token
    assert cache.nbytes == GROWTH * token


@pytest.mark.parametrize("bits", BITS)
def test_half_precision_queries_get_half_precision_answers(bits: int) -> None:
    q, k, v = (x.astype(mx.bfloat16) for x in window(12))
    for T in (1, 9):
        cache = QuantizedKVCache(bits)
        attend(cache, cut((q, k, v), 0, 12 - T))
        ours = attend(cache, cut((q, k, v), 12 - T, 12))
        assert ours.dtype == mx.bfloat16
        # bfloat16 keeps 8 bits: the answer's own rounding, and that of queries, keys and weights before it.
        assert_close(ours, reference(q[:, :, -T:], *stored(cache, 64)), 2e-2)


def test_a_segment_of_another_format_is_refused_before_it_is_read() -> None:
    caches = {None: KVCache()} | {bits: QuantizedKVCache(bits) for bits in BITS}
    for cache in caches.values():
        attend(cache, window(5))
    for bits in BITS:
        for other, cache in caches.items():
            loaded = QuantizedKVCache(bits)
            loaded.load([cache.segment(0, 5)])
            if other != bits:
                with pytest.raises(ValueError, match=f"{bits}-bit KV cache"):
                    attend(loaded, window(1))


@pytest.mark.parametrize("bits", [0, 3, 16])
def test_other_widths_are_refused(bits: int) -> None:
    with pytest.raises(RequestError, match="8 or 4 bits"):
        QuantizedKVCache(bits)
