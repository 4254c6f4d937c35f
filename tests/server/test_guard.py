"""Who may ask: rebinding pages, other sites' pages and strangers may not."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from mlx_qwen35.errors import ConfigError
from mlx_qwen35.runtime import Runtime
from mlx_qwen35.server.settings import Settings
from mlx_qwen35.server.start import api_keys, serve
from tests.server.conftest import RunningServer, running

CHAT = "/v1/chat/completions"
HELLO = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 1}
KEY = "a-key-of-mine"
PAGE = "http://pages.example:3000"


@pytest.fixture(scope="module")
def locked_server(demo_runtime: Runtime) -> Iterator[RunningServer]:
    """As if bound beyond loopback: with a key, and one page that may ask."""
    settings = Settings(keys=("another", KEY), hosts=("My.Mac.example",), origins=(PAGE,), loopback=False)
    with running(demo_runtime, settings) as server:
        yield server


@pytest.mark.parametrize("path", ["/", "/health", "/metrics", "/openapi.json", "/v1/models", CHAT])
@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:8080", "localhost.evil.example", "127.0.0.1.evil.example", "192.168.1.7", "", "["],
)
def test_a_foreign_host_is_refused_everywhere(demo_server: RunningServer, host: str, path: str) -> None:
    assert demo_server.get(path, {"Host": host}).status == 403


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:80", "127.0.0.1:1234", "[::1]:8080", "127.0.0.5"])
def test_any_name_of_this_computer_will_do(demo_server: RunningServer, host: str) -> None:
    assert demo_server.get("/health", {"Host": host}).status == 200


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://localhost:9", "file://", "", PAGE])
def test_pages_of_others_are_refused(demo_server: RunningServer, origin: str) -> None:
    answer = demo_server.post(CHAT, HELLO, {"Origin": origin})
    assert answer.status == 403
    assert "access-control-allow-origin" not in answer.headers
    preflight = {"Origin": origin, "Access-Control-Request-Method": "POST"}
    assert demo_server.request("OPTIONS", CHAT, None, preflight).status == 403


def test_a_page_of_this_server_may_ask(demo_server: RunningServer) -> None:
    assert demo_server.post(CHAT, HELLO, {"Origin": demo_server.url}).status == 200


def test_a_page_that_was_named_may_ask(locked_server: RunningServer) -> None:
    preflight = locked_server.request("OPTIONS", CHAT, None, {"Origin": PAGE, "Access-Control-Request-Method": "POST"})
    assert preflight.status == 204
    assert preflight.headers["access-control-allow-origin"] == PAGE
    answer = locked_server.post(CHAT, HELLO, {"Origin": PAGE, "Authorization": f"Bearer {KEY}"})
    assert answer.status == 200
    assert answer.headers["access-control-allow-origin"] == PAGE


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer wrong"},
        {"Authorization": f"Bearer {KEY}x"},
        {"Authorization": f"Bearer {KEY[:-1]}"},
        {"Authorization": f"Basic {KEY}"},
        {"Authorization": KEY},
        {"Authorization": "Bearer "},
        {"x-api-key": "wr\u00f6ng"},
        {"x-api-key": ""},
    ],
)
def test_without_the_key_nothing_is_told(locked_server: RunningServer, headers: dict[str, str]) -> None:
    for answer in (
        locked_server.post(CHAT, HELLO, headers),
        locked_server.get("/v1/models", headers),
        locked_server.get("/metrics", headers),
    ):
        assert answer.status == 401
        assert KEY.encode() not in answer.body
    assert locked_server.get("/health", headers).status == 200


@pytest.mark.parametrize(
    "headers", [{"Authorization": f"Bearer {KEY}"}, {"Authorization": "bearer another"}, {"x-api-key": KEY}]
)
def test_the_key_opens(locked_server: RunningServer, headers: dict[str, str]) -> None:
    assert locked_server.post(CHAT, HELLO, headers).status == 200


def test_beyond_loopback_addresses_and_named_hosts_are_ours(locked_server: RunningServer) -> None:
    statuses = [
        locked_server.get("/health", {"Host": host}).status
        for host in ("192.168.1.7:80", "my.mac.example", "evil.example")
    ]
    assert statuses == [200, 200, 403]


def test_a_stream_may_not_be_asked_for_by_a_form(demo_server: RunningServer) -> None:
    """A page of another site can send these without asking anybody."""
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"):
        assert demo_server.post(CHAT, HELLO, {"Content-Type": kind}).status == 415


def test_beyond_loopback_a_key_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    def load() -> Runtime:
        raise AssertionError("loaded a model for nothing")

    monkeypatch.delenv("MLX_QWEN35_API_KEY", raising=False)
    for host in ("0.0.0.0", "::", "192.168.1.7", "localhost.evil.example"):
        with pytest.raises(ConfigError, match="needs a key"):
            serve(load, Settings(keys=api_keys((), ())), host)


@pytest.mark.parametrize("key", ["", " ", "two words", "ümlaut", "line\n", "k" * 1000])
def test_keys_that_no_header_can_carry_are_refused(key: str) -> None:
    with pytest.raises(ConfigError):
        api_keys((key,), ())
