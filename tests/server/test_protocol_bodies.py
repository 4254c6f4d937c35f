"""Bodies that are wrong somewhere: a 400 in the protocol's own shape that names the field, whichever it is."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_qwen35.server.anthropic_request import MessagesBody
from mlx_qwen35.server.responses_request import ResponsesBody
from tests.server.conftest import Response, RunningServer

TEXT = {"type": "text", "text": "Hello"}
MESSAGES: dict[str, Any] = {
    "model": "demo",
    "max_tokens": 2,
    "system": [TEXT],
    "messages": [
        {"role": "user", "content": [TEXT]},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "So", "signature": "x"},
                TEXT,
                {"type": "tool_use", "id": "t1", "name": "look", "input": {}},
            ],
        },
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t1", "content": [TEXT]}, TEXT]},
    ],
    "tools": [{"name": "look", "description": "Look.", "input_schema": {"type": "object"}}],
    "tool_choice": {"type": "tool", "name": "look", "disable_parallel_tool_use": True},
    "thinking": {"type": "enabled", "budget_tokens": 1},
    "output_config": {"effort": "low", "format": {"type": "json_schema", "schema": {"type": "object"}}},
    "stop_sequences": ["END"],
    "temperature": 0.5,
    "top_p": 0.5,
    "top_k": 5,
    "metadata": {},
    "stream": False,
}
INPUT_TEXT = {"type": "input_text", "text": "Hello"}
RESPONSES: dict[str, Any] = {
    "model": "demo",
    "max_output_tokens": 2,
    "instructions": "Help.",
    "input": [
        {"type": "message", "role": "user", "content": [INPUT_TEXT]},
        {"type": "reasoning", "summary": [{"type": "summary_text", "text": "So"}]},
        {"type": "function_call", "call_id": "c1", "name": "look", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c1", "output": [INPUT_TEXT]},
        {"type": "custom_tool_call", "call_id": "c2", "name": "patch", "input": "x"},
        {"type": "custom_tool_call_output", "call_id": "c2", "output": "done"},
    ],
    "tools": [
        {"type": "function", "name": "look", "parameters": {"type": "object"}, "strict": False},
        {"type": "custom", "name": "patch"},
        {"type": "namespace", "name": "group", "tools": [{"type": "function", "name": "inner"}]},
    ],
    "tool_choice": "auto",
    "parallel_tool_calls": True,
    "reasoning": {"effort": "low", "summary": "auto"},
    "text": {"format": {"type": "json_schema", "name": "n", "schema": {"type": "object"}, "strict": True}},
    "truncation": "disabled",
    "include": ["reasoning.encrypted_content"],
    "temperature": 0.5,
    "top_p": 0.5,
    "store": False,
    "stream": False,
    "metadata": {},
}
BODIES = {"/v1/messages": MESSAGES, "/v1/responses": RESPONSES}
# Values inside these are the client's own, or anything at all by the protocol.
FREE = ("schema", "input_schema", "parameters", "metadata", "signature")
# What a wrong kind means something by itself: text in place of parts, an absent field.
WRONG: tuple[Any, ...] = (17, [17], {"type": 17}, True, "\x00no such", -1.5)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths of all fields, those inside others too."""
    found: list[tuple[Any, ...]] = [path] if path else []
    if isinstance(value, dict):
        for name, inner in value.items():
            found += [(*path, name)] if name in FREE else places(inner, (*path, name))
    elif isinstance(value, list):
        for i, inner in enumerate(value):
            found += places(inner, (*path, i))
    return found


def shown(path: tuple[Any, ...]) -> str:
    text = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path)
    return text.removeprefix(".")


def put(body: dict[str, Any], path: tuple[Any, ...], value: Any) -> dict[str, Any]:
    body = json.loads(json.dumps(body))  # a copy in which nothing is shared
    inner: Any = body
    for step in path[:-1]:
        inner = inner[step]
    inner[path[-1]] = value
    return body


def complaint(path: str, response: Response) -> str:
    """What the error says, once its shape is the protocol's own."""
    body = response.json
    if path == "/v1/messages":
        assert body["type"] == "error"
        assert set(body["error"]) == {"type", "message"}
        return body["error"]["message"]
    assert set(body["error"]) == {"message", "type", "param", "code"}
    return f"{body['error']['param']} {body['error']['message']}"


@pytest.mark.parametrize("path", BODIES)
def test_the_bodies_are_right_as_they_are(demo_server: RunningServer, path: str) -> None:
    response = demo_server.post(path, BODIES[path])
    assert response.status == 200, response.body


@pytest.mark.parametrize(
    ("path", "place"),
    [(path, place) for path, body in BODIES.items() for place in places(body)],
    ids=lambda value: value if isinstance(value, str) else shown(value),
)
def test_a_field_of_a_wrong_kind_is_named(demo_server: RunningServer, path: str, place: tuple[Any, ...]) -> None:
    refused = 0
    for wrong in WRONG:
        body = put(BODIES[path], place, wrong)
        response = demo_server.post(path, body | {"stream": False} if place != ("stream",) else body)
        assert response.status in (200, 400, 404), response.body
        if response.status != 200:
            refused += 1
            # An item of a wrong type may be told by the list that it stands in.
            assert shown(place[:1]) in complaint(path, response)
    # A text may stand nearly everywhere that one does; nothing takes all six.
    assert refused >= 3


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize("kind", ["image", "input_image", "document", "input_file"])
def test_media_are_refused_by_their_place(demo_server: RunningServer, path: str, kind: str) -> None:
    place = ("messages", 0, "content") if path == "/v1/messages" else ("input", 0, "content")
    part = {"type": kind, "source": {"type": "base64", "data": ""}, "image_url": "http://127.0.0.1:9/", "file_id": "f"}
    response = demo_server.post(path, put(BODIES[path], place, [part]))
    assert response.status == 400
    message = complaint(path, response)
    assert f"{shown(place)}[0]" in message
    known = ("image", "document") if path == "/v1/messages" else ("image", "input_image", "input_file")
    assert ("later release" in message) == (kind in known)


