"""What open sessions hold stays; what closed ones held gives way."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest

import mlx_qwen35
from mlx_qwen35.errors import SessionError
from mlx_qwen35.qwen import Qwen
from tests.sessions.talks import ASKED, GREEDY, fresh, held_nodes, settles_at


def test_an_open_session_survives_pressure_and_a_closed_one_gives_way() -> None:
    def press(qwen: Qwen, word: str) -> None:
        evicted = qwen.stats().evictions
        for i in range(6):
            qwen.generate(f"{word} number {i}", max_tokens=1)
        assert qwen.stats().evictions > evicted

    # A checkpoint of the demo takes a third of this.
    with fresh(prefix_bytes=1 << 20) as qwen:
        session = qwen.session("Be brief.", think=True, **GREEDY)
        session.chat(ASKED[0])
        press(qwen, "First")
        fork = session.fork()
        kept = session.chat(ASKED[1]).usage
        assert kept.cached_tokens > 0
        assert "make room" not in kept.cache_note
        session.close()
        press(qwen, "Second")
        assert fork.chat(ASKED[1]).usage.cached_tokens >= kept.cached_tokens
        fork.close()
        press(qwen, "Third")
        assert qwen.stats().prefix_bytes <= 1 << 20
        again = qwen.chat(fork.messages, max_tokens=1).usage
        assert again.cached_tokens == 0
        assert "make room" in again.cache_note


def test_loaded_sessions_share_the_memory_and_the_first_give_way(
    qwen: Qwen, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [tmp_path / f"{i}.session" for i in range(4)]
    for i, path in enumerate(paths):
        with qwen.session(f"Your number is {i}.", **GREEDY) as session:
            session.chat(ASKED[0])
            session.save(path)
    budget = 2 * max(path.stat().st_size for path in paths)
    monkeypatch.setattr("mlx_qwen35.runtime.cache_bytes", lambda _: budget)
    with fresh() as small:
        loaded = []
        for path in paths:
            loaded.append(small.load_session(path))
            assert small.stats().prefix_bytes <= budget
        assert loaded[-1].chat(ASKED[1], max_tokens=1).usage.cached_tokens > 0
        assert "make room" in loaded[0].chat(ASKED[1], max_tokens=1).usage.cache_note


def test_sessions_give_way_to_live_sequences_where_memory_runs_out(tiny_chat: Path) -> None:
    with mlx_qwen35.load(tiny_chat) as qwen:
        session = qwen.session(max_tokens=4)
        session.chat("hello " * 100)
        engine = qwen.runtime.prefixes._engine
        assert held_nodes(qwen) > 0
        engine.with_prefixes(16, lambda store, _: store.shrink(0))
        assert qwen.stats().prefix_bytes > 0
        engine.with_prefixes(16, lambda store, _: store.squeeze(0))
        assert qwen.stats().prefix_bytes == 0
        assert session.chat("again").usage.completion_tokens == 4


def test_closing_and_forgetting_let_go(qwen: Qwen) -> None:
    gc.collect()
    before = held_nodes(qwen)
    session = qwen.session("Let go of this.", **GREEDY)
    session.chat(ASKED[0])
    assert held_nodes(qwen) > before
    fork = session.fork()
    session.close()
    session.close()
    assert held_nodes(qwen) > before
    del fork
    gc.collect()
    assert settles_at(qwen, before)
    with pytest.raises(SessionError, match="closed"):
        session.chat("Hello?")
    assert len(session.messages) == 3
