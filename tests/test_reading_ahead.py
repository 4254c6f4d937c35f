"""The next turn, read ahead: the person's own words are all that is left to read, and nobody else notices."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

import mlx_qwen35
from mlx_qwen35 import Qwen, Reply
from mlx_qwen35.asking import chat_request
from mlx_qwen35.reading_ahead import MOST_WISHES, QUIET_SECONDS, ReadingAhead
from mlx_qwen35.runtime import ChatRequest

THINKING: Any = {"think": True, "temperature": 0.0, "max_tokens": 200}
SYSTEM = {"role": "system", "content": "You answer questions about this project."}
TALKATIVE, NEXT = "How do I convert a model?", {"role": "user", "content": "And which Macs can run it?"}
LOOK = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}
LONG_AGO = 3600.0  # seconds of quiet that no test waits for
PATIENCE = 30  # seconds for what another thread does at once


@pytest.fixture(scope="module")
def loaded() -> Iterator[Qwen]:
    with mlx_qwen35.load("demo") as qwen:
        yield qwen


@pytest.fixture
def qwen(loaded: Qwen) -> Iterator[Qwen]:
    """Reads as soon as nobody asks."""
    reading(loaded)._quiet = 0.0
    yield loaded
    finish(loaded)


def reading(qwen: Qwen) -> ReadingAhead:
    found = qwen.runtime._ahead
    assert found is not None
    return found


def finish(qwen: Qwen) -> None:
    """Until all that is wished for is read."""
    deadline = time.monotonic() + PATIENCE
    while reading(qwen)._thread is not None:
        assert time.monotonic() < deadline
        time.sleep(0.005)


def question_starts(qwen: Qwen, messages: Sequence[Any], **options: Any) -> int:
    prompt = qwen.runtime.prompt(chat_request(messages, **{**THINKING, **options}))
    return [turn.start for turn in prompt.turns if turn.role == "user"][-1]


def is_all_but_the_question(qwen: Qwen, reply: Reply, messages: Sequence[Any], **options: Any) -> bool:
    return reply.usage.cached_tokens == question_starts(qwen, messages, **options)


def test_of_the_next_turn_only_the_question_is_left(qwen: Qwen) -> None:
    messages: list[Any] = [SYSTEM, {"role": "user", "content": TALKATIVE}]
    first = qwen.chat(messages, **THINKING)
    assert first.reasoning
    messages += [first.message, NEXT]  # the caller's own list, which the reading does not look at again
    finish(qwen)
    second = qwen.chat(messages, **THINKING)
    assert is_all_but_the_question(qwen, second, messages)
    assert second.usage.rerendered_tokens == 0
    finish(qwen)
    third = [*messages, second.message, {"role": "user", "content": TALKATIVE}]
    assert is_all_but_the_question(qwen, qwen.chat(third, **THINKING), third)
    with mlx_qwen35.load("demo", read_ahead=False) as without:
        without.chat(messages[:2], **THINKING)
        plain = without.chat(messages, **THINKING)
        assert without.runtime.stats().ahead_tokens == 0
    assert plain.usage.cached_tokens < second.usage.cached_tokens
    assert (plain.reasoning, plain.content) == (second.reasoning, second.content)


def test_after_a_tool_loop_its_calls_and_results_are_read_as_well(qwen: Qwen) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "look", "arguments": {}}}
    messages: list[Any] = [
        SYSTEM,
        {"role": "user", "content": "Look, then tell me how to convert a model."},
        {"role": "assistant", "content": "", "reasoning_content": "I should look.", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": "mlx-qwen35 convert MODEL, it says here. " * 4},
    ]
    options = {"tools": [LOOK], "tool_choice": "none"}
    reply = qwen.chat(messages, **THINKING, **options)
    assert reply.reason == "stop"
    finish(qwen)
    messages += [reply.message, NEXT]
    assert is_all_but_the_question(qwen, qwen.chat(messages, **THINKING, **options), messages, **options)


@pytest.mark.parametrize("way", ["chat", "achat"])
def test_a_sessions_next_turn_is_read_and_held(qwen: Qwen, way: str) -> None:
    with qwen.session(f"You are asked by {way}.", **THINKING) as session:
        asked = {"chat": session.chat, "achat": lambda text: asyncio.run(session.achat(text))}[way]
        asked(TALKATIVE)
        finish(qwen)
        starts = question_starts(qwen, [*session.messages, NEXT])
        assert starts in [node.end for node in session.hold.nodes]
        assert asked(NEXT["content"]).usage.cached_tokens == starts


def test_a_folded_conversation_is_read_as_it_was_folded(qwen: Qwen) -> None:
    earlier = [{"role": "user", "content": f"Remember {'this ' * 60}"}, {"role": "assistant", "content": "Yes. " * 60}]
    messages: list[Any] = [SYSTEM, *earlier, *earlier, *earlier, {"role": "user", "content": TALKATIVE}]
    options: Any = {**THINKING, "fold_at": 512}
    reply = qwen.chat(messages, **options)
    assert reply.usage.prompt_tokens <= 512
    finish(qwen)
    second = qwen.chat([*messages, reply.message, NEXT], **options)
    assert second.usage.prompt_tokens - second.usage.cached_tokens < 40  # the question, and how the answer opens


def wishes(qwen: Qwen, leave_after: int | None = None, **options: Any) -> int:
    """How many a chat leaves behind, looked at before they are seen to. leave_after: events that are looked at"""
    reader = reading(qwen)
    finish(qwen)
    reader._quiet = LONG_AGO
    events = qwen.stream([SYSTEM, {"role": "user", "content": TALKATIVE}], **{**THINKING, **options})
    for _ in itertools.islice(events, leave_after):
        pass
    events.close()
    left = len(reader._wishes)
    with reader._changed:
        reader._wishes.clear()
        reader._changed.notify_all()
    return left


def test_only_answers_that_came_to_their_end_are_gone_on_from(qwen: Qwen) -> None:
    assert wishes(qwen) == 1
    assert wishes(qwen, stop=["mlx"]) == 1
    assert wishes(qwen, think=False, max_tokens=4) == 1  # cut, and shown
    assert wishes(qwen, max_tokens=4) == 0  # cut in its thoughts
    assert wishes(qwen, leave_after=5) == 0  # its reader has left
    assert wishes(qwen, tools=[LOOK], tool_choice="required") == 0  # what it thought stays, until its results are in


def test_nothing_is_read_before_it_has_been_quiet(qwen: Qwen) -> None:
    reader = reading(qwen)
    assert QUIET_SECONDS > 0
    reader._quiet = LONG_AGO
    before = qwen.runtime.stats().ahead_tokens
    qwen.chat(TALKATIVE, **THINKING)
    assert len(reader._wishes) == 1
    assert qwen.runtime.stats().ahead_tokens == before
    with reader._changed:
        reader._quiet = 0.0
        reader._changed.notify_all()


def test_many_that_end_at_once_are_read_the_newest_first_and_not_without_bound(qwen: Qwen) -> None:
    reader, rendered = reading(qwen), []
    render = reader._prompt
    reader._quiet = LONG_AGO
    for i in range(MOST_WISHES + 4):
        reader.wish(ChatRequest([{"role": "user", "content": f"Question {i}"}]), None, Reply("An answer. " * 8))

    def noted(request: ChatRequest) -> Any:
        rendered.append(request.messages[0]["content"])
        return render(request)

    with reader._changed:
        reader._prompt, reader._quiet = noted, 0.0
        reader._changed.notify_all()
    finish(qwen)
    reader._prompt = render
    assert rendered == [f"Question {i}" for i in range(MOST_WISHES + 3, 3, -1)]


def test_what_cannot_be_rendered_is_let_go(qwen: Qwen) -> None:
    reading(qwen).wish(ChatRequest([{"role": "nobody", "content": 3}]), None, Reply("x"))
    finish(qwen)
    assert qwen.chat("Hello", max_tokens=2).usage.completion_tokens == 2


def test_a_conversation_at_the_contexts_end_is_let_go() -> None:
    with mlx_qwen35.load("demo", context=256) as qwen:
        reading(qwen)._quiet = 0.0
        room = qwen.runtime.context
        messages = [{"role": "user", "content": "word " * (room // 2)}]
        reading(qwen).wish(ChatRequest(messages), None, Reply("word " * room))
        finish(qwen)
        assert qwen.runtime.stats().ahead_tokens == 0


def test_closing_does_not_wait_for_it() -> None:
    qwen = mlx_qwen35.load("demo")
    reading(qwen)._quiet = LONG_AGO
    qwen.chat(TALKATIVE, **THINKING)
    thread = reading(qwen)._thread
    assert isinstance(thread, threading.Thread)
    qwen.close()
    assert not thread.is_alive()


def test_closing_in_the_middle_of_it_ends_it() -> None:
    qwen = mlx_qwen35.load("demo")
    reading(qwen)._quiet = 0.0
    begun, engine = threading.Event(), qwen.runtime._engine
    window = engine._ahead._window
    engine._ahead._window = lambda row: (begun.set(), window(row))
    reading(qwen).wish(ChatRequest([{"role": "user", "content": "a"}]), None, Reply("word " * 3000))
    assert begun.wait(PATIENCE)
    thread = reading(qwen)._thread
    assert thread is not None
    qwen.close()
    assert not thread.is_alive()
    assert engine.stats().ahead_tokens < 3000
