"""The bundled demo as its user meets it: it says what it is, answers, and thinks when asked to."""

from __future__ import annotations

import pytest

from mlx_qwen35.errors import CheckpointError
from mlx_qwen35.hub.names import demo_folder
from tests.cli.conftest import Run, run
from tests.support.pseudo_terminal import PseudoTerminal
from tests.terminal.test_chat import ask

__all__ = ["run"]


@pytest.fixture(autouse=True)
def _needs_the_demo() -> None:
    try:
        demo_folder()
    except CheckpointError as error:
        pytest.skip(f"NOT TESTED: {error}")


def test_a_piped_question_is_answered_by_the_demo(run: Run) -> None:
    done = run("chat", stdin="How do I convert a model?\n")
    assert done.returncode == 0
    assert "mlx-qwen35 convert" in done.stdout
    assert "not a language model to rely on" in done.stderr
    assert "real one" in done.stderr


def test_the_banner_says_what_the_demo_is_and_thinking_follows_the_switch(clean_environment: dict[str, str]) -> None:
    with PseudoTerminal(["chat"], clean_environment, columns=160) as terminal:
        shown = terminal.wait_for_prompt()
        assert "demo · thinking off" in shown
        assert "a demonstration and a test bed, not a language model to rely on" in shown
        assert "real one" in shown
        ask(terminal, "/think on")
        assert "thought for" in ask(terminal, "What is 4 + 5?")
        ask(terminal, "/think off")
        assert "thought for" not in ask(terminal, "What is 4 + 5?")
        terminal.send("/quit\r")
        assert terminal.finish() == 0
