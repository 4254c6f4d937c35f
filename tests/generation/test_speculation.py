"""Speculation in the engine: the same tokens in fewer steps, beside whoever else is there, through every way out."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

import mlx.core as mx
import pytest

from examples.demo_model.encoding import encode
from examples.demo_model.mixture import EVALUATIONS, evaluation_set
from mlx_qwen35.caches.blobs import Layouts
from mlx_qwen35.caches.disk_tree import DiskTree
from mlx_qwen35.generation import speculation
from mlx_qwen35.generation.request import Decoded, Line, Request
from mlx_qwen35.generation.row import Row
from mlx_qwen35.generation.speculation import Drafts
from mlx_qwen35.models.model import Model
from mlx_qwen35.models.windows import Window
from mlx_qwen35.options import Draft, Sampling
from tests.caches.disk_nodes import MB, open_store
from tests.support.cranked import Cranked, cranked, read
from tests.support.networks import DEMO, known_tokens, network, random_ids
from tests.support.plain import assert_plain, shortfall

KNOWN = known_tokens(DEMO)
STOPS = frozenset([991, 993])
FEW = 28  # prompts, four of each skill
HOT = Sampling(temperature=1.0, top_p=0.95, presence_penalty=0.5)


def answers(served: Cranked, requests: Sequence[Request]) -> tuple[list[list[int]], list[Line]]:
    """Read as they come, as front ends do: who does not read is paused."""
    lines = [served.submit(request) for request in requests]
    told: list[list[int]] = [[] for _ in requests]
    while served.crank.turn():
        for tokens, line in zip(told, lines):
            tokens += read(line)
    return [tokens + read(line) for tokens, line in zip(told, lines)], lines


@functools.cache
def evaluation(count: int) -> list[list[int]]:
    """Prompts of the demo's own evaluation, of every skill in turn; the longest skills are left to their own test."""
    skills = [name for name in EVALUATIONS if "recall" not in name]
    samples = [evaluation_set(name, -(-count // len(skills))) for name in skills]
    return [encode(sample).prompt for group in zip(*samples) for sample in group][:count]


def asked(ids: list[int], draft: Draft | None, sampling: Sampling | None = None, answer: int = 60) -> Request:
    sampling = sampling or Sampling(temperature=0.0)
    return Request(ids, KNOWN, answer, sampling, STOPS, seed=len(ids), draft=draft)


@functools.cache
def plain_answers(count: int) -> list[list[int]]:
    return answers(
        cranked(network(DEMO), max_rows=8, max_waiting=1000), [asked(ids, "off") for ids in evaluation(count)]
    )[0]


def differing(count: int, draft: Draft) -> tuple[int, float, float]:
    """Answers that differ from those without drafts, the worst token's distance, and tokens a step."""
    model, plain = network(DEMO), plain_answers(max(count, FEW))
    requests = [asked(ids, draft) for ids in evaluation(count)]
    found, lines = answers(cranked(model, max_rows=8, max_waiting=1000), requests)
    differ = [i for i in range(count) if found[i] != plain[i]]
    worst = max((shortfall(model, requests[i], found[i]) for i in differ), default=0.0)
    return len(differ), worst, sum(map(len, found)) / sum(line.decoded.steps for line in lines)


@pytest.mark.parametrize("count", [FEW, pytest.param(504, marks=[pytest.mark.slow, pytest.mark.timeout(3600)])])
def test_demo_answers_are_those_without_drafts(count: int) -> None:
    """Identical, or first different where plain decode's two best logits are within 1e-3, on 1 % of them at most."""
    differ, worst, tokens_per_step = differing(count, 3)
    assert differ <= count / 100
    assert worst <= 1e-3
    assert tokens_per_step >= 2.0


def test_an_acceptance_that_is_wrong_now_and_then_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    right, calls = speculation.accepted, []

    def wrong(drafts: Sequence[int], drawn: Sequence[int]) -> int:
        calls.append(drafts)
        return min(len(drafts), right(drafts, drawn) + (len(calls) % 40 == 0))

    monkeypatch.setattr(speculation, "accepted", wrong)
    differ, worst, _ = differing(14, 3)
    assert differ > 14 / 100
    assert worst > 1e-3


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("name", ["dense", "moe"])
def test_rows_that_draft_and_rows_that_do_not_share_a_batch(name: str, overlap: bool) -> None:
    """Also with numbers drawn, in quantized caches, and with a step launched before the last one was read."""
    model, known = network(name), known_tokens(name)
    requests = [
        Request(random_ids(i, 9 + 7 * i), known, 18, sampling, seed=i, draft=draft, kv_bits=bits)
        for i, (sampling, draft, bits) in enumerate(
            [(Sampling(0.0), 4, 16), (HOT, 2, 16), (Sampling(0.0), "off", 16), (HOT, "off", 8), (HOT, 3, 8)]
        )
    ]
    together, lines = answers(cranked(model, overlap=overlap), requests)
    for request, tokens, line in zip(requests, together, lines):
        assert len(tokens) == 18
        assert_plain(model, request, tokens)
        assert (line.decoded.drafted > 0) == (request.draft != "off")


@pytest.mark.parametrize("draft", [1, 4])
def test_an_answer_ends_where_it_would_without_drafts(draft: Draft) -> None:
    """At a stop token inside a window, at any length, at the end of the context; what is left behind serves others."""
    model = network(DEMO)
    ids = evaluation(7)[0]
    (plain,), _ = answers(cranked(model), [asked(ids, "off")])
    assert plain[-1] in STOPS
    served = cranked(model)
    for length in (1, 2, 3, 5, len(plain) - 1, len(plain), len(plain) + 1):
        (found,), (line,) = answers(served, [asked(ids, draft, answer=length)])
        assert found == plain[:length]
        assert line.ended is not None
        assert line.ended.reason == ("stop" if length >= len(plain) else "length")
    (again,), (line,) = answers(served, [asked([*ids, *plain[:-1]], draft)])
    assert line.reuse.cached == len(ids) + len(plain) - 2  # the last token is always computed
    assert again == plain[-1:]
    served.assert_at_rest()


def test_cancelled_at_any_turn_nothing_of_a_window_is_kept_that_was_not_said() -> None:
    model, ids = network("dense"), random_ids(8, 30)
    for turns in range(2, 9):
        served = cranked(model)
        line = served.submit(Request(ids, known_tokens("dense"), 40, draft=4))
        for _ in range(turns):
            served.crank.turn()
        line.cancel()
        served.run()
        said = read(line)
        request = Request([*ids, *said, 3, 4], known_tokens("dense"), 6, draft=4)
        tokens, second = served.answer(request)
        assert second.reuse.cached >= len(ids) + len(said) - 1
        assert_plain(model, request, tokens)
        served.assert_at_rest()


@pytest.mark.parametrize("restarted", [False, True])
def test_what_is_restored_drafts_as_what_was_computed(restarted: bool, tmp_path: Path) -> None:
    """The MTP layer's keys, values and hidden state come back with the rest, from memory and from disk."""

    def open_disk(fingerprint: str, layouts: Layouts) -> DiskTree:
        return DiskTree(open_store(tmp_path, [], fingerprint, byte_budget=100 * MB), layouts)

    model, ids = network(DEMO), evaluation(14)[9]
    cut = len(ids) // 2
    (cold,), (line,) = answers(cranked(model), [asked(ids, 4)])
    served = cranked(model, open_disk=open_disk)
    answers(served, [Request([*ids[:cut], 5, 5], KNOWN, 3, checkpoints=[cut])])
    if restarted:
        served.engine.close()
        served = cranked(model, open_disk=open_disk)
    (warm,), (second,) = answers(served, [asked(ids, 4)])
    assert second.reuse.cached == cut
    assert warm == cold
    assert second.decoded == line.decoded
    served.engine.close()


def test_what_repeats_is_drafted_without_an_mtp_layer() -> None:
    """A text that quotes its prompt, on a network that repeats it: most tokens come by drafts."""
    model = network(DEMO)
    ids = evaluation(7)[3]
    (plain,), _ = answers(cranked(model), [asked(ids, "off")])
    served = cranked(model, drafts=False)
    prompt = [*ids, *plain, *ids]  # the demo then says the same again
    request = asked(prompt, 4)
    tokens, line = served.answer(request)
    assert_plain(model, request, tokens)
    assert line.decoded.accepted >= len(tokens) / 3
    assert line.decoded.steps < len(tokens)


class SlowVerify:
    """A clock by which a step takes a second, and each token beyond a row's first as much as `extra`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, extra: float) -> None:
        self.now = 0.0
        step = Model.step

        def timed(model: Model, windows: Sequence[Window]) -> mx.array:
            self.now += 1 + extra * sum(w.tokens - 1 for w in windows if w.draft)
            return step(model, windows)

        monkeypatch.setattr(Model, "step", timed)

    def __call__(self) -> float:
        return self.now


def play_auto(clock: SlowVerify, name: str, tokens: int) -> tuple[Cranked, list[Decoded]]:
    served = cranked(network(name), clock=clock)
    requests = [Request(random_ids(i, 12), known_tokens(name), tokens, draft="auto") for i in range(2)]
    _, lines = answers(served, requests)
    return served, [line.decoded for line in lines]


def test_where_checking_is_slow_drafts_turn_themselves_off(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SlowVerify(monkeypatch, extra=3.0)
    served, decoded = play_auto(clock, "dense", 400)
    stats = served.engine.stats()
    assert "off" in stats.draft_note or "trying again" in stats.draft_note
    assert sum(d.drafted for d in decoded) <= 60  # the search at the beginning, and trials
    assert clock.now < 1.15 * 400 + 100  # plain steps; prefill, the search, and trials that grow rarer


def test_where_checking_costs_nothing_drafts_go_deep(monkeypatch: pytest.MonkeyPatch) -> None:
    served, decoded = play_auto(SlowVerify(monkeypatch, extra=0.0), DEMO, 120)
    stats = served.engine.stats()
    assert sum(d.drafted for d in decoded) > 120
    assert stats.tokens_per_step > 1.2
    assert stats.drafted_tokens == sum(d.drafted for d in decoded)
    assert stats.accepted_tokens == sum(d.accepted for d in decoded)
    assert sum(d.steps for d in decoded) < 200


def test_what_repeats_is_drafted_while_the_mtp_layer_has_to_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each kind of drafts answers for its own cost: an MTP layer that does not pay stops no other."""
    clock, draft = SlowVerify(monkeypatch, extra=0.0), speculation.Speculation.draft

    def slow(self: speculation.Speculation, rows: Sequence[Row], proposals: Sequence[Drafts | None]) -> None:
        clock.now += 5.0 * any(d is not None and d.tokens is None for d in proposals)
        draft(self, rows, proposals)

    monkeypatch.setattr(speculation.Speculation, "draft", slow)
    model, ids = network(DEMO), evaluation(7)[3]
    (plain,), _ = answers(cranked(model), [asked(ids, "off")])
    served = cranked(model, clock=clock)
    answers(served, [Request(random_ids(1, 12), KNOWN, 60, draft="auto")])  # the MTP layer shows what it costs
    assert "mtp, off" in served.engine.stats().draft_note
    (tokens,), (line,) = answers(served, [asked([*ids, *plain, *ids], "auto")])
    assert line.decoded.accepted >= len(tokens) / 3
