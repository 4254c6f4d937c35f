"""Windows and commits: however a text is cut, whoever shares the step, whatever was drafted, it is the same text."""

from __future__ import annotations

from dataclasses import dataclass, field

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from examples import real_shapes
from mlx_qwen35.caches.rows import SequenceCache, attention_layers, recurrent_layers
from mlx_qwen35.generation.start import make_caches
from mlx_qwen35.hub.family import FAMILY
from mlx_qwen35.models.config import parse_config
from mlx_qwen35.models.model import Model
from mlx_qwen35.models.windows import Window, commit
from tests.support.networks import DEMO, distance, largest_distance, memory_of, network, random_ids, same_bytes

# Other cuts are other matrix products and other chunks of the delta rule, in float32: 24 bits. What was seen stays
# below 1e-5 of the largest number, and what is wrong by a token is wrong by 1e-2 and more.
CLOSE = 1e-4
# In quantized caches rounding may move a number to the next code, a step of 1/255 or 1/15 of its group's range.
CLOSE_IN = {16: CLOSE, 8: 1e-2, 4: 1e-1}

NETWORKS = ["dense", "moe", DEMO]
MORE = [pytest.param(name, marks=pytest.mark.slow) for name in ("tied_f32", "moe_separate", "flat", "yarn")]
lengths = st.lists(st.one_of(st.integers(1, 6), st.integers(1, 40), st.sampled_from([31, 32, 33, 64])), max_size=6)


def whole(model: Model, ids: list[int], kv_bits: int = 16) -> tuple[mx.array, SequenceCache]:
    """Hidden states [T, C] of a text in one window, and its caches afterwards."""
    key = id(model), tuple(ids), kv_bits  # networks live as long as the tests
    if key not in _known:
        cache = make_caches(model, kv_bits)
        _known[key] = model.step([Window(mx.array(ids, mx.int32), cache)]), cache
    return _known[key]


_known: dict[tuple[int, tuple[int, ...], int], tuple[mx.array, SequenceCache]] = {}


@pytest.mark.parametrize("name", NETWORKS + MORE)
@settings(max_examples=5)
@given(texts=st.lists(st.tuples(lengths.filter(bool), st.sampled_from([16, 16, 8, 4])), min_size=1, max_size=4))
@example(texts=[([1] * 5, 16), ([1] * 5, 16), ([3, 1, 1], 16)])
def test_any_cut_of_texts_that_share_their_steps_is_one_window(name: str, texts: list[tuple[list[int], int]]) -> None:
    model = network(name)
    ids = [random_ids(i, sum(cut)) for i, (cut, _) in enumerate(texts)]
    caches = [make_caches(model, bits) for _, bits in texts]
    hidden: list[list[mx.array]] = [[] for _ in texts]
    for turn in range(max(len(cut) for cut, _ in texts)):
        members = [i for i, (cut, _) in enumerate(texts) if turn < len(cut)]
        starts = [sum(texts[i][0][:turn]) for i in members]
        windows = [
            Window(mx.array(ids[i][start : start + texts[i][0][turn]], mx.int32), caches[i])
            for i, start in zip(members, starts)
        ]
        for i, part in zip(members, parts_of(model.step(windows), windows)):
            hidden[i].append(part)
    for i, (_, bits) in enumerate(texts):
        expected, cache = whole(model, ids[i], bits)
        assert distance(mx.concatenate(hidden[i]), expected) < CLOSE_IN[bits]
        assert_same_memory(caches[i], cache, bits)


def parts_of(hidden: mx.array, windows: list[Window]) -> list[mx.array]:
    ends = [sum(w.tokens for w in windows[: i + 1]) for i in range(len(windows))]
    return [hidden[end - w.tokens : end] for end, w in zip(ends, windows)]


def assert_same_memory(found: SequenceCache, expected: SequenceCache, bits: int = 16) -> None:
    assert [layer.length for layer in found] == [layer.length for layer in expected]
    if bits == 16:
        assert largest_distance(memory_of(found), memory_of(expected)) < CLOSE


def test_a_text_without_caches_is_the_same_text() -> None:
    """What everything here is measured by is itself measured by the plain forward pass."""
    for name in NETWORKS:
        model, ids = network(name), random_ids(1, 70)
        assert distance(whole(model, ids)[0], model.hidden_states(mx.array([ids]))[0]) < CLOSE


