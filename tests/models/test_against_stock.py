"""The network against stock mlx-lm, on float32 copies of the reference checkpoints; and mlx-lm's loop on our network.

Float32, since stock rounds 1 + w to bfloat16 otherwise, and on CPU multiplies experts in float32 only.
"""

from functools import cache
from itertools import islice
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.generate import generate_step
from mlx_lm.utils import load_model as load_stock_model

from mlx_qwen35.models.weights import load_model
from tests.reference import CASES, recorded, write_float32_copy

TOLERANCE = 1e-4  # float32 on both sides, summed in different orders; logits of order 1 to 10


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory):
    """Ours and stock's, from the same folder."""
    root = tmp_path_factory.mktemp("float32")

    @cache
    def pair(name: str):
        folder: Path = write_float32_copy(name, root / name)
        return load_model(folder).model, load_stock_model(folder, strict=True)[0]

    return pair


def window(name: str, start: int, end: int) -> mx.array:
    return mx.array(recorded(name)["tokens"][start:end].astype(np.int32))[None]


def assert_close(ours: mx.array, theirs: mx.array) -> None:
    difference = float(np.abs(np.array(ours) - np.array(theirs)).max())
    assert difference <= TOLERANCE, f"differs by {difference:.2e}"


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("length", [1, 65, 200])
def test_logits(networks, name: str, length: int) -> None:
    ours, theirs = networks(name)
    assert_close(ours(window(name, 0, length)), theirs(window(name, 0, length)))


@pytest.mark.parametrize("name", CASES)
def test_prefill_then_cached_decode(networks, name: str) -> None:
    ours, theirs = networks(name)
    our_cache, their_cache = ours.make_cache(), theirs.make_cache()
    for start, end in ((0, 63), (63, 64), (64, 65), (65, 97), (97, 98)):
        tokens = window(name, start, end)
        assert_close(ours(tokens, cache=our_cache), theirs(tokens, cache=their_cache))


@pytest.mark.parametrize("name", CASES)
def test_mlx_lms_loop_runs_on_our_network(networks, name: str) -> None:
    """The protocol: model(ids, cache=...), .layers, make_cache(). Prefill in pieces, then the same greedy tokens."""

    def greedy(model) -> list[int]:
        steps = generate_step(window(name, 0, 70)[0], model, max_tokens=12, prefill_step_size=32)
        return [int(token) for token, _ in islice(steps, 12)]

    ours, theirs = networks(name)
    assert greedy(ours) == greedy(theirs)
    assert len(ours.layers) == len(theirs.layers)
