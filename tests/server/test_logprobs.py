"""Log-probabilities of tokens in the forms of OpenAI's three endpoints, and in the Python API."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from mlx_qwen35.qwen import Qwen
from mlx_qwen35.runtime import Runtime
from tests.server.conftest import RunningServer
from tests.server.test_chat_completions import SUM, WEATHER, ask

THINKING: Any = {"extra_body": {"enable_thinking": True}}


@pytest.fixture(scope="module")
def client(demo_server: RunningServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{demo_server.url}/v1", api_key="any", max_retries=0, timeout=60) as client:
        yield client


def joined(tokens: Any) -> str:
    return b"".join(bytes(token.bytes) for token in tokens).decode()


@pytest.mark.parametrize("options", [{}, THINKING, {"stop": ["7"]}], ids=["plain", "thinking", "stopped"])
def test_the_tokens_of_the_content_are_told(client: openai.OpenAI, options: Any) -> None:
    choice = ask(client, logprobs=True, top_logprobs=2, **options).choices[0]
    tokens = choice.logprobs.content
    assert joined(tokens).startswith(choice.message.content)
    assert "</think>" not in joined(tokens)
    for token in tokens:
        assert len(token.top_logprobs) == 2
        # At temperature 0 what is drawn is the likeliest.
        assert token.top_logprobs[0].token == token.token
        assert token.logprob == token.top_logprobs[0].logprob <= 0
        assert math.exp(token.top_logprobs[0].logprob) + math.exp(token.top_logprobs[1].logprob) <= 1 + 1e-6
    thoughts = [bytes(token["bytes"]) for token in choice.logprobs.model_dump().get("reasoning_content", [])]
    assert b"".join(thoughts).decode().strip() == getattr(choice.message, "reasoning_content", "").strip()


def test_a_stream_tells_the_same_piece_by_piece(client: openai.OpenAI) -> None:
    whole = ask(client, logprobs=True, top_logprobs=1, **THINKING).choices[0]
    chunks = [chunk.choices[0] for chunk in ask(client, logprobs=True, top_logprobs=1, stream=True, **THINKING)]
    pieces = [token for chunk in chunks if chunk.logprobs for token in chunk.logprobs.content]
    assert [token.token for token in pieces] == [token.token for token in whole.logprobs.content]
    # The same numbers up to rounding: the second answer began with what the first had left behind.
    assert [t.logprob for t in pieces] == pytest.approx([t.logprob for t in whole.logprobs.content], abs=1e-4)
    for chunk in chunks:
        if chunk.logprobs:
            assert joined(chunk.logprobs.content) == (chunk.delta.content or "")


def test_they_are_left_out_where_nobody_asks(client: openai.OpenAI) -> None:
    assert ask(client).choices[0].logprobs is None


def test_a_call_has_none(client: openai.OpenAI) -> None:
    question: Any = [{"role": "user", "content": "What is the weather in Paris?"}]
    choice = ask(client, question, tools=[WEATHER], tool_choice="required", logprobs=True).choices[0]
    assert choice.message.tool_calls
    assert joined(choice.logprobs.content) == (choice.message.content or "")


def test_a_schema_does_not_change_the_network_s_own_opinion(client: openai.OpenAI) -> None:
    form: Any = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"const": "zebra"}}}
    tokens = ask(client, response_format=form, logprobs=True, top_logprobs=1).choices[0].logprobs.content
    assert joined(tokens) == '"zebra"'
    assert min(token.logprob for token in tokens) < -1  # nobody expected a zebra
    assert any(token.top_logprobs[0].token != token.token for token in tokens)


def test_completions_have_their_own_form(client: openai.OpenAI) -> None:
    asked: Any = {"model": "demo", "prompt": "ĂŸ🙂 is", "max_tokens": 12, "temperature": 1.5, "seed": 4, "logprobs": 2}
    choice = client.completions.create(**asked).choices[0]
    told = choice.logprobs
    assert len(told.tokens) == len(told.token_logprobs) == len(told.top_logprobs) == len(told.text_offset) > 1
    for token, logprob, top in zip(told.tokens, told.token_logprobs, told.top_logprobs):
        assert top[token] == logprob
        assert 2 <= len(top) <= 3
    for token, start in zip(told.tokens, told.text_offset):
        assert token.startswith("bytes:") or choice.text[start:].startswith(token)
    chunks = [chunk.choices[0] for chunk in client.completions.create(**asked, stream=True)]
    assert [o for chunk in chunks if chunk.logprobs for o in chunk.logprobs.text_offset or ()] == told.text_offset


def test_responses_tell_them_where_they_are_included(client: openai.OpenAI) -> None:
    asked: Any = {"model": "demo", "input": SUM, "temperature": 0, "include": ["message.output_text.logprobs"]}
    part: Any = client.responses.create(**asked, top_logprobs=1).output[0]
    tokens = part.content[0].logprobs
    assert joined(tokens) == part.content[0].text
    assert all(len(token.top_logprobs) == 1 for token in tokens)
    events = list(client.responses.create(**asked, top_logprobs=1, stream=True))
    deltas = [event for event in events if event.type == "response.output_text.delta"]
    assert [token.token for event in deltas for token in event.logprobs] == [token.token for token in tokens]
    (done,) = [event for event in events if event.type == "response.output_text.done"]
    assert [token.token for token in done.logprobs] == [token.token for token in tokens]


@pytest.mark.parametrize(
    ("path", "fields", "param"),
    [
        ("chat/completions", {"messages": SUM, "top_logprobs": 2}, "top_logprobs"),
        ("chat/completions", {"messages": SUM, "logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ("completions", {"prompt": "a", "logprobs": 21}, "logprobs"),
        ("completions", {"prompt": "a", "logprobs": 1, "echo": True}, "logprobs"),
    ],
)
def test_what_cannot_be_told_is_refused(demo_server: RunningServer, path: str, fields: Any, param: str) -> None:
    answer = demo_server.post(f"/v1/{path}", fields)
    assert answer.status == 400
    assert answer.json["error"]["param"] == param


def test_python_has_the_same(demo_runtime: Runtime) -> None:
    qwen = Qwen(demo_runtime)
    reply = qwen.chat("What is 3 + 4?", temperature=0, logprobs=1, think=True)
    assert b"".join(token.raw for token in reply.logprobs).decode() == reply.content
    assert b"".join(token.raw for token in reply.reasoning_logprobs).decode() == reply.reasoning
    drafted = qwen.chat("What is 3 + 4?", temperature=0, logprobs=1, think=True, draft=4)
    assert [token.token for token in drafted.logprobs] == [token.token for token in reply.logprobs]
    text = qwen.generate("One, two,", logprobs=0, max_tokens=6, temperature=0)
    assert b"".join(token.raw for token in text.logprobs).decode() == text.text
