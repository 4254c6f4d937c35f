"""Twenty megabytes of anything are refused before they are built, rendered or read by the model, and stop nobody else.

How long that takes is measured by hand: `python -m tests.server.test_large_bodies` prints seconds of CPU for each kind.
What is tested is that the work stays bounded: what would be looked at for long is never reached.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_qwen35.chat.room import require_few_arguments, require_room_for_tools
from mlx_qwen35.errors import TooLongError
from mlx_qwen35.server import body
from mlx_qwen35.server.body import MAX_NESTS, MAX_VALUES, parse_object
from mlx_qwen35.server.protocol import Refused
from tests.server.conftest import RunningServer

CHAT, TEXT, MESSAGES, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/messages", "/v1/responses"
HI = [{"role": "user", "content": "Hello"}]
MANY = 20_000_000


def tool(i: int, **fields: Any) -> Any:
    return {"type": "function", "function": {"name": f"tool_{i}", "parameters": {"properties": {}}, **fields}}


def calling(arguments: str) -> Any:
    call = {"id": "a", "type": "function", "function": {"name": "f", "arguments": arguments}}
    return [*HI, {"role": "assistant", "content": "", "tool_calls": [call]}]


def members(count: int) -> dict[str, str]:
    return {f"p{i}": "value" for i in range(count)}


# size -> a body of about so many bytes
KINDS: dict[str, tuple[str, Callable[[int], Any]]] = {
    "text": (CHAT, lambda n: {"messages": [{"role": "user", "content": "word " * (n // 5)}]}),
    "one word": (CHAT, lambda n: {"messages": [{"role": "user", "content": "a" * n}]}),
    "escapes": (CHAT, lambda n: {"messages": [{"role": "user", "content": "\u4e2d\u00e9" * (n // 12)}]}),
    "tools": (CHAT, lambda n: {"messages": HI, "tools": [tool(i) for i in range(n // 100)]}),
    "fewer, longer tools": (CHAT, lambda n: {"messages": HI, "tools": [tool(0, description="w " * 500)] * (n // 1100)}),
    "a long tool": (CHAT, lambda n: {"messages": HI, "tools": [tool(0, description="word " * (n // 5))]}),
    "a wide tool": (CHAT, lambda n: {"messages": HI, "tools": [tool(0, parameters=members(n // 20))]}),
    "messages": (CHAT, lambda n: {"messages": HI * (n // 40)}),
    "parts": (CHAT, lambda n: {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}] * (n // 35)}]}),
    "arguments": (CHAT, lambda n: {"messages": calling(json.dumps(members(n // 24)))}),
    "a schema": (CHAT, lambda n: {"messages": HI, "response_format": {"type": "json_schema", "x": [0.5] * (n // 5)}}),
    "biases": (CHAT, lambda n: {"messages": HI, "logit_bias": {str(i): 1 for i in range(n // 13)}}),
    "fields": (CHAT, lambda n: {"messages": HI, **members(n // 20)}),
    "ids": (TEXT, lambda n: {"prompt": [1000] * (n // 6)}),
    "lists of ids": (TEXT, lambda n: {"prompt": [[1, 2]] * (n // 8)}),
    "texts": (TEXT, lambda n: {"prompt": ["ab"] * (n // 6)}),
    "Anthropic's tools": (
        MESSAGES,
        lambda n: {"model": "demo", "max_tokens": 1, "messages": HI, "tools": [tool(0)["function"]] * (n // 60)},
    ),
    "a count": (
        f"{MESSAGES}/count_tokens",
        lambda n: {"model": "demo", "messages": [{"role": "user", "content": "word " * (n // 5)}]},
    ),
    "items": (RESPONSES, lambda n: {"input": HI * (n // 40)}),
    "a response's count": (f"{RESPONSES}/input_tokens", lambda n: {"input": "word " * (n // 5)}),
}


@pytest.mark.parametrize(("path", "make"), KINDS.values(), ids=KINDS)
def test_a_large_body_is_refused_and_others_are_answered(
    demo_server: RunningServer, path: str, make: Callable[[int], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A twentieth of the size, with the bounds a twentieth of theirs, so that the test itself takes no time."""
    monkeypatch.setattr(body, "MAX_VALUES", MAX_VALUES // 20)
    monkeypatch.setattr(body, "MAX_NESTS", MAX_NESTS // 20)
    answer = demo_server.post(path, make(950_000))
    assert answer.status == 400, answer.body
    assert demo_server.post(CHAT, {"messages": HI, "max_tokens": 1}).status == 200


def test_what_a_long_context_may_hold_is_let_through() -> None:
    context = 262_144
    assert parse_object(json.dumps({"prompt": [5] * 4 * context}).encode())
    assert parse_object(json.dumps({"messages": HI * (context // 4)}).encode())
    assert parse_object(json.dumps({"text": ',[{"\\' * (1 << 20)}).encode())


@given(st.recursive(st.text(alphabet='",[{\\a', max_size=8) | st.integers(), st.lists), st.integers(0, 40))
def test_strings_count_for_nothing_and_all_else_for_what_it_is(value: Any, most: int) -> None:
    raw = json.dumps({"a": value}).encode()
    outside = json.dumps({"a": _without_texts(value)})
    before = body.MAX_VALUES, body.MAX_NESTS
    try:
        body.MAX_VALUES = body.MAX_NESTS = most
        parse_object(raw)
        refused = False
    except Refused:
        refused = True
    finally:
        body.MAX_VALUES, body.MAX_NESTS = before
    assert refused == (outside.count(",") > most or outside.count("{") + outside.count("[") > most)


def _without_texts(value: Any) -> Any:
    if isinstance(value, list):
        return [_without_texts(item) for item in value]
    return "" if isinstance(value, str) else value


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_the_fast_reader_reads_what_ours_reads(value: Any) -> None:
    from mlx_qwen35.chat.json_text import parse_json

    raw = json.dumps({"a": value}).encode()
    assert repr(parse_object(raw)) == repr(parse_json(raw.decode()))


def test_only_so_much_of_tools_is_read_as_fits() -> None:
    seen: list[int] = []

    def encode(text: str) -> list[int]:
        seen.append(len(text))
        return [0] * (len(text) // 4)

    with pytest.raises(TooLongError):
        require_room_for_tools([tool(0, description="word " * 1_000_000)], 1000, encode)
    assert sum(seen) < 200_000
    require_room_for_tools([tool(0)], 1000, encode)


def test_arguments_that_cannot_fit_are_not_rendered() -> None:
    def said(count: int) -> Any:
        return [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": members(count)}}]}]

    require_few_arguments(said(200), 1000)
    with pytest.raises(TooLongError):
        require_few_arguments(said(250), 1000)


def main() -> None:
    """Print what each kind costs at its full size."""
    from mlx_qwen35.options import CacheOptions
    from mlx_qwen35.runtime import Runtime
    from mlx_qwen35.server.settings import Settings
    from tests.server.conftest import running

    with running(Runtime.load("demo", caches=CacheOptions(disk=None)), Settings()) as server:
        for name, (path, make) in KINDS.items():
            raw = json.dumps(make(MANY)).encode()
            cpu, wall = time.process_time(), time.perf_counter()
            status = server.post(path, raw).status
            cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
            print(f"{name:24} {len(raw) / 1e6:5.1f} MB   {status}   {cpu:5.2f} s CPU   {wall:5.2f} s", flush=True)


if __name__ == "__main__":
    main()
