"""What a stream says is what the whole answer says: the real clients' own accumulators put the events together again.

The events are those of the parser over texts made of tags and halves of tags, so calls are cut and malformed, thinking
ends in a call, and text stands between calls.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, cast

import anthropic
import httpx2
import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_qwen35.chat.answer import Answer
from mlx_qwen35.chat.events import Event, Finished, PrefillProgress, Usage
from mlx_qwen35.chat.parser import OutputParser
from mlx_qwen35.chat.reply import Gathering
from mlx_qwen35.chat.stop import StopStrings
from mlx_qwen35.server.anthropic_answer import MessageAuthor
from mlx_qwen35.server.body import typed
from mlx_qwen35.server.chat_completions import ChatAuthor, ChatBody
from mlx_qwen35.server.protocol import Author, Json, Refused, Served
from mlx_qwen35.server.responses import as_text
from mlx_qwen35.server.responses_answer import ResponseAuthor
from mlx_qwen35.server.responses_request import ResponsesBody
from mlx_qwen35.server.responses_tools import read_tools
from tests.chat.conversations import tool

TOOLS = [
    tool("write", path={"type": "string"}, text={"type": "string"}, mode={"type": "integer"}),
    tool("patch", input={"type": "string"}),
]
# fmt: off
PIECES = [
    "<think>", "</think>", "<tool_call>", "</tool_call>", "<function=write>", "<function=patch>", "</function>",
    "<parameter=path>", "<parameter=text>", "<parameter=mode>", "<parameter=input>", "</parameter>", "\n", "7",
    "[1, {", '"', "\\", "é", "😀", "so", "<", "\u2028", " STOP", " ",
]
# fmt: on
CALL = "<tool_call>\n<function=write>\n<parameter=path>\na.txt\n</parameter>\n</function>\n</tool_call>"
CUT = "<tool_call>\n<function=write>\n<parameter=path>\na.txt\n</parameter>\n<parameter=text>\nhal"
TEXTS = st.lists(st.sampled_from([*PIECES, CALL, CALL, CUT, "\n</parameter>\n"]), max_size=14)
CONTEXT = 4096
SERVED = Served(cast(Any, None), ("m",), 0)  # who writes an answer asks no runtime


@st.composite
def answers(draw: st.DrawFn) -> list[Event]:
    """All events of one answer."""
    pieces = draw(TEXTS)
    answer = Answer(OutputParser(TOOLS, draw(st.booleans())), StopStrings(draw(st.sampled_from([(), ("STOP",)]))))
    events: list[Event] = [PrefillProgress(40, 90, 30), PrefillProgress(90, 90, 30)] if draw(st.booleans()) else []
    for piece in pieces:
        answer.count()
        events += answer.feed(piece)
        if answer.stopped:
            break
    events += answer.finish("")
    usage = replace(answer.usage(), prompt_tokens=90, cached_tokens=30)
    cut = draw(st.booleans()) and not answer.stopped
    reason = "length" if cut else "tool_calls" if answer.called else "stop"
    return [*events, Finished(reason, usage, answer.stop_string)]


def whole(author: Author, events: list[Event]) -> Json:
    gathering = Gathering()
    for event in events:
        gathering.take(event)
    return author.whole([gathering.reply()])


def streamed(author: Author, events: list[Event]) -> str:
    frames = [*author.begin(), *(frame for event in events for frame in author.event(0, event)), *author.end()]
    return "".join(map(as_text, frames))


ANSWER = [""]  # of the clients' server


@functools.cache  # to make a client takes far longer than to read an answer
def client_with_one_answer(make: Any) -> Any:
    def answer(_: Any) -> httpx2.Response:
        return httpx2.Response(200, headers={"content-type": "text/event-stream"}, content=ANSWER[0].encode())

    http = httpx2.Client(transport=httpx2.MockTransport(answer))
    return make(base_url="http://127.0.0.1/v1", api_key="none", http_client=http, max_retries=0)


def client_of(make: Any, text: str) -> Any:
    """A real client whose server has this one answer, until the next call."""
    ANSWER[0] = text
    return client_with_one_answer(make)


def without(value: Any, *names: str) -> Any:
    """The value without what is made anew for each answer."""
    if isinstance(value, dict):
        return {key: without(item, *names) for key, item in value.items() if key not in names and item is not None}
    return [without(item, *names) for item in value] if isinstance(value, list) else value


@pytest.mark.parametrize("hides", [False, True])
def test_an_anthropic_stream_says_what_the_whole_message_says(hides: bool) -> None:
    @settings(max_examples=60)
    @given(answers())
    def property(events: list[Event]) -> None:
        expected = whole(MessageAuthor("m", hides, CONTEXT, SERVED.cache), events)
        client = client_of(anthropic.Anthropic, streamed(MessageAuthor("m", hides, CONTEXT, SERVED.cache), events))
        with client.messages.stream(model="m", max_tokens=9, messages=[{"role": "user", "content": "a"}]) as stream:
            message = stream.get_final_message()
        assert without(message.to_dict(), "id", "cache") == without(dict(expected), "id", "cache")

    property()


def chat_author() -> ChatAuthor:
    return ChatAuthor(
        SERVED, typed({"model": "m", "messages": [{}], "stream_options": {"include_usage": True}}, ChatBody)
    )


def test_a_chat_stream_says_what_the_whole_completion_says() -> None:
    @settings(max_examples=50)
    @given(answers())
    def property(events: list[Event]) -> None:
        expected = whole(chat_author(), events)
        client = client_of(openai.OpenAI, streamed(chat_author(), events))
        deltas, last = [], None
        for chunk in client.chat.completions.create(model="m", messages=[], stream=True):
            deltas += [chunk.choices[0].delta] if chunk.choices else []
            last = chunk.choices[0] if chunk.choices else last
        message = expected["choices"][0]["message"]
        assert "".join(delta.content or "" for delta in deltas) == (message["content"] or "")
        thoughts = "".join(getattr(delta, "reasoning_content", None) or "" for delta in deltas)
        assert thoughts == message.get("reasoning_content", "")
        calls: list[dict[str, Any]] = []
        for piece in (piece for delta in deltas for piece in delta.tool_calls or ()):
            if piece.id:
                assert piece.index == len(calls)
                calls.append({"id": piece.id, "name": piece.function.name, "arguments": ""})
            calls[piece.index]["arguments"] += piece.function.arguments
        told = [{"id": call["id"], **call["function"]} for call in message.get("tool_calls", ())]
        assert without(calls, "id") == without(told, "id")
        assert last is not None
        assert last.finish_reason == expected["choices"][0]["finish_reason"]

    property()


def response_author(**body: Any) -> ResponseAuthor:
    custom = {"type": "custom", "name": "patch"}
    full = {"model": "m", "input": "a", "tools": [*({"type": "function", **t["function"]} for t in TOOLS[:1]), custom]}
    full |= body
    return ResponseAuthor(
        "m", typed(full, ResponsesBody), full, read_tools(full["tools"]), SERVED.cache, lambda *_: None
    )


FORMS = [
    {},
    {"reasoning": {"summary": "auto"}},
    {"include": ["reasoning.encrypted_content"], "reasoning": {"effort": "low"}},
]


@pytest.mark.parametrize("body", FORMS, ids=["plain", "summary", "sealed"])
def test_a_responses_stream_says_what_the_whole_response_says(body: dict[str, Any]) -> None:
    made = ("id", "created_at", "completed_at", "parsed_arguments", "parsed", "item_id")

    @settings(max_examples=50)
    @given(answers())
    def property(events: list[Event]) -> None:
        expected = whole(response_author(**body), events)
        client = client_of(openai.OpenAI, streamed(response_author(**body), events))
        with client.responses.stream(model="m", input="a") as stream:
            seen = list(stream)
        last = seen[-1]
        assert last.type == f"response.{expected['status']}"
        assert without(last.response.to_dict(), *made) == without(dict(expected), *made)
        assert [event.sequence_number for event in seen] == list(range(len(seen)))
        done = [event.item for event in seen if event.type == "response.output_item.done"]
        assert [item.to_dict() for item in done] == without(
            last.response.to_dict()["output"], "parsed_arguments", "parsed"
        )
        for item, text in said(seen):
            assert item == text

    property()


def said(seen: list[Any]) -> Iterator[tuple[str, str]]:
    """For every item: its deltas joined, and its text when it was done."""
    for added in (event for event in seen if event.type == "response.output_item.added"):
        own = [event for event in seen if getattr(event, "item_id", None) == added.item.id]
        deltas = "".join(event.delta for event in own if event.type.endswith(".delta"))
        ends = [event for event in own if event.type.endswith((".done",)) and not hasattr(event, "part")]
        assert len(ends) == 1
        end = ends[0].to_dict()
        yield deltas, next(end[name] for name in ("text", "arguments", "input") if name in end)


def test_a_cut_call_keeps_what_was_whole_of_it_and_is_not_said_again() -> None:
    answer = Answer(OutputParser(TOOLS, False), StopStrings(()))
    events: list[Event] = [*answer.feed("Look." + CUT), *answer.finish(""), Finished("length", Usage())]
    message = whole(MessageAuthor("m", False, CONTEXT, SERVED.cache), events)
    assert without(message["content"], "id") == [
        {"type": "text", "text": "Look."},
        {"type": "tool_use", "name": "write", "input": {"path": "a.txt"}},
    ]
    assert message["stop_reason"] == "max_tokens"
    (choice,) = whole(chat_author(), events)["choices"]
    assert choice["message"]["content"] == "Look."
    assert choice["finish_reason"] == "length"
    with pytest.raises(ValueError):
        json.loads(choice["message"]["tool_calls"][0]["function"]["arguments"])
    response = whole(response_author(), events)
    assert [item["type"] for item in response["output"]] == ["message", "function_call"]
    assert response["output"][1]["status"] == "incomplete"
    with pytest.raises(ValueError):
        json.loads(response["output"][1]["arguments"])  # so no client mistakes it for a call


@pytest.mark.parametrize("status", [500, 503])
def test_a_failure_in_mid_stream_is_an_error_of_the_real_clients(status: int) -> None:
    events: list[Event] = [PrefillProgress(90, 90, 30), *OutputParser(None, False).feed("so far")]

    def text(author: Author) -> str:
        frames = [*author.begin(), *(f for e in events for f in author.event(0, e))]
        return "".join(map(as_text, [*frames, *author.failed(Refused(status, "It broke."))]))

    client = client_of(anthropic.Anthropic, text(MessageAuthor("m", False, CONTEXT, SERVED.cache)))
    with (
        pytest.raises(anthropic.APIStatusError, match="It broke"),
        client.messages.stream(model="m", max_tokens=9, messages=[{"role": "user", "content": "a"}]) as stream,
    ):
        stream.until_done()
    client = client_of(openai.OpenAI, text(response_author()))
    with client.responses.stream(model="m", input="a") as stream:
        last = list(stream)[-1]
    assert last.type == "response.failed"
    assert last.response.error.message == "It broke."
