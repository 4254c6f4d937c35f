"""Asking, thinking, stopping, and two tabs: the page as its person meets it, in a real browser on the demo model."""

from __future__ import annotations

from tests.browser.conftest import Open
from tests.browser.page import ChatPage
from tests.browser.running import App

SUM, PROJECT = "What is 12 plus 30?", "How do I convert a model?"
ENDLESS = "Say 2000 times: the model is small and "


def test_a_question_is_answered_and_counted(chat: ChatPage, app: App) -> None:
    assert "mlx-qwen35 convert" in chat.ask(PROJECT)
    assert "prompt tokens" in chat.status.inner_text()
    assert "tokens/s" in chat.status.inner_text()
    assert app.requests()[-1]["messages"] == [{"role": "user", "content": PROJECT}]


def test_thinking_folds_away_and_can_be_switched_in_the_middle(chat: ChatPage, app: App) -> None:
    chat.think(True)
    assert chat.ask(SUM) == "42"
    assert app.requests()[-1]["prompt"].endswith("<|im_start|>assistant\n<think>\n")
    assert chat.folded.count() == 1
    # It folds by itself, with an animation.
    chat.page.get_by_text("2+0=2").wait_for(state="hidden")
    chat.folded.locator(".title").click()
    chat.wait_for_text("2+0=2")
    chat.think(False)
    assert "mlx-qwen35 convert" in chat.ask(PROJECT)
    assert app.requests()[-1]["prompt"].endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    assert chat.folded.count() == 1
    chat.think(True)
    chat.ask(SUM)
    assert app.requests()[-1]["prompt"].endswith("<|im_start|>assistant\n<think>\n")
    assert chat.folded.count() == 2


def test_an_answer_is_stopped_half_way_and_the_conversation_goes_on(chat: ChatPage, app: App) -> None:
    chat.send(ENDLESS)
    chat.wait_for_text("the model is small and the model")
    chat.stop_button.click()
    chat.wait_until_done()
    said = chat.last_answer()
    # The runtime answers one after another, so this would wait for minutes if the model still spoke.
    assert "mlx-qwen35 convert" in chat.ask(PROJECT)
    assert chat.answers.nth(chat.answers.count() - 2).inner_text() == said, "text came after the stop"
    roles = [message["role"] for message in app.requests()[-1]["messages"]]
    assert roles == ["user", "assistant", "user"]


def test_two_tabs_have_two_conversations(open_page: Open, app: App) -> None:
    first = open_page(app)
    second = open_page(app, context=first.page.context)
    first.send("Say 40 times: mine and only mine ")
    second.send("Say: yours")
    first.wait_until_done()
    second.wait_until_done()
    assert second.last_answer() == "yours"
    assert "mine" not in second.conversation.inner_text()
    assert first.last_answer().count("mine and only mine") == 40
    assert first.questions.count() == second.questions.count() == 1


def test_enter_sends_and_shift_enter_breaks_the_line(chat: ChatPage, app: App) -> None:
    chat.question.fill("Say: one")
    chat.question.press("Shift+Enter")
    chat.question.press_sequentially("two")
    assert chat.question.input_value() == "Say: one\ntwo"
    assert chat.questions.count() == 0
    chat.question.press("Enter")
    chat.questions.first.wait_for()
    chat.wait_until_done()
    assert app.requests()[-1]["messages"][0]["content"] == "Say: one\ntwo"
    assert chat.question.input_value() == ""
