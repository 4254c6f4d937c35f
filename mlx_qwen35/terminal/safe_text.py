"""Text of a model, made harmless for a terminal. Knows nothing of layout.

A model can be talked into writing escape sequences, which would move the cursor, rewrite what stands above, or set
the clipboard. Each character is judged alone, so the result does not depend on how a stream is cut into pieces.
"""

from __future__ import annotations

# Control characters become the pictures Unicode has for them (ESC is ␛): shown, so that nothing vanishes unseen.
_PICTURES = {code: 0x2400 + code for code in range(0x20) if chr(code) not in "\n\t\r"} | {0x7F: 0x2421}
# Eight-bit controls (0x9B begins a sequence, too) have no pictures.
_EIGHT_BIT = dict.fromkeys(range(0x80, 0xA0), 0xFFFD)
# A carriage return would overwrite its line; overrides of the writing direction show other text than was written.
_DROPPED = dict.fromkeys([0x0D, *range(0x202A, 0x202F), 0x2028, 0x2029])
# Half of a surrogate pair cannot be written at all.
_HALVES = dict.fromkeys(range(0xD800, 0xE000), 0xFFFD)
_TABLE = {**_PICTURES, **_EIGHT_BIT, **_DROPPED, **_HALVES}


def safe(text: str) -> str:
    """`text` without anything a terminal would obey, except newline and tab."""
    return text.translate(_TABLE)


def one_line(text: str, limit: int = 400) -> str:
    """`text` made safe on a single line of at most `limit` characters."""
    line = " ".join(safe(text).split())
    return line if len(line) <= limit else line[: limit - 1] + "…"
