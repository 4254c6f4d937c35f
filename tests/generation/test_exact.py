"""The exact mode: the same bits of every number, and so the same tokens, whatever is computed beside them."""

from __future__ import annotations

import functools

import mlx.core as mx
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mlx_qwen35.caches.rows import SequenceCache, attention_layers, recurrent_layers
from mlx_qwen35.generation.request import Request
from mlx_qwen35.generation.start import make_caches
from mlx_qwen35.models.exact import ExactModel
from mlx_qwen35.models.model import Model
from mlx_qwen35.models.windows import Window, commit
from mlx_qwen35.options import Sampling
from tests.support.cranked import Cranked, cranked, read
from tests.support.networks import DEMO, known_tokens, network, random_ids, same_bytes

HOT = Sampling(temperature=1.0, top_p=0.95, repetition_penalty=1.2)


@functools.cache
def exact_network(name: str) -> ExactModel:
    return ExactModel(network.__wrapped__(name))  # one of its own, since it is changed


def caches(bits: int) -> SequenceCache:
    return make_caches(exact_network("moe"), bits, exact=True)


@functools.cache
def token_by_token(bits: int) -> list[mx.array]:
    model, cache = exact_network("moe"), caches(bits)
    hidden = [model.step([Window(mx.array([token]), cache)]) for token in random_ids(1, 48)]
    mx.eval(hidden)
    return [model.logits(h)[0] for h in hidden]


@pytest.mark.parametrize("bits", [16, 8])
@settings(max_examples=8)
@given(cuts=st.lists(st.tuples(st.integers(1, 20), st.one_of(st.none(), st.integers(1, 5))), min_size=1, max_size=6))
@example(cuts=[(8, None), (5, 2), (1, None), (5, 5), (4, 1), (17, None)])
def test_any_windows_drafts_and_copies_have_the_bits_of_single_tokens(
    bits: int, cuts: list[tuple[int, int | None]]
) -> None:
    """Windows and how much stays of those that are drafts; beside another text, and restored half-way."""
    model, ids, cache, other = exact_network("moe"), random_ids(1, 48), caches(bits), caches(bits)
    at = 0
    for turn, (tokens, kept) in enumerate(cuts):
        tokens = min(tokens if kept is None else min(tokens, 5), len(ids) - at)
        if tokens <= 0:
            break
        draft = kept is not None
        beside = Window(mx.array(random_ids(turn, 3)), other)
        hidden = model.step([Window(mx.array(ids[at : at + tokens]), cache, draft), beside])[:tokens]
        assert same_bytes(list(model.logits(hidden)), token_by_token(bits)[at : at + tokens])
        stays = tokens if kept is None else min(kept, tokens)
        if draft:
            commit(cache, tokens, stays)
        at += stays
        if turn == 1:
            with model.arithmetic():
                cache = copied(cache, at, bits)


def copied(cache: SequenceCache, length: int, bits: int) -> SequenceCache:
    fresh = caches(bits)
    for old, new in zip(recurrent_layers(cache), recurrent_layers(fresh)):
        new.restore(old.snapshot(), length)
    for old, new in zip(attention_layers(cache), attention_layers(fresh)):
        new.load([old.segment(0, length)])
    return fresh


def test_the_usual_mode_does_not_promise_that() -> None:
    """What the test above would see: rounding that depends on the window."""
    model: Model = network("moe")
    one, eight = make_caches(model, 16), make_caches(model, 16)
    ids = random_ids(1, 8)
    whole = model.step([Window(mx.array(ids), eight)])
    single = mx.concatenate([model.step([Window(mx.array([token]), one)]) for token in ids])
    assert not same_bytes([whole], [single])


def play(served: Cranked, requests: list[Request]) -> list[list[int]]:
    lines = [served.submit(request) for request in requests]
    told: list[list[int]] = [[] for _ in lines]
    while served.crank.turn():
        for tokens, line in zip(told, lines):
            tokens += read(line)
    return told


@pytest.mark.parametrize(("name", "longest", "sampling"), [("dense", 245, HOT), (DEMO, 60, Sampling(0.0))])
def test_tokens_are_the_same_alone_and_in_company_with_drafts_and_without(
    name: str, longest: int, sampling: Sampling
) -> None:
    """Over the place where buffers grow, in any prefill windows, and from what was remembered."""
    model, known = exact_network(name), known_tokens(name)

    def asked(draft: int | str) -> list[Request]:
        lengths = (6, longest)
        return [
            Request(random_ids(i, n), known, 14, sampling, seed=i, draft=draft, checkpoints=[n // 3])
            for i, n in enumerate(lengths)
        ]

    alone = [play(cranked(model, exact=True), [request])[0] for request in asked("off")]
    served = cranked(model, exact=True)
    served.windows([13, 70])
    assert play(served, asked(4)) == alone
    again = play(served, asked("auto"))
    assert again == alone
    assert all(line.reuse.cached > 0 for _, line in served.lines[2:])
    served.assert_at_rest()
