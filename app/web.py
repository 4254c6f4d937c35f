"""The page as a web application behind its guard, and the server that runs it.

Imports Gradio: `server.serve` switches its telemetry off first. Knows nothing of addresses or of loading models.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable

import gradio
import uvicorn
from fastapi import FastAPI
from starlette.types import ASGIApp

from mlx_qwen35.app.desk import Desk
from mlx_qwen35.app.door import Door
from mlx_qwen35.app.guard import Guard
from mlx_qwen35.app.login import Login
from mlx_qwen35.app.look import HEAD, STYLE, theme
from mlx_qwen35.app.page import build
from mlx_qwen35.app.routes import add_routes
from mlx_qwen35.conversations.store import MAX_BYTES

GRACE = 1  # seconds that open streams get at the end; a page's heartbeat would keep its own open for ever


def make_app(desk: Desk, door: Door = Door()) -> ASGIApp:  # noqa: B008 (frozen)
    """The page over `desk` as an ASGI application, to be served at the root of an address."""
    # FastAPI's own documentation pages load scripts from elsewhere.
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    add_routes(app, desk)
    gradio.mount_gradio_app(
        app,
        build(desk),
        path="/",
        theme=theme(),
        css=STYLE,
        head=HEAD,
        footer_links=[],
        run_history=False,
        app_kwargs={"docs_url": None, "redoc_url": None, "openapi_url": None},
        show_error=False,  # what people should read, the page says itself
        ssr_mode=False,
        max_file_size=MAX_BYTES,  # of a chat that is imported; the page takes no other files
        enable_monitoring=False,
    )
    behind = Login(app, door.passwords) if door.passwords else app
    return Guard(behind, door.hosts, only_loopback=door.only_loopback)


class Server(uvicorn.Server):
    """Calls `ready` when it answers, and leaves within seconds of being told to. For `run(sockets=[...])`."""

    def __init__(self, app: ASGIApp, ready: Callable[[], None]) -> None:
        super().__init__(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=GRACE, proxy_headers=False))
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        # Open pages keep streams open; that these are cut at the end is no error worth a traceback.
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
        await super().shutdown(sockets)
