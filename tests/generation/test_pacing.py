"""Whose prompt goes into the next step, and how much of it; on made-up times."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from mlx_qwen35.generation import engine
from mlx_qwen35.generation.pacing import MULTIPLE, SHARED_SECONDS, SMALLEST, Pacer
from mlx_qwen35.generation.request import Request
from mlx_qwen35.metal_kernels.operations import using
from mlx_qwen35.metal_kernels.override import Override
from mlx_qwen35.metal_kernels.selection import Candidate, Operation, Selection
from tests.support.cranked import cranked
from tests.support.networks import network


@dataclass
class Prompt:
    remaining: int
    arrived: float
    until_checkpoint: int = 1 << 30

    def next_window(self, room: int) -> int:
        return min(room, self.remaining, self.until_checkpoint)


def pacer(tokens_a_second: float, largest: int = 1024) -> Pacer:
    made = Pacer(largest)
    made.observe(int(tokens_a_second), 1.0)
    return made


@pytest.mark.parametrize("speed", [320, 1000, 4000])
def test_a_shared_step_takes_its_hundred_milliseconds_of_prompt(speed: int) -> None:
    tokens = pacer(speed).tokens(shared=True)
    assert tokens % MULTIPLE == 0
    assert SHARED_SECONDS * speed - MULTIPLE < tokens <= SHARED_SECONDS * speed


def test_a_step_never_outgrows_its_memory_nor_shrinks_to_nothing() -> None:
    assert pacer(1e6, largest=512).tokens(shared=False) == 512
    assert pacer(1).tokens(shared=True) == SMALLEST


def test_one_slow_moment_does_not_leave_a_prompt_in_crumbs() -> None:
    """A step takes a tenth of a second whatever it holds, and a millisecond for a token; once it took half a minute."""
    learned, sizes = Pacer(1024), []
    learned.observe(256, 30.0)
    for _ in range(40):
        sizes.append(learned.tokens(shared=False))
        learned.observe(sizes[-1], 0.1 + 0.001 * sizes[-1])
    assert min(sizes) >= 64
    assert sizes[-1] >= 384  # half a second holds 400


def test_the_cost_of_decoding_beside_is_not_counted_as_prefill() -> None:
    learned = Pacer(1 << 20)
    for _ in range(50):
        learned.observe(0, 0.05)
        learned.observe(1000, 1.05)
    assert 950 < learned.tokens(shared=True) / SHARED_SECONDS < 1050


def test_a_short_prompt_overtakes_a_long_one() -> None:
    long, short = Prompt(16_000, arrived=0.0), Prompt(50, arrived=1.0)
    windows = pacer(1000).share([long, short], shared=True, now=1.0)
    assert windows[0] == (short, 50)
    assert windows[1] == (long, pacer(1000).tokens(shared=True) - 50)


def test_a_long_prompt_is_not_overtaken_for_ever() -> None:
    """Against a stream of short prompts that alone fill every step."""
    learned, long = pacer(1000), Prompt(2_000, arrived=0.0)
    now = 0.0
    while long.remaining:
        assert now < 60
        short = Prompt(96, arrived=now)
        for row, tokens in learned.share([long, short], shared=True, now=now):
            row.remaining -= tokens
        now += 0.1


def test_a_window_ends_at_a_checkpoint_and_the_rest_of_the_step_goes_to_the_next() -> None:
    first, second = Prompt(500, 0.0, until_checkpoint=20), Prompt(700, 0.0)
    assert pacer(1000).share([first, second], shared=True, now=0.0) == [(first, 20), (second, 76)]


class MeasuresOnce(Selection):
    """Spends a minute at a choice, once it is told to, as a Mac does that meets a shape for the first time."""

    now, new_shape = 0.0, False

    def choose(self, operation: Operation, arguments: Sequence[Any]) -> Candidate:
        if self.new_shape:
            self.new_shape = False
            self.now += 60
            self.measuring += 60
        return operation.off_metal


def test_measuring_kernels_is_no_cost_of_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """The next windows would be as small as they get, and every prompt after that one slow."""
    chosen = MeasuresOnce(Override())
    monkeypatch.setattr(engine.time, "perf_counter", lambda: chosen.now)
    served = cranked(network("dense"))
    with using(chosen):
        served.answer(Request([1, 2, 3], 120, 2))  # what a cache looks like is found out by a token of its own
        chosen.new_shape = True
        served.answer(Request([4, 5, 6, 7, 8, 9], 120, 1))
    assert chosen.measuring == 60
    assert served.engine._pacer.tokens(shared=True) > SMALLEST
