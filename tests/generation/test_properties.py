"""Random schedules: whoever joins, leaves or is cancelled, every answer is the one its prompt has alone."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mlx_qwen35.errors import RequestError
from mlx_qwen35.generation.request import Request
from mlx_qwen35.options import GREEDY, Draft, Sampling
from tests.support.cranked import Cranked, cranked, read
from tests.support.networks import DEMO, known_tokens, network, random_ids
from tests.support.plain import assert_plain

SAMPLINGS = [
    GREEDY,
    Sampling(temperature=1.3),
    Sampling(temperature=0.8, presence_penalty=0.7, repetition_penalty=1.2),
]
NETWORKS = ["dense", "moe", DEMO, *(pytest.param(n, marks=pytest.mark.slow) for n in ("tied_f32", "flat", "yarn"))]


@dataclass(frozen=True)
class Arrival:
    """A request that comes at a turn of the engine, and goes at another if it is cancelled."""

    turn: int
    text: int  # which; requests with the same share a prefix
    length: int
    answer: int
    bits: int = 16
    sampling: int = 0
    cancelled: int | None = None
    checkpoint: int = 0
    draft: Draft = "auto"

    def request(self, known: int) -> Request:
        return Request(
            random_ids(self.text, self.length),
            known,
            self.answer,
            SAMPLINGS[self.sampling],
            seed=self.text,
            checkpoints=[self.checkpoint],
            kv_bits=self.bits,
            draft=self.draft,
        )


arrivals = st.builds(
    Arrival,
    turn=st.integers(0, 12),
    text=st.integers(0, 2),
    length=st.one_of(st.integers(1, 12), st.integers(1, 90)),
    answer=st.one_of(st.integers(1, 4), st.integers(1, 15)),
    bits=st.sampled_from([16, 16, 8, 4]),
    sampling=st.integers(0, 2),
    cancelled=st.one_of(st.none(), st.none(), st.integers(0, 25)),
    checkpoint=st.integers(0, 60),
    draft=st.sampled_from([1, 2, 4, "auto", "off"]),
)
windows = st.lists(st.one_of(st.integers(1, 8), st.sampled_from([31, 32, 33, 64])), min_size=1, max_size=4)


def play(served: Cranked, schedule: list[Arrival], known: int) -> list[list[int]]:
    """Turn the engine while requests come and go; the answers, in the schedule's order."""
    lines = {}
    for turn in range(1 + max(max(a.turn, a.cancelled or 0) for a in schedule)):
        for i, arrival in enumerate(schedule):
            if arrival.turn == turn:
                lines[i] = served.submit(arrival.request(known))
            if arrival.cancelled is not None and turn == max(arrival.cancelled, arrival.turn):
                lines[i].cancel()
        served.crank.turn()
    served.run()
    return [read(lines[i]) for i in range(len(schedule))]


def check(name: str, served: Cranked, schedule: list[Arrival]) -> None:
    """Every answer is the plain one; whole, unless somebody cancelled it."""
    known = known_tokens(name)
    answers = play(served, schedule, known)
    for arrival, tokens, (request, line) in zip(schedule, answers, by_schedule(served, schedule)):
        assert line.ended is not None
        if line.ended.reason == "cancelled":
            assert arrival.cancelled is not None
            assert len(tokens) <= arrival.answer
        else:
            assert len(tokens) == arrival.answer
        assert_plain(network(name), request, tokens)
    served.assert_at_rest()


def by_schedule(served: Cranked, schedule: list[Arrival]) -> list:
    order = sorted(range(len(schedule)), key=lambda i: schedule[i].turn)
    return [served.lines[order.index(i)] for i in range(len(schedule))]


MIXED = [
    Arrival(turn=i, text=0, length=20 + 9 * i, answer=8, bits=bits, sampling=i % 3, checkpoint=15, draft=i or "off")
    for i, bits in enumerate([16, 8, 4, 16, 4])
]
LEAVING = [Arrival(0, 1, 9, 15, draft=2), Arrival(0, 2, 9, 15, cancelled=9), Arrival(3, 0, 9, 15, draft=4)]


@pytest.mark.parametrize("name", NETWORKS)
@settings(max_examples=8)
@given(
    schedule=st.lists(arrivals, min_size=1, max_size=6),
    sizes=windows,
    rows=st.sampled_from([2, 4, 16]),
    overlap=st.booleans(),
)
@example(schedule=MIXED, sizes=[7, 32], rows=16, overlap=True)
@example(schedule=LEAVING, sizes=[64], rows=16, overlap=True)
def test_an_answer_does_not_depend_on_its_company(
    name: str, schedule: list[Arrival], sizes: list[int], rows: int, overlap: bool
) -> None:
    served = cranked(network(name), max_rows=rows, stride=32, overlap=overlap)
    served.windows(sizes)
    check(name, served, schedule)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dense", "moe", DEMO])
