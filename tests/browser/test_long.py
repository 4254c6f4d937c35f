"""An answer of five thousand words: it arrives whole, the page keeps up, and can be used meanwhile."""

from __future__ import annotations

import pytest

from tests.browser.page import ChatPage

# Words that are single tokens of the demo's vocabulary: it shall take a minute.
PARAGRAPH = "the model is a small model and it chat with you from memory of this and ask what to convert\n\n"
TIMES = 250
WORDS = len(PARAGRAPH.split()) * TIMES


@pytest.mark.timeout(600)  # a minute of computing, on a machine that may have other things to do
def test_five_thousand_words_arrive_while_the_page_stays_usable(chat: ChatPage) -> None:
    assert WORDS >= 5000
    # The longest that the page's thread was busy at a stretch, as a person feels it.
    chat.page.evaluate(
        """() => {
            window.longest = 0
            let before = performance.now()
            setInterval(() => {
                const now = performance.now()
                window.longest = Math.max(window.longest, now - before - 50)
                before = now
            }, 50)
        }"""
    )
    chat.send(f"Say {TIMES} times: {PARAGRAPH}")
    chat.answers.last.get_by_text("the model is a small model").first.wait_for()
    # Typed while it streams, and not lost by a repaint.
    chat.question.fill("a question for later")
    chat.wait_until_done(minutes=8)
    # What is off the screen is not laid out (content-visibility), so it has a text and no inner text.
    assert sum(len(text.split()) for text in chat.answers.all_text_contents()) == WORDS
    assert chat.answers.locator("p").count() == TIMES
    assert chat.question.input_value() == "a question for later"
    print("longest stall in milliseconds:", chat.page.evaluate("Math.round(window.longest)"))
