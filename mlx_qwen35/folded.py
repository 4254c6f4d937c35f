"""A request whose conversation is summarised first: the summary and then the answer, read as one `Running`.

Knows nothing of what is asked for a summary, nor of what is made of it: `Prepared.then` does.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import aclosing, closing
from dataclasses import replace

from mlx_qwen35.chat.events import Event, Finished, PrefillProgress
from mlx_qwen35.chat.reply import Gathering, Reply
from mlx_qwen35.chat.transcript import Prompt
from mlx_qwen35.generation.request import Line
from mlx_qwen35.running import Prepared, Running


class Folded:
    """As `Running`: read it with `events` or `aevents`; `prompt`, `line` and `sampled` are the answer's once that runs.

    Of a summary nothing is told but progress, once for each of its tokens: whoever reads can leave between any two.
    """

    def __init__(self, begin: Callable[[Prepared], Running], prepared: Prepared) -> None:
        """begin: hands a request to the engine   prepared: asks for a summary"""
        self._begin, self._then = begin, prepared.then
        self._running = begin(prepared)

    @property
    def prompt(self) -> Prompt:
        return self._running.prompt

    @property
    def line(self) -> Line:
        return self._running.line

    @property
    def sampled(self) -> list[int]:
        return self._running.sampled

    def events(self) -> Generator[Event]:
        """Progress, then the answer's events. Closing the iterator cancels within one step."""
        while self._then is not None:
            summary = _Summary(self._running)
            with closing(self._running.events()) as events:
                for event in events:
                    yield summary.take(event)
            if (reply := summary.reply) is None:
                return
            self._go_on(self._then(reply))
        yield from self._running.events()

    async def aevents(self) -> AsyncGenerator[Event]:
        """The same on an event loop. Cancelling the task that reads cancels within one step."""
        while self._then is not None:
            summary = _Summary(self._running)
            async with aclosing(self._running.aevents()) as events:
                async for event in events:
                    yield summary.take(event)
            if (reply := summary.reply) is None:
                return
            # Begun on the loop, where nothing can be cancelled between the beginning and the reading.
            self._go_on(await asyncio.to_thread(self._then, reply))
        async with aclosing(self._running.aevents()) as events:
            async for event in events:
                yield event

    def close(self) -> None:
        self._running.close()

    def _go_on(self, prepared: Prepared) -> None:
        self._running, self._then = self._begin(prepared), prepared.then


class _Summary:
    """A summary's events in, progress out. reply: when it is complete"""

    def __init__(self, running: Running) -> None:
        self._running, self._gathering = running, Gathering()
        self._progress = PrefillProgress(0, 0)
        self.reply: Reply | None = None

    def take(self, event: Event) -> Event:
        self._gathering.take(event)
        if isinstance(event, PrefillProgress):
            self._progress = event
        elif isinstance(event, Finished):
            if event.reason == "cancelled":
                return event
            self.reply = self._gathering.reply()
        return replace(self._progress, summary=len(self._running.sampled))


Answering = Running | Folded
