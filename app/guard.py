"""What stands before every request and response of the page: who may ask, and what the browser may load.

A page on this computer can be reached by any site the browser visits (by DNS rebinding, or by a plain cross-site
request), and model output can hold images whose addresses leak text. Knows nothing of the page itself.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Collection

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mlx_qwen35.access import is_own_host
from mlx_qwen35.loopback import is_same_origin

# Inline styles are how Gradio lays out; inline script runs with this response's nonce only, which no answer can know.
POLICY = (
    "default-src 'self'; script-src 'self' 'nonce-{nonce}'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; media-src 'self' data: blob:; font-src 'self' data:; connect-src 'self'; "
    "worker-src 'self' blob:; frame-src 'none'; object-src 'none'; base-uri 'self'; form-action 'self'; "
    "frame-ancestors 'none'"
)
HEADERS = {
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "X-DNS-Prefetch-Control": "off",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=(), display-capture=()",
}
# Gradio's own social-media cards name pages and pictures elsewhere.
SOCIAL_CARD = re.compile(r'<meta\s+(?:property|name)="(?:og|twitter):[^>]*>')
SCRIPT = re.compile(r"<script(?=[\s>])")


class Guard:
    """ASGI middleware: our own Host, same Origin, and a content policy on every response.

    hosts: further names of this machine   only_loopback: nothing beyond this computer can connect
    """

    def __init__(self, app: ASGIApp, hosts: Collection[str] = (), *, only_loopback: bool = True) -> None:
        self._app, self._hosts, self._only_loopback = app, [host.lower() for host in hosts], only_loopback

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":  # the page uses no websockets
            await send({"type": "websocket.close", "code": 1008})
            return
        if refusal := self._refused(Headers(scope=scope)):
            await PlainTextResponse(refusal, status_code=403)(scope, receive, send)
            return
        # Compression gains little on the way to this computer or its neighbours, and HTML is edited on its way out.
        scope["headers"] = [(name, value) for name, value in scope["headers"] if name != b"accept-encoding"]
        await self._app(scope, receive, _Outgoing(send))

    def _refused(self, headers: Headers) -> str:
        """Why a request is refused, or "". Any port will do, since a tunnel may lead here from another one."""
        host, origin = headers.get("host", ""), headers.get("origin")
        if len(headers.getlist("host")) != 1 or not is_own_host(host, self._hosts, only_loopback=self._only_loopback):
            if self._only_loopback:
                return "This page answers on this computer only: open it as http://127.0.0.1 or http://localhost.\n"
            return "This page answers under this machine's own names and addresses; --allow-host adds others.\n"
        if origin is not None and not is_same_origin(origin, host):
            return "This page takes no requests from other pages.\n"
        return ""


class _Outgoing:
    """One response on its way out: headers added, HTML gathered and edited."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._nonce = secrets.token_urlsafe(16)
        self._start: Message | None = None  # held back while HTML is gathered
        self._body = b""

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            headers["Content-Security-Policy"] = POLICY.format(nonce=self._nonce)
            for name, value in HEADERS.items():
                headers[name] = value
            if headers.get("content-type", "").startswith("text/html"):
                self._start = message
                return
        elif message["type"] == "http.response.body" and self._start is not None:
            self._body += message.get("body", b"")
            if message.get("more_body", False):
                return
            await self._send_html(self._start)
            return
        await self._send(message)

    async def _send_html(self, start: Message) -> None:
        page = SOCIAL_CARD.sub("", self._body.decode())
        body = SCRIPT.sub(f'<script nonce="{self._nonce}"', page).encode()
        headers = MutableHeaders(scope=start)
        headers["Content-Length"] = str(len(body))
        # A stored page would carry a nonce that the next policy does not know.
        headers["Cache-Control"] = "no-store"
        await self._send(start)
        await self._send({"type": "http.response.body", "body": body})
