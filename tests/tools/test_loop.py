"""The loop on the demo model: it calls, is answered, and answers; refused, stopped and endless calls end well."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pytest

import mlx_qwen35
from mlx_qwen35.chat.events import Content, Event, Finished
from mlx_qwen35.requests import ChatRequest
from mlx_qwen35.tools.loop import OverRequest, OverSession, Said, answer_with_tools
from mlx_qwen35.tools.tool import Call, Step, Tool, Verdict
from mlx_qwen35.tools.toolbox import STOPPED, Toolbox

QUESTION = "What is the weather in Paris and Rome?"  # two calls
CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}


@pytest.fixture(scope="module")
def qwen() -> Iterator[mlx_qwen35.Qwen]:
    with mlx_qwen35.load("demo") as loaded:
        yield loaded


def box(ran: list[str]) -> Toolbox:
    def run(arguments: Mapping[str, Any]) -> str:
        ran.append(arguments["city"])
        return '{"degrees": 7, "sky": "clear"}'

    return Toolbox([Tool("get_weather", "Get the weather.", CITY, run, effect=True)])


def yes(tool: Tool, call: Call) -> Verdict:
    return "yes"


def request(tools: Toolbox, **options: Any) -> ChatRequest:
    messages = [{"role": "user", "content": QUESTION}]
    return ChatRequest(
        messages, tools.declarations(), False, sampling={"temperature": 0.0}, **{"max_tokens": 80, **options}
    )


def text_of(events: list[Event | Step]) -> str:
    return "".join(event.text for event in events if isinstance(event, Content))


def roles(said: list[dict[str, Any]]) -> list[str]:
    return [message["role"] for message in said]


def gathered(events: list[Event | Step]) -> list[dict[str, Any]]:
    said = Said()
    for event in events:
        said.take(event)
    return said.messages()


def test_over_a_request_and_over_a_session_alike(qwen: mlx_qwen35.Qwen) -> None:
    ran: list[str] = []
    tools = box(ran)
    events = list(answer_with_tools(OverRequest(qwen.runtime, request(tools)), tools, yes))
    assert ran == ["Paris", "Rome"]
    assert "degrees 7" in text_of(events)
    assert isinstance(events[-1], Finished)
    said = gathered(events)
    assert roles(said) == ["assistant", "tool", "tool", "assistant"]
    assert [m["tool_call_id"] for m in said[1:3]] == [call["id"] for call in said[0]["tool_calls"]]

    with qwen.session(tools=tools.declarations(), think=False, temperature=0, max_tokens=80) as session:
        again = list(answer_with_tools(OverSession(session, QUESTION), tools, yes))
        assert text_of(again) == text_of(events)
        assert roles(session.messages) == ["user", *roles(said)]
        assert session.chat("Who are you?").reason in ("stop", "length", "tool_calls"), "it can be gone on with"


def test_a_person_who_refuses_is_obeyed(qwen: mlx_qwen35.Qwen) -> None:
    ran: list[str] = []
    tools = box(ran)
    events = list(
        answer_with_tools(OverRequest(qwen.runtime, request(tools)), tools, lambda tool, call: "no", rounds=1)
    )
    assert not ran
    assert {step.approval for step in events if isinstance(step, Step)} == {"refused"}
    assert isinstance(events[-1], Finished)


def test_a_model_that_calls_for_ever_is_ended(qwen: mlx_qwen35.Qwen) -> None:
    """Each answer is compelled to call; the one after the last round may not."""
    ran: list[str] = []
    tools = box(ran)

    class Compelled(OverRequest):
        def answer(self, last: bool) -> Any:
            if not last:
                messages = [*request(tools).messages, *self._said.messages()]
                compelled = request(tools, tool_choice="required", parallel_tool_calls=False)
                events = qwen.runtime.chat(ChatRequest(**{**vars(compelled), "messages": messages}))
                for event in events:
                    self._said.take(event)
                    yield event
            else:
                yield from super().answer(last)

    events = list(answer_with_tools(Compelled(qwen.runtime, request(tools)), tools, yes, rounds=3))
    assert sum(isinstance(event, Step) for event in events) == 3
    assert sum(isinstance(event, Finished) for event in events) == 4
    assert isinstance(events[-1], Finished)
    assert not gathered(events)[-1].get("tool_calls")


def test_stopped_or_closed_half_way_every_call_has_its_end(qwen: mlx_qwen35.Qwen) -> None:
    ran: list[str] = []
    tools = box(ran)
    with qwen.session(tools=tools.declarations(), think=False, temperature=0, max_tokens=80) as session:
        stopped = list(answer_with_tools(OverSession(session, QUESTION), tools, yes, stopped=lambda: len(ran) == 1))
        assert ran == ["Paris"]
        assert roles(session.messages) == ["user", "assistant", "tool", "tool"]
        assert session.messages[-1]["content"] == STOPPED
        assert roles(gathered(stopped)) == ["assistant", "tool", "tool"]
    with qwen.session(tools=tools.declarations(), think=False, temperature=0, max_tokens=80) as session:
        events = answer_with_tools(OverSession(session, QUESTION), tools, yes)
        assert next(event for event in events if isinstance(event, Step)).text
        events.close()
        assert roles(session.messages) == ["user", "assistant", "tool", "tool"]
        assert session.messages[-1]["content"] == STOPPED


def test_an_answer_stopped_in_its_midst_can_be_gone_on_with(qwen: mlx_qwen35.Qwen) -> None:
    tools = box([])
    said = Said()
    assert said.messages() == []
    said.take(Content("Half a"))
    said.take(Content(" sentence"))
    assert said.messages() == [{"role": "assistant", "content": "Half a sentence"}]
    cut = list(answer_with_tools(OverRequest(qwen.runtime, request(tools, max_tokens=40)), tools, yes))
    steps = [step for step in cut if isinstance(step, Step)]
    assert all(step.text == STOPPED for step in steps), "an answer that was cut off is not acted on"
