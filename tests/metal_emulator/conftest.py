"""The emulator's own tests need the emulator, on a Mac too."""

from __future__ import annotations

import pytest

from tests.metal_emulator.fixtures import skip
from tests.metal_emulator.toolchain import why_not


@pytest.fixture(autouse=True)
def emulator() -> None:
    if reason := why_not():
        skip(reason)
