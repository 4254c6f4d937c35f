"""Energy: which counters are added up, and what is said where there are none."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import closing

import pytest

from mlx_qwen35.benching.contenders import Run
from mlx_qwen35.benching.energy import Meter, total
from mlx_qwen35.benching.measuring import Case, measure


def test_totals_are_added_and_their_parts_are_not() -> None:
    chip = [("CPU Energy", "mJ", 1_000), ("GPU Energy", "nJ", 2 * 10**9), ("ANE0", "uJ", 500_000), ("DRAM", "mJ", 250)]
    parts = [("PACC0_CPU", "mJ", 900), ("GPU SRAM0", "mJ", 70), ("ANE0_SRAM", "mJ", 7), ("PCIe Port 0 Energy", "mJ", 3)]
    assert total(chip + parts) == pytest.approx(3.75)


def test_both_halves_of_an_ultra_count() -> None:
    assert total([("DIE_0_CPU Energy", "mJ", 1_000), ("DIE_1_CPU Energy", "mJ", 2_000), ("ANE0_1", "mJ", 0)]) == 3


def test_no_counters_and_unknown_units_are_no_energy() -> None:
    assert total([]) is None
    assert total([("GPU Energy", "furlongs", 7)]) is None


def test_a_meter_answers_or_says_why_not() -> None:
    with closing(Meter()) as meter:
        assert (meter.joules() is None) == bool(meter.why)
        if sys.platform != "darwin":
            assert meter.why


class Counting(Meter):
    """Ten joules between two looks."""

    def __init__(self) -> None:
        super().__init__()
        self._seen = 0.0

    def joules(self) -> float:
        self._seen += 10
        return self._seen


class Fixed:
    name, batches = "a", True

    def run(self, prompts: Sequence[Sequence[int]], tokens: int) -> Run:
        return Run(first=1.0, rest=3.0, tokens=3)


def test_watts_are_joules_over_the_whole_run() -> None:
    (found,) = measure([Fixed()], Case(6, 1, 4), 100, 2, lambda _: None, Counting())
    assert found.watts == 2.5
