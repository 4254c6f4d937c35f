"""The server running for real, on loopback ports: on the demo, and on a tiny checkpoint whose answers take long.

    def test_something(demo_server: RunningServer) -> None:
        response = demo_server.post("/v1/messages", {...})

Another protocol's tests use the same fixtures.
"""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from http.client import HTTPConnection
from typing import Any

import pytest

from mlx_qwen35.access import url_of
from mlx_qwen35.options import CacheOptions
from mlx_qwen35.runtime import Runtime
from mlx_qwen35.server.app import App
from mlx_qwen35.server.listening import Server, bind
from mlx_qwen35.server.protocol import Served
from mlx_qwen35.server.settings import Settings
from tests.support.tiny_chat import write_tiny_chat

HANG_SECONDS = 60  # no bound on speed: what is not there by then never comes


@dataclass
class Response:
    """status, headers by lower-case names, body"""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def events(self) -> list[tuple[str | None, Any]]:
        """Server-sent events: name and data, parsed unless it is [DONE]; comments are left out."""
        found = []
        for block in self.body.decode().split("\n\n"):
            lines = [line.partition(": ") for line in block.split("\n") if line and not line.startswith(":")]
            fields = {name: value for name, _, value in lines}
            if "data" in fields:
                data = fields["data"]
                found.append((fields.get("event"), data if data == "[DONE]" else json.loads(data)))
        return found


@dataclass
class RunningServer:
    """A server in this process. url: without /v1"""

    url: str
    runtime: Runtime
    app: App
    host: str
    port: int
    headers: dict[str, str] = field(default_factory=dict)

    def request(
        self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> Response:
        """One request on a connection of its own."""
        connection = HTTPConnection(self.host, self.port, timeout=HANG_SECONDS)
        try:
            connection.request(method, path, body, {**self.headers, **(headers or {})})
            answer = connection.getresponse()
            return Response(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())
        finally:
            connection.close()

    def get(self, path: str, headers: Mapping[str, str] | None = None) -> Response:
        return self.request("GET", path, None, headers)

    def post(self, path: str, body: Any, headers: Mapping[str, str] | None = None) -> Response:
        """body: a JSON value, or bytes as they stand"""
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self.request("POST", path, raw, {"Content-Type": "application/json", **(headers or {})})

    def raw(self, data: bytes, patience: float = HANG_SECONDS) -> bytes:
        """All that comes back for some bytes on a socket, until the server closes it. TimeoutError if it does not."""
        with self.connect() as connection:
            connection.settimeout(patience)
            connection.sendall(data)
            received = b""
            while piece := connection.recv(65536):
                received += piece
            return received

    def connect(self) -> socket.socket:
        return socket.create_connection((self.host, self.port), timeout=HANG_SECONDS)

    def begin(self, path: str, body: Any, buffer: int = 0) -> socket.socket:
        """A connection on which a request was sent and nothing was read. buffer: bytes the system takes unread"""
        raw = json.dumps(body).encode()
        head = f"POST {path} HTTP/1.1\r\nHost: {self.host}\r\nContent-Type: application/json\r\n"
        connection = socket.socket()
        if buffer:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        connection.settimeout(HANG_SECONDS)
        connection.connect((self.host, self.port))
        connection.sendall(f"{head}Content-Length: {len(raw)}\r\n\r\n".encode() + raw)
        return connection

    def wait(self, condition: Callable[[], bool]) -> None:
        """Until `condition` holds. Fails when it never does."""
        end = time.monotonic() + HANG_SECONDS
        while not condition():
            assert time.monotonic() < end, "it never came true"
            time.sleep(0.01)

    def wait_until_idle(self) -> None:
        """Until nobody is answered and nothing is computed."""
        self.wait(lambda: not self.app.gate.open_answers and not self.runtime.stats().rows)


@contextmanager
def running(
    runtime: Runtime, settings: Settings, name: str = "demo", buffer: int = 0, port: int = 0
) -> Iterator[RunningServer]:
    """A server over `runtime`, stopped in the orderly way. buffer: bytes the system takes to send   port: 0 is any"""
    listener = bind("127.0.0.1", port)
    if buffer:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer)
    host, port = listener.getsockname()[:2]
    app = App(Served(runtime, (name, f"{name}-alias"), 0, settings.quote_cache, settings.rules), settings)
    ready = threading.Event()
    server = Server(app, ready.set)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    assert ready.wait(HANG_SECONDS)
    try:
        yield RunningServer(url_of(listener), runtime, app, host, port)
    finally:
        server.should_exit = True
        thread.join(HANG_SECONDS)
        assert not thread.is_alive()
        listener.close()


@pytest.fixture(scope="session")
def demo_runtime() -> Iterator[Runtime]:
    """The bundled demo model; nothing of it on disk."""
    runtime = Runtime.load("demo", caches=CacheOptions(disk=None))
    yield runtime
    runtime.close()


@pytest.fixture(scope="session")
def demo_server(demo_runtime: Runtime) -> Iterator[RunningServer]:
    """On the demo, which answers questions about this project, adds numbers, calls tools and thinks."""
    with running(
        demo_runtime, Settings(body_bytes=1 << 20, body_seconds=1, header_seconds=1, grace_seconds=0)
    ) as server:
        yield server


@pytest.fixture(scope="session")
def endless_runtime(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runtime]:
    """A tiny random checkpoint that answers nonsense for longer than any test may take."""
    runtime = Runtime.load(str(write_tiny_chat(tmp_path_factory.mktemp("server") / "tiny")))
    tags = [token for tag in ("<think>", "</think>", "<tool_call>") for token in runtime.tokenizer.encode(tag)]
    never = dict.fromkeys([*runtime.tokenizer.stop_ids, *tags], -100.0)
    prepare = runtime.prepare
    runtime.prepare = lambda request, hold=None: prepare(replace(request, logit_bias=never), hold)
    yield runtime
    runtime.close()


@pytest.fixture
def endless_server(endless_runtime: Runtime) -> Iterator[RunningServer]:
    """On that checkpoint; for two answers at a time in line beside those in the batch."""
    with running(endless_runtime, Settings(max_queue=2, grace_seconds=0.2), "endless") as server:
        yield server
