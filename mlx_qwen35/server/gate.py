"""How many answers are under way, who is told to come back later, and the end of the server. Knows no HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from mlx_qwen35.server.protocol import Refused

LONGEST_WAIT = 60  # seconds that anybody is told to wait


class Gate:
    """Lets answers in up to a bound. Used on the event loop only."""

    def __init__(self, limit: int) -> None:
        """limit: answers that run or wait"""
        self.limit, self.open_answers = limit, 0
        self.closing = False  # nobody new is let in
        self.ended = asyncio.Event()  # whoever is still in is to end
        self._seconds = 1.0  # that answers took lately

    @contextmanager
    def places(self, count: int) -> Iterator[None]:
        """For `count` answers of one request. Raises Refused: 503 at the end of the server, else 429."""
        if self.closing:
            raise Refused(503, "The server is shutting down.", code="shutting_down", retry_after=10)
        if self.open_answers + count > self.limit:
            raise Refused(
                429,
                f"{self.open_answers} answers are under way or waiting; the limit is {self.limit}. Try again later.",
                code="server_busy",
                retry_after=self._wait(),
            )
        loop = asyncio.get_running_loop()
        started = loop.time()
        self.open_answers += count
        try:
            yield
        finally:
            self.open_answers -= count
            self._seconds += 0.2 * (loop.time() - started - self._seconds)

    def _wait(self) -> int:
        return max(1, min(LONGEST_WAIT, round(self._seconds)))
