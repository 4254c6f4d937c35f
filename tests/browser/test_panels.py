"""Behind its password: the live strip, the session's plots and the list of models, at a phone's width."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.browser.conftest import is_local, run
from tests.browser.page import ChatPage
from tests.browser.running import App

PASSWORD = "open sesame"


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[App]:
    """A password counts on this computer, too, where other people may have accounts."""
    home: Path = tmp_path_factory.mktemp("home")
    (home / "password").write_text(f"{PASSWORD}\n")
    with run(App(home, ("--password-file", str(home / "password")))) as app:
        yield app


@pytest.fixture
def chat(browser: Any, locked: App) -> Iterator[ChatPage]:
    """A page that was let in, after it was not."""
    context = browser.new_context(viewport={"width": 390, "height": 844}, color_scheme="dark")
    page, asked, complaints = context.new_page(), [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(locked.url)
    for password in ("wrong wrong", PASSWORD):
        page.get_by_label("Password").fill(password)
        page.get_by_label("Password").press("Enter")
        page.locator("p[role=alert]:has-text('not the password'), #question textarea").first.wait_for()
    chat = ChatPage(page, locked)
    chat.wait_until_loaded()
    yield chat
    context.close()
    assert asked
    assert all(map(is_local, asked))
    assert not complaints


def test_figures_of_an_answer_are_shown_and_plotted(chat: ChatPage) -> None:
    page, strip = chat.page, chat.page.locator("#strip")
    for question in ("What is 12 plus 30?", "How do I convert a model?"):
        chat.ask(question)
    for unit in ("tokens/s", "reused", "context", "memory"):
        strip.locator(".figure", has_text=unit).wait_for()
    box = strip.locator(".strip").bounding_box()
    assert box["x"] + box["width"] <= 390, "it does not fit a phone"
    page.locator("#settings-sidebar .toggle-button").click()
    page.locator("#statistics button").first.click()
    page.locator("#plots polyline").first.wait_for()
    assert page.locator("#plots .plot").count() == 5
    assert page.locator("#plots .plot").first.locator("circle").count() == 2


def test_models_are_listed_with_what_fits(chat: ChatPage) -> None:
    page = chat.page
    page.locator("#settings-sidebar .toggle-button").click()
    page.locator("#models button").first.click()
    page.locator("#model input").click()
    page.locator("[role=option]", has_text="demo · bundled").wait_for()
    page.locator("[role=option]", has_text="demo · bundled").click()
    page.locator("#load-model").click()
    page.locator("#model-progress", has_text="That model is in use.").wait_for()
