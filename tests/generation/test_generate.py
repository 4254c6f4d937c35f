"""Prefill and decode of one sequence, on a tiny random network."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import pytest

from mlx_qwen35.errors import CheckpointError, RequestError
from mlx_qwen35.generation import generate as module
from mlx_qwen35.generation.generate import generate
from mlx_qwen35.generation.sampling import Sampler
from mlx_qwen35.models.model import Model
from mlx_qwen35.models.weights import load_model
from mlx_qwen35.options import GREEDY, Sampling
from tests.reference import CASES, recorded, write_checkpoint
from tests.support.float32 import load_float32

KNOWN = CASES["moe"].tokens


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder: Path = tmp_path_factory.mktemp("tiny") / "moe"
    write_checkpoint("moe", folder)
    return load_float32(folder).model


def greedy() -> Sampler:
    return Sampler(GREEDY, KNOWN)


def test_greedy_tokens_are_transformers_tokens(model: Model) -> None:
    reference = recorded("moe")
    prompt, expected = reference["greedy_prompt"].tolist(), reference["greedy"].tolist()
    assert list(generate(model, prompt, greedy(), len(expected))) == expected


def test_windows_do_not_change_the_answer(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    prompt = recorded("moe")["tokens"][:100].tolist()
    whole = list(generate(model, prompt, greedy(), 10))
    monkeypatch.setattr(module, "prefill_window", lambda heads, context: 33)
    steps: list[tuple[int, int]] = []
    assert list(generate(model, prompt, greedy(), 10, lambda *step: steps.append(step))) == whole
    assert steps == [(33, 100), (66, 100), (99, 100), (100, 100)]


def test_sampling_with_a_seed_is_repeatable(model: Model) -> None:
    def run(seed: int) -> list[int]:
        return list(generate(model, [1, 2, 3], Sampler(Sampling(temperature=1.5), KNOWN, seed), 20))

    assert run(1) == run(1)
    assert run(1) != run(2)


def test_the_context_bounds_prompt_and_answer(model: Model) -> None:
    context = model.config.max_context
    assert len(list(generate(model, [1] * (context - 3), greedy(), 100))) == 3
    with pytest.raises(RequestError, match=f"{context}"):
        next(generate(model, [1] * context, greedy(), 1))


def test_an_empty_prompt_is_refused(model: Model) -> None:
    with pytest.raises(RequestError, match="empty"):
        next(generate(model, [], greedy(), 1))


def test_numbers_that_are_not_finite_end_in_one_line(tmp_path: Path) -> None:
    broken = load_model(write_checkpoint("dense", tmp_path / "dense")).model
    norm = broken.language_model.model.norm
    norm.weight = mx.full(norm.weight.shape, float("nan"))
    with pytest.raises(CheckpointError, match="not finite"):
        list(generate(broken, [1, 2, 3], Sampler(GREEDY, 10), 5))
