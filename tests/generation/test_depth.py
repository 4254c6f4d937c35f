"""The gate: drafts where they pay, none where they do not, by times that a test makes up."""

from __future__ import annotations

import random

import pytest

from mlx_qwen35.generation.depth import CREDIT, LOSS, PROBE_EVERY, Account, Candidate, Gate, Record
from mlx_qwen35.options import MOST_DRAFTS

STEPS = 600


def run(chance: float, cost: float, rows: int = 1, noise: float = 0.0, steps: int = STEPS) -> tuple[float, list[int]]:
    """Speed over plain decode's, and the depth of each step.

    chance: of a draft to be accepted   cost: of a draft, in plain steps   noise: of a step's time, a part of it
    """
    numbers, gate, account, all_ = random.Random(1), Gate(), Account(), Record()
    records, tokens, seconds, depths = [Record(all_) for _ in range(rows)], 0, 0.0, []
    for _ in range(steps):
        if account.allows:
            drafted = gate.choose(rows, "mtp", [Candidate(record, MOST_DRAFTS) for record in records]).depths
        else:
            gate.rest()
            drafted = (0,) * rows
        kept = [next((i for i in range(d) if numbers.random() >= chance), d) for d in drafted]
        for record, depth, stayed in zip(records, drafted, kept):
            if depth:
                record.saw(depth, stayed)
        deepest, told = max(drafted), sum(kept) + rows
        tokens += told
        took = (1 + cost * deepest) * numbers.uniform(1 - noise, 1 + noise)
        gate.costs.observe(rows, "mtp", deepest, took)
        if (plain := gate.costs.measured(rows, "mtp", 0)) is not None:
            account.book(deepest > 0, rows, told, took, plain)
        seconds += took
        depths.append(deepest)
    return tokens / rows / seconds, depths


def test_cheap_drafts_that_stay_are_made_as_deep_as_they_pay() -> None:
    speed, depths = run(chance=0.95, cost=0.1)
    assert speed > 2.5
    assert depths[-20:].count(MOST_DRAFTS) >= 19


def test_drafts_of_which_the_first_stays_are_not_made_deep() -> None:
    speed, depths = run(chance=0.5, cost=0.25)
    assert speed > 1.1
    assert sum(depths[100:]) / len(depths[100:]) < 2.5


@pytest.mark.parametrize(("chance", "cost"), [(0.05, 0.2), (0.6, 1.0), (0.95, 3.0), (0.0, 0.05)])
def test_where_drafts_do_not_pay_they_are_off_and_cost_next_to_nothing(chance: float, cost: float) -> None:
    speed, depths = run(chance, cost)
    assert sum(d > 0 for d in depths[50:]) <= 20
    assert speed > 0.9  # of 600 steps, the search and the trials in them
    speed, _ = run(chance, cost, steps=6000)
    assert speed > 0.97


def test_noise_in_the_times_does_not_turn_it_on() -> None:
    speed, depths = run(chance=0.3, cost=0.5, noise=0.3, steps=3000)
    assert speed > 0.93
    assert sum(d > 0 for d in depths) < 300


def test_it_tries_again_and_finds_that_drafts_pay_now() -> None:
    gate, record = Gate(), Record()
    depths = []
    for step in range(12 * PROBE_EVERY):
        choice = gate.choose(1, "mtp", [Candidate(record, MOST_DRAFTS)])
        depth = choice.depths[0]
        if depth:
            record.saw(depth, depth if step > 4 * PROBE_EVERY else 0)
        gate.costs.observe(1, "mtp", depth, 1 + 0.2 * depth)
        depths.append(depth)
    assert max(depths[PROBE_EVERY : 2 * PROBE_EVERY]) <= 1
    assert min(depths[-20:]) >= 1 or depths[-20:].count(0) <= 1


def test_the_reason_is_told() -> None:
    gate = Gate()
    assert "measuring" in gate.choose(1, "mtp", [Candidate(Record(), 4)]).why
    assert gate.choose(1, "mtp", []).why == "nothing to draft from"
    for _ in range(4):
        gate.costs.observe(1, "mtp", 0, 1.0)
        for depth in range(1, 5):
            gate.costs.observe(1, "mtp", depth, 10.0)
    why = gate.choose(1, "mtp", [Candidate(Record(), 4)]).why
    assert why.startswith("off: ")
    assert "times the speed of plain decode" in why


def test_a_row_whose_drafts_fail_does_not_draft_beside_one_whose_stay() -> None:
    gate, good, bad = Gate(), Record(), Record()
    for _ in range(30):
        good.saw(4, 4)
        bad.saw(4, 0)
    for _ in range(4):
        gate.costs.observe(2, "mtp", 0, 1.0)
        gate.costs.observe(2, "mtp", 4, 1.8)
    depths = gate.choose(2, "mtp", [Candidate(good, 4), Candidate(bad, 4)]).depths
    assert depths[0] == 4
    assert depths[1] == 0


def test_what_drafts_cost_is_made_good_before_they_are_tried_again() -> None:
    """Whatever they promise: each of these steps brings one token, at twice the time, and the next one is slow too."""
    account, before, lost = Account(), False, 0.0
    for _ in range(2000):
        drafts = account.allows
        slower = 1.0 if drafts else 0.5 if before else 0.0
        account.book(drafts, 1, 1, 1.0 + slower, 1.0)
        before, lost = drafts, lost + slower
    assert CREDIT < lost <= CREDIT + LOSS * (2000 + lost) + 1.5  # the last trial may go past it


def test_one_slow_step_with_drafts_does_not_stop_them_for_long() -> None:
    """The first pays for what is made once."""
    account = Account()
    account.book(True, 1, 2, 500.0, 1.0)
    assert account.allows
