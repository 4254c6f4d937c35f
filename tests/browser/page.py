"""The chat page as its person uses it. All that tests know of its elements stands here."""

from __future__ import annotations

from typing import Any

from tests.browser.running import App

PATIENCE = 60_000  # milliseconds; reached only when something is broken


class ChatPage:
    """One tab. Methods wait for what they ask of the page; none waits for time to pass."""

    def __init__(self, page: Any, app: App) -> None:
        self.page, self.app = page, app
        page.set_default_timeout(PATIENCE)

    def open(self) -> ChatPage:
        """Load, or load again."""
        self.page.goto(self.app.url)
        self.question.wait_for()
        return self

    @property
    def question(self) -> Any:
        return self.page.locator("#question textarea")

    @property
    def conversation(self) -> Any:
        return self.page.locator("#conversation")

    @property
    def status(self) -> Any:
        return self.page.locator("#status")

    @property
    def stop_button(self) -> Any:
        return self.page.locator("#question .stop-button")

    @property
    def answers(self) -> Any:
        """What the model said; folded blocks are not among them."""
        return self.conversation.locator('[data-testid="bot"] > .message-content')

    @property
    def folded(self) -> Any:
        """Blocks that fold: thinking, and the steps of tools."""
        return self.conversation.locator(".thought-group")

    @property
    def questions(self) -> Any:
        return self.conversation.locator('[data-testid="user"]')

    def think(self, on: bool) -> None:
        """Switch thinking."""
        self.page.locator("#thinking input").set_checked(on)

    def send(self, text: str) -> None:
        """Type and press Enter; returns when the question stands in the conversation."""
        before = self.questions.count()
        self.question.fill(text)
        self.question.press("Enter")
        self.questions.nth(before).wait_for()

    def ask(self, text: str) -> str:
        """Send, wait for the end of the answer, return all text of the conversation's last answer."""
        self.send(text)
        self.wait_until_done()
        return self.last_answer()

    def wait_until_done(self) -> None:
        """Until nothing runs: the counts stand below the conversation and the box takes a question."""
        self.stop_button.wait_for(state="hidden")
        self.question.wait_for()

    def last_answer(self) -> str:
        return self.answers.last.inner_text()

    def wait_for_text(self, text: str) -> None:
        """Until the conversation shows it."""
        self.conversation.get_by_text(text).first.wait_for()
