"""From the last position's logits to the next token: penalties, filters, and a seeded draw.

The filters and penalties are mlx-lm's; this is the one module that imports them.
"""

from __future__ import annotations

import functools
import importlib.util
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx

from mlx_qwen35.errors import RequestError
from mlx_qwen35.options import Sampling

WHOLE = 1 << 30  # a penalty's window: everything so far
SMALLEST = 1e-3  # temperature and repetition penalty: logits divided by less leave float32


class Sampler:
    """Draws tokens for one sequence. The same seed, prompt and options give the same tokens."""

    def __init__(
        self,
        sampling: Sampling,
        known_tokens: int,
        seed: int | None = None,
        logit_bias: Mapping[int, float] | None = None,
    ) -> None:
        """known_tokens: ids from here up have no token (padded vocabulary rows) and are never drawn."""
        check_sampling(sampling)
        self.sampling = sampling
        self.known_tokens = known_tokens
        self._bias = _bias_vector(logit_bias, known_tokens)
        # On the host: a draw needs one number, which was 30 operations on the device, for each row of a batch.
        self._random = random.Random(None if seed is None else seed % 2**64)
        self._lots: list[float] = []

    def __call__(self, logits: mx.array, prompt: mx.array, answer: mx.array) -> mx.array:
        """logits: [1, V] -> the next token, [1].   prompt, answer: ids so far, [n] each"""
        token = draw([Place(self, prompt, answer, self.lots(1)[0])], logits)
        self.spend(1)
        return token

    def lots(self, draws: int) -> list[float]:
        """What decides the next draws, each in [0, 1). They stay the next ones until they are spent."""
        while len(self._lots) < draws:
            self._lots.append(self._random.random())
        return self._lots[:draws]

    def spend(self, draws: int) -> None:
        """So many draws came to stay."""
        self.lots(draws)
        del self._lots[:draws]

    @property
    def counts_tokens(self) -> bool:
        """Whether a draw depends on what was drawn before."""
        s = self.sampling
        return bool(s.presence_penalty or s.frequency_penalty or s.repetition_penalty != 1.0)

    @property
    def bias(self) -> mx.array | None:
        """What is added to logits, [1, V]."""
        return self._bias

    def penalised(self, logits: mx.array, prompt: mx.array, answer: mx.array) -> mx.array:
        s, lm = self.sampling, _sample_utils()
        logits = logits[:, : self.known_tokens].astype(mx.float32)
        if self._bias is not None:
            logits = logits + self._bias
        if s.repetition_penalty != 1.0:
            everything = mx.concatenate([prompt, answer])
            logits = lm.make_repetition_penalty(s.repetition_penalty, WHOLE)(everything, logits)
        if s.presence_penalty and answer.size:
            logits = lm.make_presence_penalty(s.presence_penalty, WHOLE)(answer, logits)
        if s.frequency_penalty and answer.size:
            logits = lm.make_frequency_penalty(s.frequency_penalty, WHOLE)(answer, logits)
        return logits

    def drawn(self, logits: mx.array, lots: Sequence[float]) -> mx.array:
        """Tokens of this sampler's kind, one for each row: filters, then a lot each.   logits: [n, V] -> [n]"""
        if self.sampling.temperature == 0:
            return mx.argmax(logits, axis=-1)
        return _pick(self.filtered(logits), lots)

    def filtered(self, logits: mx.array) -> mx.array:
        """Log-probabilities at the temperature, up to a constant, with what the filters exclude at -inf."""
        s, lm = self.sampling, _sample_utils()
        logprobs = logits / s.temperature
        if 0 < s.top_p < 1 or s.min_p > 0:  # the others ask for the order alone
            logprobs = logprobs - mx.logsumexp(logprobs, axis=-1, keepdims=True)
        if 0 < s.top_k < self.known_tokens:
            logprobs = lm.apply_top_k(logprobs, int(s.top_k))
        if 0 < s.top_p < 1:
            logprobs = lm.apply_top_p(logprobs, s.top_p)
        if s.min_p > 0:
            logprobs = lm.apply_min_p(logprobs, s.min_p)
        return logprobs


