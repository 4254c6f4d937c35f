"""What pytest gets from the emulator: the `metal` fixture, the skip of `@pytest.mark.metal`, one loud line about it.

On a Mac the same tests run on its GPU instead.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import NoReturn, cast

import mlx.core as mx
import pytest

from tests.metal_emulator.options import SCHEDULES, Options, Schedule
from tests.metal_emulator.session import Session, emulated_metal
from tests.metal_emulator.toolchain import why_not

LOUD = "METAL KERNELS NOT TESTED"


def skip(reason: str) -> NoReturn:
    """Skip, in words that the last line of the run looks for."""
    pytest.skip(f"{LOUD}: {reason}")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Kernel tests run on a GPU, or emulated, or say why not."""
    if item.get_closest_marker("metal") and not mx.metal.is_available() and (reason := why_not()):
        skip(reason)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """One line for all of them, also where pytest shows no reasons."""
    # From the reports: tests may run in processes of their own, whose memory this one does not see.
    if any(LOUD in str(report.longrepr) for report in terminalreporter.getreports("skipped")):
        terminalreporter.write_line(f"{LOUD}: {why_not()}", red=True, bold=True)


def default_schedule() -> Schedule:
    """MLX_QWEN35_METAL_SCHEDULE: forward, reverse or random. The order of threads must not matter to any test."""
    named = os.environ.get("MLX_QWEN35_METAL_SCHEDULE", "forward")
    if named not in SCHEDULES:
        raise pytest.UsageError(f"MLX_QWEN35_METAL_SCHEDULE is {named}; it can be {', '.join(SCHEDULES)}")
    return cast(Schedule, named)


@pytest.fixture
def metal(request: pytest.FixtureRequest) -> Iterator[Session | None]:
    """The session whose launches the test may count; None on a Mac, where the GPU runs them and nothing is recorded.

    Parametrize it indirectly with SCHEDULES to run a test in every order of threads.
    """
    if mx.metal.is_available():
        before = mx.default_device()
        mx.set_default_device(mx.gpu)
        yield None
        mx.set_default_device(before)
        return
    if reason := why_not():
        skip(reason)
    with emulated_metal(Options(schedule=getattr(request, "param", None) or default_schedule())) as session:
        yield session
