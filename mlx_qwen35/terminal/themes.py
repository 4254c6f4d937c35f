"""Colours for dark and for light terminals, and for those of which neither is known. Knows nothing of what is coloured.

Only the sixteen colours that a terminal's owner chose, by the names below, and of those only the ones that can be read
on the ground they stand on. Thoughts and notes are dim in every theme, which terminals fit to their ground themselves.
"""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import Console
from rich.style import Style
from rich.syntax import ANSISyntaxTheme
from rich.theme import Theme

AUTO = "auto"
LIGHT_GROUNDS = ("7", "15")  # white and bright white


def _styles(quiet: str, call: str, error: str, keyword: str, string: str, number: str, name: str) -> dict[str, str]:
    """quiet: what frames text"""
    return {
        "call": call,
        "error": error,
        "code.comment": "dim",
        "code.keyword": keyword,
        "code.string": string,
        "code.number": number,
        "code.name": name,
        "markdown.code": f"bold {call}",
        "markdown.block_quote": quiet,
        "markdown.list": quiet,
        "markdown.item.number": quiet,
        "markdown.h2": "underline",
        "markdown.h3": "bold",
        "markdown.h4": "italic",
        "markdown.link": call,
        "markdown.link_url": f"underline {call}",
        "markdown.table.border": "dim",
        "markdown.table.header": "bold",
    }


THEMES: dict[str, dict[str, str]] = {
    "dark": _styles("cyan", "cyan", "bright_red", "bright_blue", "yellow", "bright_magenta", "green"),
    "light": _styles("blue", "blue", "red", "blue", "magenta", "red", "bold"),
    # What can be read on black and on white alike.
    "either": _styles("magenta", "magenta", "red", "bold", "magenta", "red", "bold"),
}
NAMES = (AUTO, *THEMES)


def chosen(name: str, environment: Mapping[str, str]) -> str:
    """The theme of a name; for `auto` what COLORFGBG says of the terminal's ground, else what suits either."""
    if name != AUTO:
        return name
    ground = environment.get("COLORFGBG", "").rpartition(";")[2]
    if not ground.isdecimal():
        return "either"
    return "light" if ground in LIGHT_GROUNDS else "dark"


def use(console: Console, name: str, environment: Mapping[str, str]) -> str:
    """From now on `console` prints in this theme, whose name is returned."""
    theme = chosen(name, environment)
    console.push_theme(Theme(THEMES[theme]))
    return theme


def code_theme(console: Console) -> ANSISyntaxTheme:
    """How code looks on `console`."""

    def style(name: str) -> Style:
        return console.get_style(f"code.{name}", default="none")

    names = {("Name", kind): style("name") for kind in ("Function", "Class", "Builtin", "Tag", "Attribute")}
    return ANSISyntaxTheme(
        {
            ("Comment",): style("comment"),
            ("Keyword",): style("keyword"),
            ("Operator", "Word"): style("keyword"),
            ("Literal", "String"): style("string"),
            ("Literal", "Number"): style("number"),
            **names,
        }
    )
