"""At a phone's width, in dark and in light, and by keyboard alone."""

from __future__ import annotations

import time
from typing import Any

import pytest

from tests.browser.conftest import Open
from tests.browser.page import PATIENCE, ChatPage
from tests.browser.running import App

PHONE = {"width": 390, "height": 844}
CONTRAST = """element => {
    const parse = text => (text.match(/[\\d.]+/g) || []).map(Number)
    const light = rgb => {
        const [r, g, b] = rgb.map(c => (c /= 255) <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
        return 0.2126 * r + 0.7152 * g + 0.0722 * b
    }
    let ground = element, colour
    do {
        colour = parse(getComputedStyle(ground).backgroundColor)
        ground = ground.parentElement
    } while (ground && colour.length === 4 && colour[3] < 1)
    const [high, low] = [light(parse(getComputedStyle(element).color).slice(0, 3)), light(colour.slice(0, 3))]
        .sort((a, b) => b - a)
    return (high + 0.05) / (low + 0.05)
}"""
NAMELESS = """[...document.querySelectorAll('button, input, textarea, [role=button]')]
    .filter(e => e.checkVisibility({visibilityProperty: true}) && e.type !== 'hidden' && e.type !== 'file')
    .filter(e => !(e.innerText || e.ariaLabel || e.title || e.placeholder ||
                   [...(e.labels || [])].some(label => label.innerText.trim())))
    .map(e => e.outerHTML.slice(0, 200))"""


def fits(chat: ChatPage) -> None:
    """Nothing is wider than the screen, and the box can be typed into."""
    wide = chat.page.evaluate("[document.documentElement.scrollWidth, window.innerWidth]")
    assert wide[0] <= wide[1], f"the page scrolls sideways: {wide}"
    box: Any = chat.question.bounding_box()
    assert box is not None
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= PHONE["width"]
    assert box["width"] >= 200, "too narrow to type into"
    assert box["y"] >= 0
    assert box["y"] + box["height"] <= PHONE["height"], "the box is below the screen's end"
    under = "([x, y]) => document.elementFromPoint(x, y)?.closest('#question') !== null"
    assert chat.page.evaluate(under, [box["x"] + box["width"] / 2, box["y"] + box["height"] / 2]), "covered"


def test_a_phone_shows_the_chat_and_scrolls_down_only(open_page: Open, app: App) -> None:
    chat = open_page(app, viewport=PHONE, has_touch=True, is_mobile=True)
    fits(chat)
    line = "a_very_long_name_without_any_break = " + "another_very_long_name_without_any_break" * 3
    chat.ask(
        f"Say: words\n\n```python\n{line}\n```\n\n| a | b | c | d |\n|---|---|---|---|\n" + f"|{'cell ' * 5}" * 4 + "|"
    )
    fits(chat)
    message: Any = chat.answers.last.bounding_box()
    assert message["x"] + message["width"] <= PHONE["width"] + 1
    chat.settings()
    assert chat.part("preset").bounding_box()["width"] <= PHONE["width"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_in_dark_and_in_light(scheme: str, open_page: Open, app: App) -> None:
    chat = open_page(app, color_scheme=scheme)
    chat.think(True)
    chat.ask("What is 12 plus 30?")
    ground = chat.page.evaluate("getComputedStyle(document.body).backgroundColor")
    dark = sum(map(int, ground.removeprefix("rgb(").rstrip(")").split(",")[:3])) < 3 * 128
    assert dark == (scheme == "dark"), "the page does not follow the system"
    shown = {
        "question": chat.questions.first.locator("p").first,
        "answer": chat.answers.last.locator("p").first,
        "thought": chat.folded.first.locator("p").first,
        "status": chat.status.locator("p").first,
        "button": chat.part("new-chat"),
    }
    for name, element in shown.items():
        # WCAG AA: 4.5 for text, 3 for the large and bold text of a button.
        assert element.evaluate(CONTRAST) >= (3 if name == "button" else 4.5), name


def test_escape_stops_an_answer(chat: ChatPage) -> None:
    chat.send("Say 2000 times: the model is small and ")
    chat.wait_for_text("the model is small and the model")
    chat.page.keyboard.press("Escape")
    chat.wait_until_done()
    said = chat.last_answer()
    assert said.count("small") < 2000
    assert chat.ask("Say: on") == "on"


def test_escape_stops_what_was_only_just_sent(chat: ChatPage) -> None:
    chat.question.fill("Say 2000 times: the model is small and ")
    chat.question.press("Enter")
    chat.page.keyboard.press("Escape")
    chat.status.get_by_text("Stopped.").wait_for()
    chat.wait_until_done()
    assert chat.ask("Say: on") == "on"


def test_everything_that_is_clicked_has_a_name_for_those_who_cannot_see_it(chat: ChatPage) -> None:
    chat.ask("Say: yes")
    end = time.monotonic() + PATIENCE / 1000  # page.js names what Gradio draws at its next look, five times a second
    while nameless := chat.page.evaluate(NAMELESS):
        assert time.monotonic() < end, "\n".join(nameless)
        chat.page.wait_for_timeout(50)
