"""The line about an answer: true at its end, never wider than the terminal, and gone from where it was repainted."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from mlx_qwen35.chat.events import Content, Finished, PrefillProgress, Usage
from mlx_qwen35.terminal import views
from mlx_qwen35.terminal.answering import Answer
from mlx_qwen35.terminal.status import LiveStatus, fitting, of_usage
from mlx_qwen35.terminal.views import RichView
from tests.terminal.test_views import Screen

USAGE = Usage(100, 41, cached_tokens=80, decode_seconds=2.0, drafted_tokens=20, accepted_tokens=15)


def test_counts_are_those_of_the_answer() -> None:
    assert of_usage(USAGE, 8192) == ["20.0 tokens/s", "141 of 8,192 context", "80 reused", "75% of drafts"]
    assert of_usage(Usage(100, 1), 8192) == ["101 of 8,192 context"]


def test_a_narrow_terminal_shows_what_matters_most() -> None:
    parts = of_usage(USAGE, 8192)
    for width in range(80):
        assert len(fitting(parts, width)) <= width
    assert fitting(parts, 20) == "20.0 tokens/s"
    assert fitting(parts, 80).endswith("drafts")


@pytest.mark.parametrize("columns", [20, 40, 80])
def test_the_live_line_is_repainted_in_place_and_leaves_nothing(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(views, "TICK_SECONDS", 0.0)
    counters: Any = SimpleNamespace(decode_speed=31.0, answer_tokens=7, drafted_tokens=0, accepted_tokens=0)
    screen = Screen(columns, 12)
    view = RichView(screen.console, status=LiveStatus(lambda: SimpleNamespace(**vars(counters)), 4096))  # type: ignore
    answer = Answer()
    view.show(PrefillProgress(50, 50, 30), answer)
    assert "tokens/s" not in "".join(screen.lines), "nothing is written yet"
    for word in ("one ", "two ", "three\n\n", "four"):
        counters.answer_tokens += 1
        answer.take(Content(word))
        view.show(Content(word), answer)
        (line,) = [line for line in screen.lines if "tokens/s" in line]
        assert screen.lines[-1] == line or not "".join(screen.lines[screen.lines.index(line) + 1 :]), (
            "not the last line"
        )
    if columns == 80:
        assert line == "31.0 tokens/s · 54 of 4,096 context · 30 reused"
    answer.take(Finished("stop"))
    view.finish(answer)
    assert "tokens/s" not in "".join(screen.lines)
    assert "".join(screen.lines).replace(" ", "") == "onetwothreefour"
