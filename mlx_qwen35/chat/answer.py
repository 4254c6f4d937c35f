"""One answer in the making: text in, typed events out, cut at stop strings, counted and timed. Knows no token ids."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

from mlx_qwen35.chat.events import Content, ParsedEvent, Reasoning, ToolCallEnd, Usage
from mlx_qwen35.chat.parser import OutputParser, PlainText
from mlx_qwen35.chat.stop import StopStrings


class Answer:
    """Fed with the text of one token after another."""

    def __init__(self, parser: OutputParser | PlainText, stops: StopStrings) -> None:
        self._parser, self._stops = parser, stops
        self._started = time.perf_counter()
        self._first: float | None = None
        self._tokens = self._reasoning_tokens = 0
        self.called = False

    @property
    def in_reasoning(self) -> bool:
        """Whether what comes next is thought."""
        return self._parser.in_reasoning

    @property
    def stopped(self) -> bool:
        """Whether a stop string has ended the answer."""
        return self._stops.stopped

    @property
    def stop_string(self) -> str | None:
        """Which one."""
        return self._stops.matched

    def count(self) -> None:
        """A token has come."""
        self._first = self._first or time.perf_counter()
        self._tokens += 1

    def feed(self, text: str) -> Iterator[ParsedEvent]:
        """Its text, which may be empty."""
        events = self._parser.feed(text)
        for i, event in enumerate(events):
            if isinstance(event, Reasoning):
                self._reasoning_tokens = self._tokens
                events[i] = replace(event, tokens=self._tokens)
        return self._cut(events)

    def finish(self, text: str) -> Iterator[ParsedEvent]:
        """The last piece of text; nothing comes after."""
        if not self.stopped:
            yield from self._cut([*self._parser.feed(text), *self._parser.finish()])
            if rest := self._stops.finish():
                yield Content(rest)

    def _cut(self, events: Sequence[ParsedEvent]) -> Iterator[ParsedEvent]:
        for event in events:
            if self.stopped:
                return
            if isinstance(event, Content):
                if shown := self._stops.feed(event.text):
                    yield Content(shown)
                continue
            if rest := self._stops.finish():
                yield Content(rest)
            self.called = self.called or isinstance(event, ToolCallEnd)
            yield event

    def usage(self) -> Usage:
        """Of the answer alone."""
        now = time.perf_counter()
        first = self._first or now
        return Usage(
            completion_tokens=self._tokens,
            reasoning_tokens=self._reasoning_tokens,
            prefill_seconds=first - self._started,
            decode_seconds=now - first,
        )
