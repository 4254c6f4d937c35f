"""Fixtures that several packages' tests share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import mlx.core as mx
import pytest
from hypothesis import HealthCheck, settings

from mlx_qwen35.metal_kernels.operations import override, using
from mlx_qwen35.metal_kernels.selection import Selection
from tests.metal_emulator.fixtures import metal, pytest_runtest_setup, pytest_terminal_summary  # noqa: F401
from tests.support.tiny_chat import write_tiny_chat

# A busy machine must not turn a property red: what is slow is caught by the suite's own time limit.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")

# References are float32 on a CPU; a Mac runs the same tests on its CPU too.
mx.set_default_device(mx.cpu)


@pytest.fixture(scope="session", autouse=True)
def fresh_choice_of_kernels() -> Iterator[None]:
    """What one run measured, on a GPU or emulated, is neither another's nor the user's."""
    with using(Selection(override())):
        yield


@pytest.fixture(scope="session")
def tiny_chat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random checkpoint to chat with; treat it as read-only."""
    return write_tiny_chat(tmp_path_factory.mktemp("tiny") / "chat")


@pytest.fixture
def clean_environment(tmp_path: Path) -> dict[str, str]:
    """Environment of a subprocess that sees no home, no cache, no network and no terminal settings of this machine."""
    kept = ("PATH", "LD_PRELOAD", "LD_LIBRARY_PATH", "VIRTUAL_ENV", "LANG", "TMPDIR")
    home = tmp_path / "home"
    home.mkdir()
    return {name: os.environ[name] for name in kept if name in os.environ} | {
        "HOME": str(home),
        "XDG_STATE_HOME": str(home / "state"),
        "XDG_CACHE_HOME": str(home / "cache"),
        "HF_HOME": str(home / "huggingface"),
        # Nobody listens there, so that a test that forgets its fake hub fails at once.
        "HF_ENDPOINT": "http://127.0.0.1:9",
        "OPENBLAS_NUM_THREADS": "1",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(Path(__file__).parents[1]),
        "PYTHONIOENCODING": "utf-8",
    }
