"""Sessions of the real `anthropic` and `openai` clients, with tools and thinking, streamed and not."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from typing import Any

import anthropic
import openai
import pytest

from mlx_qwen35.runtime import Runtime
from mlx_qwen35.server.settings import Settings
from tests.server.conftest import RunningServer, running
from tests.support.scripted import (
    ANSWER,
    LOOKED_AT,
    PARAMETERS,
    QUESTION,
    RESULT,
    SYSTEM,
    THOUGHT,
    write_scripted,
)

SLOW = pytest.mark.slow  # a session takes some seconds; one of each kind is enough for every run
ANTHROPIC_TOOL: Any = {"name": "look", "description": "Look something up.", "input_schema": PARAMETERS}
OPENAI_TOOL: Any = {"type": "function", "name": "look", "description": "Look something up.", "parameters": PARAMETERS}


@pytest.fixture(scope="module")
def puppet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    runtime = Runtime.load(str(write_scripted(tmp_path_factory.mktemp("scripted") / "puppet")))
    with running(runtime, Settings(grace_seconds=0), "puppet") as server:
        yield server
    runtime.close()


@functools.cache  # made once: that takes longer than most answers
def anthropic_client(url: str) -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=url, api_key="none", max_retries=0)


@functools.cache
def openai_client(url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)


# Anthropic


def ask_anthropic(server: RunningServer, stream: bool, messages: list[Any], **options: Any) -> Any:
    client = anthropic_client(server.url)
    asked: Any = {"model": "puppet", "max_tokens": 200, "system": SYSTEM, "messages": messages, **options}
    if not stream:
        return client.messages.create(**asked)
    with client.messages.stream(**asked) as events:
        return events.get_final_message()


def plain(message: Any) -> list[Any]:
    names = ("text", "thinking", "input")
    return [next(getattr(b, name) for name in names if hasattr(b, name)) for b in message.content]


@pytest.mark.parametrize(
    ("stream", "display"),
    [(True, None), pytest.param(False, "omitted", marks=SLOW)],
    ids=["streamed", "whole, omitted"],
)
def test_an_anthropic_session_thinks_calls_and_answers(puppet: RunningServer, stream: bool, display: Any) -> None:
    thinking = (
        {"type": "adaptive"} if display is None else {"type": "enabled", "budget_tokens": 100, "display": display}
    )
    options: Any = {"thinking": thinking, "tools": [ANTHROPIC_TOOL]}
    messages: list[Any] = [{"role": "user", "content": QUESTION}]
    first = ask_anthropic(puppet, stream, messages, **options)
    assert plain(first) == ["" if display else THOUGHT, LOOKED_AT]
    assert first.stop_reason == "tool_use"

    counted = anthropic_client(puppet.url).messages.count_tokens(
        model="puppet", system=SYSTEM, messages=messages, **options
    )
    prompt = first.usage.input_tokens + first.usage.cache_read_input_tokens
    assert counted.input_tokens == prompt

    result = {"type": "tool_result", "tool_use_id": first.content[1].id, "content": [{"type": "text", "text": RESULT}]}
    messages += [{"role": "assistant", "content": first.content}, {"role": "user", "content": [result]}]
    second = ask_anthropic(puppet, stream, messages, **options)
    assert plain(second)[-1] == ANSWER
    assert second.stop_reason == "end_turn"
    # The thinking came back with the call, shown or sealed, or the answer would have been computed again.
    assert second.usage.cache_read_input_tokens >= prompt + first.usage.output_tokens - 1


def test_without_being_asked_to_it_does_not_think(puppet: RunningServer) -> None:
    message = ask_anthropic(puppet, False, [{"role": "user", "content": "Where does a salmon live? Say it briefly."}])
    assert plain(message) == [ANSWER]


def test_a_stop_sequence_is_named(puppet: RunningServer) -> None:
    asked = [{"role": "user", "content": "Where does a salmon live? Say it briefly."}]
    for stream in (False, True):
        message = ask_anthropic(puppet, stream, asked, stop_sequences=["never", ", dear"])
        assert plain(message) == ["Near water"]
        assert (message.stop_reason, message.stop_sequence) == ("stop_sequence", ", dear")


def test_the_limit_of_tokens_is_named(puppet: RunningServer) -> None:
    asked = [{"role": "user", "content": "Where does a salmon live? Say it briefly."}]
    assert ask_anthropic(puppet, True, asked, max_tokens=3).stop_reason == "max_tokens"


def test_tools_that_may_not_be_called_are_not(puppet: RunningServer) -> None:
    asked = [{"role": "user", "content": QUESTION}]
    message = ask_anthropic(puppet, True, asked, tools=[ANTHROPIC_TOOL], tool_choice={"type": "none"}, max_tokens=40)
    assert not [block for block in message.content if block.type == "tool_use"]


FORMAT = {
    "type": "object",
    "properties": {"legs": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["legs"],
    "additionalProperties": False,
}


def test_a_schema_holds(puppet: RunningServer) -> None:
    """The puppet would say something else."""
    asked: Any = [{"role": "user", "content": "Where does a salmon live? Say it briefly."}]
    config = {"format": {"type": "json_schema", "schema": FORMAT}}
    message = ask_anthropic(puppet, True, asked, output_config=config)
    assert json.loads(message.content[0].text)["legs"] in range(1, 10)
    form: Any = {"format": {"type": "json_schema", "name": "beast", "schema": FORMAT, "strict": True}}
    response = ask_openai(puppet, True, asked, text=form, reasoning={"effort": "none"}, tools=[])
    assert json.loads(response.output_text)["legs"] in range(1, 10)


def test_a_call_can_be_demanded(puppet: RunningServer) -> None:
    asked: Any = [{"role": "user", "content": "Where does a salmon live? Say it briefly."}]
    for choice in ({"type": "any"}, {"type": "tool", "name": "look", "disable_parallel_tool_use": True}):
        message = ask_anthropic(puppet, False, asked, tools=[ANTHROPIC_TOOL], tool_choice=choice, max_tokens=24)
        assert [(block.type, block.name) for block in message.content] == [("tool_use", "look")]
    for choice in ("required", {"type": "function", "name": "look"}):
        options: Any = {"tool_choice": choice, "reasoning": {"effort": "none"}, "max_output_tokens": 24}
        assert [item.name for item in ask_openai(puppet, False, asked, **options).output] == ["look"]


def test_what_an_agent_changes_at_every_turn_costs_nothing(puppet: RunningServer) -> None:
    """A billing header, the time, the order of tools, and a reminder beside the result."""

    def system(turn: int) -> list[Any]:
        header = {"type": "text", "text": f"x-anthropic-billing-header: cc_version=2.{turn}; cch={turn}f;"}
        clock = f"{SYSTEM}\nCurrent time: 2026-11-22T10:3{turn}:00Z"
        return [header, {"type": "text", "text": clock, "cache_control": {"type": "ephemeral"}}]

    other: Any = {"name": "aside", "input_schema": PARAMETERS}
    options: Any = {"thinking": {"type": "adaptive"}, "extra_headers": {"anthropic-beta": "claude-code-20250219"}}
    messages: list[Any] = [{"role": "user", "content": QUESTION}]
    first = ask_anthropic(puppet, True, messages, system=system(1), tools=[ANTHROPIC_TOOL, other], **options)
    reminder = {"type": "text", "text": "<system-reminder>\nMind the step.\n</system-reminder>"}
    result = {"type": "tool_result", "tool_use_id": first.content[1].id, "content": RESULT}
    messages += [{"role": "assistant", "content": first.content}, {"role": "user", "content": [result, reminder]}]
    second = ask_anthropic(puppet, True, messages, system=system(2), tools=[other, ANTHROPIC_TOOL], **options)
    prompt = first.usage.input_tokens + first.usage.cache_read_input_tokens
    assert plain(second)[-1] == ANSWER
    assert second.usage.cache_read_input_tokens >= prompt + first.usage.output_tokens - 1


# OpenAI's Responses


def ask_openai(server: RunningServer, stream: bool, given: Any, **options: Any) -> Any:
    client = openai_client(server.url)
    asked: Any = {"model": "puppet", "instructions": SYSTEM, "input": given, "tools": [OPENAI_TOOL], **options}
    asked["reasoning"] = {"effort": "low", **options.get("reasoning", {})}
    if not stream:
        return client.responses.create(**asked)
    with client.responses.stream(**asked) as events:
        return events.get_final_response()


FORMS: dict[str, Any] = {
    "shown": {},
    "summary": {"reasoning": {"summary": "auto"}},
    "sealed": {"include": ["reasoning.encrypted_content"], "store": False},
}


@pytest.mark.parametrize(
    ("form", "stream"),
    [pytest.param("shown", True, marks=SLOW), pytest.param("summary", False, marks=SLOW), ("sealed", True)],
)
def test_a_responses_session_thinks_calls_and_answers(puppet: RunningServer, form: str, stream: bool) -> None:
    given: list[Any] = [{"role": "user", "content": [{"type": "input_text", "text": QUESTION}]}]
    first = ask_openai(puppet, stream, given, **FORMS[form])
    thought, call = first.output
    assert [part.text for part in (thought.summary if form == "summary" else thought.content)] == [THOUGHT]
    assert (call.type, call.name, json.loads(call.arguments)) == ("function_call", "look", LOOKED_AT)
    sent = thought.to_dict()
    if form == "sealed":  # Codex drops the text and sends the seal
        sent["content"] = None
    given += [sent, call.to_dict(), {"type": "function_call_output", "call_id": call.call_id, "output": RESULT}]
    second = ask_openai(puppet, stream, given, **FORMS[form])
    assert second.output_text == ANSWER
    assert second.usage.input_tokens_details.cached_tokens >= first.usage.total_tokens - 1
    assert 0 < second.usage.output_tokens_details.reasoning_tokens < second.usage.output_tokens


@pytest.mark.parametrize(
    "by_reference", [False, pytest.param(True, marks=SLOW)], ids=["by the response's id", "by its items' ids"]
)
def test_a_stored_response_is_gone_on_from(puppet: RunningServer, by_reference: bool) -> None:
    stream = not by_reference
    first = ask_openai(puppet, stream, QUESTION)
    output = {"type": "function_call_output", "call_id": first.output[1].call_id, "output": RESULT}
    if by_reference:
        items = [{"type": "item_reference", "id": item.id} for item in first.output]
        second = ask_openai(puppet, stream, [{"role": "user", "content": QUESTION}, *items, output])
    else:
        second = ask_openai(puppet, stream, [output], previous_response_id=first.id)
    assert second.output_text == ANSWER
    assert second.usage.input_tokens_details.cached_tokens >= first.usage.total_tokens - 1


def test_stored_responses_can_be_read_and_dropped(puppet: RunningServer) -> None:
    client = openai_client(puppet.url)
    made = ask_openai(puppet, True, "Where does a salmon live? Say it briefly.", reasoning={"effort": "none"})
    found = client.responses.retrieve(made.id)
    assert found.output_text == made.output_text == ANSWER
    assert client.responses.input_items.list(made.id).data[0].content[0].text.startswith("Where")  # pyright: ignore
    client.responses.delete(made.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(made.id)
    with pytest.raises(openai.BadRequestError) as refused:
        ask_openai(puppet, False, "So?", previous_response_id=made.id)
    assert refused.value.param == "previous_response_id"
    unkept = ask_openai(puppet, False, QUESTION, store=False)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(unkept.id)


def test_a_limit_of_tokens_leaves_a_response_incomplete(puppet: RunningServer) -> None:
    asked: Any = {"reasoning": {"effort": "none"}, "max_output_tokens": 3}
    whole = ask_openai(puppet, False, "Say where a salmon lives, briefly.", **asked)
    assert (whole.status, whole.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert whole.output[0].status == "incomplete"
    client = openai_client(puppet.url)
    events = list(client.responses.create(model="puppet", input="Say it briefly.", stream=True, **asked))
    assert events[-1].type == "response.incomplete"


def test_tools_as_codex_sends_them(puppet: RunningServer) -> None:
    """A group of functions, free text, and tools that only OpenAI runs."""
    tools: list[Any] = [
        {"type": "namespace", "name": "pages", "description": "Pages.", "tools": [OPENAI_TOOL]},
        {"type": "custom", "name": "apply_patch", "format": {"type": "grammar", "syntax": "lark", "definition": "x"}},
        {"type": "web_search", "external_web_access": True},
        {"type": "local_shell"},
    ]
    first = ask_openai(puppet, True, QUESTION, tools=tools)
    assert (first.output[1].name, first.output[1].namespace) == ("look", "pages")
    patch = {"type": "custom_tool_call", "call_id": "c1", "name": "apply_patch", "input": "*** Begin Patch"}
    output = {"type": "custom_tool_call_output", "call_id": "c1", "output": RESULT}
    given = [{"role": "user", "content": QUESTION}, patch, output]
    assert ask_openai(puppet, True, given, tools=tools).output_text == ANSWER
