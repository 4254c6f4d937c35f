"""The terminal chat as its user meets it: the real program on a pseudo-terminal, with a tiny model that never stops."""

from __future__ import annotations

import json
import os
import signal
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mlx_qwen35.chat.template import ChatTemplate
from mlx_qwen35.chat.tokenizer import Tokenizer
from tests.support.pseudo_terminal import PseudoTerminal
from tests.support.tiny_chat import write_tiny_chat

Start = Callable[..., PseudoTerminal]


@pytest.fixture
def chat(tiny_chat: Path, clean_environment: dict[str, str]) -> Iterator[Start]:
    """`chat("--seed", "1")` starts the program and waits for its prompt."""
    open_terminals = []

    def start(*options: str, columns: int = 100, rows: int = 24, **environment: str) -> PseudoTerminal:
        arguments = ["chat", str(tiny_chat), *options]
        terminal = PseudoTerminal(arguments, {**clean_environment, **environment}, columns, rows)
        open_terminals.append(terminal)
        terminal.wait_for_prompt()
        return terminal

    yield start
    for terminal in open_terminals:
        terminal.__exit__()


def ask(terminal: PseudoTerminal, question: str) -> str:
    """Send a line and return what appeared until the next prompt."""
    before = len(terminal.text.rstrip())
    terminal.send(question + "\r")
    terminal.wait_for(lambda text: text.rstrip().endswith("\n>") and len(text.rstrip()) > before + len(question))
    return terminal.text.rstrip()[before:]


def test_questions_thinking_and_leaving(chat: Start) -> None:
    terminal = chat("--max-tokens", "20")
    assert "thinking off · /help" in terminal.text
    assert "demonstration" not in terminal.text, "only the demo is called a demonstration"
    shown = ask(terminal, "Hello")
    assert "cut off after 20 tokens" in shown
    assert "thought for" not in shown
    assert "thinking is on" in ask(terminal, "/think on")
    shown = ask(terminal, "Hello again")
    assert "thought for" in shown
    assert "s, 20 tokens" in shown
    assert "thinking is hidden" in ask(terminal, "/thinking hide")
    lines = [line for line in ask(terminal, "Once more").splitlines() if line.strip()]
    assert [line.split()[0] for line in (*lines[1:3], lines[-1])] == ["thought", "(cut", ">"]
    assert len(lines) == 5
    assert "tokens/s · " in lines[3]
    assert "thinking is off" in ask(terminal, "/think off")
    assert "thought for" not in ask(terminal, "And now")
    terminal.send("\x04")
    assert terminal.finish() == 0


def test_interrupt_stops_the_answer_and_not_the_program(chat: Start) -> None:
    terminal = chat("--max-tokens", "60000")
    terminal.send("Talk for ever\r")
    before = len(terminal.text)
    terminal.wait_for(lambda text: len(text) > before + 40)
    assert not terminal.echoes, "keys typed now would be written into the answer"
    terminal.interrupt()
    terminal.wait_for("stopped; what is here stays in the conversation")
    terminal.wait_for_prompt()
    assert "^C" not in terminal.text
    shown = ask(terminal, "/save half.json")
    assert "saved 2 messages" in shown
    terminal.interrupt()
    terminal.wait_for("Ctrl-C again")
    terminal.wait_for_prompt()
    terminal.interrupt()
    assert terminal.finish() == 0
    assert terminal.process.returncode == 0


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files named on the prompt land in the test's folder."""
    monkeypatch.chdir(tmp_path)


def test_a_chat_saved_and_loaded_goes_on(chat: Start, tmp_path: Path) -> None:
    first = chat("--max-tokens", "5", "--no-think", "--seed", "3")
    ask(first, "/system Be brief.")
    ask(first, "Remember this")
    assert "saved 2 messages to talk.json" in ask(first, "/save talk.json")
    first.send("/quit\r")
    assert first.finish() == 0
    saved = json.loads((tmp_path / "talk.json").read_text())
    assert saved["messages"][0] == {"role": "user", "content": "Remember this"}

    second = chat()
    assert "loaded 2 messages" in ask(second, "/load talk.json")
    assert "system prompt: Be brief." in ask(second, "/system")
    assert "cut off after 5 tokens" in ask(second, "Go on"), "max_tokens was not restored"
    ask(second, "/save again.json")
    again = json.loads((tmp_path / "again.json").read_text())
    assert again["messages"][:2] == saved["messages"]
    assert again["settings"] == saved["settings"]
    assert "not a saved chat" in ask(second, "/load /etc/hosts")
    assert "no file" in ask(second, "/load nowhere.json")
    assert "the conversation starts anew" in ask(second, "/reset")
    assert "saved 0 messages" in ask(second, "/save empty.json")


