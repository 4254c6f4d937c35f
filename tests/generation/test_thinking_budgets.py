"""Thinking budgets through the engine: whoever shares the batch, whatever is drafted, the block ends where it must."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import example, given, settings
from hypothesis import strategies as st

from mlx_qwen35.generation.request import Request
from mlx_qwen35.options import Draft, Sampling
from tests.generation.test_thinking import BEGIN, CLOSE, CLOSING, GAP, PIECES, STOPS, guide, text_of
from tests.support.cranked import cranked, read
from tests.support.networks import known_tokens, network, random_ids

CLOSED_AT = CLOSING.index(CLOSE)


@dataclass(frozen=True)
class Asked:
    """One row of a batch.   constrained: whether a grammar describes its answer"""

    budget: int
    draft: Draft
    constrained: bool
    seed: int


def check(asked: Asked, tokens: list[int]) -> None:
    """The block is closed once, at its budget to the token unless the model closed it before, and an answer follows."""
    end = tokens.index(CLOSE)
    if tuple(tokens[asked.budget : end + 1]) == CLOSING[: CLOSED_AT + 1]:
        assert end == asked.budget + CLOSED_AT
    else:
        assert end < asked.budget
    assert tokens.count(CLOSE) == 1 or not asked.constrained
    assert BEGIN not in tokens
    assert "</think>" not in text_of(tokens[:end])
    assert not set(tokens[:end]) & set(STOPS)
    answer = tokens[end + 1 :]
    assert answer
    if asked.constrained:
        assert tuple(answer[:2]) == GAP
        assert set(text_of([token for token in answer[2:] if token not in STOPS])) <= set("xy")
        assert answer[2] not in STOPS


rows = st.builds(
    Asked, st.integers(0, 20), st.sampled_from(["off", 1, 2, 4, "auto"]), st.booleans(), st.integers(0, 1 << 20)
)


@settings(max_examples=5)
@example([Asked(3, draft, True, 1) for draft in ("off", 1, 4)])
@given(st.lists(rows, min_size=1, max_size=4))
def test_each_row_of_a_batch_thinks_as_long_as_it_may_and_answers(batch: list[Asked]) -> None:
    served = cranked(network("dense"), prefix_bytes=0)
    hot = Sampling(temperature=1.5)
    lines = []
    for asked in batch:
        guided = guide(asked.budget, "[xy]{1,3}" if asked.constrained else None)
        lines.append(
            served.submit(
                Request(
                    random_ids(asked.seed, 5, len(PIECES)),
                    known_tokens("dense"),
                    36,
                    hot,
                    frozenset(STOPS),
                    asked.seed,
                    draft=asked.draft,
                    guide=guided,
                )
            )
        )
    served.run()
    for asked, line in zip(batch, lines):
        tokens = read(line)
        check(asked, tokens)
        assert asked.draft in ("off", "auto") or line.decoded.drafted > 0
