"""The live strip and the plots: the numbers shown are those of the answer, and none is made up."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_qwen35.app import strip
from mlx_qwen35.app.conversation import Answer
from mlx_qwen35.app.desk import Logged
from mlx_qwen35.app.plots import Series, plot
from mlx_qwen35.app.stats_panel import as_html, series_of
from mlx_qwen35.app.strip import Pace, figures_of
from mlx_qwen35.chat.events import Content, Finished, PrefillProgress, Reasoning, Usage
from tests.app.conftest import RunningApp, ask

USAGE = Usage(
    prompt_tokens=200,
    completion_tokens=51,
    cached_tokens=150,
    queue_seconds=0.5,
    prefill_seconds=1.5,
    decode_seconds=2.0,
    drafted_tokens=40,
    accepted_tokens=30,
    cache_note='quotes "<b>"',
)


def backend(context: int | None = 1_000, **stats: Any) -> Any:
    return SimpleNamespace(context=context, stats=lambda: SimpleNamespace(**stats))


def shown(answer: Answer | None, pace: Pace | None = None, limit: int | None = None, **known: Any) -> dict[str, str]:
    figures = figures_of(backend(**known), answer, pace or Pace(), limit)
    return {figure.unit: figure.value for figure in figures}


def answer_of(*events: Any) -> Answer:
    answer = Answer()
    for event in events:
        answer.take(event)
    return answer


def test_an_answer_that_ended_is_shown_as_it_was_counted() -> None:
    answer = answer_of(Content("x"), Finished("stop", USAGE))
    assert shown(answer, active_bytes=3_000_000_000, limit=4_000_000_000) == {
        "tokens/s": "25.0",
        "reused": "75 %",
        "context": "251 of 1.0k",
        "drafts kept": "75 %",
        "memory": "3.0 GB of 4.0 GB",
    }


def test_what_is_not_known_is_not_shown() -> None:
    assert shown(None) == {}
    assert shown(answer_of(Finished("stop", Usage())), context=None) == {}
    assert shown(answer_of(Finished("stop", USAGE)), context=None)["tokens of context"] == "251"
    assert shown(None, active_bytes=5_000_000) == {"memory": "5.0 MB"}


def test_an_answer_that_was_stopped_is_not_shown_as_if_it_went_on() -> None:
    answer = answer_of(PrefillProgress(512, 2048, 128))
    answer.stop()
    assert shown(answer, active_bytes=5_000_000) == {"memory": "5.0 MB"}


def test_while_the_prompt_is_read_its_progress_is_shown() -> None:
    reading = shown(answer_of(PrefillProgress(512, 2048, 128)), prefill_speed=900.0)
    assert reading["of 2,048 tokens read"] == "512"
    assert reading["tokens/s"] == "900"
    assert reading["reused"] == "6 %"


def test_while_an_answer_comes_its_speed_is_measured_from_the_first_look(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(strip.time, "monotonic", lambda: clock.now)
    answer, pace = answer_of(PrefillProgress(100, 100, 50), Reasoning("a", tokens=3), Content("b")), Pace()
    assert "tokens/s" not in shown(answer, pace, drafted_tokens=100, accepted_tokens=50)
    clock.now += 2
    for _ in range(20):
        answer.take(Content("c"))
    figures = shown(answer, pace, drafted_tokens=110, accepted_tokens=58)
    assert figures == {"tokens/s": "10.0", "reused": "50 %", "context": "124 of 1.0k", "drafts kept": "80 %"}
    another = answer_of(PrefillProgress(10, 10))
    assert "tokens/s" not in shown(another, pace)


def test_figures_are_text_and_a_full_bar_says_so() -> None:
    page = strip.as_html(figures_of(backend(260), answer_of(Finished("stop", USAGE)), Pace(), None))
    assert "<b>&quot;" not in page
    assert "&lt;b&gt;" in page
    assert 'class="part full"' in page
    ElementTree.fromstring(page)


def test_answers_of_the_session_are_plotted() -> None:
    log = [Logged(0.0, "m", USAGE, "stop", 2_000_000_000), Logged(1.0, "m", Usage(), "cancelled")]
    values = {series.title: list(series.values) for series in series_of(log)}
    assert values == {
        "Speed": [25.0, None],
        "First token": [2.0, None],
        "Prompt reused": [75.0, None],
        "Drafts kept": [75.0, None],
        "Memory": [2.0, None],
    }
    page = as_html(log)
    assert "2 answers · 51 tokens answered · 200 prompt tokens, 150 reused" in page
    ElementTree.fromstring(f"<div>{page}</div>")
    assert "Nothing was answered" in as_html([])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.none() | st.floats(0, 1e12), max_size=90))
def test_every_known_value_stands_in_the_picture(values: list[float | None]) -> None:
    root = ElementTree.fromstring(plot(Series("<t>", "u", values)))
    points = [pair for line in root.iter("polyline") for pair in line.attrib["points"].split()]
    assert len(points) == sum(value is not None for value in values)
    for x, y in (map(float, pair.split(",")) for pair in points):
        assert 0 <= x <= 320
        assert 0 <= y <= 96
    assert not points or re.search("last .*, least .*, most ", root.find("svg").attrib["aria-label"])  # type: ignore


def test_a_page_s_answer_comes_to_the_log_with_memory(tiny_app: RunningApp) -> None:
    before = len(tiny_app.desk.log)
    ask(tiny_app.client(), "Hi", max_tokens=4).result(timeout=60)
    assert len(tiny_app.desk.log) == before + 1
    entry = tiny_app.desk.log[-1]
    assert entry.usage.completion_tokens == 4
    assert entry.memory
