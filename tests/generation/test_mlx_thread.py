"""The one thread that owns MLX: order, errors, and what becomes of work that nobody reads."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from mlx_qwen35.generation.mlx_thread import MLXThread


def counting(until: int, seen: list[int]) -> Iterator[int]:
    for i in range(until):
        seen.append(i)
        yield i


def wait_for(condition) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "did not come to pass within 20 s"
        time.sleep(0.01)


def test_all_work_runs_on_one_thread() -> None:
    thread = MLXThread()
    names = {thread.call(threading.get_ident) for _ in range(3)} | set(
        thread.stream(lambda: iter([threading.get_ident()]))
    )
    assert len(names) == 1
    assert threading.get_ident() not in names


def test_items_arrive_in_order_past_the_waiting_limit() -> None:
    assert list(MLXThread().stream(lambda: counting(500, []))) == list(range(500))


def test_an_error_reaches_the_caller_and_the_thread_lives_on() -> None:
    thread = MLXThread()

    def failing() -> Iterator[int]:
        yield 1
        raise ValueError("inside")

    stream = thread.stream(failing)
    assert next(stream) == 1
    with pytest.raises(ValueError, match="inside"):
        next(stream)
    assert thread.call(lambda: 2) == 2


def test_closing_stops_the_work() -> None:
    thread, seen = MLXThread(), []
    stream = thread.stream(lambda: counting(10**9, seen))
    assert next(stream) == 0
    stream.close()
    assert thread.call(lambda: "free") == "free"
    stopped_at = len(seen)
    time.sleep(0.05)
    assert len(seen) == stopped_at


def test_an_abandoned_reader_does_not_let_the_work_run_ahead() -> None:
    thread, seen = MLXThread(), []
    stream = thread.stream(lambda: counting(10**9, seen))
    next(stream)
    wait_for(lambda: len(seen) > 10)
    time.sleep(0.05)
    assert len(seen) < 100
    stream.close()


def test_leaving_while_an_answer_runs_ends_quietly() -> None:
    """MLX's threads outliving the interpreter end in std::terminate, and exit status 134."""
    program = """
import mlx.core as mx
from mlx_qwen35.generation.mlx_thread import MLXThread

def endless():
    while True:
        x = mx.ones((64, 64)) @ mx.ones((64, 64))
        mx.eval(x)
        yield 1

threads = [MLXThread() for _ in range(3)]
streams = [t.stream(endless) for t in threads]
print([next(s) for s in streams])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