def test_ten_thousand_pasted_lines_arrive_whole(clean_environment: dict[str, str], tmp_path: Path) -> None:
    """The context is smaller, so the program counts the prompt's tokens and refuses, which costs no computing."""
    folder = write_tiny_chat(tmp_path / "small", context=16_384)
    pasted = "\n".join(f"{i % 10}" for i in range(10_000))
    prompt = ChatTemplate.from_folder(folder).render([{"role": "user", "content": f"Sum: {pasted} please"}])
    tokens = len(Tokenizer.from_folder(folder).encode(prompt))
    with PseudoTerminal(["chat", str(folder), "--max-tokens", "1"], clean_environment, columns=200) as terminal:
        terminal.wait_for_prompt()
        terminal.send(f"Sum: \x1b[200~{pasted}\x1b[201~")
        terminal.wait_for("[paste 1: 10,000 lines]")
        terminal.send(" please\r")
        terminal.wait_for(f"The prompt has {tokens:,} tokens; this model's context holds 16,384")
        terminal.wait_for_prompt()
        assert "Traceback" not in terminal.text
        assert "cut off" in ask(terminal, "short"), "the question that was too long stayed in the conversation"


def test_what_is_typed_during_an_answer_waits_for_the_prompt(chat: Start) -> None:
    terminal = chat("--max-tokens", "300")
    terminal.send("Hello\r/stats\r")
    text = terminal.wait_for("1 answer: ")
    assert text.index("cut off after 300 tokens") < text.index("/stats")
    assert text.count("/stats") == 1


def test_several_lines_can_be_typed_and_pasted(chat: Start, tmp_path: Path) -> None:
    terminal = chat("--max-tokens", "1")
    terminal.send("one\x1b\rtwo \x1b[200~three\r\nfour\x1b[201~\r")
    terminal.wait_for("cut off")
    terminal.wait_for_prompt()
    ask(terminal, "/save lines.json")
    saved = json.loads((tmp_path / "lines.json").read_text())
    assert saved["messages"][0]["content"] == "one\ntwo three\nfour"


def test_commands_help_and_correct(chat: Start) -> None:
    terminal = chat("--max-tokens", "3", rows=60)
    shown = ask(terminal, "/help")
    for name in (
        "/think",
        "/preset",
        "/system",
        "/reset",
        "/save",
        "/load",
        "/chats",
        "/export",
        "/stats",
        "/help",
        "/quit",
    ):
        assert name in shown
    assert "did you mean /preset?" in ask(terminal, "/prset thinking")
    assert "did you mean thinking-coding?" in ask(terminal, "/preset thinking-codign")
    assert "preset thinking-coding: temperature 0.6" in ask(terminal, "/preset thinking-coding")
    assert "/think takes on, off or auto" in ask(terminal, "/think maybe")
    assert "needs the name of a file" in ask(terminal, "/save")
    assert "cut off" in ask(terminal, "/usr/bin/env is what?"), "a path is a question"
    assert "1 answer: " in ask(terminal, "/stats")


def test_an_empty_entry_asks_nothing(chat: Start) -> None:
    terminal = chat("--max-tokens", "1")
    # Sent at once: the prompts that the empty entries bring must not be taken for the one after /stats.
    terminal.send("\r  \r/stats\r")
    assert "0 answers" in terminal.wait_for(" answers: ")


def test_history_is_kept_for_its_owner_alone(chat: Start, clean_environment: dict[str, str]) -> None:
    terminal = chat("--max-tokens", "1")
    ask(terminal, "a question to find again")
    history = Path(clean_environment["XDG_STATE_HOME"]) / "mlx-qwen35" / "history"
    assert stat.S_IMODE(history.stat().st_mode) == 0o600
    terminal.send("\x04")
    terminal.finish()
    again = chat("--max-tokens", "1")
    again.send("\x1b[A")
    again.wait_for("> a question to find again")


def test_no_color_means_no_color_and_no_repainting(chat: Start) -> None:
    terminal = chat("--max-tokens", "10", "--think", NO_COLOR="1")
    start = len(terminal.raw)
    terminal.send("Hello\r")
    terminal.wait_for("cut off")
    written = bytes(terminal.raw[start:])
    for color in (b"\x1b[2m", b"\x1b[31m", b"\x1b[1m", b"\x1b[36m"):
        assert color not in written


def test_a_kill_leaves_the_terminal_in_its_ordinary_state(chat: Start) -> None:
    terminal = chat()
    terminal.process.send_signal(signal.SIGTERM)
    assert terminal.finish() == 128 + signal.SIGTERM
    assert terminal.echoes


def test_stdout_elsewhere_holds_answers_only(
    tiny_chat: Path, clean_environment: dict[str, str], tmp_path: Path
) -> None:
    """Typed at a terminal, with the answers going to a file."""
    file = tmp_path / "answers.txt"
    arguments = ["chat", str(tiny_chat), "--max-tokens", "6", "--no-think", "--seed", "1"]
    with file.open("wb") as out, PseudoTerminal(arguments, clean_environment, stdout=out) as terminal:
        terminal.wait_for_prompt()
        terminal.send("Hello\r")
        terminal.wait_for("cut off")
        terminal.send("\x04")
        assert terminal.finish() == 0
    text = file.read_text()
    assert text.strip()
    assert "mlx-qwen35" not in text
    assert os.linesep.join(text.splitlines()) == text.rstrip("\n")
