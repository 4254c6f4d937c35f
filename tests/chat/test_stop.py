"""Stop strings in a stream: the same cut however the text arrives, and nothing shown that belongs to one."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mlx_qwen35.chat.stop import StopStrings

TEXT = st.text("abx\n", max_size=60)
STOPS = st.lists(st.text("abx\n", min_size=1, max_size=5), max_size=3)


def streamed(stops: list[str], pieces: list[str]) -> tuple[str, bool]:
    stop = StopStrings(stops)
    shown = [stop.feed(piece) for piece in pieces]
    return "".join(shown) + stop.finish(), stop.stopped


def cut(stops: list[str], text: str) -> tuple[str, bool]:
    places = [i for i in (text.find(s) for s in stops) if i >= 0]
    return (text[: min(places)], True) if places else (text, False)


@given(STOPS, st.lists(TEXT, max_size=8))
def test_the_cut_does_not_depend_on_how_the_text_arrives(stops: list[str], pieces: list[str]) -> None:
    shown, stopped = streamed(stops, pieces)
    whole, whole_stopped = cut(stops, "".join(pieces))
    # A stop string that ends first wins in a stream, even when a longer one began before it.
    assert stopped == whole_stopped
    assert "".join(pieces).startswith(shown)
    assert not any(s in shown for s in stops)
    if len(stops) <= 1:
        assert shown == whole


@given(STOPS, TEXT)
def test_letter_by_letter_shows_no_part_of_a_stop_string(stops: list[str], text: str) -> None:
    shown, _ = streamed(stops, list(text))
    assert not any(s in shown for s in stops)


def test_what_cannot_become_a_stop_string_is_shown_at_once() -> None:
    stop = StopStrings(["END"])
    assert stop.feed("text E") == "text "
    assert stop.feed("Nd") == "ENd"
    assert stop.feed(" END more") == " "
    assert stop.stopped
    assert stop.feed("more") == ""


@given(STOPS, st.lists(TEXT, max_size=8))
def test_what_stopped_the_text_is_named(stops: list[str], pieces: list[str]) -> None:
    stop = StopStrings(stops)
    shown = "".join(stop.feed(piece) for piece in pieces)
    assert stop.matched is None or (stop.matched in stops and "".join(pieces).startswith(shown + stop.matched))
