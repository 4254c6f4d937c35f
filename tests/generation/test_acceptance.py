"""Drafts change when a token is found, never which: on small tables of probabilities, where all can be counted."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Sequence

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_qwen35.generation.acceptance import accepted, places
from mlx_qwen35.generation.sampling import Place, Sampler, draw
from mlx_qwen35.options import GREEDY, Sampling

TOKENS, RUNS, ANSWER = 4, 2000, 2
PROMPT = mx.array([0], mx.uint32)
Logits = Callable[[Sequence[int]], np.ndarray]  # of what follows a text
PLAIN, FILTERED = Sampling(), Sampling(temperature=0.7, top_p=0.9)
PENALISED = Sampling(temperature=1.2, presence_penalty=1.5, repetition_penalty=1.3)
# Quantile of chi-square with 15 degrees of freedom that a right sampler passes in one of a million seeds.
TOO_FAR = 56.0


def logits_of(seed: int) -> Logits:
    """A network of its own for each seed: numbers that depend on the text before."""
    return functools.cache(lambda text: np.random.default_rng([seed, *text]).normal(0, 1.5, TOKENS))


def trunk(text: Sequence[int]) -> np.ndarray:
    return logits_of(1)(tuple(text))


def drafter(text: Sequence[int]) -> np.ndarray:
    """Near the trunk, but another."""
    return trunk(text) + 0.7 * logits_of(2)(tuple(text))


def rows(network: Logits, texts: Sequence[Sequence[int]]) -> mx.array:
    return mx.array(np.stack([network(text) for text in texts]).astype(np.float32))


def ids(answer: Sequence[int]) -> mx.array:
    return mx.array(list(answer), mx.uint32)


def plain(sampling: Sampling, seed: int, tokens: int) -> list[int]:
    sampler, answer = Sampler(sampling, TOKENS, seed), []
    while len(answer) < tokens:
        drawn = sampler(rows(trunk, [answer]), PROMPT, ids(answer))
        answer.append(int(drawn.item()))
    return answer


def speculative(sampling: Sampling, seed: int, tokens: int, depth: int, accept=accepted) -> tuple[list[int], int]:
    """An answer made with drafts, and how many drafts stayed."""
    sampler, answer, stayed = Sampler(sampling, TOKENS, seed), [], 0
    while len(answer) < tokens:
        drafts: list[int] = []
        for i in range(depth):
            told = [*answer, *drafts]
            place = Place(sampler, PROMPT, ids(told), sampler.lots(i + 1)[-1])
            drafts.append(int(draw([place], rows(drafter, [told])).item()))
        wanted = places(sampler, PROMPT, ids(answer), ids(drafts) if drafts else None, depth)
        drawn = draw(wanted, rows(trunk, [[*answer, *drafts[:i]] for i in range(depth + 1)])).tolist()
        kept = accept(drafts, drawn)
        sampler.spend(kept + 1)
        answer += [*drafts[:kept], drawn[kept]]
        stayed += kept
    return answer[:tokens], stayed


@pytest.mark.parametrize("depth", [1, 2, 4])
@pytest.mark.parametrize(
    "sampling", [GREEDY, PLAIN, FILTERED, PENALISED], ids=["greedy", "plain", "filters", "penalties"]
)
def test_with_a_seed_the_text_is_the_one_without_drafts(sampling: Sampling, depth: int) -> None:
    stayed = 0
    for seed in range(12):
        answer, kept = speculative(sampling, seed, 12, depth)
        assert answer == plain(sampling, seed, 12)
        stayed += kept
    assert stayed > 0


@functools.cache
def exact(sampling: Sampling) -> dict[tuple[int, ...], float]:
    """The probability of every answer of two tokens, from the definition."""
    chances = {}
    for first in range(TOKENS):
        for second in range(TOKENS):
            chances[first, second] = _chance(sampling, [], first) * _chance(sampling, [first], second)
    return chances


def _chance(sampling: Sampling, answer: list[int], token: int) -> float:
    logits = trunk(answer).astype(np.float64)
    for seen in {0, *answer}:
        factor = sampling.repetition_penalty
        logits[seen] = logits[seen] / factor if logits[seen] > 0 else logits[seen] * factor
    for seen in set(answer):
        logits[seen] -= sampling.presence_penalty
    p = np.exp(logits / sampling.temperature)
    p /= p.sum()
    order = np.argsort(-p)
    before = np.cumsum(p[order]) - p[order]
    p[order[before >= sampling.top_p]] = 0 if sampling.top_p < 1 else p[order[before >= sampling.top_p]]
    return float(p[token] / p.sum())


def far_from_exact(sampling: Sampling, depth: int, accept=accepted) -> float:
    """Chi-square of answers' counts; infinite where one came that cannot."""
    counts = Counter(tuple(speculative(sampling, seed, ANSWER, depth, accept)[0]) for seed in range(RUNS))
    chances = exact(sampling)
    if any(chances[answer] < 1e-9 for answer in counts):
        return float("inf")
    # Answers that are rare are counted together, as the test's rule asks for.
    common = {answer: p for answer, p in chances.items() if p * RUNS >= 5}
    pairs = [(counts[answer], p) for answer, p in common.items()]
    rest = 1 - sum(p for _, p in pairs)
    if rest * RUNS >= 1:
        pairs.append((RUNS - sum(n for n, _ in pairs), rest))
    return sum((n - RUNS * p) ** 2 / (RUNS * p) for n, p in pairs)


@pytest.mark.parametrize("sampling", [PLAIN, FILTERED, PENALISED], ids=["plain", "filters", "penalties"])
def test_the_distribution_is_that_without_drafts(sampling: Sampling) -> None:
    assert far_from_exact(sampling, 1) < TOO_FAR


def test_a_wrong_acceptance_is_seen_in_the_distribution() -> None:
    """One that takes the first draft as it comes, and one that takes a refused draft in one of two cases."""

    def credulous(drafts: Sequence[int], drawn: Sequence[int]) -> int:
        return max(1, accepted(drafts, drawn))

    def careless(drafts: Sequence[int], drawn: Sequence[int]) -> int:
        return 1 if sum(drawn) % 2 == 0 else accepted(drafts, drawn)

    assert far_from_exact(PLAIN, 1, credulous) > TOO_FAR
    assert far_from_exact(PLAIN, 1, careless) > TOO_FAR


@given(drawn=st.lists(st.integers(0, 2), min_size=1, max_size=6), data=st.data())
def test_what_stays_is_the_longest_beginning_that_was_drawn(drawn: list[int], data: st.DataObject) -> None:
    drafts = data.draw(st.lists(st.integers(0, 2), min_size=len(drawn) - 1, max_size=len(drawn) - 1))
    kept = accepted(drafts, drawn)
    assert drafts[:kept] == drawn[:kept]
    assert kept == len(drafts) or drafts[kept] != drawn[kept]
