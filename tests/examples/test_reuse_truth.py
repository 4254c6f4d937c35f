"""The yardstick of the prefix benchmark, on sequences small enough to count by hand."""

from __future__ import annotations

import pytest

from examples.benchmarks.reuse_truth import Reuse, common_prefix, new_messages_at, total


def test_a_prefix_ends_where_the_shorter_one_ends() -> None:
    assert common_prefix([1, 2, 3], [1, 2, 3, 4]) == 3
    assert common_prefix([1, 2, 9, 4], [1, 2, 3, 4]) == 2
    assert common_prefix([], [1]) == 0


def test_new_messages_begin_at_the_last_user_block_with_its_line_break() -> None:
    start, user, line = 7, 8, 0
    prompt = [start, user, 5, line, start, 6, 5, line, start, user, 5, line, start, 6]
    assert new_messages_at(prompt, [start, user]) == 7
    assert new_messages_at([start, 6], [start, user]) == 0


def test_the_cold_first_turn_does_not_hide_the_others() -> None:
    turns = [
        Reuse(prompt=100, shared=0, rerendered=0, cached=0),
        Reuse(prompt=120, shared=100, rerendered=0, cached=80),
    ]
    sums = total(turns)
    assert sums.ratio == pytest.approx(140 / 120)
    assert sums.ratio_after_first == pytest.approx(40 / 20)
    assert sums.worst_turn == pytest.approx(2)


def test_a_prompt_that_was_seen_whole_counts_one_token() -> None:
    assert Reuse(prompt=50, shared=50, rerendered=0, cached=49).ratio == 1
