"""One set of events, told to the model and shown to people: neither may lose or leak what belongs to the other."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_qwen35.app.conversation import Answer, Question, blocks_of, messages_of, paced, status_line
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

CALL: list[Event] = [
    ToolCallStart(0, "call_1", "get_weather"),
    ToolCallArguments(0, '{"city": '),
    ToolCallArguments(0, '"Paris"}'),
    ToolCallEnd(0, "call_1", "get_weather", {"city": "Paris"}),
]


def answer_to(*events: Event) -> Answer:
    answer = Answer()
    for event in events:
        answer.take(event)
    return answer


def metadata(answer: Answer) -> list[dict[str, Any] | None]:
    return [block.get("metadata") for block in answer.blocks()]


@given(st.lists(st.builds(Reasoning, st.text()) | st.builds(Content, st.text())))
def test_no_text_is_lost_and_reasoning_stays_apart(events: list[Reasoning | Content]) -> None:
    answer = answer_to(*events)
    reasoning = "".join(e.text for e in events if isinstance(e, Reasoning))
    content = "".join(e.text for e in events if isinstance(e, Content))
    messages = answer.messages()
    assert bool(messages) == bool(reasoning or content)
    if messages:
        assert messages[0].get("reasoning_content", "") == reasoning
        assert messages[0]["content"] == content


def test_thinking_is_open_until_the_answer_begins_and_closed_from_then_on() -> None:
    answer = answer_to(Reasoning("Hm"))
    assert metadata(answer) == [{"title": "Thinking", "status": "pending"}]
    answer.take(Content("Yes"))
    thought, shown = answer.blocks()
    assert thought["metadata"]["status"] == "done"
    assert thought["metadata"]["duration"] >= 0
    assert shown == {"role": "assistant", "content": "Yes"}


@pytest.mark.parametrize("event", [*CALL[:1], Finished("length")])
def test_thinking_is_closed_by_whatever_follows_it(event: Event) -> None:
    assert metadata(answer_to(Reasoning("Hm"), event))[0]["status"] == "done"  # type: ignore[index]


def test_a_stop_closes_thinking_and_leaves_nothing_pending() -> None:
    answer = answer_to(Reasoning("Hm"), *CALL[:2])
    answer.stop()
    assert not answer.running
    assert [data and data["status"] for data in metadata(answer)] == ["done"]
    assert status_line(answer) == "Stopped."


def test_a_call_has_a_block_of_its_own_while_its_arguments_come() -> None:
    answer = answer_to(Content("Let me look."), *CALL[:2])
    call = answer.blocks()[1]
    assert call["metadata"]["status"] == "pending"
    assert '{"city": ' in call["content"]
    answer = answer_to(Content("Let me look."), *CALL, Finished("tool_calls"))
    assert answer.blocks()[1]["metadata"]["status"] == "done"
    (message,) = answer.messages()
    function = message["tool_calls"][0]["function"]
    assert function["name"] == "get_weather"
    assert json.loads(function["arguments"]) == {"city": "Paris"}


@given(st.text(alphabet="`a\n~<", max_size=40))
def test_arguments_cannot_leave_their_code_block(text: str) -> None:
    answer = answer_to(ToolCallStart(0, "id", "f"), ToolCallEnd(0, "id", "f", {"x": text}))
    first, *inside, last = answer.blocks()[0]["content"].split("\n")
    assert first == f"{last}json"
    assert not any(last in line for line in inside)


def test_an_unreadable_call_is_noted_and_its_text_kept() -> None:
    answer = answer_to(Content("<tool_call>oops"), Malformed("no </function>"), Finished("stop"))
    content, note = answer.blocks()
    assert content["content"] == "<tool_call>oops"
    assert note["metadata"]["title"] == "Unreadable tool call"
    assert "no" in note["content"]


def test_an_error_is_shown_to_people_only_and_takes_its_question_with_it() -> None:
    failed = Answer()
    failed.stop("too *long*")
    turns = [Question("a"), failed, Question("b"), answer_to(Content("c"), Finished("stop"))]
    assert messages_of(turns) == [{"role": "user", "content": "b"}, {"role": "assistant", "content": "c"}]
    assert blocks_of(turns)[1]["content"] == "⚠️ too \\*long\\*"


def test_an_answer_that_failed_midway_is_remembered_as_far_as_it_came() -> None:
    answer = answer_to(Content("half"))
    answer.stop("not finite")
    assert [m["content"] for m in messages_of([Question("a"), answer])] == ["a", "half"]
    assert len(answer.blocks()) == 2


@pytest.mark.parametrize(("system", "roles"), [("", ["user"]), (" \n", ["user"]), ("Be brief.", ["system", "user"])])
def test_a_system_prompt_comes_first_or_not_at_all(system: str, roles: list[str]) -> None:
    assert [message["role"] for message in messages_of([Question("a")], system)] == roles


def test_repaints_are_rationed_and_every_event_still_arrives() -> None:
    events = [Content("x") for _ in range(500)]
    every, rationed = Answer(), Answer()
    assert len(list(paced(iter(events), every, 0))) == 500
    assert len(list(paced(iter(events), rationed, 1e9))) == 1
    assert every.content == rationed.content == "x" * 500


def test_the_status_line_counts_what_was_done() -> None:
    usage = Usage(1200, 101, 40, cached_tokens=0, prefill_seconds=0.5, decode_seconds=2.0)
    line = status_line(answer_to(Content("x"), Finished("length", usage)))
    for part in ("1,200 prompt tokens", "101 tokens answered (40 thinking)", "50.0 tokens/s", "0.50 s", "cut"):
        assert part in line
    assert "512 of 2,048" in status_line(answer_to(PrefillProgress(512, 2048)))
