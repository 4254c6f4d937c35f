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
    # Gradio's own quiet text and buttons are too pale on white to be read by everybody (WCAG AA).
    return Default(font=SANS, font_mono=MONO).set(
        body_text_color_subdued="*neutral_500",
        block_info_text_color="*neutral_500",
        input_placeholder_color="*neutral_500",
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_dark="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_hover_dark="*primary_800",
    )
