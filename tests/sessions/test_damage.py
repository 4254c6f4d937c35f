"""Damaged and forged session files never answer wrongly."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_qwen35.caches import sealed
from mlx_qwen35.errors import SessionError
from mlx_qwen35.qwen import Qwen
from mlx_qwen35.session import Session
from mlx_qwen35.session_file import _checksum
from tests.sessions.talks import ASKED, fresh


def loaded_or_refused(qwen: Qwen, path: Path) -> Session | None:
    try:
        return qwen.load_session(path)
    except SessionError as error:
        if "\n" in str(error):
            raise
        return None


@settings(max_examples=80)
@given(st.data())
def test_a_damaged_file_gives_its_conversation_or_one_line(
    qwen: Qwen, saved: Path, warned: list[str], tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    content = bytearray(saved.read_bytes())
    header = 8 + int.from_bytes(content[:8], "little")
    kind = data.draw(st.sampled_from(["header", "payload", "cut"]))
    if kind == "cut":
        del content[data.draw(st.integers(0, len(content) - 1)) :]
    else:
        at = data.draw(st.integers(0, header - 1) if kind == "header" else st.integers(header, len(content) - 1))
        content[at] ^= 1 << data.draw(st.integers(0, 7))
    path = tmp_path_factory.getbasetemp() / "damaged.session"
    path.write_bytes(content)
    warned.clear()
    whole = qwen.load_session(saved)
    assert not warned
    session = loaded_or_refused(qwen, path)
    if session is None:
        assert kind != "payload"
        return
    assert (session.messages, session.options, session.think) == (whole.messages, whole.options, whole.think)
    assert len(warned) == 1
    assert session._ids == ()
    session.close()
    whole.close()


def test_an_answer_after_damage_is_the_right_one(saved: Path, tmp_path: Path) -> None:
    content = bytearray(saved.read_bytes())
    content[-1000] ^= 64
    (tmp_path / "damaged.session").write_bytes(content)
    with fresh() as one, fresh(warn=lambda _: None) as other:
        wanted, reply = one.load_session(saved).chat(ASKED[2]), other.load_session(tmp_path / "damaged.session")
        again = reply.chat(ASKED[2])
    assert (again.content, again.reasoning) == (wanted.content, wanted.reasoning)
    assert again.usage.cached_tokens == 0


def forged(saved: Path, path: Path, metadata: dict[str, Any], drop: str = "") -> Path:
    """The file with other metadata and without some tensors, its checksums right."""
    with sealed.opened(saved) as (file, size):
        raw = sealed.raw_header(file, saved, size, 1 << 30)
        header = sealed.checked_header(raw, saved, size)
        blobs = sealed.payload(file, size, raw, header)
    kept = {name: blob for name, blob in blobs.items() if not drop or not name.startswith(drop)}
    stated = {**header.metadata, **metadata}
    stated.pop("checksum")
    sealed.write(path, sealed.seal(stated, kept))
    return path


@pytest.mark.parametrize(
    ("metadata", "drop", "words"),
    [
        ({"ends": "[5, 5]"}, "", "spans"),
        ({"ends": "[1000000]"}, "", "spans"),
        ({"ends": "[true]"}, "", "spans end"),
        ({"ends": "[[["}, "", "spans end"),
        ({"ends": "[7, 20]"}, "", "arrays"),
        ({}, "0.checkpoint", "arrays"),
        ({}, "0.segment.0.1", "arrays"),
        ({}, "token_ids", "token ids"),
    ],
)
def test_a_forged_prefix_is_not_used(
    saved: Path, tmp_path: Path, metadata: dict[str, Any], drop: str, words: str
) -> None:
    warned: list[str] = []
    with fresh(warn=warned.append) as qwen:
        session = qwen.load_session(forged(saved, tmp_path / "forged.session", metadata, drop))
        assert session.messages
        assert qwen.stats().prefix_bytes == 0
    assert len(warned) == 1
    assert words in warned[0]


@pytest.mark.parametrize(
    "said",
    [
        {},
        {"messages": 3, "tools": None, "think": None, "options": {}},
        {"messages": [{"role": "king", "content": ""}], "tools": None, "think": None, "options": {}},
        {"messages": [], "tools": [3], "think": None, "options": {}},
        {"messages": [], "tools": None, "think": "yes", "options": {}},
        {"messages": [], "tools": None, "think": None, "options": []},
        {"messages": [], "tools": None, "think": None, "options": {"temprature": 1}},
        {"messages": [], "tools": None, "think": None, "options": {"logit_bias": [[1]]}},
        {"messages": [], "tools": None, "think": None, "options": {"logit_bias": [["1", 2]]}},
        {"messages": [], "tools": None, "think": None, "options": {"temperature": [1]}},
        {"messages": [], "tools": None, "think": None, "options": {"think": True}},
        {"messages": [], "tools": None, "think": None, "options": {"messages": "x"}},
        {"messages": [], "tools": None, "think": None, "options": {"tools": 1}},
        {"messages": [], "tools": None, "think": None, "options": {"stop": 5}},
        {"messages": [], "tools": None, "think": None, "options": {"stop": {"a": 1}}},
    ],
)
def test_a_forged_conversation_is_one_line(qwen: Qwen, saved: Path, tmp_path: Path, said: Any) -> None:
    text = json.dumps(said)
    path = forged(saved, tmp_path / "forged.session", {"conversation": text, "conversation_checksum": _checksum(text)})
    with pytest.raises(SessionError, match="is a damaged session") as error:
        qwen.load_session(path)
    assert "\n" not in str(error.value)
