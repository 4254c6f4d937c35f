"""Which entries are commands, what completes them, and pastes that stand as one line."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_qwen35.terminal.commands import COMMANDS, completions, is_command
from mlx_qwen35.terminal.prompt import Pastes


@pytest.mark.parametrize("entry", ["/help", "/think on", " /quit ", "/", "/?", "/save my file.json", "/hlep", "/EXIT"])
def test_commands(entry: str) -> None:
    assert is_command(entry)


@pytest.mark.parametrize("entry", ["", "help", "/usr/bin/env", "/etc/hosts says", "/think on\nmore", "//", "1/2"])
def test_questions(entry: str) -> None:
    assert not is_command(entry)


def test_commands_complete_and_then_their_choices() -> None:
    assert list(completions("/th")) == ["/think", "/thinking", "/theme"]
    assert list(completions("/think o")) == ["/think on", "/think off"]
    assert list(completions("/preset thinking-")) == ["/preset thinking-coding"]
    assert list(completions("hello")) == []
    assert len(list(completions("/"))) == len(COMMANDS)


@given(st.lists(st.text(), max_size=4))
def test_an_entry_of_pastes_expands_to_what_was_pasted(texts: list[str]) -> None:
    pastes = Pastes()
    large = [text + "\n" * 30 for text in texts]
    shown = [pastes.stand_in(text) for text in large]
    assert all("\n" not in line for line in shown)
    for line, text in zip(shown, large):
        assert pastes.expand(f"a {line} b") == f"a {text} b"


def test_a_small_paste_stays_as_it_is() -> None:
    assert Pastes().stand_in("a\nb") == "a\nb"


def test_a_paste_that_quotes_another_is_not_expanded_twice() -> None:
    pastes, second = Pastes(), "[paste 2: 31 lines]"
    first = pastes.stand_in(f"{second}\n" * 30)
    assert pastes.stand_in("x\n" * 30) == second
    assert pastes.expand(first).count(second) == 30
