"""Log-probabilities are the network's own, whatever shapes the draw, drafts ahead, or shares the batch."""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx
import numpy as np
import pytest

from mlx_qwen35.errors import RequestError
from mlx_qwen35.generation.request import Request
from mlx_qwen35.generation.scores import LEAST, Score, score
from mlx_qwen35.options import Draft, Sampling
from tests.generation.test_speculation import DEMO, HOT, KNOWN, STOPS, evaluation
from tests.support.cranked import Cranked, cranked
from tests.support.networks import network
from tests.support.plain import plain_logits

# One window over all ids rounds otherwise than steps do, by some 1e-6 in a logit.
ROUNDING = 1e-4


def played(served: Cranked, requests: Sequence[Request]) -> list[list[Score]]:
    lines = [served.submit(request) for request in requests]
    served.run()
    return [[item for item in line if isinstance(item, Score)] for line in lines]


def asked(ids: list[int], draft: Draft, sampling: Sampling, logprobs: int | None = 3) -> Request:
    bias = {7: 3.0}
    return Request(ids, KNOWN, 30, sampling, STOPS, seed=5, logit_bias=bias, draft=draft, logprobs=logprobs)


@pytest.mark.parametrize("draft", ["off", 4])
@pytest.mark.parametrize("sampling", [Sampling(0.0), HOT], ids=["greedy", "hot"])
def test_they_are_those_of_a_plain_pass(draft: Draft, sampling: Sampling) -> None:
    """Alone and in a batch, in every row of a window with drafts, before bias, penalties and temperature."""
    model, prompts = network(DEMO), evaluation(3)
    served = cranked(model)
    requests = [asked(ids, draft, sampling) for ids in prompts]
    found = played(served, requests) + played(served, requests[:1])
    for ids, scores in zip([*prompts, prompts[0]], found):
        tokens = [score.token for score in scores]
        logits = np.array(plain_logits(model, [*ids, *tokens[:-1]])[len(ids) - 1 :, :KNOWN], np.float64)
        expected = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        assert len(scores) > 1
        for row, told in zip(expected, scores):
            assert abs(row[told.token] - told.logprob) <= ROUNDING
            best = np.sort(row)[::-1][:3]
            assert np.allclose([logprob for _, logprob in told.top], best, atol=ROUNDING)
            assert np.allclose([row[token] for token, _ in told.top], best, atol=ROUNDING)
    if draft == 4:
        assert served.lines[0][1].decoded.accepted > 0


def test_who_did_not_ask_is_told_plain_tokens_and_draws_the_same() -> None:
    prompts = evaluation(2)
    served = cranked(network(DEMO))
    lines = [served.submit(asked(ids, "off", HOT, logprobs)) for ids in prompts for logprobs in (None, 0)]
    served.run()
    items = [[item for item in line if isinstance(item, (int, Score))] for line in lines]
    for without, told in zip(items[::2], items[1::2]):
        assert without == [item.token for item in told if isinstance(item, Score)]
        assert all(isinstance(item, Score) and item.top == () for item in told)


def test_more_alternatives_than_there_are_tokens_and_what_is_impossible() -> None:
    logits = mx.array([[0.0, -mx.inf, 1.0, 9.0]])
    (told,) = score(logits, mx.array([2]), 3, 20).read([2])
    assert [token for token, _ in told.top] == [2, 0, 1]
    assert told.top[2][1] == LEAST
    assert told.logprob == pytest.approx(-np.log(1 + np.exp(-1)))


@pytest.mark.parametrize("logprobs", [-1, 21])
def test_a_number_out_of_range_is_refused(logprobs: int) -> None:
    with pytest.raises(RequestError, match=f"logprobs is {logprobs}; it should be between 0 and 20"):
        cranked(network(DEMO)).submit(asked([1], "off", HOT, logprobs))
