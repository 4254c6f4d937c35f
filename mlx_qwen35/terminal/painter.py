"""The last lines on the screen, painted again and again; whatever stands above them is never touched.

One write a repaint, so that nothing flickers. Lines are kept shorter than the screen is wide, and the rows to go up
are counted at the width of the moment, so that a narrow or resized terminal shows no line twice. Knows nothing of
what the lines say.
"""

from __future__ import annotations

import math

from rich.console import Console, RenderableType
from rich.segment import Segment, Segments

HIDE_CURSOR, SHOW_CURSOR, ERASE_BELOW = "\x1b[?25l", "\x1b[?25h", "\x1b[J"


class Painter:
    """A region at the bottom of `console`, which must be a terminal."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._widths: list[int] = []  # cells of each painted line; the cursor stands at the end of the last

    def repaint(self, below: RenderableType | None) -> None:
        """Replace the region by the last rows of `below` that fit on the screen."""
        self._write([], [] if below is None else self._lines(below)[-self.rows :])

    def print(self, above: RenderableType, below: RenderableType | None = None) -> None:
        """Print for good what is finished, in place of the region, and start the region anew under it."""
        self._write(self._lines(above), [] if below is None else self._lines(below)[-self.rows :])

    def close(self) -> None:
        """Remove the region and show the cursor."""
        self._write([], [])

    @property
    def rows(self) -> int:
        """Rows the region may have."""
        return max(1, self._console.size.height - 2)

    def _lines(self, renderable: RenderableType) -> list[list[Segment]]:
        # The last column stays free: writing into it leaves terminals in different states.
        options = self._console.options.update(width=max(1, self._console.width - 1), height=None)
        return [_without_trailing_spaces(line) for line in self._console.render_lines(renderable, options, pad=False)]

    def _write(self, above: list[list[Segment]], below: list[list[Segment]]) -> None:
        if not (above or below or self._widths):
            return
        out = [self._to_the_top(), ERASE_BELOW]
        for line in above:
            out += [self._text(line), "\n"]
        out.append("\n".join(self._text(line) for line in below))
        out.insert(0, HIDE_CURSOR if below else "")
        out.append("" if below else SHOW_CURSOR)
        self._widths = [Segment.get_line_length(line) for line in below]
        self._console.file.write("".join(out))
        self._console.file.flush()

    def _to_the_top(self) -> str:
        """Back to the first row of the region. A line longer than a screen made narrower takes several rows."""
        width = max(1, self._console.width)
        rows = sum(max(1, math.ceil(cells / width)) for cells in self._widths)
        return "\r" + (f"\x1b[{rows - 1}A" if rows > 1 else "")

    def _text(self, line: list[Segment]) -> str:
        with self._console.capture() as captured:
            self._console.print(Segments(line), end="")
        return captured.get()


def _without_trailing_spaces(line: list[Segment]) -> list[Segment]:
    """What is copied from the screen should not end in the padding of a layout."""
    kept = list(line)
    while kept:
        text, style, control = kept[-1]
        if control or (style and (style.bgcolor or style.underline or style.reverse)):
            break
        if stripped := text.rstrip(" "):
            kept[-1] = Segment(stripped, style)
            break
        kept.pop()
    return kept
