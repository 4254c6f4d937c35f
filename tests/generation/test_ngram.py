"""What followed last time: found where a text repeats, and nowhere else."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mlx_qwen35.generation.ngram import SHORTEST, NGrams

texts = st.lists(st.integers(0, 3), max_size=40)


def by_search(ids: list[int], length: int) -> int | None:
    """Where the run of the last `length` tokens ended before, the last time."""
    run = ids[-length:]
    ends = [end for end in range(length, len(ids)) if ids[end - length : end] == run]
    return ends[-1] if ends else None


@given(text=texts, cuts=st.lists(st.integers(1, 10), max_size=8), most=st.integers(1, 6))
def test_a_growing_text_is_searched_as_a_whole_one(text: list[int], cuts: list[int], most: int) -> None:
    grown, at = NGrams(), 0
    for cut in cuts:
        at = min(len(text), at + cut)
        assert grown.drafts(text[:at], most) == NGrams().drafts(text[:at], most)


@given(text=texts, most=st.integers(1, 6))
def test_drafts_are_what_followed_the_longest_run_last(text: list[int], most: int) -> None:
    found = NGrams().drafts(text, most)
    places = [place for n in (4, 3) if len(text) >= n and (place := by_search(text, n)) is not None]
    if not places:
        assert found == []
    else:
        assert len(found) == most
        known = text[places[0] :][:most]
        assert found[: len(known)] == known


@given(text=texts, most=st.integers(1, 4), unread=st.integers(1, 2))
def test_unread_tokens_are_taken_to_go_on_likewise(text: list[int], most: int, unread: int) -> None:
    assert NGrams().drafts(text, most, unread) == NGrams().drafts(text, most + unread)[unread:]


def test_what_repeats_is_repeated_beyond_the_end_of_the_text() -> None:
    assert NGrams().drafts([1, 2, 1, 2, 1, 2], 4) == [1, 2, 1, 2]
    assert NGrams().drafts([7] * (SHORTEST + 1), 3) == [7, 7, 7]
