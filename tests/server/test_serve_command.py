"""`mlx-qwen35 serve` as people start and stop it: a process of its own."""

from __future__ import annotations

import http.client
import json
import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mlx_qwen35.options import GIB

Start = Callable[..., tuple["subprocess.Popen[str]", int]]


@pytest.fixture
def start(clean_environment: dict[str, str], tmp_path: Path) -> Iterator[Start]:
    """`process, port = start("--log", NAME="value")`: returns when it answers."""
    processes: list[subprocess.Popen[str]] = []

    def call(*options: str, **environment: str) -> tuple[subprocess.Popen[str], int]:
        arguments = [sys.executable, "-m", "mlx_qwen35", "serve", "demo", "--port", "0", "--disk", "none", *options]
        process = subprocess.Popen(
            arguments, stderr=subprocess.PIPE, text=True, env={**clean_environment, **environment}, cwd=tmp_path
        )
        processes.append(process)
        assert process.stderr is not None
        for line in process.stderr:
            if found := re.search(r"answers at http://127\.0\.0\.1:(\d+)/v1", line):
                return process, int(found.group(1))
        raise AssertionError("it ended before it answered")

    yield call
    for process in processes:
        process.kill()
        process.wait()


def ask(port: int, question: str = "What is 3 + 4?", **headers: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    body = {"messages": [{"role": "user", "content": question}], "temperature": 0}
    connection.request(
        "POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json", **headers}
    )
    answer = connection.getresponse()
    return answer.status, answer.read()


def test_it_answers_logs_no_content_and_ends_when_told(start: Start) -> None:
    process, port = start("--log", MLX_QWEN35_API_KEY="sesame-open")
    assert ask(port)[0] == 401
    status, body = ask(port, Authorization="Bearer sesame-open")
    assert status == 200
    assert json.loads(body)["model"] == "demo"
    process.send_signal(signal.SIGTERM)
    _, rest = process.communicate(timeout=60)
    assert process.returncode == 0  # everything was closed in order
    assert "POST /v1/chat/completions 200" in rest
    assert "POST (other) 401" in rest
    assert "3 + 4" not in rest
    assert "sesame" not in rest
    assert "Traceback" not in rest


def test_earlier_texts_keep_to_the_memory_they_were_given(start: Start) -> None:
    _, port = start("--prefix-memory", "0.001", "--no-read-ahead")
    for number in range(8):
        assert ask(port, f"What is {number} + 4?")[0] == 200
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=60) as answer:
        numbers = dict(line.rsplit(" ", 1) for line in answer.read().decode().splitlines() if line[0] != "#")
    assert 0 < float(numbers["mlx_qwen35_prefix_cache_bytes"]) <= 0.001 * GIB
    assert float(numbers["mlx_qwen35_evictions_total"]) > 0


def test_an_interrupt_ends_it_quietly(start: Start) -> None:
    process, _ = start()
    process.send_signal(signal.SIGINT)
    _, rest = process.communicate(timeout=60)
    assert process.returncode in (0, 130)
    assert "Traceback" not in rest


def test_a_port_in_use_is_one_line(start: Start, clean_environment: dict[str, str]) -> None:
    _, port = start()
    again = subprocess.run(
        [sys.executable, "-m", "mlx_qwen35", "serve", "demo", "--port", str(port)],
        capture_output=True,
        text=True,
        env=clean_environment,
        timeout=60,
    )
    assert again.returncode == 2
    assert again.stderr.count("\n") == 1
    assert f"port {port}" in again.stderr
