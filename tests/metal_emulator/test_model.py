"""Kernels inside a model: a small Qwen3.5 of mlx-lm's, prefilled and decoded with its kernels emulated."""

from __future__ import annotations

import sys

import mlx.core as mx
import pytest

from tests.metal_emulator import Options, emulated_metal
from tests.metal_emulator.support import error, private_copy, written_for

pytestmark = [pytest.mark.metal, written_for("mlx-lm", "0.32.")]
SMALL = {
    "hidden_size": 128,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 64,
    "vocab_size": 256,
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
}
EXPERTS = {
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "shared_expert_intermediate_size": 64,
    "moe_intermediate_size": 64,
}


@pytest.mark.parametrize("experts", [{}, EXPERTS], ids=["dense", "experts"])
def test_a_model_computes_the_same_with_its_kernels_emulated(
    experts: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    # The model's file takes its kernels from here, built on import.
    name = "mlx_lm.models.gated_delta"
    monkeypatch.setitem(sys.modules, name, private_copy(name))
    qwen = private_copy("mlx_lm.models.qwen3_5")
    mx.random.seed(3)
    model = qwen.TextModel(qwen.TextModelArgs(**SMALL, **experts))
    model.eval()
    mx.eval(model.parameters())
    tokens = mx.random.randint(0, 256, (1, 14))

    def logits() -> mx.array:
        cache = model.make_cache()
        outputs = [model(tokens[:, :11], cache=cache)]
        outputs += [model(tokens[:, i : i + 1], cache=cache) for i in range(11, 14)]
        return mx.concatenate(outputs, axis=1)

    wanted = logits()
    mx.eval(wanted)
    with emulated_metal(Options(schedule="reverse")) as session:
        got = logits()
        mx.eval(got)
    # Three DeltaNet layers of four, one launch a window.
    assert len(session.launches) == 3 * 4
    assert error(got, wanted) < 1e-5  # float32 through four layers, sums in another order