def test_a_window_with_positions_of_its_own_shares_a_step_with_text() -> None:
    """Three axes that differ, as an image has them, then text that goes on; beside a row of plain text."""
    model, ids, plain = network("dense"), random_ids(5, 12), random_ids(6, 9)
    axes = np.random.default_rng(7).integers(0, 60, (3, 12))
    expected = model.hidden_states(mx.array([ids]), positions=mx.array(axes)[:, None])[0]
    cache, other = make_caches(model, 16), make_caches(model, 16)
    found = []
    for start, end in ((0, 7), (7, 12)):
        positions = mx.array(axes[:, start:end])
        windows = [
            Window(mx.array(plain[start:end], mx.int32), other),
            Window(mx.array(ids[start:end], mx.int32), cache, positions=positions),
        ]
        found.append(parts_of(model.step(windows), windows)[1])
    assert distance(mx.concatenate(found), expected) < CLOSE
    assert distance(expected, whole(model, ids)[0]) > 0.01  # the positions matter
    assert_same_memory(other, whole(model, plain)[1])


# Drafts


@dataclass
class Text:
    """One sequence: what stayed of it, and the caches that should hold just that."""

    cache: SequenceCache
    bits: int
    kept: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Drafted:
    """Windows of one step: tokens, and how many of them stay (None: no draft)."""

    tokens: int
    kept: int | None


@st.composite
def drafted(draw: st.DrawFn) -> Drafted:
    tokens = draw(st.integers(1, 10))
    kept = draw(st.one_of(st.none(), st.integers(0, tokens), st.sampled_from([0, tokens])))
    return Drafted(tokens, kept)


def play(model: Model, texts: list[Text], step: list[Drafted | None], seed: int, checked: bool = True) -> None:
    """One step of those texts that have a window in it; every window is checked against the text alone."""
    drafts = [[] if d is None else random_ids(seed + i, d.tokens) for i, d in enumerate(step)]
    members = [i for i, d in enumerate(step) if d is not None]
    windows = [
        Window(mx.array(drafts[i], mx.int32), texts[i].cache, draft=d.kept is not None)
        for i in members
        if (d := step[i]) is not None
    ]
    if not windows:
        return
    for i, window, part in zip(members, windows, parts_of(model.step(windows), windows)):
        d, text = step[i], texts[i]
        assert d is not None
        if checked:
            expected = whole(model, text.kept + drafts[i], text.bits)[0][len(text.kept) :]
            assert distance(part, expected) < CLOSE_IN[text.bits]
        if d.kept is not None:
            commit(text.cache, window.tokens, d.kept)
        text.kept += drafts[i][: d.kept]


windows = st.one_of(st.none(), drafted(), drafted(), drafted())
schedules = st.integers(1, 3).flatmap(
    lambda rows: st.tuples(
        st.lists(st.sampled_from([16, 16, 8, 4]), min_size=rows, max_size=rows),
        st.lists(st.lists(windows, min_size=rows, max_size=rows), min_size=1, max_size=5),
    )
)


@pytest.mark.parametrize("name", [*NETWORKS[:2], *MORE])
@settings(max_examples=8)
@given(schedule=schedules, snapshot_after=st.integers(0, 4))
@example(schedule=([16, 16], [[Drafted(3, 2)] * 2, [Drafted(1, None)] * 2, [Drafted(1, None)] * 2]), snapshot_after=1)
@example(schedule=([16], [[Drafted(4, 0)], [Drafted(9, 3)], [Drafted(1, 1)], [Drafted(1, None)]]), snapshot_after=0)
@example(
    schedule=([16, 8, 4], [[Drafted(5, n) for n in (0, 1, 5)], [Drafted(5, n) for n in (4, 0, 2)]]), snapshot_after=0
)
def test_what_is_not_committed_never_happened(
    name: str, schedule: tuple[list[int], list[list[Drafted | None]]], snapshot_after: int
) -> None:
    """Also from the first token on, of several rows in one step, and through a snapshot in between."""
    model, (bits, steps) = network(name), schedule
    texts = [Text(make_caches(model, b), b) for b in bits]
    for turn, step in enumerate(steps):
        play(model, texts, step, seed=100 * turn)
        if turn == snapshot_after:
            for text in texts:
                text.cache = copied(model, text)
    for text in texts:
        if text.kept:
            assert_same_memory(text.cache, whole(model, text.kept, text.bits)[1], text.bits)
    play(model, texts, [Drafted(2, None)] * len(texts), seed=7)


