"""The MTP layer's memory: however the text came, in windows, drafts and spans, it is the layer run over the text."""

from __future__ import annotations

import mlx.core as mx
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mlx_qwen35.caches.kv import KVCache
from mlx_qwen35.caches.rows import SequenceCache, attention_layers, draft_kv, recurrent_layers
from mlx_qwen35.generation.start import make_caches
from mlx_qwen35.models.model import Model
from mlx_qwen35.models.windows import Window, commit
from tests.support.networks import distance, network, random_ids

CLOSE = 1e-4  # other windows are other matrix products, in float32; an entry of another token differs by 1e-1 and more


def whole(model: Model, ids: list[int]) -> tuple[mx.array, mx.array]:
    """Keys of the layer run once over a text [1, Hk, T - 1, D], and the text's last hidden state [C]."""
    window, kv = mx.array([ids]), KVCache()
    hidden = model.hidden_states(window)
    if len(ids) > 1:
        model.mtp(hidden[:, :-1], model.embed(window[:, 1:]), kv)
    return kv.state[0] if kv.length else mx.zeros((1, 1, 0, 1)), hidden[0, -1]


def check(model: Model, cache: SequenceCache, ids: list[int]) -> None:
    memory = draft_kv(cache)
    assert memory is not None
    keys, last = whole(model, ids)
    assert memory.length == len(ids)
    assert distance(recurrent_layers(cache)[-1].snapshot()[0][0], last) < CLOSE
    spans = memory.segment(0, len(ids))[0]
    assert spans.shape[2] == len(ids)
    assert not mx.any(spans[:, :, 0])  # the first token makes no entry
    if len(ids) > 1:
        assert distance(spans[:, :, 1:], keys) < CLOSE


def drafted(model: Model, cache: SequenceCache, token: int, drafts: int) -> None:
    """Feed the next token and chained drafts, and take the drafts back, as speculation does."""
    memory = draft_kv(cache)
    assert memory is not None
    hidden, embeddings = memory.lend(model.embed(mx.array([token])))
    made = model.feed(hidden, embeddings, memory.kv)[-1:]
    for i in range(drafts - 1):
        made = model.feed(made, model.embed(mx.array([i + 1])), memory.kv)
    memory.take_back(drafts - 1)


@settings(max_examples=15)
@given(
    turns=st.lists(
        st.tuples(st.integers(1, 9), st.integers(0, 4), st.one_of(st.none(), st.integers(0, 9)), st.booleans()),
        min_size=1,
        max_size=6,
    )
)
@example(turns=[(5, 0, None, False), (3, 2, 0, False), (3, 2, 2, False), (2, 0, None, False)])
@example(turns=[(1, 0, None, True), (1, 1, 1, True), (70, 0, None, False), (4, 3, 4, True)])
def test_any_windows_and_drafts_leave_what_one_pass_does(
    turns: list[tuple[int, int, int | None, bool]],
) -> None:
    """Each turn: a window's tokens, drafts before it, how many of it stay (None: it is no draft), a look at the end."""
    model, ids = network("dense"), random_ids(1, 200)
    cache, at = make_caches(model, 16), 0
    for tokens, drafts, kept, looked in turns:
        if at and drafts:
            drafted(model, cache, ids[at], drafts)
        model.step([Window(mx.array(ids[at : at + tokens]), cache, draft=kept is not None)])
        if kept is not None:
            kept = min(kept, tokens)
            commit(cache, tokens, kept)
        at += tokens if kept is None else kept
        if looked and at:
            check(model, cache, ids[:at])
    if at:
        check(model, cache, ids[:at])


@pytest.mark.parametrize("bits", [16, 8])
@pytest.mark.parametrize("cut", [1, 2, 9])
def test_spans_join_to_the_memory_they_were_taken_from(bits: int, cut: int) -> None:
    model, ids = network("moe"), random_ids(2, 20)
    cache, fresh = make_caches(model, bits), make_caches(model, bits)
    model.step([Window(mx.array(ids), cache)])
    for old, new in zip(attention_layers(cache), attention_layers(fresh)):
        new.load([old.segment(0, cut), old.segment(cut, 20)])
    for old, new in zip(recurrent_layers(cache), recurrent_layers(fresh)):
        new.restore(old.snapshot(), 20)
    for memory in (cache, fresh):
        drafted(model, memory, 7, 3)
        model.step([Window(mx.array([7, 8, 9]), memory, draft=True)])
        commit(memory, 3, 2)
    for old, new in zip(attention_layers(cache), attention_layers(fresh)):
        for a, b in zip(old.segment(0, 22), new.segment(0, 22)):
            assert distance(b, a) < CLOSE


def test_drafts_are_the_chained_layers() -> None:
    """The first from the trunk's hidden state, the next from the layer's own, each at the position after the last."""
    model, ids = network("dense"), random_ids(3, 30)
    cache = make_caches(model, 16)
    model.step([Window(mx.array(ids[:-1]), cache)])
    memory = draft_kv(cache)
    assert memory is not None
    hidden, embeddings = memory.lend(model.embed(mx.array(ids[-1:])))
    first = model.feed(hidden, embeddings, memory.kv)[-1:]
    second = model.feed(first, model.embed(mx.array([5])), memory.kv)

    kv, window = KVCache(), mx.array([ids])
    trunk = model.hidden_states(window)
    expected = model.mtp(trunk[:, :-1], model.embed(window[:, 1:]), kv)[0, -1:]
    assert distance(first, expected) < CLOSE
    chained = model.mtp(expected[None], model.embed(mx.array([[5]])), kv)[0]
    assert distance(second, chained) < CLOSE
