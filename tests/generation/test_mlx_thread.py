"""The one thread that owns MLX: order, errors, and how it ends."""

from __future__ import annotations

import subprocess
import sys
import threading

import pytest

from mlx_qwen35.errors import RequestError
from mlx_qwen35.generation.mlx_thread import MLXThread


def test_all_work_runs_on_one_thread_in_the_order_it_came() -> None:
    thread, seen = MLXThread(), []
    for i in range(100):
        thread.post(lambda i=i: seen.append((i, threading.get_ident())))
    ident = thread.call(threading.get_ident)
    assert seen == [(i, ident) for i in range(100)]
    assert ident != threading.get_ident()


def test_an_error_reaches_the_caller_and_the_thread_lives_on() -> None:
    thread = MLXThread()
    with pytest.raises(ZeroDivisionError):
        thread.call(lambda: 1 // 0)
    assert thread.call(lambda: 2) == 2


def test_a_job_may_call_from_the_thread_itself() -> None:
    thread = MLXThread()
    assert thread.call(lambda: thread.call(lambda: "inner")) == "inner"


def test_a_closed_thread_refuses_instead_of_hanging() -> None:
    thread = MLXThread()
    thread.close()
    with pytest.raises(RequestError, match="closed"):
        thread.call(lambda: 1)


def test_leaving_while_work_runs_ends_quietly() -> None:
    """MLX's threads outliving the interpreter end in std::terminate, and exit status 134."""
    program = """
import mlx.core as mx
from mlx_qwen35.generation.mlx_thread import MLXThread

def endless(thread):
    mx.eval(mx.ones((64, 64)) @ mx.ones((64, 64)))
    if not thread.closing:
        thread.post(lambda: endless(thread))

threads = [MLXThread() for _ in range(3)]
for t in threads:
    t.post(lambda t=t: endless(t))
print([t.call(lambda: 1) for t in threads])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
