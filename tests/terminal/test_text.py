"""Text on its way to the screen: nothing dangerous passes, nothing is lost, wherever a stream is cut."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from mlx_qwen35.terminal.blocks import MarkdownBlocks
from mlx_qwen35.terminal.markdown import AnswerMarkdown
from mlx_qwen35.terminal.safe_text import one_line, safe

MARKDOWNISH = st.text(alphabet="ab \n`~-1.#", max_size=80)


@given(st.text())
def test_safe_text_holds_no_control_but_newline_and_tab(text: str) -> None:
    kept = safe(text)
    assert all(char.isprintable() or char in "\n\t" or ord(char) >= 0xA0 for char in kept)
    assert "\x1b" not in kept
    kept.encode()


@given(st.text(), st.integers(0, 50))
def test_safety_does_not_depend_on_where_a_stream_is_cut(text: str, at: int) -> None:
    assert safe(text[:at]) + safe(text[at:]) == safe(text)


def test_an_escape_sequence_is_shown_and_not_obeyed() -> None:
    assert safe("a\x1b[2J\x9b31mb\r\n\u202ec\x07") == "a␛[2J\ufffd31mb\nc␇"


def test_ordinary_writing_of_any_language_stays() -> None:
    text = "naïve café, 東京, Привет, שלום, مرحبا, 👩‍💻\tdone\n"
    assert safe(text) == text


def test_one_line_is_one_line() -> None:
    assert one_line("a\nb\t c") == "a b c"
    assert len(one_line("x" * 1000, 50)) == 50


def cut(text: str, places: list[int]) -> list[str]:
    edges = [0, *sorted(min(place, len(text)) for place in places), len(text)]
    return [text[a:b] for a, b in itertools.pairwise(edges)]


def blocks_of(pieces: list[str]) -> list[str]:
    splitter = MarkdownBlocks()
    blocks = [block for piece in pieces for block in splitter.feed(piece)]
    return [*blocks, splitter.finish()]


@given(MARKDOWNISH, st.lists(st.integers(0, 80), max_size=5))
def test_blocks_lose_nothing_and_do_not_depend_on_cuts(text: str, places: list[int]) -> None:
    assert "".join(blocks_of([text])) == text
    assert blocks_of(cut(text, places)) == blocks_of([text])


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("one\n\ntwo\n\nthree", 3),
        ("```\na\n\nb\n```\n\nafter", 2),
        ("~~~~\n```\n\nstill\n~~~\n\ncode\n~~~~\n\nafter", 2),
        ("- item\n\n  continued\n\n- next", 2),
        ("1. ```\n   a\n\nb\n   ```\n\nend", 2),
        ("`` inline ``` not a fence\n\ntwo", 2),
        ("```never closed\n\na\n\nb", 1),
    ],
)
def test_a_block_ends_where_markdown_lets_it(text: str, count: int) -> None:
    assert len(blocks_of([text])) == count


def test_what_is_repainted_of_a_long_block_is_short() -> None:
    splitter = MarkdownBlocks()
    for i in range(5_000):
        splitter.feed(f"line {i}\n" if i else "```python\n")
    splitter.feed("and a half")
    assert splitter.line_count == 5_001
    assert splitter.fence == "```"
    assert splitter.tail_lines(3) == "line 4997\nline 4998\nline 4999\nand a half"


def rendered(text: str, width: int = 60) -> str:
    console = Console(width=width, force_terminal=True, color_system=None)
    with console.capture() as captured:
        console.print(AnswerMarkdown(text))
    return captured.get()


def test_markdown_hides_nothing() -> None:
    shown = rendered("Use <div> and <b>bold</b>.\n\n<script>x</script>\n\n[here](http://evil.example/x)")
    for part in ("<div>", "<b>bold</b>", "<script>x</script>", "http://evil.example/x"):
        assert part in shown
    assert "\x1b]8" not in shown, "a hyperlink escape hides where it leads"


def test_single_newlines_stay() -> None:
    assert [line.strip() for line in rendered("roses\nviolets").splitlines()] == ["roses", "violets"]


@given(st.text(alphabet="ab *_`#>-1.|[]()\n<&!~", max_size=60))
def test_no_markdown_breaks_the_renderer(text: str) -> None:
    rendered(text, width=20)
