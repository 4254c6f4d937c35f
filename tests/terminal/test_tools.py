"""The terminal chat with tools, as its user meets it: the demo model calls, the person is asked, the result shown."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cli.conftest import Run, run
from tests.support.pseudo_terminal import PseudoTerminal
from tests.terminal.test_chat import ask

__all__ = ["run"]

Start = Callable[..., PseudoTerminal]
WEATHER_SERVER = Path(__file__).parents[1] / "examples" / "weather_server.py"
QUESTION = "What is the weather in Paris?"
ANSWERED = "The result: degrees 5, sky grey"


@pytest.fixture
def chat(clean_environment: dict[str, str]) -> Iterator[Start]:
    """`chat("files:FOLDER")` starts the demo with these tools and waits for its prompt."""
    opened: list[PseudoTerminal] = []

    def start(tools: str, **environment: str) -> PseudoTerminal:
        arguments = ["chat", "demo", "--no-think", "--temperature", "0", "--max-tokens", "100", "--tools", tools]
        opened.append(PseudoTerminal(arguments, {**clean_environment, **environment}, columns=160, rows=40))
        opened[-1].wait_for_prompt()
        return opened[-1]

    yield start
    for terminal in opened:
        terminal.__exit__()


@pytest.fixture
def weather(tmp_path: Path) -> str:
    """The words for an MCP server with one tool."""
    pytest.importorskip("mcp")
    path = tmp_path / "mcp.json"
    path.write_text(json.dumps({"mcpServers": {"weather": {"command": sys.executable, "args": [str(WEATHER_SERVER)]}}}))
    return f"mcp:{path}"


def until_asked(terminal: PseudoTerminal, question: str) -> None:
    asked = terminal.text.count("y, n or always >")
    terminal.send(question + "\r")
    terminal.wait_for(lambda text: text.count("y, n or always >") > asked)


def test_nothing_with_an_effect_runs_before_it_is_approved(
    chat: Start, weather: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    terminal = chat(weather)
    assert "tools: get_weather" in terminal.text
    assert "get_weather, asks before it runs" in ask(terminal, "/tools")
    # Refused with n, with Ctrl-C, and by what was typed before anything was asked.
    until_asked(terminal, QUESTION)
    assert 'Run get_weather {"city": "Paris"}?' in terminal.text
    assert "refused" in ask(terminal, "n")
    ask(terminal, "/reset")
    until_asked(terminal, QUESTION)
    terminal.interrupt()
    terminal.wait_for(lambda text: text.count("refused") == 2)
    terminal.wait_for_prompt()
    ask(terminal, "/reset")
    until_asked(terminal, f"{QUESTION}\ralways")
    assert "grey" not in terminal.text
    assert "refused" in ask(terminal, "")
    ask(terminal, "/reset")
    until_asked(terminal, QUESTION)
    shown = ask(terminal, "always")
    assert '"sky": "grey"' in shown
    assert ANSWERED in shown
    ask(terminal, "/save talk.json")
    said = json.loads((tmp_path / "talk.json").read_text())["messages"]
    assert [message["role"] for message in said] == ["user", "assistant", "tool", "assistant"]
    assert said[2]["tool_call_id"] == said[1]["tool_calls"][0]["id"]
    ask(terminal, "/reset")
    shown = ask(terminal, QUESTION)
    assert ANSWERED in shown
    assert "y, n or always" not in shown
    terminal.send("\x04")
    assert terminal.finish() == 0


def test_reading_a_file_asks_nothing_and_a_missing_one_is_one_line(chat: Start, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "12").write_text('{"text": 47}\n\x1b]52;c;x\x07')
    terminal = chat(f"files:{folder}", NO_COLOR="1")
    shown = ask(terminal, "Call read_file with path 12")
    assert '{"text": 47}' in shown
    assert "␛]52" in shown, "a file's escape sequences are shown, not obeyed"
    assert "The result" in shown
    ask(terminal, "/reset")
    assert re.search(r"read_file, \d+\.\d s: Error: there is no file", ask(terminal, "Open 13.txt."))
    terminal.send("\x04")
    assert terminal.finish() == 0


def test_tools_that_are_none_are_refused_before_anything_is_loaded(run: Run) -> None:
    done = run("chat", "--tools", "calc", stdin="Hello")
    assert done.returncode == 2
    assert "needs a terminal" in done.stderr
