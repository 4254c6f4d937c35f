"""The server goes away and comes back: an open page goes on, and every conversation is still there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.browser.conftest import Open, run
from tests.browser.running import App


@pytest.fixture
def own_app(tmp_path: Path) -> Iterator[App]:
    """An app that a test may stop and start."""
    with run(App(tmp_path)) as app:
        yield app


def test_a_page_and_its_conversation_survive_a_restart_of_the_server(open_page: Open, own_app: App) -> None:
    chat = open_page(own_app)
    chat.ask("Say: before")
    chat.page.wait_for_url("**/?chat=*")
    own_app.stop()
    chat.question.fill("Say: meanwhile")
    chat.question.press("Enter")
    # What the page says then is Gradio's; that it says something is what counts, and that nothing is lost.
    chat.page.locator(".toast-wrap, .toast-body, #status:has-text('⚠️'), .error").first.wait_for()
    chat.question.fill("typed meanwhile")
    # A reload that nobody asked for: Gradio looks for its server, and the page finds its conversation again.
    with chat.page.expect_navigation(timeout=120_000):
        own_app.start(own_app.port)
    chat.page.locator("body.loaded").wait_for()
    chat.wait_for_texts(("Say: before", "before"))
    chat.page.wait_for_function("() => document.querySelector('#question textarea').value === 'typed meanwhile'")
    chat.ask("Say: after")
    chat.wait_for_texts(("Say: before", "before"), ("Say: after", "after"))
    roles = [message["role"] for message in own_app.requests()[-1]["messages"]]
    assert roles == ["user", "assistant", "user"]
    # What was computed of it before the restart was read from disk.
    assert "reused" in chat.status.inner_text()
    assert chat.chats.filter(has_text="Say: before").count() == 1
