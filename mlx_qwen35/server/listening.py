"""uvicorn as this server needs it: connections that send nothing end, what is no HTTP gets JSON, and an orderly end."""

from __future__ import annotations

import asyncio
import logging
import resource
import socket
from collections.abc import Callable
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from mlx_qwen35.access import BACKLOG, listen
from mlx_qwen35.errors import ConfigError
from mlx_qwen35.server.app import App
from mlx_qwen35.server.openai_errors import openai_error
from mlx_qwen35.server.protocol import Refused
from mlx_qwen35.server.responses import dumps

FILES = 4096  # open at once; macOS gives 256 unless asked
KEEP_ALIVE_SECONDS = 75
LAST_WORDS_SECONDS = 2  # from telling running answers that it ends, to cutting them off


class Connection(H11Protocol):
    """Ends when the headers of a request take too long, and hands its transport to the application."""

    header_seconds = 10.0
    _late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self.app_state = {**self.app_state, "transport": transport}
        self._expect_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_clock()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._stop_clock()
        elif self._late is None and not self.transport.is_closing():
            self._expect_headers()  # the first bytes of a next request

    def _expect_headers(self) -> None:
        self._late = self.loop.call_later(self.header_seconds, self.transport.abort)

    def _stop_clock(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def send_400_response(self, msg: str) -> None:
        body = dumps(openai_error(Refused(400, msg))).encode()
        headers = [("content-type", "application/json"), ("content-length", str(len(body))), ("connection", "close")]
        for event in (h11.Response(status_code=400, headers=headers), h11.Data(data=body), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()


class Server(uvicorn.Server):
    """Calls `ready` when it answers. At the end, running answers get a grace, then a last event.

    For `run(sockets=[...])`.
    """

    def __init__(self, app: App, ready: Callable[[], object]) -> None:
        connection = type("Connection", (Connection,), {"header_seconds": app.settings.header_seconds})
        super().__init__(
            uvicorn.Config(
                app,
                http=connection,
                ws="none",
                lifespan="off",
                log_level="error",
                access_log=False,
                backlog=BACKLOG,
                server_header=False,
                timeout_keep_alive=KEEP_ALIVE_SECONDS,
                timeout_graceful_shutdown=LAST_WORDS_SECONDS,
            )
        )
        self._app, self._ready = app, ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        gate = self._app.gate
        gate.closing = True
        loop = asyncio.get_running_loop()
        end = loop.time() + self._app.settings.grace_seconds
        while gate.open_answers and loop.time() < end and not self.force_exit:
            await asyncio.sleep(0.02)
        gate.ended.set()
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
        await super().shutdown(sockets)


def bind(host: str, port: int) -> socket.socket:
    """A listening socket. Raises ConfigError, before any model is loaded."""
    raise_file_limit()
    try:
        return listen(host, port)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise ConfigError(
            f"Cannot listen on {host[:80]} port {port}: {reason}. Give another --host or --port."
        ) from None


def raise_file_limit() -> None:
    """As many connections as the queue allows need as many file descriptors."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = FILES if hard == resource.RLIM_INFINITY else min(FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
