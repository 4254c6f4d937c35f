"""Saved chats come back as they were; anything else is one clear line and changes nothing."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_qwen35.conversations.conversation import Conversation
from mlx_qwen35.conversations.efforts import Effort
from mlx_qwen35.conversations.settings import Settings
from mlx_qwen35.errors import UserError

SETTINGS = Settings(
    "Be brief.",
    True,
    "thinking-coding",
    {"temperature": 0.5, "top_k": 3},
    100,
    7,
    ("END",),
    {"regex": "a+", "thinking_budget": 9},
)
CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": {"n": 10**60, "s": "\x00\ud7ff"}}}
MESSAGES: list[dict[str, Any]] = [
    {"role": "user", "content": "Hallo 🙂"},
    {"role": "assistant", "content": "a", "reasoning_content": "b", "tool_calls": [CALL]},
]


def test_messages_and_settings_survive_a_file(tmp_path: Path) -> None:
    Conversation(SETTINGS, list(MESSAGES)).save(tmp_path / "chat.json", "demo")
    loaded = Conversation.load(tmp_path / "chat.json")
    assert loaded.settings == SETTINGS
    assert loaded.messages == MESSAGES
    assert os.listdir(tmp_path) == ["chat.json"], "a part file was left"


def test_what_was_measured_survives_a_file_unless_its_message_went(tmp_path: Path) -> None:
    path, efforts = tmp_path / "chat.json", {1: Effort(2.5, 40), "1": Effort(0.25)}
    chat = Conversation(SETTINGS, list(MESSAGES), efforts={**efforts, 3: Effort(9.0), "other": Effort(9.0)})
    chat.save(path, "demo")
    assert Conversation.load(path).efforts == efforts
    chat.messages = chat.messages[:1]
    chat.save(path, "demo")
    assert "efforts" not in json.loads(path.read_text()), "a file without any is what earlier releases wrote"
    assert Conversation.load(path).efforts == {}


def test_another_answer_does_not_inherit_what_the_old_one_cost() -> None:
    chat = Conversation(SETTINGS, list(MESSAGES), efforts={1: Effort(2.5, 40)})
    chat.messages = []
    chat.add("Hallo", {"role": "assistant", "content": "x", "reasoning_content": "y"})
    assert chat.efforts == {}


def test_an_empty_conversation_survives_too(tmp_path: Path) -> None:
    Conversation().save(tmp_path / "chat.json", "demo")
    assert Conversation.load(tmp_path / "chat.json") == Conversation()


@given(st.lists(st.tuples(st.text(), st.text()), max_size=4))
def test_any_text_survives(tmp_path_factory: pytest.TempPathFactory, turns: list[tuple[str, str]]) -> None:
    path = tmp_path_factory.mktemp("chat") / "chat.json"
    conversation = Conversation()
    for question, answer in turns:
        conversation.add(question, {"role": "assistant", "content": answer})
    conversation.save(path, "demo")
    assert Conversation.load(path).messages == conversation.messages


def test_a_file_of_another_kind_is_not_overwritten(tmp_path: Path) -> None:
    precious = tmp_path / "thesis.json"
    precious.write_text('{"mine": true}')
    with pytest.raises(UserError, match="not a saved chat"):
        Conversation().save(precious, "demo")
    assert precious.read_text() == '{"mine": true}'
    saved = tmp_path / "chat.json"
    Conversation().save(saved, "demo")
    Conversation(Settings("new")).save(saved, "demo")
    assert Conversation.load(saved).settings.system == "new"


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "chat.json"
    Conversation(Settings("old")).save(path, "demo")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="no space left"):
        Conversation(Settings("new")).save(path, "demo")
    assert Conversation.load(path).settings.system == "old"
    assert os.listdir(tmp_path) == ["chat.json"]


def saved(**changes: Any) -> str:
    whole = {"format": "mlx-qwen35 chat", "version": 1, "model": "demo", "settings": {}, "messages": []}
    return json.dumps({**whole, **changes})


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("", "not JSON"),
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[]", "not an object"),
        ("{}", "not a saved chat"),
        (b"\xff\xfe", "UTF-8"),
        (saved(version=2), "version 2"),
        (saved(messages={}), "messages is not a list"),
        (saved(messages=["hi"]), "messages[0]"),
        (saved(messages=[{"role": "robot", "content": "x"}]), "messages[0].role"),
        (saved(messages=[{"role": "user", "content": 5}]), "messages[0].content"),
        (saved(messages=[{"role": "system", "content": "x"}]), "settings.system"),
        (saved(settings=[]), "settings is not an object"),
        (saved(settings={"temprature": 1}), "temprature"),
        (saved(settings={"sampling": {"heat": 1}}), "settings.sampling"),
        (saved(settings={"max_tokens": -1}), "settings.max_tokens"),
        (saved(settings={"thinking": "yes"}), "settings.thinking"),
        (saved(settings={"preset": "wild"}), "wild"),
        (saved(efforts={}), "efforts is not a list"),
        (saved(efforts=[{"message": -1, "seconds": 1, "tokens": 0}]), "efforts has"),
        (saved(efforts=[{"message": True, "seconds": 1, "tokens": 0}]), "efforts has"),
        (saved(efforts=[{"call": [], "seconds": 1, "tokens": 0}]), "efforts has"),
        (saved(efforts=[{"call": "1", "seconds": 10**400, "tokens": 0}]), "efforts has"),
        (saved(efforts=[{"call": "1", "message": 1, "seconds": 1, "tokens": 0}]), "efforts has"),
        (saved(efforts=[5]), "efforts has"),
    ],
)
def test_a_damaged_file_is_one_line(tmp_path: Path, content: str | bytes, expected: str) -> None:
    path = tmp_path / "chat.json"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(UserError) as error:
        Conversation.load(path)
    assert expected in str(error.value)
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)


def test_what_is_no_file_is_one_line(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path, expected in ((tmp_path, "not a file"), (tmp_path / "none", "no file"), (tmp_path / "pipe", "not a file")):
        with pytest.raises(UserError, match=expected):
            Conversation.load(path)
    with pytest.raises(UserError, match="no folder"):
        Conversation().save(tmp_path / "none" / "chat.json", "demo")
