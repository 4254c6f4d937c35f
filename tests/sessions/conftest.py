"""The demo model, and a conversation with it that was saved."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import mlx_qwen35
from mlx_qwen35.qwen import Qwen
from tests.sessions.talks import ASKED, GREEDY


@pytest.fixture(scope="module")
def warned() -> list[str]:
    return []


@pytest.fixture(scope="module")
def qwen(warned: list[str]) -> Iterator[Qwen]:
    with mlx_qwen35.load("demo", warn=warned.append) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def saved(qwen: Qwen, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A session of two turns with thinking."""
    path = tmp_path_factory.mktemp("sessions") / "talk.session"
    with qwen.session("Be brief.", think=True, **GREEDY) as session:
        for question in ASKED[:2]:
            session.chat(question)
        session.save(path)
    return path