def copied(model: Model, text: Text) -> SequenceCache:
    """The same memory in fresh caches, by way of snapshots and segments."""
    fresh = make_caches(model, text.bits)
    if text.kept:
        for old, new in zip(recurrent_layers(text.cache), recurrent_layers(fresh)):
            new.restore(old.snapshot(), len(text.kept))
        for old, new in zip(attention_layers(text.cache), attention_layers(fresh)):
            middle = len(text.kept) // 2
            cuts = [(0, middle), (middle, len(text.kept))] if middle else [(0, len(text.kept))]
            new.load([old.segment(*cut) for cut in cuts])
    return fresh


@pytest.mark.parametrize("T", [1, 2, 3, 4, 5, 9])
def test_every_length_of_every_draft(T: int) -> None:
    """One row for each n, all of them in one step, after a first window and without one."""
    model = network("dense")
    for before in (0, 5):
        texts = [Text(make_caches(model, 16), 16) for _ in range(T + 1)]
        if before:
            play(model, texts, [Drafted(before, None)] * (T + 1), seed=3)
        play(model, texts, [Drafted(T, n) for n in range(T + 1)], seed=11)
        for text in texts[1:]:
            assert_same_memory(text.cache, whole(model, text.kept)[1])
        play(model, texts, [Drafted(2, None)] * (T + 1), seed=23)


@pytest.mark.parametrize("bits", [16, 8, 4])
def test_a_snapshot_is_untouched_by_what_comes_after(bits: int) -> None:
    """Steps of one row and of two, drafts, trims and growth go on in the live caches; the copies keep their bytes."""
    model = network("moe")
    texts = [Text(make_caches(model, bits), bits) for _ in range(2)]
    play(model, texts, [Drafted(20, None)] * 2, seed=1, checked=False)
    play(model, texts, [Drafted(3, 1)] * 2, seed=2, checked=False)
    taken = memory_of(texts[0].cache)
    restored = make_caches(model, bits)
    snapshots = [layer.snapshot() for layer in recurrent_layers(texts[0].cache)]
    for layer, snapshot in zip(recurrent_layers(restored), snapshots):
        layer.restore(snapshot, 21)
    segments = [layer.segment(0, 21) for layer in attention_layers(texts[0].cache)]
    for layer, segment in zip(attention_layers(restored), segments):
        layer.load([segment])
    held = [a for part in (snapshots, segments) for arrays in part for a in arrays]
    mx.eval(taken, held)
    before = [mx.array(a) for a in held]
    mx.eval(before)
    third = Text(restored, bits, list(texts[0].kept))
    for turn in range(4):
        play(model, [*texts, third], [Drafted(4, turn)] * 3, seed=10 + turn, checked=False)
        play(model, [*texts, third], [Drafted(1, None)] * 3, seed=20 + turn, checked=False)
    play(model, [*texts, third], [Drafted(300, None), None, Drafted(300, None)], seed=30, checked=False)
    mx.eval([layer.state for text in [*texts, third] for layer in text.cache])
    assert same_bytes(held, before)
    assert same_bytes(taken, before)


def test_a_long_window_takes_no_more_memory_in_a_deeper_network() -> None:
    """But for the states that stay: what a layer keeps of a window is cut from it before the next layer begins."""

    def grown(layers: int) -> tuple[int, int]:
        config = real_shapes.config_of(FAMILY["0.8b"], layers, 64, mtp=False)
        small = {"hidden_size": 64, "intermediate_size": 64, "layer_types": ["linear_attention"] * layers}
        config["text_config"] |= small
        model = Model(parse_config(config))
        mx.eval(model.parameters())
        cache, before = model.make_cache(), mx.get_active_memory()
        mx.reset_peak_memory()
        mx.eval(model.step([Window(mx.zeros(512, mx.int32), cache)]), [layer.state for layer in cache])
        return mx.get_peak_memory() - before, sum(layer.nbytes for layer in cache)

    (shallow, few), (deep, many) = grown(2), grown(8)
    window = 512 * 6144 * 4  # bytes of what one layer's convolution reads
    assert deep - shallow - (many - few) < window


def test_what_waits_for_the_mtp_layer_does_not_keep_a_long_neighbours_numbers_alive() -> None:
    model, steps, beside, held = network(DEMO), 40, 128, []
    cache = make_caches(model, 16)
    for _ in range(steps):
        long = make_caches(model, 16)
        hidden = model.step([Window(mx.zeros(1, mx.int32), cache), Window(mx.zeros(beside, mx.int32), long)])
        mx.eval(hidden, [layer.state for layer in long])  # as the engine does
        mx.synchronize()
        held.append(mx.get_active_memory())
    grown, whole_steps = held[-1] - held[steps // 2], steps // 2 * beside * model.config.hidden_size * 4
    assert grown < whole_steps / 4
