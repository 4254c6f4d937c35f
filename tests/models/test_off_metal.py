"""Computing off Metal: packed matrices unpacked for wider windows, experts one at a time, against MLX's own ops."""

from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten

from examples import real_shapes
from mlx_qwen35.hub.headers import read_checkpoint
from mlx_qwen35.hub.memory import weights_as_loaded
from mlx_qwen35.models import off_metal
from mlx_qwen35.models.config import ExpertsConfig
from mlx_qwen35.models.moe import Experts
from mlx_qwen35.models.off_metal import UNPACK_FROM, Float32Linear, GroupedExperts, planned_bytes
from tests.support.float32 import load_float32


def packed_linear(inputs: int, outputs: int, bits: int, group_size: int, mode: str = "affine") -> nn.QuantizedLinear:
    plain = nn.Linear(inputs, outputs, bias=False)
    # Far from zero, so that a wrong bias shows.
    plain.weight = (mx.random.normal((outputs, inputs)) + 0.5).astype(mx.bfloat16)
    return nn.QuantizedLinear.from_linear(plain, group_size, bits, mode=mode)


def relative_difference(ours: mx.array, reference: mx.array) -> float:
    a, b = np.array(ours), np.array(reference)
    return float(np.abs(a - b).max() / np.abs(b).max())


def bytes_of(model: nn.Module) -> int:
    return sum(a.nbytes for _, a in tree_flatten(model.parameters()))


@pytest.mark.parametrize("rows", [1, UNPACK_FROM - 1, UNPACK_FROM, 40])
@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
@pytest.mark.parametrize("group_size", [32, 64, 128])
def test_a_packed_matrix_multiplies_as_its_unpacked_one(rows: int, bits: int, group_size: int) -> None:
    packed = packed_linear(256, 96, bits, group_size)
    scales, biases = packed["scales"].astype(mx.float32), packed["biases"].astype(mx.float32)
    weight = mx.dequantize(packed.weight, scales, biases, group_size=group_size, bits=bits)
    x = mx.random.normal((2, rows, 256))[:, ::2] if rows > 4 else mx.random.normal((1, rows, 256))
    assert relative_difference(Float32Linear(packed, dense=False)(x), x @ weight.T) < 1e-5  # sums of 256 in float32


@pytest.mark.parametrize("mode", ["mxfp4", "mxfp8", "nvfp4"])
@pytest.mark.parametrize("rows", [1, 40])
def test_formats_whose_scales_are_codes(mode: str, rows: int) -> None:
    group_size, bits = {"mxfp4": (32, 4), "mxfp8": (32, 8), "nvfp4": (16, 4)}[mode]
    packed = packed_linear(128, 96, bits, group_size, mode)
    weight = mx.dequantize(packed.weight, packed.scales, None, group_size=group_size, bits=bits, mode=mode)
    x = mx.random.normal((rows, 128))
    assert relative_difference(Float32Linear(packed, dense=False)(x), x @ weight.astype(mx.float32).T) < 1e-5


@pytest.mark.parametrize("dense", [True, False])
@pytest.mark.parametrize("tokens", [1, 3, 70])
def test_experts_one_at_a_time_equal_mlxs_gathered_ones(dense: bool, tokens: int) -> None:
    experts = Experts(128, ExpertsConfig(count=6, chosen=2, width=64, shared_width=64))
    experts.update({n: {"weight": mx.random.normal(m.weight.shape) * 0.1} for n, m in experts.items()})
    nn.quantize(experts, 64, 4)
    x = mx.random.normal((2, tokens, 128))
    chosen = mx.argsort(mx.random.normal((2, tokens, 6)))[..., :2]  # some expert may be chosen by nobody
    assert relative_difference(GroupedExperts(experts, dense)(x, chosen), experts(x, chosen)) < 1e-5


def test_a_large_network_computes_what_a_small_one_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit decides between weights that stay packed and weights that are dequantized once."""
    folder = real_shapes.write("0.8b", tmp_path / "model", 4, 128, real_shapes.FOUR_BIT)
    ids = mx.arange(7)[None]
    small = load_float32(folder).model
    logits = small(ids)
    monkeypatch.setattr(off_metal, "DENSE_LIMIT", 0)
    large = load_float32(folder).model
    assert bytes_of(large) < bytes_of(small) / 4
    stored = weights_as_loaded(read_checkpoint(folder).tensors)
    assert bytes_of(large) < 1.01 * stored  # norms and convolutions alone are held wider
    assert planned_bytes(read_checkpoint(folder).tensors) == stored
    cache = large.make_cache()
    windows = [large(ids[:, a:b], cache) for a, b in ((0, 5), (5, 6), (6, 7))]
    assert relative_difference(mx.concatenate(windows, axis=1), logits) < 1e-4
