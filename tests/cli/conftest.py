"""Runs the real command in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def run(clean_environment: dict[str, str], tmp_path: Path) -> Run:
    """`run("generate", "Hello", stdin="...", NAME="value")`: stdin is empty and no terminal unless given."""

    def call(*arguments: str, stdin: str | bytes = "", **environment: str) -> subprocess.CompletedProcess[str]:
        data = stdin.encode() if isinstance(stdin, str) else stdin
        done = subprocess.run(
            [sys.executable, "-m", "mlx_qwen35", *arguments],
            input=data,
            capture_output=True,
            env={**clean_environment, **environment},
            cwd=tmp_path,
            timeout=120,
        )
        return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())

    return call
