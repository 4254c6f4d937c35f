"""The page with no network at all: it loads, answers, and shows code and mathematics."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.browser.conftest import run, watched_pages
from tests.browser.page import ChatPage
from tests.browser.running import App, browser_beside, may_unshare

# Where a network of one's own is not to be had: nothing resolves, and what is asked goes nowhere.
NOWHERE = (
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost",
    "--proxy-server=127.0.0.1:9",
    "--proxy-bypass-list=127.0.0.1;localhost",
)


@pytest.fixture
def alone(tmp_path: Path, launch: Callable[..., Any]) -> Iterator[ChatPage]:
    """A page whose browser and server share a network in which nothing else is."""
    unshared = may_unshare()
    with run(App(tmp_path, alone=unshared)) as app, ExitStack() as opened:
        browser = launch(browser_beside(app, tmp_path)) if unshared else launch("", *NOWHERE)
        opened.callback(browser.close)
        yield watched_pages(browser, opened)(app)


def test_the_page_works_fully_without_a_network(alone: ChatPage) -> None:
    fetched = alone.page.evaluate("fetch('http://198.51.100.7/', {mode: 'no-cors'}).then(() => 'fetched', e => 'not')")
    assert fetched == "not", "the network is there"
    alone.think(True)
    assert alone.ask("What is 12 plus 30?") == "42"
    assert alone.folded.count() == 1
    alone.ask("Say: **bold** and $$x^2$$\n\n```python\nprint(42)\n```")
    assert alone.answers.last.locator("strong").count() == 1
    assert alone.answers.last.locator(".katex").count() > 0
    # All fonts that the page asks for have come.
    assert alone.page.evaluate("document.fonts.ready.then(fonts => [...fonts].every(f => f.status != 'error'))")
    assert alone.page.evaluate("[...document.images].every(image => image.complete && image.naturalWidth > 0)")