@dataclass(frozen=True, eq=False)
class Place:
    """Where in an answer a token is drawn.   prompt, answer: ids before it, [n] each   lot: see `Sampler.lots`"""

    sampler: Sampler
    prompt: mx.array
    answer: mx.array
    lot: float


def draw(places: Sequence[Place], logits: mx.array) -> mx.array:
    """A token for each place.   logits: [n, V] -> [n]. Spends no lots."""
    samplers, lots = [place.sampler for place in places], [place.lot for place in places]
    first = samplers[0]
    if all(_are_alike(first, other) for other in samplers):
        logits = logits[:, : first.known_tokens].astype(mx.float32)
        if any(sampler.bias is not None for sampler in samplers):
            none = mx.zeros((1, first.known_tokens))
            logits = logits + mx.concatenate([none if s.bias is None else s.bias for s in samplers])
        return first.drawn(logits, lots)
    rows = [p.sampler.penalised(logits[i : i + 1], p.prompt, p.answer) for i, p in enumerate(places)]
    return mx.concatenate([s.drawn(row, [lot]) for s, row, lot in zip(samplers, rows, lots)])


def _are_alike(one: Sampler, other: Sampler) -> bool:
    """Whether both may draw at once: neither counts tokens, and their filters are the same."""
    same = (one.sampling, one.known_tokens) == (other.sampling, other.known_tokens)
    return same and not one.counts_tokens and not other.counts_tokens


def _pick(logprobs: mx.array, lots: Sequence[float]) -> mx.array:
    """The token in whose share of the whole a lot falls.   logprobs: [n, V], up to a constant each -> [n]"""
    shares = mx.cumsum(mx.softmax(logprobs, axis=-1, precise=True), axis=-1)
    whole = shares[:, -1:]
    passed = (shares <= mx.array(list(lots))[:, None] * whole).sum(axis=-1)
    # Rounded, a lot may reach the whole; beyond the last token that has a share, nothing may be drawn.
    return mx.minimum(passed, (shares < whole).sum(axis=-1)).astype(mx.uint32)


@functools.cache
def _sample_utils() -> Any:
    """mlx-lm's module by itself. Importing its package would import transformers, which takes seconds."""
    package = importlib.util.find_spec("mlx_lm")
    assert package is not None
    assert package.submodule_search_locations
    path = Path(package.submodule_search_locations[0]) / "sample_utils.py"
    spec = importlib.util.spec_from_file_location("mlx_lm.sample_utils", path)
    assert spec is not None
    assert spec.loader is not None
    module: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def check_sampling(s: Sampling) -> None:
    """Refuse values outside their range; RequestError names the option."""
    ranges: dict[str, tuple[float, float, float]] = {
        "temperature": (s.temperature, 0, 100),
        "top_p": (s.top_p, 0, 1),
        "min_p": (s.min_p, 0, 1),
        "top_k": (s.top_k, 0, 1 << 31),
        "presence_penalty": (s.presence_penalty, -100, 100),
        "frequency_penalty": (s.frequency_penalty, -100, 100),
    }
    ranges["repetition_penalty"] = (s.repetition_penalty, SMALLEST, 100)
    for name, (value, low, high) in ranges.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise RequestError(f"{name} is {str(value)[:40]!r}; it should be a number.")
        if not low <= value <= high:
            raise RequestError(f"{name} is {value}; it should be between {low} and {high}.")
    if s.top_k != int(s.top_k):
        raise RequestError(f"top_k is {s.top_k}; it should be a whole number of tokens.")
    if 0 < s.temperature < SMALLEST:
        raise RequestError(f"temperature is {s.temperature}; it should be 0, or at least {SMALLEST}.")


def _bias_vector(logit_bias: Mapping[int, float] | None, known_tokens: int) -> mx.array | None:
    if not logit_bias:
        return None
    for token, bias in logit_bias.items():
        if not 0 <= token < known_tokens:
            raise RequestError(f"logit_bias names token {token}; this model has tokens 0 to {known_tokens - 1}.")
        if not -1e4 <= bias <= 1e4:
            raise RequestError(f"logit_bias of token {token} is {bias}; it should be a number up to 10000.")
    vector = mx.zeros(known_tokens)
    return vector.at[mx.array(list(logit_bias))].add(mx.array(list(logit_bias.values()), mx.float32))[None]
