"""What a step drew is handed out: drafts accepted or not, answers that end, readers woken. Lives on the MLX thread."""

from __future__ import annotations

from collections.abc import Sequence

from mlx_qwen35.errors import CheckpointError, RequestError
from mlx_qwen35.generation.places import Places
from mlx_qwen35.generation.request import Line
from mlx_qwen35.generation.row import Row
from mlx_qwen35.generation.scores import Score
from mlx_qwen35.generation.speculation import Speculation
from mlx_qwen35.generation.stats import Counters
from mlx_qwen35.generation.stepping import Drawn


class Handing:
    """Between the engine's steps and the lines over which answers come."""

    def __init__(self, places: Places, speculation: Speculation, counters: Counters, max_context: int) -> None:
        self._places, self._speculation, self._counters = places, speculation, counters
        self._max_context = max_context
        self._untold: list[Line] = []

    def take(self, drawn: Sequence[Drawn]) -> int:
        """Give each row what it drew, and end those that are done; how many tokens came to stay, of all of them."""
        told = sum(self._take(part) for part in drawn if not part.row.done)
        self._untold += [part.row.line for part in drawn]
        return told

    def tell(self) -> None:
        """Wake the readers of what was handed out."""
        untold, self._untold = self._untold, []
        for line in untold:
            line.release()

    def fail(self, row: Row, error: BaseException) -> None:
        """End one row; the others go on."""
        self._places.let_go(row)
        row.fail(error)

    def _take(self, drawn: Drawn) -> int:
        row, drafts = drawn.row, drawn.drafts
        if drafts is None:
            row.line.decoded = row.line.decoded.and_step(0, 0)
            self._give(row, drawn.tokens[0], drawn.finite[0], drawn.scores[0])
            return 1
        window = len(drawn.tokens)
        if row.line.cancelled:
            row.keep(window, [])
            return 0
        kept = self._speculation.accept(row, drafts, drawn.told, drawn.tokens)
        tokens = drawn.tokens[: kept + 1]
        ends = row.ending(tokens)
        row.keep(window, tokens[:ends])
        row.line.decoded = row.line.decoded.and_step(drafts.depth, ends - 1)
        self._counters.drafted(drafts.depth, ends - 1)
        for token, finite, score in zip(tokens[:ends], drawn.finite, drawn.scores):
            if not row.done:
                self._give(row, token, finite, score)
        return ends

    def _give(self, row: Row, token: int, finite: bool, score: Score | None) -> None:
        if not finite:
            error = CheckpointError(
                f"The network's output is not finite after {len(row.ids)} tokens; the checkpoint is damaged or its "
                "quantization too coarse. Try another conversion of it."
            )
            self.fail(row, error)
            return
        try:
            reason = row.reads(token, score)
        except RequestError as error:  # its guide cannot follow
            self.fail(row, error)
            return
        if reason is None and len(row.ids) >= self._max_context:
            reason = "length"
        if reason:
            self._places.retire(row)
            row.end(reason)