@settings(max_examples=150)
@given(
    schedule=st.lists(arrivals, min_size=2, max_size=12),
    sizes=windows,
    rows=st.sampled_from([2, 4, 16]),
    overlap=st.booleans(),
)
def test_an_answer_does_not_depend_on_its_company_often(
    name: str, schedule: list[Arrival], sizes: list[int], rows: int, overlap: bool
) -> None:
    served = cranked(network(name), max_rows=rows, stride=32, overlap=overlap)
    served.windows(sizes)
    check(name, served, schedule)


@pytest.mark.parametrize("name", ["dense", "moe"])
def test_rows_with_16_8_and_4_bits_decode_together(name: str) -> None:
    """All of them in every step, and each draws what it draws with nobody else there, in its own bits."""
    served = cranked(network(name), overlap=True)
    texts = [Arrival(0, text, 30, 20, bits=bits) for text in range(2) for bits in (16, 8, 4)]
    check(name, served, texts)
    assert served.engine.stats().batch == 6
    for arrival, (_, line) in zip(texts, served.lines):
        alone = cranked(network(name))
        check(name, alone, [arrival])
        assert line.reuse == alone.lines[0][1].reuse


# Memory


def sequence_bytes(name: str, tokens: int) -> int:
    return cranked(network(name)).engine.sizes(16).sequence(tokens)


@pytest.mark.parametrize(("rows", "overlap"), [(2, False), (3, True)])
def test_sequences_that_outgrow_the_budget_wait_and_go_on_with_the_right_tokens(rows: int, overlap: bool) -> None:
    """All fit when they enter; growing over a whole step of KV, only some do."""
    budget = rows * sequence_bytes("dense", 250)
    served = cranked(network("dense"), cache_bytes=budget, prefix_bytes=0, overlap=overlap)
    schedule = [Arrival(i, i, 245, 24, sampling=i % 3) for i in range(rows)]
    check("dense", served, schedule)
    assert served.engine.stats().set_aside, "nobody had to wait and enter again; the test shows nothing"


@settings(max_examples=6)
@given(
    schedule=st.lists(
        st.builds(
            Arrival,
            turn=st.integers(0, 6),
            text=st.integers(0, 3),
            length=st.integers(225, 262),
            answer=st.integers(1, 20),
            bits=st.sampled_from([16, 16, 8]),
            sampling=st.integers(0, 2),
            cancelled=st.one_of(st.none(), st.none(), st.integers(0, 20)),
            checkpoint=st.sampled_from([0, 100]),
        ),
        min_size=2,
        max_size=4,
    ),
    tenths=st.integers(10, 35),
    overlap=st.booleans(),
)
def test_a_tight_budget_costs_time_and_never_a_token(schedule: list[Arrival], tenths: int, overlap: bool) -> None:
    """One sequence fits, of whatever length; the budget's rest is fought over by the others and by prefixes."""
    largest = sequence_bytes("dense", 300)
    served = cranked(network("dense"), cache_bytes=largest * tenths // 10, prefix_bytes=largest // 2, overlap=overlap)
    check("dense", served, schedule)


def test_a_text_that_cannot_fit_ends_in_one_line_and_the_others_go_on() -> None:
    served = cranked(network("dense"), cache_bytes=sequence_bytes("dense", 250))
    growing = served.submit(Request(random_ids(1, 240), 100, 40))
    large = served.submit(Request(random_ids(2, 300), 100, 4))
    fits = served.submit(Request(random_ids(3, 100), 100, 4))
    served.run()
    for line in (growing, large):
        with pytest.raises(RequestError, match="budget") as raised:
            read(line)
        assert "\n" not in str(raised.value)
    assert_plain(network("dense"), served.lines[2][0], tokens := read(fits))
    assert len(tokens) == 4
    served.assert_at_rest()


def test_a_place_that_comes_free_in_time_is_enough() -> None:
    """Memory runs short in the very turn in which another answer's last token is read: nobody has to go."""
    served = cranked(network("dense"), cache_bytes=2 * sequence_bytes("dense", 250), prefix_bytes=0, overlap=True)
    served.windows([512])
    for ends in (11, 12, 13):
        short = served.submit(Request(random_ids(1, 240), 100, ends))
        long = served.submit(Request(random_ids(2, 245), 100, 24))
        served.run()
        assert len(read(short)) == ends
        assert len(read(long)) == 24
    served.assert_at_rest()


def test_an_error_in_a_step_releases_what_its_rows_held(monkeypatch: pytest.MonkeyPatch) -> None:
    served = cranked(network("dense"), stride=32)
    before = served.answer(Request(random_ids(5, 50), 100, 6))[0]
    lines = [served.submit(Request(random_ids(5, 50 + i), 100, 6)) for i in range(3)]
    for _ in range(3):
        served.crank.turn()
    with monkeypatch.context() as patched:
        patched.setattr(type(served.engine._model), "logits", lambda *_: 1 / 0)
        served.run()
    for line in lines:
        with pytest.raises(ZeroDivisionError):
            read(line)
    served.assert_at_rest()
    assert served.answer(Request(random_ids(5, 50), 100, 6))[0] == before
