"""Sessions are conversations: forks go their own way, and what is no question changes nothing."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

import mlx_qwen35
from mlx_qwen35.chat.events import Event
from mlx_qwen35.chat.reply import Gathering
from mlx_qwen35.errors import RequestError, SessionError
from mlx_qwen35.qwen import Qwen
from mlx_qwen35.session import Session
from tests.sessions.talks import ASKED, GREEDY, fresh


def test_a_session_is_a_conversation(qwen: Qwen) -> None:
    messages: list[dict[str, Any]] = [{"role": "system", "content": "Be brief."}]
    with qwen.session("Be brief.", think=True, **GREEDY) as session:
        for question in ASKED:
            messages.append({"role": "user", "content": question})
            reply, apart = session.chat(question), qwen.chat(messages, think=True, **GREEDY)
            assert (reply.content, reply.reasoning) == (apart.content, apart.reasoning)
            messages.append(apart.message)
        assert session.messages == messages
        assert session.usage.completion_tokens > reply.usage.completion_tokens
        session.messages.clear()
        assert session.messages == messages


def test_all_ways_of_asking_a_session_give_the_same_turn(qwen: Qwen) -> None:
    def events_of(session: Session) -> list[dict[str, Any]]:
        list(session.stream(ASKED[0]))
        return session.messages

    async def awaited(session: Session) -> list[dict[str, Any]]:
        await session.achat(ASKED[0])
        return session.messages

    async def astreamed(session: Session) -> list[dict[str, Any]]:
        async for _ in session.astream({"role": "user", "content": ASKED[0]}):
            pass
        return session.messages

    with qwen.session(**GREEDY) as session:
        wanted = (session.chat(ASKED[0]), session.messages)[1]
    assert events_of(qwen.session(**GREEDY)) == wanted
    assert asyncio.run(awaited(qwen.session(**GREEDY))) == wanted
    assert asyncio.run(astreamed(qwen.session(**GREEDY))) == wanted


def test_fork_then_diverge_equals_two_separate_runs() -> None:
    def turns(qwen: Qwen, *questions: str) -> list[dict[str, Any]]:
        with qwen.session(think=True, **GREEDY) as session:
            for question in questions:
                session.chat(question)
            return session.messages

    with fresh() as one:
        apart = [turns(one, *ASKED), turns(one, ASKED[0], ASKED[2], ASKED[1])]
    with fresh() as other, other.session(think=True, **GREEDY) as session:
        session.chat(ASKED[0])
        fork = session.fork()
        ids = [session._ids, fork._ids]
        for ours, theirs in zip(ASKED[1:], reversed(ASKED[1:])):
            session.chat(ours)
            assert fork.chat(theirs).usage.cached_tokens > 0
        assert ids[0] == ids[1]
        assert [session.messages, fork.messages] == apart


@pytest.mark.parametrize("calls", [None, [], [{"function": {"name": "f", "arguments": {}}}]])
def test_a_tool_result_without_a_call_to_answer_is_one_line(qwen: Qwen, calls: Any) -> None:
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello", "tool_calls": calls}]
    session = qwen.session(messages=messages)
    for call in ("call_1", {"function": {"name": "f"}}):
        with pytest.raises(RequestError, match="its calls are none"):
            session.add_tool_result(call, "x")
    with pytest.raises(RequestError, match="The call is a int"):
        session.add_tool_result(5, "x")  # pyright: ignore[reportArgumentType]


def test_what_is_no_question_is_one_line(qwen: Qwen) -> None:
    with pytest.raises(RequestError, match="think is of a whole conversation"):
        qwen.session().chat("Hello", think=True)  # pyright: ignore[reportCallIssue]
    for ask in (qwen.session().chat, qwen.session().stream, qwen.session().astream):
        for question in (5, ["Hello"]):
            with pytest.raises(RequestError, match="The question is a"):
                ask(question)  # pyright: ignore[reportArgumentType]
    for messages in (5, [5], {"role": "user"}):
        with pytest.raises(RequestError, match="messages"):
            qwen.session("Be brief.", messages=messages)  # pyright: ignore[reportArgumentType]


def test_an_interrupted_chat_leaves_the_session_free(qwen: Qwen, monkeypatch: pytest.MonkeyPatch) -> None:
    class Interrupted(Gathering):
        def take(self, event: Event) -> None:
            raise KeyboardInterrupt

    session = qwen.session(**GREEDY)
    with monkeypatch.context() as patch:
        patch.setattr("mlx_qwen35.chat.reply.Gathering", Interrupted)
        with pytest.raises(KeyboardInterrupt) as interrupt:
            session.chat(ASKED[0])
    assert session.messages == []
    assert session.chat(ASKED[0]).content
    del interrupt  # held until here: its traceback knows the frame that was reading


def test_a_turn_that_does_not_end_leaves_the_session_as_it_was(tiny_chat: Path) -> None:
    with mlx_qwen35.load(tiny_chat) as qwen, qwen.session("Be brief.", temperature=0) as session:
        session.chat("hello", max_tokens=5)
        before, ids = session.messages, session._ids
        stream = session.stream("more", max_tokens=30_000)
        next(stream)
        for change in (session.fork, lambda: session.save("x"), lambda: session.chat("no")):
            with pytest.raises(SessionError, match="is answering"):
                change()
        stream.close()  # pyright: ignore[reportAttributeAccessIssue]

        async def cancelled() -> None:
            task = asyncio.create_task(session.achat("more", max_tokens=30_000))
            while not qwen.stats().rows:
                await asyncio.sleep(0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

        asyncio.run(cancelled())
        with pytest.raises(RequestError):
            session.chat("hello", max_tokens=0)
        assert (session.messages, session._ids) == (before, ids)
        assert session.chat("more", max_tokens=5).usage.completion_tokens == 5


def test_tool_results_belong_to_calls_of_the_last_answer(qwen: Qwen) -> None:
    tool = {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "The weather in a city.",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        },
    }
    with qwen.session(tools=[tool], think=False, **GREEDY) as session:
        with pytest.raises(RequestError, match="made no call"):
            session.add_tool_result("call_1", "x")
        (call,) = session.chat("What is the weather in Paris?").tool_calls
        with pytest.raises(RequestError, match="made no call 'other'"):
            session.add_tool_result("other", "x")
        with pytest.raises(RequestError, match="give text"):
            session.add_tool_result(call, {"sky": "blue"})  # pyright: ignore[reportArgumentType]
        session.add_tool_result(call, "Sunny, 21 degrees.")
        reply = session.chat()
        assert reply.content
        assert reply.usage.cached_tokens > reply.usage.prompt_tokens // 2
        assert [message["role"] for message in session.messages] == ["user", "assistant", "tool", "assistant"]
