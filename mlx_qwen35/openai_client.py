"""A client of any OpenAI-compatible server, on the standard library alone: `bench` and the page ask through it.

    client = Client("http://127.0.0.1:8080/v1", key=None)
    client.ask("/models")["data"]
    with client.post("/chat/completions", {..., "stream": True}) as reply:
        for line in reply: ...

Follows no redirects and uses no proxy: what is said goes to the host that was named and nowhere else.
"""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Iterator
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from typing import Any
from urllib.parse import urlsplit

from mlx_qwen35.errors import UserError

CONNECT_SECONDS = 10
PATIENCE = 600  # seconds without a byte
LARGEST_ANSWER = 64 << 20  # bytes of JSON that is no stream
LONGEST_LINE = 16 << 20


class ServerError(UserError):
    """The server cannot be reached, broke off, or refused. status: of HTTP, or 0   code: its own word for why"""

    def __init__(self, message: str, status: int = 0, code: str = "") -> None:
        super().__init__(message)
        self.status, self.code = status, code


class Client:
    """name: of the host, for people   url: as given, which ends with /v1 for most servers"""

    def __init__(self, url: str, key: str | None = None) -> None:
        """Raises UserError for what is no address. Connects to nothing yet."""
        try:
            parts = urlsplit(url)
            self.port = parts.port or (443 if parts.scheme == "https" else 80)
        except ValueError:
            parts = urlsplit("")
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username:
            raise UserError(f"{url[:200]!r} is no address of a server; give one like http://127.0.0.1:8080/v1.")
        self.url, self.name, self.host = url.rstrip("/"), parts.netloc, parts.hostname
        self._secure, self._path = parts.scheme == "https", parts.path.rstrip("/")
        self._headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
        if key:
            self._headers["Authorization"] = f"Bearer {key}"

    def ask(self, path: str) -> Any:
        """The JSON at `path`. Raises ServerError."""
        with self.open("GET", path) as reply:
            return reply.json()

    def post(self, path: str, body: Any, call: Call | None = None) -> contextlib.AbstractContextManager[Reply]:
        """Send JSON. Raises ServerError, also while the reply is read inside the `with`."""
        return self.open("POST", path, json.dumps(body).encode(), call)

    @contextlib.contextmanager
    def open(self, method: str, path: str, body: bytes | None = None, call: Call | None = None) -> Iterator[Reply]:
        """The reply, its body unread; `path` is below the URL, or below its host where it begins with two slashes.

        call: through which another thread may break it off
        """
        kind = HTTPSConnection if self._secure else HTTPConnection
        connection = kind(self.host, self.port, timeout=CONNECT_SECONDS)
        target = path[1:] if path.startswith("//") else self._path + path
        try:
            connection.connect()
            assert connection.sock is not None
            connection.sock.settimeout(PATIENCE)
            if call is not None:
                call.began(connection.sock)
            connection.request(method, target, body, self._headers)
            response = connection.getresponse()
            if response.status != 200:
                raise self._refusal(response)
            yield Reply(response)
        except (OSError, HTTPException, ValueError) as error:
            raise ServerError(f"The server at {self.name} does not answer: {_reason(error)}.") from error
        finally:
            connection.close()

    def _refusal(self, response: HTTPResponse) -> ServerError:
        raw, code = response.read(4096), ""
        try:
            error = json.loads(raw)["error"]
            said, code = (error["message"], error.get("code") or "") if isinstance(error, dict) else (error, "")
        except (ValueError, KeyError, TypeError, RecursionError):
            said = raw.decode(errors="replace").partition("\n")[0][:200]
        line = f"The server at {self.name} refuses ({response.status}): {str(said)[:500]}"
        return ServerError(line, response.status, str(code))


class Reply:
    """What is left to read of one."""

    def __init__(self, response: HTTPResponse) -> None:
        self._response = response

    def __iter__(self) -> Iterator[bytes]:
        """Its lines as they arrive, without their ends. Raises ValueError for one that never ends."""
        while line := self._response.readline(LONGEST_LINE):
            if not line.endswith(b"\n") and len(line) == LONGEST_LINE:
                raise ValueError("a line that does not end")
            yield line.rstrip(b"\r\n")

    def text(self) -> str:
        raw = self._response.read(LARGEST_ANSWER + 1)
        if len(raw) > LARGEST_ANSWER:
            raise ValueError("its answer is too large")
        return raw.decode()

    def json(self) -> Any:
        try:
            return json.loads(self.text())
        except RecursionError:
            raise ValueError("its JSON is nested too deeply") from None


class Call:
    """A request that another thread may break off, at whatever point it is."""

    def __init__(self) -> None:
        self._socket: socket.socket | None = None
        self.broken_off = False

    def began(self, connection: socket.socket) -> None:
        self._socket = connection
        if self.broken_off:
            raise ConnectionAbortedError("it was broken off")

    def break_off(self) -> None:
        self.broken_off = True
        if self._socket is not None:
            # Closing would leave a thread waiting in it.
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)


def _reason(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "nothing came for too long"
    text = (getattr(error, "strerror", None) or str(error) or type(error).__name__).splitlines()[0]
    return text[:200].lower().rstrip(".")
