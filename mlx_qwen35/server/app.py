"""The server as an ASGI application: which endpoints there are, and what stands before all of them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

from starlette.datastructures import Headers
from starlette.routing import Match, Route
from starlette.types import Receive, Scope, Send

from mlx_qwen35.server import models
from mlx_qwen35.server.exchange import Exchange, send_refusal
from mlx_qwen35.server.gate import Gate
from mlx_qwen35.server.guard import check_caller
from mlx_qwen35.server.openai_errors import openai_error
from mlx_qwen35.server.protocol import Endpoint, Error, Refused, Served
from mlx_qwen35.server.settings import Settings

# The registry: each makes the endpoints of one protocol.
ENDPOINTS: tuple[Callable[[Served], Sequence[Endpoint]], ...] = (models.endpoints,)

log = logging.getLogger(__name__)


class App:
    """Every request comes through here: who asks, which endpoint, and the shape of what is refused."""

    def __init__(self, served: Served, settings: Settings, max_sequences: int) -> None:
        self.served, self.settings = served, settings
        self.gate = Gate(max_sequences + settings.max_queue)
        self.endpoints = [endpoint for make in ENDPOINTS for endpoint in make(served)]
        self._routes = [(Route(e.path, _never, methods=[e.method]), e) for e in self.endpoints]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await _lifespan(receive, send)
        elif scope["type"] != "http":  # no endpoint is a websocket
            await send({"type": "websocket.close", "code": 1008})
        else:
            try:
                endpoint = self._admitted(scope)
            except Refused as refused:
                await send_refusal(send, refused, self._error_shape(scope["path"]))
                return
            await Exchange(endpoint, scope, receive, send, self.served, self.gate, self.settings).run()

    def _admitted(self, scope: Scope) -> Endpoint:
        """The endpoint asked for. Raises Refused."""
        check_caller(Headers(scope=scope), self.settings, public=scope["path"] == "/health")
        allowed: list[str] = []
        for route, endpoint in self._routes:
            match, found = route.matches(scope)
            if match is Match.FULL:
                scope["path_params"] = found["path_params"]
                return endpoint
            if match is Match.PARTIAL:
                allowed.append(endpoint.method)
        if allowed:
            raise Refused(405, f"This path takes {', '.join(allowed)} only.")
        raise Refused(404, "There is no such path here; /openapi.json lists those that there are.")

    def _error_shape(self, path: str) -> Error:
        """A path that is unknown takes the shape of those it begins like."""
        alike = [endpoint for endpoint in self.endpoints if path.startswith(endpoint.path.partition("{")[0])]
        return max(alike, key=lambda endpoint: len(endpoint.path)).error if alike else openai_error


async def _lifespan(receive: Receive, send: Send) -> None:
    await receive()
    await send({"type": "lifespan.startup.complete"})
    await receive()
    await send({"type": "lifespan.shutdown.complete"})


async def _never(*_: Any) -> None:
    """Routes are only matched; exchanges answer."""
