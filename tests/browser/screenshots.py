"""`python -m tests.browser.screenshots`: the README's pictures of the chat page, into docs/screenshots.

Nothing in them is made up: the demo model answers, thinks, calls a tool of the MCP server in tests/examples and fills a
schema, at temperature 0. Four states, each in light and in dark.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

from tests.browser.conftest import FLAGS
from tests.browser.page import ChatPage
from tests.browser.running import App, chromium
from tests.browser.test_tools import QUESTION, WEATHER_SERVER

OUT = Path(__file__).parents[2] / "docs" / "screenshots"
SIZE = {"width": 1200, "height": 760}
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


def main() -> None:
    from playwright.sync_api import sync_playwright

    OUT.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        config = Path(folder) / "mcp.json"
        server = {"command": sys.executable, "args": [str(WEATHER_SERVER)]}
        config.write_text(json.dumps({"mcpServers": {"weather": server}}))
        app = App(Path(folder), ("--tools", f"mcp:{config}")).start()
        try:
            browser = playwright.chromium.launch(executable_path=chromium(), args=list(FLAGS))
            for scheme in ("light", "dark"):
                context = browser.new_context(viewport=SIZE, color_scheme=scheme)
                take(ChatPage(context.new_page(), app).open(), scheme)
                context.close()
        finally:
            app.stop()


def take(chat: ChatPage, scheme: str) -> None:
    """All states in one scheme."""
    tools = chat.part("tools").locator("input")
    chat.settings()
    tools.uncheck()
    chat.close_settings()
    chat.think(True)
    chat.ask("How do I convert a model?")
    chat.ask("What is 27 plus 15?")
    chat.folded.last.locator(".title").click()
    chat.wait_for_text("42")
    picture(chat, f"chat-{scheme}")

    new(chat)
    chat.think(False)
    chat.settings()
    tools.check()
    chat.close_settings()
    chat.send(QUESTION)
    chat.part("approve").wait_for()
    picture(chat, f"tools-{scheme}")
    chat.part("approve").click()
    chat.wait_until_done()

    new(chat)
    chat.settings()
    tools.uncheck()
    chat.part("as_json").locator("input").check()
    chat.field("schema").fill(json.dumps(SCHEMA, indent=2))
    chat.ask("Extract name and age as JSON: Grace, 36, is a nurse from Paris.")
    picture(chat, f"json-{scheme}")

    chat.part("as_json").locator("input").uncheck()
    chat.choose("preset", "Coding, thinking")
    chat.wait_for_value("temperature", 0.6)
    chat.part("preset").scroll_into_view_if_needed()
    picture(chat, f"settings-{scheme}")


def new(chat: ChatPage) -> None:
    chat.part("new-chat").click()
    chat.questions.first.wait_for(state="detached")


def picture(chat: ChatPage, name: str) -> None:
    """When all animations that end have ended."""
    chat.page.mouse.move(600, 5)
    chat.page.wait_for_function(
        "() => document.getAnimations().every(a => a.playState !== 'running' || a.effect.getTiming().iterations > 9)"
    )
    chat.page.screenshot(path=OUT / f"{name}.png", animations="disabled")
    print(f"{name}.png: {(OUT / f'{name}.png').stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
