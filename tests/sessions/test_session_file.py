"""Saved sessions go on in another process, with nothing computed again."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mlx_qwen35.caches import sealed
from mlx_qwen35.errors import SessionError
from mlx_qwen35.qwen import Qwen
from tests.sessions.talks import ASKED, GREEDY, fresh

RESUME = """
import json, sys, warnings
import mlx_qwen35
warned = []
with mlx_qwen35.load("demo", warn=warned.append) as qwen:
    session = qwen.load_session(sys.argv[1])
    reply = session.chat(sys.argv[2])
    print(json.dumps({"message": reply.message, "cached": reply.usage.cached_tokens,
                      "prompt": reply.usage.prompt_tokens, "messages": session.messages, "warned": warned}))
"""


def test_the_next_turn_in_another_process_computes_nothing_again(
    qwen: Qwen, saved: Path, clean_environment: dict[str, str]
) -> None:
    command = [sys.executable, "-c", RESUME, str(saved), ASKED[2]]
    found = json.loads(
        subprocess.run(command, capture_output=True, text=True, env=clean_environment, check=True).stdout
    )
    with fresh() as here, here.session("Be brief.", think=True, **GREEDY) as session:
        for question in ASKED[:2]:
            session.chat(question)
        wanted = session.chat(ASKED[2])
        assert found["message"] == wanted.message
        assert (found["cached"], found["prompt"]) == (wanted.usage.cached_tokens, wanted.usage.prompt_tokens)
        assert found["messages"] == session.messages
    assert found["cached"] > 0
    assert found["warned"] == []


def test_a_loaded_session_can_be_saved_and_loaded_again(saved: Path, tmp_path: Path) -> None:
    with fresh() as first:
        session = first.load_session(saved)
        session.fork().save(tmp_path / "again.session")
        wanted = session.chat(ASKED[2])
    with fresh() as second:
        again = second.load_session(tmp_path / "again.session").chat(ASKED[2])
    assert (again.message, again.usage.cached_tokens) == (wanted.message, wanted.usage.cached_tokens)


def test_unusual_spellings_come_back_as_they_were_sampled(qwen: Qwen, tmp_path: Path) -> None:
    """Encoding an answer's text anew may give other tokens, and then nothing after them is found again."""
    # A question would make the template rewrite the answer; a tool's result does not.
    tokenizer, follow = qwen.runtime.tokenizer, [{"role": "tool", "content": "Go on."}]
    letters: Any = {tokenizer.token_id(letter): 100.0 for letter in "convert"}
    session = qwen.session(think=False, temperature=1, max_tokens=20, seed=1, logit_bias=letters)
    session.chat(ASKED[2])
    request = session._request(follow, {})
    wanted = qwen.runtime.prompt(request).ids
    assert list(wanted) != tokenizer.encode(qwen.runtime.render(request)), "spelled as the tokenizer does"
    session.save(tmp_path / "odd.session")
    with fresh() as other:
        loaded = other.load_session(tmp_path / "odd.session")
        sampled = len(loaded._ids)
        assert other.runtime.prompt(loaded._request(follow, {})).ids == wanted
        assert loaded.chat(follow[0]).usage.cached_tokens == sampled - 1


def test_settings_and_tools_are_saved_too(qwen: Qwen, tmp_path: Path) -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
    session = qwen.session("Hi", tools=[tool], think=False, stop=["x", "y"], logit_bias={5: -1.5}, top_k=3)
    session.save(tmp_path / "empty.session")
    loaded = qwen.load_session(tmp_path / "empty.session")
    assert (loaded.messages, loaded.tools, loaded.think) == (session.messages, [tool], False)
    request = loaded._request([], {})
    assert (request.stop, request.logit_bias, request.sampling) == (("x", "y"), {5: -1.5}, {"top_k": 3})


def test_another_kv_format_restores_the_conversation_and_says_so(saved: Path) -> None:
    warned: list[str] = []
    with fresh(kv_bits=8, warn=warned.append) as qwen:
        session = qwen.load_session(saved)
        assert [message["role"] for message in session.messages] == ["system", *["user", "assistant"] * 2]
        assert session.chat(ASKED[2]).usage.cached_tokens == 0
    assert len(warned) == 1
    assert "another model" in warned[0]


def test_a_prefix_larger_than_the_memory_is_computed_again(
    qwen: Qwen, saved: Path, warned: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(qwen.runtime.prefixes), "spare_bytes", lambda _: 1000)
    warned.clear()
    assert qwen.load_session(saved).messages
    assert "memory" in warned[0]


@pytest.mark.parametrize("content", [b"", b"hello", b"{}", b"\x02\0\0\0\0\0\0\0{}", b"\xff" * 100])
def test_what_is_no_session_is_one_line_and_never_overwritten(qwen: Qwen, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "notes.txt"
    path.write_bytes(content)
    with pytest.raises(SessionError, match="not a saved session"):
        qwen.load_session(path)
    with pytest.raises(SessionError, match="exists and is not a saved session"):
        qwen.session().save(path)
    assert path.read_bytes() == content


def test_paths_that_lead_nowhere_are_one_line(qwen: Qwen, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "none.session", tmp_path, tmp_path / "pipe"):
        with pytest.raises(SessionError):
            qwen.load_session(path)
    with pytest.raises(SessionError, match="no folder"):
        qwen.session().save(tmp_path / "none" / "a.session")


def test_a_full_disk_leaves_the_old_file(
    qwen: Qwen, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "talk.session"
    path.write_bytes(saved.read_bytes())
    session = qwen.load_session(path)
    session.chat(ASKED[2])

    def full(file: Any, data: memoryview) -> None:
        file.write(data[: len(data) // 2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(sealed, "_write_all", full)
        with pytest.raises(SessionError, match="no space left"):
            session.save(path)
    assert path.read_bytes() == saved.read_bytes()
    assert os.listdir(tmp_path) == ["talk.session"]
    session.save(path)
    assert len(qwen.load_session(path).messages) == 7
