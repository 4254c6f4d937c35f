"""The classes of test_bad_inputs.py at every endpoint with a body: refused in its own shape, and nothing stays."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

import mlx.core as mx
import psutil
import pytest

from tests.server.conftest import Response, RunningServer
from tests.server.test_bad_inputs import CHAT, NO_JSON, TEXT, WRONG_CHAT, WRONG_TEXT, chat

MIB = 1 << 20
ROUNDS = 4
SPREAD = 16 * MIB  # that resident memory varies by between rounds; the bodies of one round are 3 MB


def post_paths(server: RunningServer) -> list[str]:
    """Every operation that takes JSON."""
    paths: dict[str, Any] = server.get("/openapi.json").json["paths"]
    found = []
    for path, methods in paths.items():
        content = methods.get("post", {}).get("requestBody", {}).get("content", {})
        if "application/json" in content:
            found.append(path.replace("{", "").replace("}", ""))
    return found


def assert_shape(path: str, answer: Response) -> None:
    """An error object of the protocol that the path belongs to, in one line."""
    body = answer.json
    if path.startswith("/v1/messages"):
        assert body["type"] == "error"
        assert set(body["error"]) == {"type", "message"}
    else:
        assert set(body["error"]) == {"message", "type", "param", "code"}
    assert 0 < len(body["error"]["message"]) < 600
    assert "\n" not in body["error"]["message"]


@pytest.mark.parametrize("body", NO_JSON.values(), ids=NO_JSON)
def test_what_is_no_json_is_refused_at_every_endpoint_in_its_own_shape(demo_server: RunningServer, body: bytes) -> None:
    paths = post_paths(demo_server)
    assert {CHAT, TEXT, "/v1/messages", "/v1/messages/count_tokens", "/v1/responses"} <= set(paths)
    for path in paths:
        answer = demo_server.post(path, body)
        assert answer.status in (400, 404), (path, answer.body)
        assert_shape(path, answer)
    assert demo_server.post(CHAT, chat(max_tokens=1)).status == 200


def test_other_content_types_are_refused_at_every_endpoint_in_its_own_shape(demo_server: RunningServer) -> None:
    for path in post_paths(demo_server):
        answer = demo_server.post(path, chat(), {"Content-Type": "text/plain"})
        assert answer.status in (404, 415), (path, answer.body)
        assert_shape(path, answer)


def everything_wrong(server: RunningServer) -> Iterator[tuple[str, bytes]]:
    for path in post_paths(server):
        yield from ((path, body) for body in NO_JSON.values())
    yield from ((CHAT, body) for body, _ in WRONG_CHAT.values())
    yield from ((TEXT, body) for body, _ in WRONG_TEXT.values())


@pytest.mark.slow
def test_after_all_that_is_wrong_memory_is_what_it_was(demo_server: RunningServer) -> None:
    process, resident, active = psutil.Process(), [], []
    for _ in range(ROUNDS):
        for path, body in everything_wrong(demo_server):
            assert 400 <= demo_server.post(path, body).status < 500
        demo_server.wait_until_idle()
        gc.collect()
        resident.append(process.memory_info().rss)
        active.append(mx.get_active_memory())
    assert max(resident[1:]) - resident[1] < SPREAD, resident
    assert max(active[1:]) - active[1] < MIB, active
