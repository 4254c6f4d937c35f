"""The chat page as its person uses it. All that tests know of its elements stands here."""

from __future__ import annotations

import time
from typing import Any

from tests.browser.running import App

PATIENCE = 15_000  # milliseconds; reached only when something is broken


class ChatPage:
    """One tab. Methods wait for what they ask of the page; none waits for time to pass."""

    def __init__(self, page: Any, app: App) -> None:
        self.page, self.app = page, app
        page.set_default_timeout(PATIENCE)

    def open(self) -> ChatPage:
        """Load, or load again."""
        self.page.goto(self.app.url)
        self.wait_until_loaded()
        return self

    def wait_until_loaded(self) -> None:
        """Until what the server has to say of the saved chats has come: nothing can be sent before."""
        self.question.wait_for()
        self.page.locator("body.loaded").wait_for()

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

    @property
    def chats(self) -> Any:
        """The saved conversations, by their titles."""
        return self.page.locator("#chats label")

    def settings(self) -> None:
        """Open the side bar with sampling, system prompt and JSON mode."""
        bar = self.page.locator(".sidebar:has(#preset)")
        if "open" not in (bar.get_attribute("class") or "").split():
            bar.locator(".toggle-button").click()
        self.page.locator(".sidebar.open #preset").wait_for()

    def close_settings(self) -> None:
        """The side bar again, so that the conversation has its room."""
        self.page.locator(".sidebar.open:has(#preset) .toggle-button").click()
        self.page.locator(".sidebar:not(.open):has(#preset)").wait_for()

    def part(self, name: str) -> Any:
        """An element by its id."""
        return self.page.locator(f"#{name}")

    def field(self, name: str) -> Any:
        """What is typed into, of the element of this id."""
        return self.page.locator(f"#{name} :is(textarea, input:not([type=range]))").first

    def fill(self, name: str, value: str) -> None:
        """Type into a field and leave it."""
        self.field(name).fill(value)
        self.field(name).blur()

    def choose(self, name: str, label: str) -> None:
        """From a drop-down list."""
        self.part(name).locator("input").click()
        self.page.get_by_role("option", name=label, exact=True).click()

    def click_on_answer(self, name: str, number: int = -1) -> None:
        """One of the buttons below an answer."""
        below = self.conversation.locator(".message-buttons-left")
        (below.last if number == -1 else below.nth(number)).get_by_label(name, exact=True).click()

    def edit(self, number: int, text: str) -> None:
        """Change question `number` and ask it again."""
        below = self.conversation.locator(".message-buttons-right").nth(number)
        below.get_by_label("Edit", exact=True).click()
        self.conversation.locator("textarea").fill(text)
        self.conversation.get_by_label("Submit", exact=True).click()

    def wait_until_hidden(self, name: str) -> None:
        """Until no element of this id can be seen. (While it fades there may be two.)"""
        self.page.wait_for_function(
            "id => [...document.querySelectorAll('#' + id)].every(e => !e.checkVisibility())", arg=name
        )

    def wait_for_texts(self, *expected: tuple[str, str]) -> None:
        """Until these are the questions and answers, and nothing runs."""
        end = time.monotonic() + PATIENCE / 1000
        while (self._texts(), self.stop_button.is_visible()) != (list(expected), False):
            assert time.monotonic() < end, self._texts()
            self.page.wait_for_timeout(50)

    def _texts(self) -> list[tuple[str, str]]:
        # Without strict, since it may be read in the middle of a repaint.
        return list(zip(self.questions.all_inner_texts(), self.answers.all_inner_texts(), strict=False))

    def texts(self) -> list[tuple[str, str]]:
        """Everything said, as a person reads it: (question, answer) in turn."""
        return list(zip(self.questions.all_inner_texts(), self.answers.all_inner_texts(), strict=True))

    def send(self, text: str) -> None:
        """Type and press Enter; returns when the question stands in the conversation."""
        before, status = self.questions.count(), self.status.inner_text()
        self.question.fill(text)
        self.question.press("Enter")
        self.questions.nth(before).wait_for()
        # What belongs to one repaint is not painted at one moment.
        self.page.wait_for_function("old => document.querySelector('#status').innerText !== old", arg=status)

    def ask(self, text: str) -> str:
        """Send, wait for the end of the answer, return all text of the conversation's last answer."""
        self.send(text)
        self.wait_until_done()
        return self.last_answer()

    def wait_until_done(self, minutes: float = 1) -> None:
        """Until nothing runs, and the box takes a question."""
        self.page.wait_for_function(
            """() => !document.querySelector('#question .stop-button')?.checkVisibility() &&
                     !/Working|Reading|Waiting/.test(document.querySelector('#status').innerText)""",
            timeout=60_000 * minutes,
        )
        self.question.wait_for()

    def last_answer(self) -> str:
        return self.answers.last.inner_text()

    def wait_for_text(self, text: str) -> None:
        """Until the conversation shows it."""
        self.conversation.get_by_text(text).first.wait_for()

    def wait_for_request(self, before: int) -> None:
        """Until the model was asked more often than `before` times."""
        end = time.monotonic() + PATIENCE / 1000
        while len(self.app.requests()) <= before:
            assert time.monotonic() < end, "the model was asked nothing"
            self.page.wait_for_timeout(50)

    def wait_for_value(self, name: str, value: float) -> None:
        """Until a number's field shows it."""
        condition = "([id, value]) => Number(document.querySelector(`#${id} input`).value) === value"
        self.page.wait_for_function(condition, arg=[name, value])
