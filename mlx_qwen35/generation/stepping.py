"""One step of the engine: rows that decode, with or without drafts, and prompts, in one launch; then what it drew.

Knows which positions are drawn from and how; who takes part, and what becomes of the tokens, is the engine's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import mlx.core as mx

from mlx_qwen35.errors import RequestError
from mlx_qwen35.generation.acceptance import places
from mlx_qwen35.generation.guides import Mask, constrain
from mlx_qwen35.generation.row import Row
from mlx_qwen35.generation.sampling import Place, draw
from mlx_qwen35.generation.scores import Score, Scores, score
from mlx_qwen35.generation.speculation import Drafts, Speculation
from mlx_qwen35.metal_kernels.operations import selection
from mlx_qwen35.models.model import Model
from mlx_qwen35.models.windows import Window


@dataclass
class Step:
    """A step in flight: the rows that draw in it, what they draw, and what it computed of prompts.

    drafts: of each row that draws   tokens, finite: of each row, one for its token and one for each draft, [draws]
    scores: of each row that wants them   failed: rows whose guide could not say what is allowed
    """

    drawing: list[Row]
    drafts: list[Drafts | None]
    launched: float
    prefilled: list[tuple[Row, int]] = field(default_factory=list)  # and up to which token
    window_tokens: int = 0
    tokens: mx.array | None = None
    finite: mx.array | None = None
    scores: list[Scores | None] = field(default_factory=list)
    failed: list[tuple[Row, RequestError]] = field(default_factory=list)

    @property
    def speculates(self) -> bool:
        """Whether the next step can be made only when this one was read."""
        return any(self.drafts)

    def read(self) -> list[Drawn]:
        """Wait for it."""
        if self.tokens is None or self.finite is None:
            mx.eval([layer.state for row, _ in self.prefilled for layer in row.cache or ()])
            return []
        tokens, finite = _ints(self.tokens), _ints(self.finite)
        told = [d.tokens for d in self.drafts if d is not None and d.tokens is not None]
        drafted = iter(_ints(mx.concatenate(told)) if told else [])
        found, start = [], 0
        for row, drafts, scores in zip(self.drawing, self.drafts, self.scores):
            depth = drafts.depth if drafts is not None else 0
            end = start + depth + 1
            mine = [next(drafted) for _ in range(depth)]
            drawn = tokens[start:end]
            told_of = [None] * len(drawn) if scores is None else scores.read(drawn)
            found.append(Drawn(row, drafts, mine, drawn, [bool(f) for f in finite[start:end]], told_of))
            start = end
        return found


@dataclass
class Drawn:
    """What one row drew in a step.   told: its drafts   tokens, finite, scores: of its token and each draft"""

    row: Row
    drafts: Drafts | None
    told: list[int]
    tokens: list[int]
    finite: list[bool]
    scores: Sequence[Score | None]


class Launcher:
    """Makes steps out of rows."""

    def __init__(self, model: Model, speculation: Speculation, tell: Callable[[], object]) -> None:
        """tell: hands out what the step before drew; called once Python has little left to do. Readers are threads of
        this interpreter, and would take their turns while a graph is made, with the device waiting.
        """
        self._model, self._speculation, self._tell = model, speculation, tell

    def launch(self, decoding: Sequence[Row], prefills: Sequence[tuple[Row, int]], now: float) -> Step:
        """Start computing; returns at once. Rows whose prompt ends in it draw too."""
        measured = selection().measuring
        chosen = self._speculation.propose(decoding)
        self._speculation.draft(decoding, chosen)
        pairs = [*zip(decoding, chosen)]
        windows = [row.decode(d.tokens if d else None) for row, d in pairs]
        windows += [row.prefill(tokens) for row, tokens in prefills]
        hidden = self._model.step(windows)
        now += selection().measuring - measured
        self._tell()
        drawing = [*pairs, *((row, None) for row, _ in prefills if not row.prefilling)]
        step = Step([row for row, _ in drawing], [d for _, d in drawing], now)
        step.window_tokens = sum(tokens for _, tokens in prefills)
        if drawing:
            rows = [*(row for row, _ in pairs), *(row for row, _ in prefills)]
            drawn_from = list(_drawn_from(rows, windows))
            self._draw(step, hidden if len(drawn_from) == hidden.shape[0] else hidden[mx.array(drawn_from)])
        prefilled_state = [layer.state for row, _ in prefills for layer in row.cache or ()]
        scores = [array for scores in step.scores if scores is not None for array in scores.arrays]
        mx.async_eval(step.tokens, step.finite, scores, hidden, prefilled_state)
        step.prefilled = [(row, row.fed) for row, _ in prefills]
        return step

    def _draw(self, step: Step, hidden: mx.array) -> None:
        """hidden: [draws, C]"""
        raw = logits = self._model.logits(hidden)
        wanted = [place for row, drafts in zip(step.drawing, step.drafts) for place in _places(row, drafts)]
        step.finite = mx.isfinite(logits.max(axis=-1))
        if any(row.guide is not None for row in step.drawing):
            mx.async_eval(logits, step.finite)  # computed while the masks are made
            logits = constrain(logits, _masks(step))
        step.tokens = draw(wanted, logits)
        start = 0
        for row, drafts in zip(step.drawing, step.drafts):
            if drafts is None:
                row.draws(step.tokens[start : start + 1])
            end = start + 1 + (drafts.depth if drafts else 0)
            step.scores.append(_scores(row, raw[start:end], step.tokens[start:end]))
            start = end


def _drawn_from(rows: Sequence[Row], windows: Sequence[Window]) -> Iterator[int]:
    """Positions among the step's tokens: all of a window with drafts, the last of others that reach what is known."""
    start = 0
    for row, window in zip(rows, windows):
        end = start + window.tokens
        if window.draft:
            yield from range(start, end)
        elif not row.prefilling:
            yield end - 1
        start = end


def _scores(row: Row, logits: mx.array, tokens: mx.array) -> Scores | None:
    """Of one row's draws, by themselves: what others ask for has no part in it."""
    asked = row.request
    return None if asked.logprobs is None else score(logits, tokens, asked.known_tokens, asked.logprobs)


def _masks(step: Step) -> list[Mask | None]:
    """A mask for each draw. After a draft that is not allowed nothing stays, so nothing needs one."""
    masks: list[Mask | None] = []
    for row, drafts in zip(step.drawing, step.drafts):
        found: list[Mask | None] = []
        told = [] if drafts is None or drafts.tokens is None or row.guide is None else _ints(drafts.tokens)
        try:
            found = [] if row.guide is None else row.guide.masks(told)
        except RequestError as error:
            step.failed.append((row, error))
        masks += found + [None] * (1 + (drafts.depth if drafts else 0) - len(found))
    return masks


def _places(row: Row, drafts: Drafts | None) -> list[Place]:
    assert row.sampler is not None
    told, depth = (None, 0) if drafts is None else (drafts.tokens, drafts.depth)
    return places(row.sampler, row.prompt, row.answer, told, depth)


def _ints(array: mx.array) -> list[int]:
    return array.tolist()  # pyright: ignore[reportReturnType]
