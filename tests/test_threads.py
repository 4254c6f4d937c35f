"""Programs ask from threads of their own, one a request: none may leave anything behind, least of all MLX's."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import mlx.core as mx
import psutil
import pytest

import mlx_qwen35
from mlx_qwen35.qwen import Qwen
from tests.support.waiting import wait_for

QUESTION = "What is 2 + 4?"
NUMBER = {"type": "object", "properties": {"sum": {"type": "integer"}}, "required": ["sum"]}


@pytest.fixture(scope="module")
def qwen() -> Iterator[Qwen]:
    with mlx_qwen35.load("demo") as loaded:
        yield loaded


def with_session(qwen: Qwen, folder: Path) -> None:
    with qwen.session("Be brief.") as session:
        session.chat(QUESTION)
        with session.fork() as other:
            other.chat("And 3 + 4?")
        session.save(folder / f"{threading.get_ident()}.session")
    with qwen.load_session(folder / f"{threading.get_ident()}.session") as loaded:
        loaded.chat("And 5 + 6?")


def refused(qwen: Qwen, _: Path) -> None:
    with pytest.raises(mlx_qwen35.UserError):
        qwen.chat(QUESTION, max_tokens=-1)


WAYS: dict[str, Callable[[Qwen, Path], object]] = {
    "chat": lambda qwen, _: qwen.chat(QUESTION),
    "thinking, drawn": lambda qwen, _: qwen.chat(QUESTION, think=True, thinking_budget=8, seed=1, logprobs=2),
    "penalties": lambda qwen, _: qwen.chat(QUESTION, temperature=0, presence_penalty=1.0, logit_bias={5: 1.0}),
    "schema": lambda qwen, _: qwen.chat(QUESTION, schema=NUMBER),
    "text": lambda qwen, _: qwen.generate("Once upon", max_tokens=5),
    "left early": lambda qwen, _: next(iter(qwen.stream(QUESTION))),
    "refused": refused,
    "task": lambda qwen, _: asyncio.run(qwen.achat(QUESTION)),
    "session": with_session,
}


def ask_in_a_thread(ask: Callable[[], object]) -> None:
    with ThreadPoolExecutor(1) as pool:
        pool.submit(ask).result()


def nothing_is_read_ahead() -> bool:
    return all(thread.name != "reading-ahead" for thread in threading.enumerate())


def os_threads() -> int:
    """Of this process, those that Python does not know among them."""
    mx.clear_cache()  # starts the thread of each stream there is, if no computation has
    return psutil.Process().num_threads()


@pytest.mark.parametrize("way", WAYS)
def test_a_thread_that_asks_leaves_no_thread_behind(qwen: Qwen, tmp_path: Path, way: str) -> None:
    def ask() -> None:
        WAYS[way](qwen, tmp_path)

    ask_in_a_thread(ask)  # what is started once, such as MLX's pool for files, may stay
    wait_for(nothing_is_read_ahead)
    before = os_threads()
    for _ in range(4):
        ask_in_a_thread(ask)
    wait_for(nothing_is_read_ahead)
    wait_for(lambda: os_threads() <= before)
