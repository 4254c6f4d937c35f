"""One set of events and messages, shown to people: nothing may be lost, and thinking and calls stay apart."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_qwen35.app.conversation import Answer, Block, content_blocks, shown, status_line
from mlx_qwen35.chat.events import (
    Content,
    Event,
    Finished,
    Malformed,
    PrefillProgress,
    Reasoning,
    ToolCallArguments,
    ToolCallEnd,
    ToolCallStart,
    Usage,
)
from mlx_qwen35.conversations.efforts import Effort
from mlx_qwen35.tools.tool import Call, Step

CALL: list[Event] = [
    ToolCallStart(0, "call_1", "get_weather"),
    ToolCallArguments(0, '{"city": '),
    ToolCallArguments(0, '"Paris"}'),
    ToolCallEnd(0, "call_1", "get_weather", {"city": "Paris"}),
]


def answer_to(*events: Event | Step) -> Answer:
    answer = Answer()
    for event in events:
        answer.take(event)
    return answer


def text(block: Block) -> str:
    return "".join(part["text"] for part in block["content"])


def metadata(blocks: list[Block]) -> list[dict[str, Any] | None]:
    return [block.get("metadata") for block in blocks]


def test_thinking_is_open_and_counted_until_the_answer_begins_and_closed_from_then_on() -> None:
    answer = answer_to(Reasoning("Hm", 1_234))
    (data,) = metadata(answer.blocks())
    assert data == {"title": "Thinking · 1,234 tokens · 0 s", "status": "pending"}
    answer.take(Content("Yes"))
    thought, said = answer.blocks()
    assert thought["metadata"]["status"] == "done"
    assert thought["metadata"]["title"] == "Thought · 1,234 tokens"
    assert thought["metadata"]["duration"] > 0
    assert text(said) == "Yes"
    assert "metadata" not in said


@pytest.mark.parametrize("event", [*CALL[:1], Finished("length")])
def test_thinking_is_closed_by_whatever_follows_it(event: Event) -> None:
    assert answer_to(Reasoning("Hm"), event).blocks()[0]["metadata"]["status"] == "done"


def test_a_stop_closes_thinking_and_leaves_nothing_pending() -> None:
    answer = answer_to(Reasoning("Hm"), *CALL[:2])
    answer.stop()
    assert [data and data["status"] for data in metadata(answer.blocks())] == ["done"]
    assert status_line(answer) == "Stopped."


def test_a_call_is_a_step_of_its_own_from_its_first_argument_to_its_result() -> None:
    answer = answer_to(Content("Let me look."), *CALL[:2])
    call = answer.blocks()[1]
    assert call["metadata"] == {"title": "Calling get\\_weather", "status": "pending"}
    assert '{"city": ' in text(call)
    made = Call("call_1", "get_weather", {"city": "Paris"})
    answer = answer_to(*CALL, Finished("tool_calls"), Step(made, "5 degrees", seconds=1.5))
    call = answer.blocks()[0]
    assert call["metadata"] == {"title": "Called get\\_weather", "status": "done", "duration": 1.5}
    assert "Paris" in text(call)
    assert "5 degrees" in text(call)


def test_kept_messages_look_as_the_answer_did_when_it_ended() -> None:
    made = Call("call_1", "get_weather", {"city": "Paris"})
    live = answer_to(Reasoning("Hm", 7), *CALL, Finished("tool_calls"), Step(made, "5 degrees", seconds=1.5))
    function = {"name": "get_weather", "arguments": {"city": "Paris"}}
    messages = [
        {"role": "user", "content": "Weather?"},
        {
            "role": "assistant",
            "content": "",
            "reasoning_content": "Hm",
            "tool_calls": [{"id": "call_1", "type": "function", "function": function}],
        },
        {"role": "tool", "tool_call_id": "call_1", "content": "5 degrees"},
        {"role": "assistant", "content": "Cold."},
    ]
    assert live.thought is not None
    kept = shown(messages, {1: live.thought, "call_1": Effort(1.5)})
    assert kept.blocks[1:3] == live.blocks()
    assert [text(block) for block in (kept.blocks[0], kept.blocks[3])] == ["Weather?", "Cold."]
    assert kept.places == [0, 1, 1, 3]


def test_a_call_whose_id_is_none_is_shown_all_the_same() -> None:
    function = {"name": "get_weather", "arguments": {}}
    calls = [{"id": id, "type": "function", "function": function} for id in ([], 5, None)]
    messages = [
        {"role": "assistant", "content": "", "tool_calls": calls},
        {"role": "tool", "tool_call_id": [], "content": "5 degrees"},
    ]
    assert len(shown(messages, {}).blocks) == 3


@given(st.text(alphabet="`a\n~<", max_size=40))
def test_arguments_cannot_leave_their_code_block(said: str) -> None:
    answer = answer_to(ToolCallStart(0, "id", "f"), ToolCallEnd(0, "id", "f", {"x": said}))
    first, *inside, last = text(answer.blocks()[0]).removeprefix("Arguments\n\n").split("\n")
    assert first == f"{last}json"
    assert not any(last in line for line in inside)


def test_an_unreadable_call_is_noted_and_its_text_kept() -> None:
    answer = answer_to(*CALL[:1], Malformed("no </function>", 0), Content("<tool_call>oops"), Finished("stop"))
    content, note = answer.blocks()
    assert text(content) == "&lt;tool_call>oops"
    assert note["metadata"]["title"] == "Unreadable tool call"


@pytest.mark.parametrize("value", [{"name": "Ada", "n": [1, 2]}, [1, "`"], {}])
def test_json_is_shown_as_written_and_as_parsed(value: Any) -> None:
    written, parsed = content_blocks(json.dumps(value))
    assert json.dumps(value) in text(written)
    assert parsed["metadata"]["title"] == "Parsed JSON"
    assert json.loads(text(parsed).partition("\n")[2].rpartition("\n")[0]) == value


@pytest.mark.parametrize("said", ["{half", "[a link](b)", "12", "{" * 50_000])
def test_what_is_no_json_is_shown_once(said: str) -> None:
    assert [text(block) for block in content_blocks(said)] == [said]


def test_the_status_line_counts_what_was_done() -> None:
    usage = Usage(1200, 101, 40, cached_tokens=0, prefill_seconds=0.5, decode_seconds=2.0)
    line = status_line(answer_to(Content("x"), Finished("length", usage)))
    for part in ("1,200 prompt tokens", "101 tokens answered (40 thinking)", "50.0 tokens/s", "0.50 s", "cut"):
        assert part in line
    short = replace(usage, decode_seconds=0.0003)
    assert "tokens/s" not in status_line(answer_to(Content("x"), Finished("stop", short)))
    assert "512 of 2,048" in status_line(answer_to(PrefillProgress(512, 2048)))
