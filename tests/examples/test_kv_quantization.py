"""The evaluation of quantized keys and values tells formats apart, and a small part of it holds its bars."""

import mlx.core as mx
import pytest

from examples.benchmarks.kv_quantization import FORMATS, Answered, answered, compare, read_answer
from examples.demo_model.samples import CHECKPOINT
from mlx_qwen35.caches.kv import KVCache
from mlx_qwen35.caches.quantized_kv import QuantizedKVCache
from mlx_qwen35.models.model import Model
from mlx_qwen35.models.weights import load_model


@pytest.fixture(scope="module")
def model() -> Model:
    return load_model(CHECKPOINT).model


@pytest.fixture(scope="module")
def cases(model: Model) -> list[Answered]:
    return answered(model, 2, ["tools", "json", "multi-turn"])


class Forgetful(QuantizedKVCache):
    """Never keeps a token for the next window."""

    def attend(self, q: mx.array, k: mx.array, v: mx.array, scale: float) -> mx.array:
        self.trim(self.length)
        return super().attend(q, k, v, scale)


def test_the_plain_cache_agrees_with_itself_and_a_broken_one_does_not(model: Model, cases: list[Answered]) -> None:
    same, broken = compare(model, KVCache, cases), compare(model, lambda: Forgetful(8), cases, window=1)
    assert same.top1 == 100
    assert same.equal_answers == len(cases)
    assert same.divergence.max() < 1e-6  # the same float32 arithmetic
    assert broken.top1 < 90
    assert broken.equal_answers < len(cases)


@pytest.mark.parametrize("window", [None, 1, 7])
def test_formats_hold_their_bars_however_answers_are_read(
    model: Model, cases: list[Answered], window: int | None
) -> None:
    for kind in FORMATS[:2]:
        assert kind.bar is not None
        assert compare(model, kind.make, cases, window).top1 >= kind.bar, kind.name


def test_reading_in_windows_changes_nothing(model: Model, cases: list[Answered]) -> None:
    case = cases[0]
    at_once, by_token = (
        read_answer(model, lambda: QuantizedKVCache(4), case.prompt, case.answer, window) for window in (None, 1)
    )
    assert mx.abs(mx.exp(at_once) - mx.exp(by_token)).max().item() < 1e-4  # float32 through eight layers
