"""How the page looks: theme, styles, and the few lines of script that Gradio has no component for."""

from __future__ import annotations

from pathlib import Path

from gradio.themes import Base, Default

SANS = ("ui-sans-serif", "system-ui", "-apple-system", "Segoe UI", "sans-serif")
MONO = ("ui-monospace", "SF Mono", "Menlo", "Consolas", "monospace")
LATEX: list[dict[str, str | bool]] = [
    {"left": "$$", "right": "$$", "display": True},
    {"left": "\\[", "right": "\\]", "display": True},
    {"left": "$", "right": "$", "display": False},
    {"left": "\\(", "right": "\\)", "display": False},
]
STYLE = "".join((Path(__file__).parent / name).read_text() for name in ("page.css", "panels.css"))
SCRIPT = Path(__file__).parent / "page.js"
HEAD = '<script src="/page.js" defer></script>'


def theme() -> Base:
    """System fonts only: the page loads nothing that does not come from this computer."""
    return Default(font=SANS, font_mono=MONO)
