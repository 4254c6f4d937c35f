"""The last question asked again, as it was or in other words; and terminals that are narrow, dumb or half there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.pseudo_terminal import PseudoTerminal
from tests.terminal.test_chat import Start, ask, chat, own_folder

__all__ = ["chat", "own_folder"]

SHORT = ("--max-tokens", "4", "--no-think", "--seed", "1")


def saved(terminal: PseudoTerminal, folder: Path) -> list[dict[str, str]]:
    (folder / "talk.json").unlink(missing_ok=True)
    ask(terminal, "/save talk.json")
    return json.loads((folder / "talk.json").read_text())["messages"]


def questions(terminal: PseudoTerminal, folder: Path) -> list[str]:
    return [message["content"] for message in saved(terminal, folder) if message["role"] == "user"]


def test_the_last_question_is_changed_and_asked_again(chat: Start, tmp_path: Path) -> None:
    terminal = chat(*SHORT)
    assert "nothing to ask again" in ask(terminal, "/edit")
    assert "nothing to ask again" in ask(terminal, "/again")
    ask(terminal, "The first")
    ask(terminal, "The secnd")
    # The old question stands at the prompt, to be changed.
    terminal.send("/edit\r")
    terminal.wait_for(lambda text: text.rstrip().endswith("\n> The secnd"))
    terminal.send("\x7f\x7fond one\r")
    terminal.wait_for("> The second one")
    terminal.wait_for_prompt()
    assert questions(terminal, tmp_path) == ["The first", "The second one"]
    ask(terminal, "/edit And again")
    assert questions(terminal, tmp_path) == ["The first", "And again"]
    before = saved(terminal, tmp_path)
    ask(terminal, "/again")
    assert saved(terminal, tmp_path) == before, "the same seed gives the same answer"
    # Left empty, by Ctrl-C, the question stays as it was.
    terminal.send("/edit\r")
    terminal.wait_for(lambda text: text.rstrip().endswith("\n> And again"))
    terminal.interrupt()
    terminal.wait_for_prompt()
    ask(terminal, "")
    assert saved(terminal, tmp_path) == before


def test_an_edited_question_that_is_not_answered_leaves_the_old_one(chat: Start, tmp_path: Path) -> None:
    terminal = chat(*SHORT)
    ask(terminal, "The old one")
    before = saved(terminal, tmp_path)
    terminal.send("/edit\r")
    terminal.wait_for(lambda text: text.rstrip().endswith("\n> The old one"))
    terminal.send(f"\x1b[200~{'word ' * 70_000}\x1b[201~\r")
    terminal.wait_for("this model's context holds")
    terminal.wait_for_prompt()
    assert saved(terminal, tmp_path) == before


def test_a_theme_is_chosen_and_told(chat: Start) -> None:
    terminal = chat(*SHORT, "--theme", "light")
    assert "theme light" in ask(terminal, "/theme")
    assert "theme dark" in ask(terminal, "/theme dark")
    assert "theme auto: either" in ask(terminal, "/theme auto")
    assert "/theme takes auto, dark, light or either" in ask(terminal, "/theme pink")


@pytest.mark.parametrize("columns", [20, 30, 40])
def test_a_narrow_terminal_keeps_every_word_and_no_leftovers(chat: Start, columns: int, tmp_path: Path) -> None:
    terminal = chat("--max-tokens", "60", "--think", "--seed", "1", columns=columns, rows=12)
    ask(terminal, "Hello there, narrow terminal")
    (question, answer) = saved(terminal, tmp_path)
    assert question["content"] == "Hello there, narrow terminal"
    shown = "".join(terminal.text.split())
    assert "".join(answer["reasoning_content"].split())[:40] in shown
    # The live line is gone; the one that stays fits.
    speeds = [line for line in terminal.text.splitlines() if "tokens/s" in line]
    assert len(speeds) == 1
    assert speeds[0].endswith("tokens/s") or "·" in speeds[0]
    for command in ("/help", "/stats", "/chats"):
        assert "Traceback" not in ask(terminal, command)


def test_a_dumb_terminal_gets_plain_text(chat: Start) -> None:
    terminal = chat(*SHORT, TERM="dumb")
    start = len(terminal.raw)
    assert "cut off" in ask(terminal, "Hello")
    assert b"\x1b" not in bytes(terminal.raw[start:])
    assert "no colours here" in ask(terminal, "/theme dark")


def test_a_piped_question_is_answered_on_the_terminal_once(
    tiny_chat: Path, clean_environment: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "question").write_text("Hello\n")
    with (
        (tmp_path / "question").open("rb") as question,
        PseudoTerminal(["chat", str(tiny_chat), *SHORT], clean_environment, stdin=question) as terminal,
    ):
        assert terminal.finish() == 0
        assert "cut off after 4 tokens" in terminal.text
        assert "\n>" not in terminal.text, "nobody can be asked for more"
