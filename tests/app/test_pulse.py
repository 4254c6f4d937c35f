"""How often a long answer is painted: a page that keeps up sees it flow, one that does not is never flooded."""

from __future__ import annotations

import pytest

from mlx_qwen35.app.pulse import LIVELY, REPAINT, UNHEARD, Pulse

LONG = 30_000  # characters: five thousand words


def shown(seconds_to_paint: float, hears: bool = True, seconds: float = 60.0) -> tuple[int, int]:
    """A page whose one thread paints, and looks when it is free: how often it was painted, and the most that waited."""
    pulse, painted, waiting, most, times = Pulse(), 0.0, 0, 0, 0
    free = look = 0.0  # when the page's thread has nothing to do, and when it would look next
    for step in range(int(seconds * 1000)):
        now = step / 1000
        if now >= free:
            if waiting:
                waiting, free = waiting - 1, now + seconds_to_paint
            elif now >= look:
                look = now + LIVELY
                if hears:
                    pulse.beat(now)
        if now - painted >= pulse.rest(painted, LONG):
            painted, waiting, times = now, waiting + 1, times + 1
            most = max(most, waiting)
    return times, most


def test_a_page_that_keeps_up_sees_a_long_answer_flow() -> None:
    times, most = shown(0.02)
    assert times > 2 * 60
    assert most == 1


@pytest.mark.parametrize("seconds_to_paint", [0.1, 0.3, 0.6, 1.2])
def test_a_slow_page_does_not_fall_behind(seconds_to_paint: float) -> None:
    times, most = shown(seconds_to_paint)
    assert most <= 2
    assert times >= 60 / (LONG / UNHEARD + REPAINT), "fewer than where nothing is known of the page"


def test_without_a_word_from_the_page_the_rest_grows_with_what_is_painted() -> None:
    assert shown(0.02, hears=False)[0] == pytest.approx(60 / (LONG / UNHEARD), abs=1)
    assert Pulse().rest(0.0, 0) == REPAINT
