"""A tool with an effect runs only after its person has allowed it, in this chat."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.browser.conftest import Open, run
from tests.browser.running import App

WEATHER_SERVER = Path(__file__).parents[1] / "examples" / "weather_server.py"
QUESTION, ANSWER = "What is the weather in Paris?", "The result: degrees 5, sky grey"


@pytest.fixture
def weather_app(tmp_path: Path) -> Iterator[App]:
    """With the one tool of an MCP server, which nobody has allowed beforehand."""
    pytest.importorskip("mcp")
    config = tmp_path / "mcp.json"
    server = {"command": sys.executable, "args": [str(WEATHER_SERVER)]}
    config.write_text(json.dumps({"mcpServers": {"weather": server}}))
    with run(App(tmp_path, ("--tools", f"mcp:{config}"))) as app:
        yield app


def test_a_call_waits_until_it_is_allowed_or_refused(open_page: Open, weather_app: App) -> None:
    chat = open_page(weather_app)
    chat.send(QUESTION)
    chat.part("deny").wait_for()
    assert "get_weather" in chat.part("approval-text").inner_text()
    assert "Paris" in chat.part("approval-text").inner_text()
    chat.part("deny").click()
    chat.wait_until_done()
    assert chat.part("approval").is_hidden()
    assert "Refused get_weather" in chat.folded.first.inner_text()
    assert ANSWER not in chat.conversation.inner_text()

    chat.part("new-chat").click()
    chat.questions.first.wait_for(state="detached")
    chat.send(QUESTION)
    chat.part("approve").wait_for()
    assert len([m for m in weather_app.requests()[-1]["messages"] if m["role"] == "tool"]) == 0
    chat.part("approve").click()
    chat.wait_for_text(ANSWER)
    chat.wait_until_done()
    (step,) = chat.folded.all()
    assert "Called get_weather" in step.inner_text()
    step.locator(".title").click()
    chat.wait_for_text('"sky": "grey"')
    called, result = weather_app.requests()[-1]["messages"][-2:]
    assert called["tool_calls"][0]["function"]["name"] == "get_weather"
    assert (result["role"], result["tool_call_id"]) == ("tool", called["tool_calls"][0]["id"])

    # Stopped while it waits: nothing has run, and the next chat asks again.
    chat.part("new-chat").click()
    chat.questions.first.wait_for(state="detached")
    chat.send(QUESTION)
    chat.part("approve-always").wait_for()
    chat.page.keyboard.press("Escape")
    chat.wait_until_hidden("approval")
    chat.part("new-chat").click()
    chat.questions.first.wait_for(state="detached")
    chat.send(QUESTION)
    chat.part("approve-always").click()
    chat.wait_for_text(ANSWER)
    chat.wait_until_done()
    asked = len(weather_app.requests())
    chat.send(QUESTION)
    chat.wait_for_request(asked + 1)
    chat.wait_until_done()
    assert chat.part("approval").is_hidden(), "asked though it is always allowed here"
