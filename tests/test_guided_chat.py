"""Thinking budgets and tool-call grammars in whole chats: the demo model, hot, so that it says all kinds of things."""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest

import mlx_qwen35
from mlx_qwen35 import Qwen, Reply
from mlx_qwen35.chat.constraints import EFFORTS
from mlx_qwen35.chat.events import Content
from mlx_qwen35.errors import RequestError
from mlx_qwen35.guiding import CLOSING
from mlx_qwen35.runtime import ChatRequest, Runtime

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_price",
            "description": "The price of an item",
            "parameters": {
                "type": "object",
                "properties": {
                    "item": {"type": "string", "maxLength": 12},
                    "count": {"type": "integer", "minimum": 1, "maximum": 9},
                    "unit": {"enum": ["kg", "piece"]},
                    "options": {"type": "array", "items": {"type": "boolean"}, "maxItems": 2},
                },
                "required": ["item", "unit"],
            },
        },
    },
    {"type": "function", "function": {"name": "get_time", "parameters": {"type": "object", "properties": {}}}},
]
NAMED = {"type": "function", "function": {"name": "get_time"}}
HOT = 1.6


@pytest.fixture(scope="module")
def qwen() -> Iterator[Qwen]:
    with mlx_qwen35.load("demo") as qwen:
        yield qwen


def raw(qwen: Qwen, request: ChatRequest) -> str:
    """The answer as the model wrote it."""
    running = qwen.runtime.submit(qwen.runtime.prepare(request))
    list(running.events())
    return qwen.runtime.tokenizer.decode(running.sampled)


def assert_sound_calls(reply: Reply) -> None:
    schemas: dict[str, Any] = {tool["function"]["name"]: tool["function"]["parameters"] for tool in TOOLS}
    for call in reply.tool_calls:
        jsonschema.validate(call["function"]["arguments"], schemas[call["function"]["name"]])
    assert "<tool_call>" not in reply.content
    assert "<tool_call>" not in reply.reasoning


@pytest.mark.parametrize(("budget", "seed"), list(itertools.product((1, 2, 7, 30), range(4))))
def test_a_budget_closes_the_block_once_and_the_answer_follows(qwen: Qwen, budget: int, seed: int) -> None:
    messages = [{"role": "user", "content": "What is MLX?"}]
    sampling = {"temperature": HOT, "top_k": 0, "top_p": 1.0}
    asked = ChatRequest(
        messages, enable_thinking=True, thinking_budget=budget, sampling=sampling, seed=seed, max_tokens=budget + 180
    )
    text = raw(qwen, asked)
    block, end, answer = text.partition("</think>")
    assert end
    assert "<think>" not in text
    assert answer.strip("\n").removesuffix("<|im_end|>").removesuffix("<|endoftext|>").strip()
    thought, cut, rest = block.partition(CLOSING)
    assert not rest
    tokens = len(qwen.runtime.tokenizer.encode(thought))
    # Sampled tokens need not be those that the text is tokenised into, which are never more.
    assert tokens <= budget
    assert cut or tokens < budget + 1


def test_the_longest_thought_is_the_budget_to_the_token(qwen: Qwen) -> None:
    request = ChatRequest([{"role": "user", "content": "What is MLX?"}], enable_thinking=True, thinking_budget=9)
    running = qwen.runtime.submit(qwen.runtime.prepare(request))
    list(running.events())
    closing = qwen.runtime.tokenizer.encode(CLOSING)
    assert running.sampled[9 : 9 + len(closing)] == closing


def test_efforts_are_budgets(qwen: Qwen) -> None:
    assert qwen.chat("What is MLX?", reasoning_effort="low", max_tokens=200).reasoning
    assert not qwen.chat("What is MLX?", think=None, reasoning_effort="none", max_tokens=40).reasoning
    assert not qwen.chat("What is MLX?", thinking_budget=0, max_tokens=40).reasoning
    assert EFFORTS["low"]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("choice", ["required", NAMED, "auto", "none"])
def test_calls_are_of_tools_there_are_with_arguments_they_take(qwen: Qwen, choice: Any, seed: int) -> None:
    reply = qwen.chat(
        "What is the price of apples?", tools=TOOLS, tool_choice=choice, temperature=HOT, seed=seed, max_tokens=250
    )
    assert_sound_calls(reply)
    names = {call["function"]["name"] for call in reply.tool_calls}
    if choice == "none":
        assert not names
    elif choice != "auto" and reply.reason != "length":
        assert names
        assert choice == "required" or names == {"get_time"}


