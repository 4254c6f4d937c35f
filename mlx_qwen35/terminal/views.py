"""How an answer is shown while it arrives: repainted Markdown on a terminal, plain text anywhere else.

A view is told of every event, and of every moment without one, and ends with `finish`. It keeps nothing.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Protocol, TextIO

from rich.console import Console, Group, RenderableType
from rich.text import Text

from mlx_qwen35.chat.events import Content, Event, PrefillProgress, Reasoning, ToolCallEnd
from mlx_qwen35.terminal.answering import Answer
from mlx_qwen35.terminal.blocks import MarkdownBlocks
from mlx_qwen35.terminal.markdown import AnswerMarkdown, thinking_text
from mlx_qwen35.terminal.painter import Painter
from mlx_qwen35.terminal.safe_text import safe
from mlx_qwen35.terminal.status import LiveStatus, fitting
from mlx_qwen35.tools.pump import TICK_SECONDS

PATIENCE_SECONDS = 2.0  # a prefill longer than this gets a progress line


class View(Protocol):
    def show(self, event: Event, answer: Answer) -> None: ...

    def tick(self, answer: Answer) -> None: ...

    def finish(self, answer: Answer) -> None: ...


class PlainView:
    """Content to one stream and reasoning to another, as they come; no colour, no cursor movement."""

    def __init__(self, out: TextIO | None = None, err: TextIO | None = None, thinking: bool = True) -> None:
        self._out, self._err = out or sys.stdout, err or sys.stderr
        self._thinking = thinking
        self._safe_out = safe if self._out.isatty() else _unchanged
        self._safe_err = safe if self._err.isatty() else _unchanged
        self._open: TextIO | None = None  # the stream whose last line has no end yet
        self._any_content = False

    def show(self, event: Event, answer: Answer) -> None:
        if isinstance(event, Reasoning) and self._thinking:
            self._write(self._err, self._safe_err(event.text))
        elif isinstance(event, Content):
            # Newlines that only separate the think block from the answer are no part of either.
            text = event.text if self._any_content else event.text.lstrip("\n")
            if text:
                self._any_content = True
                self._write(self._out, self._safe_out(text))
        elif isinstance(event, ToolCallEnd):
            self._end_line()
            self._write(self._out, self._safe_out(_call_line(event)) + "\n")

    def tick(self, answer: Answer) -> None:
        pass

    def finish(self, answer: Answer) -> None:
        self._end_line()

    def _write(self, stream: TextIO, text: str) -> None:
        if self._open not in (None, stream):
            self._end_line()
        stream.write(text)
        stream.flush()
        self._open = None if text.endswith("\n") else stream

    def _end_line(self) -> None:
        if self._open is not None:
            self._open.write("\n")
            self._open.flush()
            self._open = None


class RichView:
    """Reasoning dimmed, or one line in its place; Markdown, block by block, the last one repainted."""

    def __init__(self, console: Console, thinking: bool = True, status: LiveStatus | None = None) -> None:
        """status: of the line below the answer, as long as it is written"""
        self._console, self._thinking, self._status = console, thinking, status
        self._painter = Painter(console)
        self._blocks = MarkdownBlocks()
        self._thought = ""  # the last line of reasoning, without an end yet
        self._phase = "waiting"
        self._prefill: PrefillProgress | None = None
        self._printed = False  # a block of this answer stands above
        self._painted = 0.0

    def show(self, event: Event, answer: Answer) -> None:
        if isinstance(event, PrefillProgress):
            self._prefill = event
            if self._status:
                self._status.take(event)
        elif isinstance(event, Reasoning):
            self._reason(safe(event.text), answer)
        elif isinstance(event, Content):
            self._answer(safe(event.text), answer)
        elif isinstance(event, ToolCallEnd):
            self._end_reasoning(answer)
            self._print(Text(safe(_call_line(event)), style="call"), answer)
        self.tick(answer)

    def tick(self, answer: Answer) -> None:
        now = time.monotonic()
        if now - self._painted >= TICK_SECONDS:
            self._painted = now
            self._painter.repaint(self._below(answer))

    def finish(self, answer: Answer) -> None:
        self._end_reasoning(answer)
        if last := self._blocks.finish().strip("\n"):
            self._print(AnswerMarkdown(last), answer)
        self._painter.close()

    def _reason(self, text: str, answer: Answer) -> None:
        self._phase = "thinking"
        if self._thinking:
            ended, newline, self._thought = (self._thought + text).rpartition("\n")
            if newline:
                self._painter.print(thinking_text(ended), self._below(answer))

    def _end_reasoning(self, answer: Answer) -> None:
        if self._phase == "thinking":
            shown = [thinking_text(self._thought)] if self._thought.strip() else []
            self._thought = ""
            self._painter.print(Group(*shown, _note(answer.thought())))
            self._printed = True
        self._phase = "answering"

    def _answer(self, text: str, answer: Answer) -> None:
        if self._phase != "answering":
            text = text.lstrip("\n")
            if not text:
                return
            self._end_reasoning(answer)
        for block in self._blocks.feed(text):
            if block.strip():
                self._print(AnswerMarkdown(block.strip("\n")), answer)

    def _print(self, block: RenderableType, answer: Answer) -> None:
        above = Group("", block) if self._printed else block
        self._printed = True
        self._painter.print(above, self._below(answer))

    def _below(self, answer: Answer) -> RenderableType | None:
        """What the repainted region shows now: what is not finished, and the status."""
        unfinished = self._unfinished(answer)
        # The painter leaves the last column free.
        line = fitting(self._status.parts(), self._console.width - 1) if self._status else ""
        if not line:
            return unfinished
        return _note(line) if unfinished is None else Group(unfinished, _note(line))

    def _unfinished(self, answer: Answer) -> RenderableType | None:
        waited = time.monotonic() - answer.started
        if self._phase == "waiting":
            return _note(_reading(self._prefill, waited)) if waited > PATIENCE_SECONDS else None
        if self._phase == "thinking":
            # The last line may be endless; more of it than a screen holds need not be laid out.
            last = self._thought[-self._console.width * self._painter.rows :]
            return thinking_text(last) if self._thinking else _note(f"thinking: {answer.thought()}")
        tail = self._tail()
        return Group("", tail) if self._printed and tail else tail

    def _tail(self) -> RenderableType | None:
        rows = max(1, self._painter.rows - (self._status is not None))
        if self._blocks.line_count <= rows:
            text = self._blocks.tail
        else:
            # Only what can be seen is laid out again; the whole block is, once, when it is finished.
            text = self._blocks.tail_lines(rows)
            text = f"{self._blocks.fence}\n{text}" if self._blocks.fence else text
        if len(text) > 4 * self._console.width * rows:
            return Text(text[-self._console.width * rows :])
        return AnswerMarkdown(text.strip("\n")) if text.strip() else None


def _reading(progress: PrefillProgress | None, seconds: float) -> str:
    if progress is not None and progress.summary:
        return f"summarising older turns, {progress.summary:,} tokens, {seconds:.0f} s"
    if progress is None or progress.done >= progress.total:
        return f"reading the prompt, {seconds:.0f} s"
    filled = 20 * progress.done // progress.total
    bar = "━" * filled + "╌" * (20 - filled)
    return f"reading the prompt {bar} {progress.done:,} of {progress.total:,} tokens, {seconds:.0f} s"


def _call_line(event: ToolCallEnd) -> str:
    return json.dumps({"name": event.name, "arguments": event.arguments}, ensure_ascii=False)


def _note(text: str) -> Text:
    return Text(text, style="dim italic")


def _unchanged(text: str) -> str:
    return text


def make_console() -> Console | None:
    """The console for a rich view on stdout; None where plain text is wanted (a pipe, NO_COLOR, a dumb terminal)."""
    console = Console(highlight=False)
    plain = not sys.stdout.isatty() or console.is_dumb_terminal or console.no_color
    return None if plain else console
