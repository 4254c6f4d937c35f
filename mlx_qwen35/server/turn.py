"""One answer of the model to one request, in a named session if there is one. Knows no HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

from mlx_qwen35.chat.events import Event, PrefillProgress
from mlx_qwen35.chat.reply import Gathering
from mlx_qwen35.requests import ChatRequest, TextRequest
from mlx_qwen35.running import Prepared
from mlx_qwen35.server.protocol import Served


async def begun(served: Served, request: ChatRequest | TextRequest, name: str | None = None) -> Turn:
    """The turn that answers `request`, with its prompt rendered. name: of the session; a text has none

    Raises RequestError.
    """
    return await asyncio.to_thread(Turn, served, request, name)


class Turn:
    """Made on a worker thread; read on the event loop."""

    def __init__(self, served: Served, request: ChatRequest | TextRequest, name: str | None = None) -> None:
        self._served, self._request, self._name = served, request, name
        self._session = None
        runtime = served.runtime
        if isinstance(request, TextRequest):
            self._prepared: Prepared = runtime.prepare_text(request)
        elif name is None:
            self._prepared = runtime.prepare(request)
        else:
            self._session = served.sessions.begin(name)
            self._prepared = runtime.prepare(request, self._session.hold)

    async def events(self) -> AsyncGenerator[Event]:
        """As they come. After the last one the session, if there is one, has gone on."""
        running = self._served.runtime.submit(self._prepared)
        gathering = Gathering()
        async with aclosing(running.aevents()) as events:
            async for event in events:
                if isinstance(event, PrefillProgress) and event.summary is not None:
                    continue  # a response begins with the answer: until then what goes wrong can be its status
                if self._session is not None:
                    gathering.take(event)
                    if gathering.finished is not None:
                        await asyncio.to_thread(self._follow, gathering, (*running.prompt.ids, *running.sampled))
                yield event

    def _follow(self, gathering: Gathering, ids: tuple[int, ...]) -> None:
        reply = gathering.reply()
        if self._session is None or self._name is None or not isinstance(self._request, ChatRequest):
            return
        if reply.reason != "cancelled":
            self._served.sessions.ended(self._name, self._session, self._request, reply.message, ids)