@pytest.mark.parametrize(
    ("path", "change", "says"),
    [
        ("/v1/messages", {"max_tokens": None}, "max_tokens"),
        ("/v1/messages", {"max_tokens": 0}, "max_tokens"),
        ("/v1/messages", {"messages": []}, "messages"),
        ("/v1/messages", {"thinking": {"type": "enabled"}}, "thinking.budget_tokens"),
        ("/v1/messages", {"tool_choice": {"type": "tool", "name": "other"}}, "tool_choice.name"),
        ("/v1/messages", {"tools": [], "tool_choice": {"type": "any"}}, "tool_choice"),
        ("/v1/messages", {"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools[0].type"),
        ("/v1/messages", {"mcp_servers": [{"url": "http://127.0.0.1"}]}, "mcp_servers"),
        ("/v1/messages", {"container": "c"}, "container"),
        ("/v1/messages", {"mesages": []}, "mesages"),
        ("/v1/responses", {"tools": [{"type": "file_search", "vector_store_ids": []}]}, "tools[0].type"),
        ("/v1/responses", {"tool_choice": {"type": "function", "name": "other"}}, "tool_choice.name"),
        ("/v1/responses", {"tools": [], "tool_choice": "required"}, "tool_choice"),
        ("/v1/responses", {"background": True}, "background"),
        ("/v1/responses", {"conversation": "conv_1"}, "conversation"),
        ("/v1/responses", {"previous_response_id": "resp_none"}, "previous_response_id"),
        ("/v1/responses", {"input": [{"type": "item_reference", "id": "none"}]}, "input[0].id"),
        ("/v1/responses", {"input": [{"type": "computer_call"}]}, "input[0].type"),
        ("/v1/responses", {"top_logprobs": 3}, "top_logprobs"),
        ("/v1/responses", {"max_output_tokens": 0}, "max_output_tokens"),
    ],
)
def test_what_cannot_be_obeyed_is_refused_by_name(
    demo_server: RunningServer, path: str, change: dict[str, Any], says: str
) -> None:
    response = demo_server.post(path, BODIES[path] | change)
    assert response.status in (400, 404)
    assert says in complaint(path, response)


def test_what_real_agents_send_beside_is_let_through(demo_server: RunningServer) -> None:
    """As Claude Code and Codex sent it in November 2026."""
    claude = {
        "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
        "metadata": {"user_id": "{}"},
        "thinking": {"type": "adaptive"},
        "output_config": {"effort": "high"},
        "messages": [*MESSAGES["messages"], {"role": "system", "content": "Agents: a, b"}],
        "service_tier": "auto",
        "some_beta_of_tomorrow": {"on": True},
    }
    headers = {"anthropic-version": "2023-06-01", "anthropic-beta": "effort-2025-11-24", "x-api-key": "dummy"}
    assert demo_server.post("/v1/messages?beta=true", MESSAGES | claude, headers).status == 200
    codex = {
        "tools": [*RESPONSES["tools"], {"type": "web_search", "external_web_access": True}],
        "prompt_cache_key": "k",
        "client_metadata": {"turn_id": "t"},
        "input": [{"type": "message", "role": "developer", "content": [INPUT_TEXT]}, *RESPONSES["input"]],
    }
    assert demo_server.post("/v1/responses", RESPONSES | codex).status == 200


@pytest.mark.parametrize("path", BODIES)
def test_a_foreign_model_is_unknown_in_the_protocols_shape(demo_server: RunningServer, path: str) -> None:
    for name in ("../../etc/passwd", "gpt-5", "Qwen/Qwen3.5-4B"):
        response = demo_server.post(path, BODIES[path] | {"model": name})
        assert response.status == 404
        assert "model" in complaint(path, response)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["type", "text", "id"]), inner),
    max_leaves=6,
)


@pytest.mark.parametrize("path", BODIES)
def test_anything_in_any_place_is_answered_or_refused(demo_server: RunningServer, path: str) -> None:
    @settings(max_examples=120)
    @given(st.sampled_from(places(BODIES[path])), JSON)
    def property(place: tuple[Any, ...], value: Any) -> None:
        body = put(BODIES[path], place, value)
        response = demo_server.post(path, json.dumps(body).encode())
        assert response.status in (200, 400, 404), response.body

    property()


@pytest.mark.parametrize(("body", "kind"), [(MESSAGES, MessagesBody), (RESPONSES, ResponsesBody)])
def test_the_bodies_have_every_field_that_is_read(body: dict[str, Any], kind: type) -> None:
    known = {field.name for field in msgspec.structs.fields(kind)}
    hosted = {
        "mcp_servers",
        "container",
        "background",
        "conversation",
        "prompt",
        "previous_response_id",
        "top_logprobs",
    }
    without_effect = {"user", "max_tool_calls", "stream_options", "service_tier", "safety_identifier"}
    without_effect |= {"prompt_cache_key", "prompt_cache_retention", "client_metadata"}
    ours = {"session_id", "fold_at"}
    assert known - hosted - without_effect - ours == set(body)
