"""How likely what was drawn was, and what might have come instead: in the network's own distribution.

That is the log-softmax, in float32, of the logits as the network gives them: before biases, penalties, temperature,
filters and guides, as OpenAI and mlx-lm report it. Rows without a token count for nothing, since none is ever drawn.
"""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx

from mlx_qwen35.options import MOST_LOGPROBS

LEAST = -9999.0  # stands for what is impossible: JSON knows no infinity


@dataclass(frozen=True)
class Score:
    """A drawn token and its log-probability.   top: the likeliest tokens there and theirs, the likeliest first"""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, eq=False)
class Scores:
    """Those of one row's draws in a step, perhaps not computed yet.   logprobs: [n]   ids, tops: [n, asked for]"""

    logprobs: mx.array
    ids: mx.array | None = None
    tops: mx.array | None = None

    @property
    def arrays(self) -> list[mx.array]:
        return [array for array in (self.logprobs, self.ids, self.tops) if array is not None]

    def read(self, tokens: list[int]) -> list[Score]:
        """tokens: [n], what was drawn"""
        logprobs = _floats(self.logprobs)
        if self.ids is None or self.tops is None:
            return [Score(token, logprob) for token, logprob in zip(tokens, logprobs)]
        ids: list[list[int]] = self.ids.tolist()  # pyright: ignore[reportAssignmentType]
        tops = [sorted(zip(*pair), key=lambda told: (-told[1], told[0])) for pair in zip(ids, _rows(self.tops))]
        return [Score(token, logprob, tuple(top)) for token, logprob, top in zip(tokens, logprobs, tops)]


def score(logits: mx.array, tokens: mx.array, known_tokens: int, top: int) -> Scores:
    """logits: [n, V], as the network gave them   tokens: [n], drawn   top: how many of the likeliest to tell"""
    assert top <= MOST_LOGPROBS
    logits = logits[:, :known_tokens].astype(mx.float32)
    logprobs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
    drawn = mx.take_along_axis(logprobs, tokens[:, None], axis=-1)[:, 0]
    count = min(top, known_tokens)
    if not count:
        return Scores(drawn)
    ids = mx.argpartition(-logprobs, kth=count - 1, axis=-1)[:, :count]
    return Scores(drawn, ids, mx.take_along_axis(logprobs, ids, axis=-1))


def _floats(array: mx.array) -> list[float]:
    values: list[float] = mx.maximum(array, LEAST).tolist()  # pyright: ignore[reportAssignmentType]
    return values


def _rows(array: mx.array) -> list[list[float]]:
    values: list[list[float]] = mx.maximum(array, LEAST).tolist()  # pyright: ignore[reportAssignmentType]
    return values
