"""What a user sees while an answer is written: each word once, whatever the terminal's size."""

from __future__ import annotations

import io
import time

import pyte
import pytest
from pyte import modes
from rich.console import Console

from mlx_qwen35.chat.events import Content, Event, Finished, PrefillProgress, Reasoning, ToolCallEnd
from mlx_qwen35.terminal import views
from mlx_qwen35.terminal.answering import Answer
from mlx_qwen35.terminal.painter import Painter
from mlx_qwen35.terminal.views import PlainView, RichView

ANSWER = (
    "# A title\n\nFirst paragraph with some words that wrap in a narrow window.\n\n- one\n- two\n\n"
    "```python\n" + "\n".join(f"line_{i} = {i}" for i in range(40)) + "\n```\n\nThe end."
)


class Screen(io.StringIO):
    """A console whose output an independent terminal emulator shows."""

    def __init__(self, columns: int, rows: int) -> None:
        super().__init__()
        self.screen = pyte.HistoryScreen(columns, rows, history=5000)
        self.screen.set_mode(modes.LNM)  # as the kernel does it: a newline also returns
        self._stream = pyte.Stream(self.screen)
        self.console = Console(
            file=self, force_terminal=True, width=columns, height=rows, color_system="standard", highlight=False
        )

    def write(self, text: str) -> int:
        self._stream.feed(text)
        return super().write(text)

    def isatty(self) -> bool:
        return True

    @property
    def lines(self) -> list[str]:
        above = ["".join(line[x].data for x in range(self.screen.columns)) for line in self.screen.history.top]
        return [line.rstrip() for line in [*above, *self.screen.display]]


def play(view: views.View, events: list[Event]) -> Answer:
    answer = Answer()
    for event in events:
        answer.take(event)
        view.show(event, answer)
    view.finish(answer)
    return answer


def in_pieces(text: str, size: int = 3) -> list[Event]:
    return [Content(text[i : i + size]) for i in range(0, len(text), size)]


@pytest.fixture
def every_event_painted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Repaint at every event, so that a wrong repaint cannot hide between two."""
    monkeypatch.setattr(views, "TICK_SECONDS", 0.0)


@pytest.mark.parametrize(("columns", "rows"), [(80, 24), (20, 6), (12, 3), (200, 60), (33, 10)])
def test_each_line_stands_once_on_the_screen(every_event_painted: None, columns: int, rows: int) -> None:
    screen = Screen(columns, rows)
    thoughts: list[Event] = [Reasoning("let me\nsee wh"), Reasoning("at this is", tokens=9)]
    play(RichView(screen.console), [*thoughts, *in_pieces(ANSWER), Finished("stop")])
    text = "\n".join(screen.lines)
    for i in range(40):
        assert text.count(f"line_{i} =") == 1, text
    assert text.count("A title") == 1
    assert text.count("The end.") == 1
    words = " ".join(text.split())
    assert words.count("First paragraph") == 1
    assert "let me see what this is" in words
    assert words.count("9 tokens") == 1


def test_hidden_thinking_leaves_one_line(every_event_painted: None) -> None:
    screen = Screen(60, 10)
    events = [Reasoning("secret"), Reasoning(" plan\n", tokens=120), Content("Hi."), Finished("stop")]
    play(RichView(screen.console, thinking=False), events)
    shown = [line for line in screen.lines if line]
    assert len(shown) == 2
    assert shown[0].startswith("thought for")
    assert shown[0].endswith(" s, 120 tokens")
    assert shown[1] == "Hi."
    assert "secret" not in screen.getvalue()


def test_a_finished_screen_is_left_in_order(every_event_painted: None) -> None:
    screen = Screen(40, 8)
    play(RichView(screen.console), [*in_pieces("Hello *there*"), Finished("stop")])
    assert not screen.screen.cursor.hidden
    assert screen.screen.cursor.x == 0
    assert screen.lines[0] == "Hello there"


def test_model_text_cannot_move_the_cursor(every_event_painted: None) -> None:
    screen = Screen(60, 10)
    screen.write("precious\n")
    play(RichView(screen.console), [Reasoning("\x1b[2J\x1b[H"), Content("\x1b[1;1H\x1b[2Kgone"), Finished("stop")])
    assert screen.lines[0] == "precious"


def test_repaints_are_at_most_fifteen_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr(views.time, "monotonic", lambda: clock[0])
    screen = Screen(60, 10)
    painted: list[float] = []
    monkeypatch.setattr(Painter, "repaint", lambda self, below: painted.append(clock[0]))
    view, answer = RichView(screen.console), Answer()
    for _ in range(1000):
        clock[0] += 0.001
        view.show(Content("word "), answer)
    assert len(painted) <= 16


def test_a_long_prefill_shows_its_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    screen, answer = Screen(80, 10), Answer()
    view = RichView(screen.console)
    view.show(PrefillProgress(1024, 8192), answer)
    assert "".join(screen.lines) == "", "a short one shows nothing"
    answer.started -= 3
    time.sleep(views.TICK_SECONDS)
    view.tick(answer)
    assert "1,024 of 8,192 tokens" in screen.lines[0]
    view.finish(answer)
    assert "".join(screen.lines) == ""


def test_a_narrowed_terminal_shows_no_line_twice() -> None:
    """The terminal wraps what stands on it; the painter must go up by the rows that makes."""
    screen = Screen(40, 10)
    painter = Painter(screen.console)
    painter.repaint("a line that is thirty-nine cells wide..")
    screen.screen.resize(10, 20)
    screen.screen.cursor.x, screen.screen.cursor.y = 8, 3  # where a terminal that wraps leaves the cursor
    screen.console.width = 20
    painter.repaint("short")
    assert screen.lines.count("short") == 1
    assert screen.screen.cursor.y in (2, 0)


def test_plain_text_separates_answer_and_reasoning() -> None:
    out, err = io.StringIO(), io.StringIO()
    call = ToolCallEnd(0, "call_0", "weather", {"city": "Köln"})
    events = [Reasoning("hm"), Content("\n\nHi"), Content(" there"), call, Finished("tool_calls")]
    play(PlainView(out, err), events)
    assert out.getvalue() == 'Hi there\n{"name": "weather", "arguments": {"city": "Köln"}}\n'
    assert err.getvalue() == "hm\n"
