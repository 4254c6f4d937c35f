"""Chats are saved as they go: found, resumed in another process, renamed, branched; a disk that refuses ends none."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from mlx_qwen35.conversations.conversation import Conversation
from mlx_qwen35.conversations.keeping import Keeper
from mlx_qwen35.conversations.settings import Settings
from mlx_qwen35.conversations.store import Store
from mlx_qwen35.errors import UserError
from mlx_qwen35.terminal.keeping import begun
from tests.cli.conftest import Run, run
from tests.terminal.test_chat import Start, ask, chat, own_folder

__all__ = ["chat", "own_folder", "run"]

SHORT = ("--max-tokens", "4", "--no-think", "--seed", "1")


@pytest.fixture
def store(clean_environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Store:
    """The one of the program on the terminal."""
    monkeypatch.setenv("XDG_STATE_HOME", clean_environment["XDG_STATE_HOME"])
    monkeypatch.setenv("HOME", clean_environment["HOME"])
    return Store()


def questions(store: Store, title: str) -> list[str]:
    (chat,) = (chat for chat in store.listing().chats if chat.title == title)
    return [message["content"] for message in store.open(chat.id)[1].messages if message["role"] == "user"]


def test_a_chat_goes_on_in_a_new_process_and_branches_there(chat: Start, store: Store, tmp_path: Path) -> None:
    first = chat(*SHORT)
    assert "no chat is saved" in ask(first, "/chats")
    ask(first, "Remember the whale")
    # Killed, not left: what was answered is on disk.
    first.process.kill()
    assert questions(store, "Remember the whale") == ["Remember the whale"]

    second = chat("--resume")
    assert "Remember the whale (2 messages)" in second.text
    assert "cut off after 4 tokens" in ask(second, "And the second"), "its settings were not resumed"
    assert "now called Of whales" in ask(second, "/rename Of whales")
    assert "Of whales (branch) (2 messages)" in ask(second, "/branch 1")
    ask(second, "Elsewhere")
    assert questions(store, "Of whales") == ["Remember the whale", "And the second"]
    assert questions(store, "Of whales (branch)") == ["Remember the whale", "Elsewhere"]
    shown = ask(second, "/chats")
    assert re.search(r" 1  \d{4}-\d\d-\d\d \d\d:\d\d  Of whales \(branch\), 4 messages \(this one\)", shown)
    assert "Of whales, 4 messages" in shown

    assert "And the second" in ask(second, "/chats AND THE")
    assert "Of whales (4 messages)" in ask(second, "/resume 1"), "the number is one of the list shown last"
    assert "exported 4 messages" in ask(second, "/export talk.md")
    assert "# Of whales" in (tmp_path / "talk.md").read_text()
    assert "nothing found" in ask(second, "/chats unheard-of")
    assert "/branch takes a number, not" in ask(second, "/branch x")
    assert "2 answers" in ask(second, "/branch 7")


def test_a_chat_that_went_on_elsewhere_is_saved_beside_it(chat: Start, store: Store) -> None:
    here = chat(*SHORT)
    ask(here, "The beginning")
    there = chat("--resume")
    ask(there, "There")
    assert "went on in another window" in ask(here, "Here")
    assert sorted(questions_of_all(store)) == [["The beginning", "Here"], ["The beginning", "There"]]
    assert "another window" not in ask(here, "Here again")
    ask(here, "/reset")
    ask(here, "A new one")
    assert questions(store, "A new one") == ["A new one"]
    ask(here, "/chats")
    assert "deleted" in ask(here, "/delete 1")
    assert "A new one" not in [chat.title for chat in store.listing().chats]


def questions_of_all(store: Store) -> list[list[str]]:
    opened = [store.open(chat.id)[1].messages for chat in store.listing().chats]
    return [[message["content"] for message in messages if message["role"] == "user"] for messages in opened]


def test_without_history_nothing_typed_is_on_disk(chat: Start, clean_environment: dict[str, str]) -> None:
    terminal = chat(*SHORT, "--no-history")
    ask(terminal, "a secret whale")
    terminal.send("/quit\r")
    assert terminal.finish() == 0
    state = Path(clean_environment["XDG_STATE_HOME"])
    assert not [path for path in state.rglob("*") if path.is_file() and b"whale" in path.read_bytes()]


def test_a_disk_that_refuses_costs_one_line(chat: Start, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    terminal = chat(*SHORT, columns=200, XDG_STATE_HOME=str(tmp_path / "file"))
    assert "Not saved: Cannot write to" in ask(terminal, "First")
    assert "Not saved" not in ask(terminal, "Second"), "told twice"
    assert "/reset lets this chat go" in ask(terminal, "/branch 1")
    assert "saved 4 messages" in ask(terminal, "/save elsewhere.json")


def test_resuming_what_is_not_there_is_one_line(chat: Start, run: Run) -> None:
    done = run("chat", "--resume", stdin="Hello")
    assert done.returncode == 2
    assert "stdin is none" in done.stderr
    assert "not a number" in run("chat", "--resume", "4b").stderr


def test_options_given_with_resume_change_what_was_saved_and_nothing_else(store: Store) -> None:
    saved = Conversation(Settings("Be brief.", True, seed=3, max_tokens=9))
    saved.add("One", {"role": "assistant", "content": "1"})
    store.create(saved, "demo")
    resumed = begun(Keeper(True, store), 1, Settings(thinking=False, max_tokens=5))
    assert resumed.settings == Settings("Be brief.", False, seed=3, max_tokens=5)
    assert resumed.messages == saved.messages
    with pytest.raises(UserError, match="no saved chat 2: 1 "):
        begun(Keeper(True, store), 2, Settings())
