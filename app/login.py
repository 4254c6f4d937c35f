"""Who may see the page when it is not for this computer alone: a password, a form for it, and a cookie that remembers.

Gradio's own login keeps no count of wrong tries and lets other sites send its cookie; here nothing of the page, nor of
Gradio, answers before the cookie is right. Cookies last as long as the process, at most a month.
"""

from __future__ import annotations

import html
import math
import secrets
import time
from collections import deque
from collections.abc import Callable, Collection
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qs

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from mlx_qwen35.access import is_known

PATH = "/login"
LONGEST_FORM = 4096  # bytes
COOKIE_SECONDS = 30 * 24 * 3600
MOST_COOKIES = 256
PERIOD = 60.0  # seconds in which wrong tries count
TRIES_OF_ONE, TRIES_OF_ALL = 5, 60  # many addresses cost an attacker nothing
FORM = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>mlx-qwen35</title><style>
:root {{ color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif; }}
body {{ display: grid; place-items: center; min-height: 90vh; margin: 0 1rem; }}
form {{ display: grid; gap: .75rem; width: min(20rem, 100%); }}
h1 {{ font-size: 1.25rem; margin: 0; }}
input, button {{ font: inherit; padding: .5rem .75rem; border-radius: .5rem; border: 1px solid GrayText; }}
p {{ margin: 0; min-height: 1.5em; }}
</style></head><body><form method="post" action="/login"><h1>mlx-qwen35</h1>
<label for="password">Password</label>
<input id="password" name="password" type="password" autocomplete="current-password" required autofocus>
<button>Open the chat</button><p role="alert">{said}</p></form></body></html>
"""


class Login:
    """ASGI middleware: lets those through who gave one of `passwords`, and shows the form to the rest."""

    def __init__(self, app: ASGIApp, passwords: Collection[str], clock: Callable[[], float] = time.monotonic) -> None:
        self._app, self._passwords, self._clock = app, passwords, clock
        self._cookies: dict[str, float] = {}  # value -> when it ends, the oldest first
        self._tries = Tries(clock)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or self._is_known(scope):
            await self._app(scope, receive, send)
            return
        request = Request(scope, receive)
        try:
            answer = await self._answer(request)
        except ClientDisconnect:
            return
        await answer(scope, receive, send)

    async def _answer(self, request: Request) -> Response:
        if request.url.path == PATH and request.method == "POST":
            return await self._try(request)
        if request.method == "GET" and "text/html" in request.headers.get("accept", ""):
            return form(401)
        return PlainTextResponse("Log in first.\n", status_code=401)

    async def _try(self, request: Request) -> Response:
        given = await _password_in(request)
        address = request.client.host if request.client else ""
        # From here to the count nothing is awaited, so that tries side by side are counted like those in a row.
        if wait := self._tries.wait(address):
            return form(429, f"Too many wrong tries. Wait {wait} seconds.", {"Retry-After": str(wait)})
        if not is_known(given, self._passwords):
            self._tries.failed(address)
            return form(401, "That is not the password.")
        answer = RedirectResponse("/", status_code=303)
        answer.set_cookie(
            _cookie_name(request.scope), self._new_cookie(), COOKIE_SECONDS, httponly=True, samesite="strict"
        )
        return answer

    def _new_cookie(self) -> str:
        while len(self._cookies) >= MOST_COOKIES:
            del self._cookies[next(iter(self._cookies))]
        value = secrets.token_urlsafe(32)
        self._cookies[value] = self._clock() + COOKIE_SECONDS
        return value

    def _is_known(self, scope: Scope) -> bool:
        try:
            morsel = SimpleCookie(Headers(scope=scope).get("cookie", "")).get(_cookie_name(scope))
        except CookieError:
            return False
        # Found by its hash: 32 random bytes are not guessed from how long that takes.
        return morsel is not None and self._cookies.get(morsel.value, -math.inf) > self._clock()


class Tries:
    """Wrong tries of the last minute, by address and in all."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._failed: deque[tuple[float, str]] = deque()

    def failed(self, address: str) -> None:
        self._failed.append((self._clock(), address))

    def wait(self, address: str) -> int:
        """Whole seconds until `address` may try again; 0 for at once."""
        now = self._clock()
        while self._failed and self._failed[0][0] <= now - PERIOD:
            self._failed.popleft()
        of_one = [when for when, who in self._failed if who == address][-TRIES_OF_ONE:]
        of_all = [when for when, _ in self._failed][-TRIES_OF_ALL:]
        ends = [
            when[0] + PERIOD for when, most in ((of_one, TRIES_OF_ONE), (of_all, TRIES_OF_ALL)) if len(when) == most
        ]
        return max([0, *(math.ceil(end - now) for end in ends)])


def form(status: int, said: str = "", headers: dict[str, str] | None = None) -> Response:
    """The form, with a line about the last try."""
    return HTMLResponse(FORM.format(said=html.escape(said)), status, headers)


async def _password_in(request: Request) -> str:
    """The field of the form; "" where there is none, or the body is none that the form sends."""
    if not request.headers.get("content-type", "").startswith("application/x-www-form-urlencoded"):
        return ""
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > LONGEST_FORM:
            return ""
    try:
        fields = parse_qs(body.decode("latin-1"), max_num_fields=8)
    except ValueError:
        return ""
    return fields.get("password", [""])[0].strip()


def _cookie_name(scope: Scope) -> str:
    """Cookies do not tell ports apart, and another program's page may run on this machine, too."""
    return f"mlx-qwen35-{(scope.get('server') or ('', 0))[1]}"
