"""The draw of one token: filters in their order, penalties over the right tokens, seeds, and padded rows."""

from __future__ import annotations

from collections import Counter

import mlx.core as mx
import numpy as np
import pytest

from mlx_qwen35.errors import RequestError
from mlx_qwen35.generation.sampling import Place, Sampler, draw
from mlx_qwen35.options import GREEDY, Sampling

NONE = mx.zeros(0, mx.uint32)
LOGITS = mx.array([[2.0, 1.5, 1.0, 0.0, -1.0, -3.0, 9.0, 9.0]])  # the last two rows are padding
KNOWN = 6


def ids(*tokens: int) -> mx.array:
    return mx.array(tokens, mx.uint32)


def drawn(sampling: Sampling, count: int = 4000, prompt: mx.array = NONE, answer: mx.array = NONE) -> Counter[int]:
    sampler = Sampler(sampling, KNOWN, seed=0)
    tokens = [sampler(LOGITS, prompt, answer) for _ in range(count)]
    return Counter(mx.concatenate(tokens).tolist())  # pyright: ignore[reportArgumentType]


def distribution(sampling: Sampling) -> np.ndarray:
    """What transformers' warpers do: temperature, top-k, top-p, min-p, in float64."""
    x = np.array(LOGITS[0, :KNOWN].tolist()) / sampling.temperature
    order = np.argsort(-x)
    keep = np.ones(KNOWN, bool)
    if sampling.top_k:
        keep[order[sampling.top_k :]] = False
    p = np.where(keep, np.exp(x - x.max()), 0)
    p /= p.sum()
    if sampling.top_p < 1:
        before = np.cumsum(p[order]) - p[order]
        keep[order[before >= sampling.top_p]] = False
        p = np.where(keep, p, 0)
    p = np.where(p >= sampling.min_p * p.max(), p, 0)
    return p / p.sum()


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(),
        Sampling(temperature=0.6, top_p=0.95, top_k=4),
        Sampling(temperature=1.7, top_p=0.8),
        Sampling(temperature=2.0, top_k=3),
        Sampling(temperature=1.0, min_p=0.3),
    ],
    ids=str,
)
def test_the_draw_follows_the_filtered_distribution(sampling: Sampling) -> None:
    counts, expected = drawn(sampling), distribution(sampling)
    for token in range(KNOWN):
        share = counts[token] / 4000
        # Five standard deviations of a binomial count: a right sampler fails this once in a million.
        slack = 5 * (expected[token] * (1 - expected[token]) / 4000) ** 0.5
        assert abs(share - expected[token]) <= slack, f"token {token}: {share:.3f}, expected {expected[token]:.3f}"


@pytest.mark.parametrize("sampling", [GREEDY, Sampling(temperature=1.5, top_p=0.9)], ids=str)
def test_rows_drawn_together_are_drawn_as_alone(sampling: Sampling) -> None:
    rows = mx.concatenate([LOGITS, LOGITS[:, ::-1], LOGITS * 0.1])
    for seed in range(20):
        samplers = [Sampler(sampling, KNOWN, seed + i) for i in range(3)]
        together = draw([Place(s, NONE, NONE, s.lots(1)[0]) for s in samplers], rows)
        alone = [Sampler(sampling, KNOWN, seed + i)(rows[i : i + 1], NONE, NONE).item() for i in range(3)]
        assert together.tolist() == alone


def test_padded_rows_are_never_drawn() -> None:
    assert max(drawn(Sampling(temperature=5.0))) < KNOWN
    assert Sampler(GREEDY, KNOWN)(LOGITS, NONE, NONE).item() == 0


def test_the_same_seed_draws_the_same_tokens_and_another_seed_others() -> None:
    def run(seed: int) -> list[int]:
        sampler = Sampler(Sampling(temperature=3.0), KNOWN, seed=seed)
        return [sampler(LOGITS, NONE, NONE).item() for _ in range(40)]  # pyright: ignore[reportReturnType]

    assert run(7) == run(7)
    assert run(7) != run(8)
    assert run(-1)
    assert run(2**70)


def greedy_after(sampling: Sampling, prompt: mx.array = NONE, answer: mx.array = NONE, **more: object) -> int:
    return Sampler(sampling, KNOWN, **more)(LOGITS, prompt, answer).item()  # type: ignore[return-value,arg-type]


def test_presence_counts_the_answer_once_and_not_the_prompt() -> None:
    presence = Sampling(temperature=0, presence_penalty=0.4)
    assert greedy_after(presence, prompt=ids(0, 0)) == 0
    assert greedy_after(presence, answer=ids(0, 0)) == 0  # 2.0 - 0.4 is still above 1.5
    assert greedy_after(Sampling(temperature=0, presence_penalty=0.6), answer=ids(0)) == 1


def test_frequency_counts_every_occurrence() -> None:
    frequency = Sampling(temperature=0, frequency_penalty=0.3)
    assert greedy_after(frequency, answer=ids(0)) == 0
    assert greedy_after(frequency, answer=ids(0, 0)) == 1


def test_repetition_counts_the_prompt_too() -> None:
    repetition = Sampling(temperature=0, repetition_penalty=1.5)
    assert greedy_after(repetition, prompt=ids(0)) == 1
    assert greedy_after(repetition, answer=ids(0)) == 1


def test_penalties_reach_back_over_the_whole_answer() -> None:
    long_ago = ids(0, *[5] * 500)
    assert greedy_after(Sampling(temperature=0, presence_penalty=1.0), answer=long_ago) == 1


def test_logit_bias_moves_a_token() -> None:
    assert greedy_after(GREEDY, logit_bias={3: 5.0}) == 3
    assert greedy_after(GREEDY, logit_bias={0: -100.0}) == 1


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=-1),
        Sampling(temperature=float("nan")),
        Sampling(top_p=1.5),
        Sampling(top_k=-2),
        Sampling(top_k=2.5),  # type: ignore[arg-type]
        Sampling(temperature="1"),  # type: ignore[arg-type]
        Sampling(temperature=1e-30),
        Sampling(min_p=2),
        Sampling(presence_penalty=float("inf")),
        Sampling(repetition_penalty=0),
    ],
    ids=str,
)
def test_values_out_of_range_are_refused(sampling: Sampling) -> None:
    with pytest.raises(RequestError):
        Sampler(sampling, KNOWN)


@pytest.mark.parametrize("bias", [{KNOWN: 1.0}, {2**40: 1.0}, {-1: 1.0}, {0: float("nan")}])
def test_a_bias_on_a_token_that_is_not_there_is_refused(bias: dict[int, float]) -> None:
    with pytest.raises(RequestError, match="logit_bias"):
        Sampler(GREEDY, KNOWN, logit_bias=bias)