def test_one_call_where_several_are_not_allowed(qwen: Qwen) -> None:
    for seed in range(4):
        options: Any = {"tools": TOOLS, "tool_choice": NAMED, "temperature": HOT, "seed": seed, "max_tokens": 200}
        assert len(qwen.chat("What time is it?", parallel_tool_calls=False, **options).tool_calls) == 1


def test_thinking_comes_before_a_required_call(qwen: Qwen) -> None:
    reply = qwen.chat("What is MLX?", tools=TOOLS, tool_choice="required", think=True, thinking_budget=15)
    assert reply.reasoning
    assert len(reply.tool_calls) >= 1
    assert not reply.content
    assert_sound_calls(reply)


def test_an_answer_is_a_form_or_a_call_where_both_are_asked_for(qwen: Qwen) -> None:
    schema = {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"], "additionalProperties": False}
    for seed in range(4):
        reply = qwen.chat(
            "What is the price of apples?", tools=TOOLS, schema=schema, temperature=HOT, seed=seed, max_tokens=250
        )
        assert_sound_calls(reply)
        if not reply.tool_calls and reply.reason == "stop":
            jsonschema.validate(json.loads(reply.content), schema)


def test_the_grammar_changes_nothing_where_the_model_calls_soundly(qwen: Qwen) -> None:
    asked = [{"role": "user", "content": "What is the price of apples?"}]
    parameters = {"type": "object", "properties": {"item": {"type": "string"}}, "required": ["item"]}
    tool = {"type": "function", "function": {"name": "get_price", "parameters": parameters}}
    request = ChatRequest(asked, [tool], sampling={"temperature": 0.0}, max_tokens=200)
    guided = qwen.runtime.prepare(request)
    said: list[list[int]] = []
    for prepared in (guided, replace(qwen.runtime.prepare(request), request=replace(guided.request, guide=None))):
        running = qwen.runtime.submit(prepared)
        list(running.events())
        said.append(running.sampled)
    assert guided.request.guide is not None
    assert "<tool_call>" in qwen.runtime.tokenizer.decode(said[1])
    assert said[0] == said[1]


def test_strict_tools_that_cannot_be_followed_are_refused_and_others_are_not(qwen: Qwen) -> None:
    parameters = {"type": "object", "properties": {"x": {"type": "object", "not": {"required": ["y"]}}}}
    tool = {"type": "function", "function": {"name": "odd", "parameters": parameters, "strict": True}}
    with pytest.raises(RequestError, match="'odd' is strict"):
        qwen.chat("Hello", tools=[tool])
    lenient = {"type": "function", "function": {**tool["function"], "strict": False}}
    assert qwen.chat("Hello", tools=[lenient], max_tokens=2)


def test_other_forms_of_answers(qwen: Qwen) -> None:
    assert qwen.chat("Yes or no?", choices=["yes", "no"]).content in ("yes", "no")
    assert qwen.chat("Yes or no?", choices=["yes", "no"], think=True, thinking_budget=5).content in ("yes", "no")
    assert qwen.chat("A number?", regex="[0-9]{3}").content.isdigit()
    assert qwen.chat("A sum?", grammar='start: NUMBER "+" NUMBER\nNUMBER: /[0-9]/\n').content[1] == "+"
    assert isinstance(json.loads(qwen.chat("JSON?", response_format={"type": "json_object"}, seed=1).content), dict)
    assert qwen.generate("Once", regex=" upon a [a-z]{1,9}\\.").text.startswith(" upon a ")
    with pytest.raises(RequestError, match="conversation"):
        qwen.generate("Once", thinking_budget=5)


def test_a_session_takes_the_same_options(qwen: Qwen) -> None:
    with qwen.session(choices=["yes", "no"]) as session:
        assert session.chat("Is MLX a library?").content in ("yes", "no")
        assert session.chat("And a number?", choices=None, regex="[0-9]{2}").content.isdigit()


def test_what_takes_long_can_be_made_while_weights_are_read(tiny_chat: Path) -> None:
    """Before anybody asks: `serve` asks for it, since agents begin with tools."""
    with closing(Runtime.load(str(tiny_chat), guided=True)) as runtime:
        for thread in threading.enumerate():
            if thread.name == "guides":
                thread.join(60)
        made = runtime._guides._grammars
        assert made is not None
        events = list(runtime.chat(ChatRequest([{"role": "user", "content": "Hi"}], choices=["a"], max_tokens=4)))
        assert runtime._guides._grammars is made
        assert any(isinstance(event, Content) and event.text == "a" for event in events)
