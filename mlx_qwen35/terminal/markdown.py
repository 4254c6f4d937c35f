"""How an answer's Markdown looks in a terminal: rich's rendering, with nothing hidden and nothing lost."""

from __future__ import annotations

from typing import Any, ClassVar

from markdown_it import MarkdownIt
from rich.console import Console, ConsoleOptions, RenderResult
from rich.markdown import CodeBlock, Heading, Markdown
from rich.syntax import Syntax
from rich.text import Text

from mlx_qwen35.terminal.themes import code_theme


class _PlainHeading(Heading):
    """Left-aligned and bold; rich centres headings, which reads badly in the middle of an answer."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        self.text.justify = "left"
        self.text.stylize("bold underline" if self.tag == "h1" else "bold")
        yield self.text


class _PlainCode(CodeBlock):
    """Without rich's padding, so that copied code begins where it should."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Syntax(str(self.text).rstrip(), self.lexer_name, theme=code_theme(console), word_wrap=True)


class AnswerMarkdown(Markdown):
    """Differs from rich's Markdown in what a reader of untrusted text needs.

    HTML is shown as text (rich drops it silently), a link shows its address, a single newline stays a newline.
    """

    elements: ClassVar[dict[str, Any]] = {
        **Markdown.elements,
        "heading_open": _PlainHeading,
        "fence": _PlainCode,
        "code_block": _PlainCode,
    }

    def __init__(self, text: str) -> None:
        super().__init__("", hyperlinks=False)
        self.markup = text
        self.parsed = _PARSER.parse(text)
        for token in self.parsed:
            for child in token.children or ():
                if child.type == "softbreak":
                    child.type = "hardbreak"


def thinking_text(text: str) -> Text:
    """Reasoning: dimmed, as it is."""
    return Text(text, style="dim")


_PARSER = MarkdownIt("commonmark", {"html": False}).enable(["strikethrough", "table"])
