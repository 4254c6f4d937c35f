"""A headless Chromium, the app it looks at, and the rule that no page may ask anything of another computer.

playwright is imported inside the fixtures, since collecting these tests must not need it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.browser.page import ChatPage
from tests.browser.running import App, chromium

HERE = Path(__file__).parent
# As root, as in most containers, Chromium runs without its sandbox only.
FLAGS = ("--no-sandbox", "--disable-dev-shm-usage", "--disable-background-networking")
LOCAL_SCHEMES = ("data", "blob", "about", "chrome-extension")

Open = Callable[..., ChatPage]


@pytest.hookimpl(tryfirst=True)  # before -m looks at the markers
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.browser)


@pytest.fixture(scope="session")
def playwright() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs the extra [browser]")
    manager = sync_api.sync_playwright()
    # What is preloaded for MLX is none of the browser's business, nor of the driver's.
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("LD_PRELOAD", raising=False)
        running = manager.start()
    yield running
    running.stop()


@pytest.fixture(scope="session")
def launch(playwright: Any) -> Iterator[Callable[..., Any]]:
    """`launch(program, *flags)`: a browser, closed at the end of the session."""
    with ExitStack() as opened:

        def start(program: str = "", *flags: str) -> Any:
            browser = playwright.chromium.launch(executable_path=program or chromium(), args=[*FLAGS, *flags])
            opened.callback(browser.close)
            return browser

        yield start


@pytest.fixture(scope="session")
def browser(launch: Callable[..., Any]) -> Any:
    return launch()


@pytest.fixture(scope="session")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[App]:
    """The app that most tests share, since a start costs many seconds; each page of theirs is a person of its own."""
    with run(App(tmp_path_factory.mktemp("home"))) as running:
        yield running


@contextmanager
def run(app: App) -> Iterator[App]:
    """Start it, and see at the end that it neither failed nor asked anything beyond loopback."""
    running = app.start()
    try:
        yield running
    finally:
        running.stop()
    assert "OUTSIDE" not in "".join(running.said)
    assert "Traceback" not in "".join(running.said), "".join(running.said)


@pytest.fixture
def open_page(browser: Any) -> Iterator[Open]:
    """`open_page(app)`: a page of its own browser profile. Afterwards: none asked anything beyond loopback."""
    with ExitStack() as opened:
        yield watched_pages(browser, opened)


def watched_pages(browser: Any, opened: ExitStack) -> Open:
    """What opens pages whose requests are watched until `opened` ends."""
    asked: list[str] = []
    blocked: list[str] = []  # by the page's content policy: reported as a request, never sent
    complaints: list[str] = []

    def start(app: App, context: Any = None, **options: Any) -> ChatPage:
        if context is None:
            context = browser.new_context(**{"viewport": {"width": 1200, "height": 800}, **options})
            context.grant_permissions(["clipboard-read", "clipboard-write"])
            opened.callback(context.close)
            context.on("request", lambda request: asked.append(request.url))
            context.on("requestfailed", lambda r: blocked.append(r.url) if r.failure == "csp" else None)
        page = context.new_page()
        page.on("pageerror", lambda error: complaints.append(str(error)))
        return ChatPage(page, app).open()

    def check() -> None:
        assert asked, "no request was seen at all"
        outside = [url for url in asked if not is_local(url) and url not in blocked]
        assert not outside, outside
        assert not complaints, complaints

    opened.callback(check)
    return start


def is_local(url: str) -> bool:
    """Whether a request stays on this computer."""
    parts = urlsplit(url)
    return parts.scheme in LOCAL_SCHEMES or parts.hostname in ("127.0.0.1", "localhost", "::1")


@pytest.fixture
def chat(open_page: Open, app: App) -> ChatPage:
    """One page on the module's app."""
    return open_page(app)
