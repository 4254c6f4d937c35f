"""The events of all that one request asks for, side by side, in batches for one reader. Knows no HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager

from mlx_qwen35.chat.events import Event, Finished, PrefillProgress
from mlx_qwen35.requests import ChatRequest, TextRequest
from mlx_qwen35.server.protocol import Asked, Refused, Served
from mlx_qwen35.server.settings import Settings
from mlx_qwen35.server.turn import begun

WAITING_EVENTS = 64  # between the model and a reader who is slower

Batch = list[tuple[int, Event]]
Item = tuple[int, Event] | Exception


class Answers:
    """progress: of the prompt being read, if that came last   finished: how the answers ended, so far"""

    def __init__(self, served: Served, limits: Settings) -> None:
        self._served, self._limits = served, limits
        self.progress: PrefillProgress | None = None
        self.finished: list[Finished] = []

    @asynccontextmanager
    async def batches(self, asked: Asked) -> AsyncIterator[AsyncIterator[Batch]]:
        """All events of all choices, in batches; an empty one where nothing came for a while."""
        queue: asyncio.Queue[Item] = asyncio.Queue(WAITING_EVENTS)
        read = asyncio.Event()  # the first choice's prompt, which the others have in common with it
        async with AsyncExitStack() as stack:
            for choice, request in enumerate(asked.requests):
                name = None if choice else asked.session
                pump = asyncio.create_task(self._pump(choice, request, queue, read, name))
                stack.push_async_callback(_ended, pump)
            yield self._batches(queue, len(asked.requests))

    async def _batches(self, queue: asyncio.Queue[Item], running: int) -> AsyncIterator[Batch]:
        patience = self._limits.head_start_seconds
        while running:
            items: list[Item] = []
            try:
                async with asyncio.timeout(patience):
                    items.append(await queue.get())
            except TimeoutError:
                pass  # an empty batch says so
            while not queue.empty():
                items.append(queue.get_nowait())
            patience = self._limits.quiet_seconds
            batch: Batch = []
            for item in items:
                if isinstance(item, Exception):
                    raise item
                choice, event = item
                running -= isinstance(event, Finished)
                self._note(event)
                batch.append((choice, event))
            yield batch

    def _note(self, event: Event) -> None:
        self.progress = event if isinstance(event, PrefillProgress) else None
        if isinstance(event, Finished):
            if event.reason == "cancelled":
                raise Refused(503, "The model was closed.", code="shutting_down")
            self.finished.append(event)

    async def _pump(
        self,
        choice: int,
        request: ChatRequest | TextRequest,
        queue: asyncio.Queue[Item],
        read: asyncio.Event,
        name: str | None,
    ) -> None:
        """One choice's events into the queue. A full queue stops the reading, and that in turn the model.

        name: of the session that the conversation is kept in
        """
        try:
            if choice:
                await read.wait()
            turn = await begun(self._served, request, name)
            async with aclosing(turn.events()) as events:
                async for event in events:
                    if not isinstance(event, PrefillProgress):
                        read.set()
                    await queue.put((choice, event))
        except Exception as error:
            await queue.put(error)  # raised where the batches are read


async def _ended(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
