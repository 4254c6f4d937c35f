"""The page's backend over a real server: our own with the demo, and a few that behave badly."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_qwen35.app.backend import ServerBackend
from mlx_qwen35.app.chunks import Chunks
from mlx_qwen35.app.strip import Pace, as_html, figures_of
from mlx_qwen35.chat.events import (
    Content,
    Event,
    Finished,
    Malformed,
    PrefillProgress,
    Reasoning,
    ToolCallEnd,
    ToolCallStart,
)
from mlx_qwen35.chat.presets import FAMILY as PRESETS
from mlx_qwen35.errors import RequestError, UserError
from mlx_qwen35.openai_client import ServerError
from mlx_qwen35.options import CacheOptions, Sampling
from mlx_qwen35.requests import ChatRequest
from mlx_qwen35.runtime import Runtime
from mlx_qwen35.server.settings import Settings
from mlx_qwen35.tools.choosing import open_toolbox
from mlx_qwen35.tools.loop import OverRequest, answer_with_tools
from mlx_qwen35.tools.tool import Step
from tests.server.conftest import RunningServer, running

HOW = [{"role": "user", "content": "How do I convert a model?"}]
KEY = "a-key-of-mine"


@pytest.fixture(scope="module")
def runtime() -> Iterator[Runtime]:
    with closing(Runtime.load("demo", caches=CacheOptions(disk=None))) as runtime:
        yield runtime


@pytest.fixture(scope="module")
def server(runtime: Runtime) -> Iterator[RunningServer]:
    with running(runtime, Settings(keys=(KEY,), grace_seconds=0)) as server:
        yield server


@pytest.fixture
def backend(server: RunningServer) -> ServerBackend:
    return ServerBackend(f"{server.url}/v1", KEY)


def said(events: list[Event], kind: type[Content] | type[Reasoning] = Content) -> str:
    return "".join(event.text for event in events if isinstance(event, kind))


@pytest.mark.parametrize("thinking", [True, False])
def test_an_answer_is_the_one_that_the_model_gives_in_process(
    backend: ServerBackend, runtime: Runtime, thinking: bool
) -> None:
    request = ChatRequest(HOW, enable_thinking=thinking, sampling={"temperature": 0}, max_tokens=100)
    here, there = list(runtime.chat(request)), list(backend.chat(request))
    assert said(there) == said(here)
    assert said(there, Reasoning) == said(here, Reasoning)
    assert bool(said(there, Reasoning)) is thinking
    mine, theirs = here[-1], there[-1]
    assert isinstance(mine, Finished)
    assert isinstance(theirs, Finished)
    assert theirs.reason == mine.reason
    for name in ("prompt_tokens", "completion_tokens", "reasoning_tokens"):
        assert getattr(theirs.usage, name) == getattr(mine.usage, name)
    assert theirs.usage.cached_tokens > 0
    assert theirs.usage.decode_steps > 0
    assert theirs.usage.decode_seconds > 0


def test_numbers_shown_are_those_the_server_would_use_and_all_are_sent(
    backend: ServerBackend, runtime: Runtime
) -> None:
    for thinking in (None, True, False):
        for preset in (None, *PRESETS):
            request = ChatRequest(HOW, enable_thinking=thinking, preset=preset, sampling={"min_p": 0.25})
            assert backend.thinks(request) == runtime.thinks(request)
            numbers = runtime.sampling(request)
            assert backend.sampling(request) == numbers
            body = backend.prepare(request)
            assert {name: body[name] for name in vars(numbers)} == vars(numbers)
            assert body.get("chat_template_kwargs", {}).get("enable_thinking") is thinking
    assert backend.context == runtime.context
    assert backend.stats().active_bytes


def test_a_thinking_budget_reaches_the_server(backend: ServerBackend, runtime: Runtime) -> None:
    greedy = {"temperature": 0.0}
    asked = ChatRequest(HOW, enable_thinking=True, thinking_budget=6, max_tokens=60, sampling=greedy)
    assert said(list(backend.chat(asked)), Reasoning) == said(list(runtime.chat(asked)), Reasoning)
    free = list(backend.chat(replace(asked, thinking_budget=None)))
    assert said(free, Reasoning) != said(list(backend.chat(asked)), Reasoning)


def test_tools_are_called_through_it(backend: ServerBackend) -> None:
    with open_toolbox(["calc"]) as toolbox:
        asked = [{"role": "user", "content": "What is 48 * 17?"}]
        request = ChatRequest(
            asked, tools=toolbox.declarations(), enable_thinking=False, tool_choice="required", max_tokens=80
        )
        events = list(answer_with_tools(OverRequest(backend, request), toolbox, lambda *_: "yes", rounds=1))
    starts = [event for event in events if isinstance(event, ToolCallStart)]
    ends = [event for event in events if isinstance(event, ToolCallEnd)]
    assert [(e.index, e.id, e.name) for e in starts] == [(e.index, e.id, e.name) for e in ends]
    assert [step.call.id for step in events if isinstance(step, Step)] == [end.id for end in ends]
    assert isinstance(events[-1], Finished)


def test_closing_the_events_ends_the_server_s_work(runtime: Runtime, server: RunningServer) -> None:
    backend = ServerBackend(f"{server.url}/v1", KEY)
    request = ChatRequest(HOW, enable_thinking=False, logit_bias=dict.fromkeys(runtime.tokenizer.stop_ids, -100.0))
    events = backend.submit(backend.prepare(request)).events()
    assert any(isinstance(event, Content) for event in events)
    assert runtime.stats().rows == 1
    events.close()
    server.wait_until_idle()


def test_a_server_that_went_gives_one_line_and_one_that_came_back_answers(runtime: Runtime) -> None:
    with running(runtime, Settings(grace_seconds=0)) as first:
        backend, port = ServerBackend(f"{first.url}/v1"), first.port
    asked = ChatRequest(HOW, max_tokens=2)
    with pytest.raises(ServerError, match="does not answer: connection refused") as refusal:
        list(backend.chat(asked))
    assert "\n" not in str(refusal.value)
    pace = Pace()
    assert "does not answer; looking for it" in as_html(figures_of(backend, None, pace, None))
    with running(runtime, Settings(grace_seconds=0), "another", port=port):
        assert isinstance(list(backend.chat(asked))[-1], Finished)
        assert backend.name == "another"
        backend._stats_at = float("-inf")  # else it would be looked for in two seconds
        assert [figure.unit for figure in figures_of(backend, None, pace, None)] == ["memory"]


def test_a_wrong_key_and_a_refused_request_are_one_line(server: RunningServer, backend: ServerBackend) -> None:
    with pytest.raises(ServerError, match="API key is missing or wrong"):
        ServerBackend(f"{server.url}/v1", "wrong")
    with pytest.raises(ServerError, match="tokens"):
        list(backend.chat(ChatRequest([{"role": "user", "content": "long " * 200_000}])))
    with pytest.raises(ServerError, match=r"\(400\)"):
        list(backend.chat(ChatRequest([{"role": "nobody", "content": ""}])))
    with pytest.raises(RequestError, match="regex"):
        backend.prepare(ChatRequest(HOW, regex="a+"))
    with pytest.raises(UserError, match="no model 'other'"):
        backend.use("other")


@pytest.mark.parametrize(
    "url", ["", "demo", "ftp://x/v1", "http://", "http://a:b@c/v1", "http://x:99999/v1", "file:///e"]
)
def test_what_is_no_address_is_one_line(url: str) -> None:
    with pytest.raises(UserError, match="no address of a server"):
        ServerBackend(url)


Answer = Callable[[str], tuple[bytes, ...]]


@contextmanager
def strange(answer: Answer) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """A server that answers whatever it is told to; its address, and the bodies it got."""
    bodies: list[dict[str, Any]] = []
    over = threading.Event()

    def serve(listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection, connection.makefile("rb") as stream:
                head = stream.readline().decode()
                length = 0
                while (line := stream.readline()).strip():
                    if line.lower().startswith(b"content-length:"):
                        length = int(line.split(b":")[1])
                if length:
                    bodies.append(json.loads(stream.read(length)))
                for piece in answer(head.split()[1]):
                    if piece == SILENCE:
                        over.wait(30)
                    connection.sendall(piece)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, args=[listener], daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}/v1", bodies
        finally:
            over.set()
            listener.shutdown(socket.SHUT_RDWR)
    thread.join(10)


SILENCE = b""
OK = b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n"
MODELS = OK + b'{"data": [{"id": "Qwen/Qwen3.5-4B-8bit"}, {"id": "b"}, {"id": 5}, null]}'


def chunk(**delta: Any) -> bytes:
    return b"data: " + json.dumps({"choices": [{"delta": delta}]}).encode() + b"\n\n"


def behaving(*pieces: bytes) -> Answer:
    return lambda path: (MODELS,) if path == "/v1/models" else (OK, *pieces)


def test_of_other_servers_only_what_they_know_is_asked() -> None:
    with strange(behaving(chunk(reasoning="Hm"), chunk(content="Yes"), b"data: [DONE]\n\n")) as (url, bodies):
        backend = ServerBackend(url)
        assert backend.thinks(ChatRequest([]))
        assert backend.sampling(ChatRequest(HOW)) == PRESETS["thinking"]
        assert said(list(backend.chat(ChatRequest(HOW, enable_thinking=False))), Reasoning) == "Hm"
        with pytest.raises(RequestError, match="takes no thinking budget"):
            backend.prepare(ChatRequest(HOW, thinking_budget=5))
    known = {"model", "messages", "stream", "stream_options", "chat_template_kwargs", *vars(Sampling())}
    assert set(bodies[0]) == known


def test_a_silent_server_can_be_stopped() -> None:
    with strange(behaving(SILENCE)) as (url, _):
        events = ServerBackend(url).submit({}).events()
        assert next(events) == PrefillProgress(0, 0)
        events.close()


@pytest.mark.parametrize(
    ("pieces", "line"),
    [
        ((chunk(content="Half"),), "broke off"),
        ((b"data: {nonsense\n\n",), "no chunk of an answer"),
        ((b'data: {"choices": [{"delta": {"content": [1]}}]}\n\n',), "no chunk of an answer"),
        ((b'data: {"error": {"message": "out of memory\\nand more"}}\n\n',), "The server says: out of memory$"),
        ((b"data: " + b"[" * 100_000 + b"\n\n",), "no chunk of an answer"),
    ],
)
def test_a_server_that_fails_half_way_gives_one_line(pieces: tuple[bytes, ...], line: str) -> None:
    with strange(behaving(*pieces)) as (url, _), pytest.raises(ServerError, match=line):
        list(ServerBackend(url).chat(ChatRequest(HOW)))


@pytest.mark.parametrize(
    "answer",
    [
        OK,
        OK + b"<html>",
        OK + b'{"data": []}',
        OK + b"[]",
        b"HTTP/1.1 302 Found\r\nLocation: http://evil/\r\n\r\n",
        b"x",
    ],
)
def test_what_is_no_openai_server_is_one_line(answer: bytes) -> None:
    with strange(lambda _: (answer,)) as (url, _), pytest.raises(UserError) as refusal:
        ServerBackend(url)
    assert "\n" not in str(refusal.value)


def test_a_call_whose_arguments_were_cut_is_none() -> None:
    chunks = Chunks()
    call = {"index": 0, "id": "a", "function": {"name": "f", "arguments": '{"x": '}}
    events = [*chunks.take(chunk(tool_calls=[call]).strip()), *chunks.finish()]
    assert [type(event) for event in events][-2:] == [Malformed, Content]
    assert not any(isinstance(event, ToolCallEnd) for event in events)


def keyed(values: Any) -> Any:
    names = "choices delta content reasoning tool_calls index id function name arguments usage error finish_reason"
    return st.dictionaries(st.sampled_from(names.split()), values, max_size=4)


JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=5), lambda v: st.lists(v) | keyed(v))


@settings(max_examples=30, deadline=None)
@given(st.lists(keyed(JSON), max_size=4))
def test_any_json_is_events_or_one_error(values: list[Any]) -> None:
    chunks = Chunks()
    with contextlib.suppress(ServerError):
        for value in values:
            list(chunks.take(b"data: " + json.dumps(value).encode()))
        list(chunks.finish())
