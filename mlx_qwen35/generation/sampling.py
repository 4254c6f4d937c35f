"""From the last position's logits to the next token: penalties, filters, and a seeded draw.

The filters and penalties are mlx-lm's; this is the one module that imports them.
"""

from __future__ import annotations

import functools
import importlib.util
import os
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
        self._key = mx.random.key(int.from_bytes(os.urandom(4)) if seed is None else seed % 2**64)

    def __call__(self, logits: mx.array, prompt: mx.array, answer: mx.array) -> mx.array:
        """logits: [1, V] -> the next token, [1].   prompt, answer: ids so far, [n] each"""
        return self._draw(self._penalised(logits, prompt, answer))

    def keys(self, draws: int) -> list[mx.array]:
        """The random keys of the next draws, which stay the next ones until they are spent."""
        if not self.sampling.temperature:
            return [self._key] * draws  # nobody looks at them
        keys, state = [], self._key
        for _ in range(draws):
            state, key = mx.random.split(state)
            keys.append(key)
        return keys

    def spend(self, draws: int) -> None:
        """So many draws came to stay."""
        for _ in range(draws if self.sampling.temperature else 0):
            self._key = mx.random.split(self._key)[0]

    @property
    def counts_tokens(self) -> bool:
        """Whether a draw depends on what was drawn before."""
        s = self.sampling
        return bool(s.presence_penalty or s.frequency_penalty or s.repetition_penalty != 1.0)

    @property
    def is_plain(self) -> bool:
        """Whether a draw depends on the logits' filters alone, so that rows with equal options are filtered at once."""
        return not self.counts_tokens and self._bias is None

    def _draw(self, logits: mx.array) -> mx.array:
        if self.sampling.temperature == 0:
            return mx.argmax(logits, axis=-1)
        return self._categorical(self._filtered(logits))

    def _categorical(self, logprobs: mx.array) -> mx.array:
        self._key, key = mx.random.split(self._key)
        return mx.random.categorical(logprobs, key=key)

    def _penalised(self, logits: mx.array, prompt: mx.array, answer: mx.array) -> mx.array:
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

    def _filtered(self, logits: mx.array) -> mx.array:
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
    """Where in an answer a token is drawn.   prompt, answer: ids before it, [n] each   key: see `Sampler.keys`"""

    sampler: Sampler
    prompt: mx.array
    answer: mx.array
    key: mx.array


def draw(places: Sequence[Place], logits: mx.array) -> mx.array:
    """A token for each place.   logits: [n, V] -> [n]. Spends no keys."""
    samplers = [place.sampler for place in places]
    first = samplers[0]
    if all(s.is_plain and (s.sampling, s.known_tokens) == (first.sampling, first.known_tokens) for s in samplers):
        shaped = first._penalised(logits, places[0].prompt, places[0].answer)
        if first.sampling.temperature == 0:
            return mx.argmax(shaped, axis=-1)
        shaped = first._filtered(shaped)
        drawn = [mx.random.categorical(shaped[i : i + 1], key=place.key) for i, place in enumerate(places)]
    else:
        drawn = [_draw_one(place, logits[i : i + 1]) for i, place in enumerate(places)]
    return drawn[0] if len(drawn) == 1 else mx.concatenate(drawn)


def _draw_one(place: Place, logits: mx.array) -> mx.array:
    shaped = place.sampler._penalised(logits, place.prompt, place.answer)
    if place.sampler.sampling.temperature == 0:
        return mx.argmax(shaped, axis=-1)
    return mx.random.categorical(place.sampler._filtered(shaped), key=place.key)


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
