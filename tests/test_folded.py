"""A conversation that is folded before it is answered: however it is read, and who leaves stops the summary."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

import mlx_qwen35
from mlx_qwen35.chat.events import Event, Finished, PrefillProgress
from mlx_qwen35.chat.folding import summary_tokens
from mlx_qwen35.chat.reply import Gathering, gathered
from mlx_qwen35.errors import RequestError
from mlx_qwen35.qwen import Qwen
from mlx_qwen35.tools.pump import EventPump

LIMIT = 768
TALK: list[dict[str, Any]] = [
    *[{"role": role, "content": "again " * 25} for role in ("user", "assistant")] * 4,
    {"role": "user", "content": "Go on"},
]
ASKED: Any = {"fold_at": LIMIT, "max_tokens": 4, "temperature": 0}
PATIENCE = 60  # seconds until what was left must have stopped; a step takes milliseconds


@pytest.fixture
def endless(tiny_chat: Path) -> Iterator[Qwen]:
    """A model whose answers and summaries end at their limit only."""
    with mlx_qwen35.load(tiny_chat) as loaded:
        yield loaded


def summarising(event: Event | None) -> bool:
    """Whether a part of the summary is written."""
    return isinstance(event, PrefillProgress) and bool(event.summary)


def left_and_read_again(qwen: Qwen) -> Event:
    with closing(qwen.stream(TALK, **ASKED)) as events:
        return next(event for event in events if summarising(event))


def cancelled(qwen: Qwen) -> None:
    async def give_up() -> None:
        task = asyncio.create_task(qwen.achat(TALK, **ASKED))
        while not qwen.stats().answer_tokens:
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(give_up())


def stopped_by_ctrl_c(qwen: Qwen) -> None:
    """As in the terminal chat: its signal handler stops the pump."""
    pump = EventPump(lambda: qwen.stream(TALK, **ASKED))
    next(event for event in pump if summarising(event))
    pump.stop()


@pytest.mark.parametrize("leave", [left_and_read_again, cancelled, stopped_by_ctrl_c])
def test_who_leaves_stops_the_summary(endless: Qwen, leave: Callable[[Qwen], object]) -> None:
    leave(endless)
    until = time.monotonic() + PATIENCE
    while endless.stats().rows and time.monotonic() < until:
        time.sleep(0.01)
    assert endless.stats().rows == 0
    assert 0 < endless.stats().answer_tokens < summary_tokens(LIMIT)
    # What was not finished stands for nothing: the next one who asks gets a whole summary.
    endless.chat(TALK, **ASKED)
    assert endless.stats().answer_tokens > summary_tokens(LIMIT)


def test_progress_tells_of_the_summary_and_then_of_the_answer(endless: Qwen) -> None:
    events = list(endless.stream(TALK, **ASKED))
    told = [event.summary for event in events if isinstance(event, PrefillProgress)]
    first = told.index(None)
    assert told[:first] == sorted(number or 0 for number in told[:first])
    assert told[first - 1] == summary_tokens(LIMIT)
    assert set(told[first:]) == {None}
    assert isinstance(events[-1], Finished)
    assert events[-1].usage.prompt_tokens <= LIMIT
    assert gathered(endless.stream(TALK, **ASKED)).usage.prompt_tokens == events[-1].usage.prompt_tokens


def test_tasks_and_sessions_get_the_same_answer(endless: Qwen) -> None:
    reply = asyncio.run(endless.achat(TALK, **ASKED))  # with a summary; the next ones find it
    with endless.session(messages=TALK[:-1]) as session:
        assert session.fork().chat("Go on", **ASKED).content == reply.content
        assert asyncio.run(session.achat("Go on", **ASKED)).content == reply.content
    with mlx_qwen35.load(endless.runtime.folder) as other, other.session(messages=TALK[:-1]) as session:
        assert session.chat("Go on", **ASKED).content == reply.content


def test_what_is_wrong_is_said_before_anything_is_summarised(endless: Qwen) -> None:
    with pytest.raises(RequestError):
        endless.chat(TALK, fold_at=LIMIT, temperature=-1)
    assert endless.stats().requests == 0


def test_a_model_that_is_closed_meanwhile_ends_the_answer(endless: Qwen) -> None:
    gathering = Gathering()
    for event in endless.stream(TALK, **ASKED):
        gathering.take(event)
        if summarising(event):
            endless.close()
    assert gathering.reply().reason == "cancelled"
