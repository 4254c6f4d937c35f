"""The server as an ASGI application: which endpoints there are, and what stands before all of them."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

from starlette.datastructures import Headers
from starlette.routing import Match, Route
from starlette.types import Message, Receive, Scope, Send

from mlx_qwen35.server import anthropic, chat_completions, completions, models, openai_responses, sessions
from mlx_qwen35.server.exchange import Exchange
from mlx_qwen35.server.gate import Gate
from mlx_qwen35.server.guard import check_caller, cross_origin_headers, is_preflight
from mlx_qwen35.server.metrics import Tally, exposition
from mlx_qwen35.server.openai_errors import openai_error
from mlx_qwen35.server.openapi import document
from mlx_qwen35.server.protocol import Call, Endpoint, Error, Json, Lookup, Refused, Served
from mlx_qwen35.server.responses import send_empty, send_refusal, send_text
from mlx_qwen35.server.settings import Settings

# The registry: each makes the endpoints of one protocol.
ENDPOINTS: tuple[Callable[[Served], Sequence[Endpoint]], ...] = (
    chat_completions.endpoints,
    completions.endpoints,
    openai_responses.endpoints,
    anthropic.endpoints,
    sessions.endpoints,
    models.endpoints,
)
NOWHERE = "(other)"  # for counts and the log: what a client makes up is not repeated there

log = logging.getLogger(__name__)


class App:
    """Every request comes through here: who asks, which endpoint, and the shape of what is refused."""

    def __init__(self, served: Served, settings: Settings) -> None:
        self.served, self.settings = served, settings
        self.gate = Gate(served.runtime.caches.max_sequences + settings.max_queue)
        self.tally = Tally()
        self.endpoints = [endpoint for make in ENDPOINTS for endpoint in make(served)]
        self.endpoints.append(Lookup("/openapi.json", self._document, openai_error, "This document."))
        self._routes = [(Route(e.path, _never, methods=[e.method]), e) for e in self.endpoints]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":  # no endpoint is a websocket
            await send({"type": "websocket.close", "code": 1008})
            return
        started = time.perf_counter()
        place, status, told = NOWHERE, 0, ""
        answer = _WithHeaders(send, cross_origin_headers(Headers(scope=scope), self.settings))
        try:
            headers = Headers(scope=scope)
            if preflight := is_preflight(scope["method"], headers, self.settings):
                place, status = "(preflight)", 204
            check_caller(headers, self.settings, public=preflight or scope["path"] == "/health")
            if preflight:
                await send_empty(answer)
            elif scope["path"] == "/metrics" and scope["method"] == "GET":
                place, status = "/metrics", 200
                await send_text(answer, exposition(self.served.runtime.stats(), self.tally, self.gate.open_answers))
            else:
                endpoint = self._endpoint(scope)
                place = endpoint.path
                exchange = Exchange(endpoint, scope, receive, answer, self.served, self.gate, self.settings)
                await exchange.run()
                status, told = exchange.status, exchange.told()
        except Refused as refused:
            status = refused.status
            await send_refusal(answer, refused, self._error_shape(scope["path"]))
        self.tally.count(place, status)
        log.info("%s %s %d in %.2f s%s", scope["method"], place, status, time.perf_counter() - started, told)

    def _endpoint(self, scope: Scope) -> Endpoint:
        """The endpoint asked for. Raises Refused."""
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

    def _document(self, _: Call) -> Json:
        return document(self.endpoints)


class _WithHeaders:
    """A response with headers of our own."""

    def __init__(self, send: Send, headers: list[tuple[bytes, bytes]]) -> None:
        self._send, self._headers = send, headers

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message["headers"], *self._headers]}
        await self._send(message)


async def _never(*_: Any) -> None:
    """Routes are only matched; exchanges answer."""
