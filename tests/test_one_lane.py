"""The matrix: every feature with every other, and some in threes. No cell may be empty, none refused."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.one_lane import BEGIN, END, NAMES, README, Lane, pairs, table

THREES = [
    ("JSON schema", "MTP", "batch of 4"),
    ("tools", "thinking budget", "MTP"),
    ("JSON schema", "KV 8-bit", "n-gram drafts"),
    ("thinking budget", "JSON schema", "restored from disk"),
    ("tools", "prefix reuse", "cancel"),
    ("penalties, seed", "MTP", "batch of 4"),
    ("YaRN", "MTP", "stop strings"),
]


@pytest.fixture(scope="module")
def lane() -> Iterator[Lane]:
    made = Lane()
    yield made
    made.close()


@pytest.mark.parametrize("name", NAMES)
def test_each_feature_alone(lane: Lane, name: str) -> None:
    lane.check(name)


# Those that meet most often, in every run of the tests; all of them in the long one.
OFTEN = {"tools", "JSON schema", "MTP", "prefix reuse"}
CELLS = [pytest.param(names, marks=[] if set(names) <= OFTEN else [pytest.mark.slow]) for names in pairs()]


@pytest.mark.parametrize("names", [*CELLS, *(pytest.param(n, marks=pytest.mark.slow) for n in THREES)], ids=" + ".join)
def test_features_together(lane: Lane, names: tuple[str, ...]) -> None:
    lane.check(*names)


def test_the_readmes_table_is_the_matrix() -> None:
    text = README.read_text()
    assert text[text.index(BEGIN) + len(BEGIN) : text.index(END)].strip() == table(), (
        "stale: python -m tests.support.one_lane"
    )
