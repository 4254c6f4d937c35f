"""Colours that can be read on the ground they stand on, chosen by what is known of it."""

from __future__ import annotations

import io

import pytest
from rich.color import ANSI_COLOR_NAMES
from rich.console import Console
from rich.style import Style

from mlx_qwen35.terminal.markdown import AnswerMarkdown
from mlx_qwen35.terminal.themes import THEMES, chosen, use

# xterm's own values of the sixteen, the palest on white and the darkest on black that are common.
XTERM = [
    "000000", "cd0000", "00cd00", "cdcd00", "0000ee", "cd00cd", "00cdcd", "e5e5e5",
    "7f7f7f", "ff0000", "00ff00", "ffff00", "5c5cff", "ff00ff", "00ffff", "ffffff",
]  # fmt: skip
GROUNDS = {"dark": ["000000"], "light": ["ffffff"], "either": ["000000", "ffffff"]}


def luminance(colour: str) -> float:
    """Relative luminance, as WCAG defines it."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    red, green, blue = (c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", THEMES)
def test_every_colour_can_be_read_on_its_ground(theme: str) -> None:
    for name, definition in THEMES[theme].items():
        style = Style.parse(definition)
        assert style.bgcolor is None, f"{name} would stand on a ground of its own"
        if style.color is not None and style.color.name != "default":
            colour = XTERM[ANSI_COLOR_NAMES[style.color.name]]
            for ground in GROUNDS[theme]:
                # WCAG's bound for large text and for what is no text; the darkest reds of xterm reach no more.
                assert contrast(colour, ground) >= 3, (name, definition, ground)


@pytest.mark.parametrize(
    ("said", "theme"),
    [
        ("15;0", "dark"),
        ("0;15", "light"),
        ("0;default;15", "light"),
        ("12;7", "light"),
        ("", "either"),
        (";x", "either"),
    ],
)
def test_the_ground_is_what_the_terminal_says_of_it(said: str, theme: str) -> None:
    assert chosen("auto", {"COLORFGBG": said}) == theme
    assert chosen("dark", {"COLORFGBG": said}) == "dark"


def test_code_and_quotes_take_the_theme_s_colours_and_no_ground() -> None:
    shown = {}
    for theme in THEMES:
        out = io.StringIO()
        console = Console(file=out, force_terminal=True, color_system="standard", width=60)
        use(console, theme, {})
        console.print(AnswerMarkdown("a `word`\n\n```python\ndef f(): return 'text'  # why\n```"))
        shown[theme] = out.getvalue()
        assert "\x1b[4" not in out.getvalue().replace("\x1b[4m", ""), "a background"
    assert len(set(shown.values())) == len(THEMES)
