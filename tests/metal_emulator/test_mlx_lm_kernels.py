"""Kernels that others wrote, unmodified from the installed mlx-lm, against plain operations: the emulator's own proof.

Each in every order of threads. Tolerances: float32 sums of up to 2,048 terms in two orders (1e-6 of the largest), and
one rounding of bfloat16 (2^-8) or float16 (2^-11) where outputs are that.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from tests.metal_emulator import SCHEDULES, Session
from tests.metal_emulator.support import error, private_copy, written_for

FLOAT32, FLOAT16, BFLOAT16 = 1e-6, 2.0**-11, 2.0**-8
pytestmark = [
    pytest.mark.metal,
    pytest.mark.parametrize("metal", SCHEDULES, indirect=True),
    pytest.mark.usefixtures("metal"),
    written_for("mlx-lm", "0.32."),
]


@pytest.fixture(scope="module")
def gated_delta() -> Any:
    return private_copy("mlx_lm.models.gated_delta")


def delta_inputs(
    module: Any, B: int, T: int, Hk: int, Hv: int, Dk: int, Dv: int, dtype: mx.Dtype = mx.float32, vector: bool = False
) -> list[mx.array]:
    mx.random.seed(0)
    q, k, v = (mx.random.normal((B, T, h, d)) for h, d in ((Hk, Dk), (Hk, Dk), (Hv, Dv)))
    q, k = module.normalize_qk(q, k, inv_scale=Dk**-0.5, eps=1e-6)
    decay = mx.exp(-mx.random.uniform(shape=(B, T, Hv, *([Dk] if vector else []))) * 0.5)
    beta = mx.sigmoid(mx.random.normal((B, T, Hv)))
    state = mx.random.normal((B, Hv, Dv, Dk)) * 0.1
    return [x.astype(dtype) for x in (q, k, v)] + [decay, beta.astype(dtype), state]


def delta_case(module: Any, kernel: Callable[..., Any], inputs: list[mx.array], mask: mx.array | None = None) -> None:
    wanted, wanted_state = module.gated_delta_ops(*[x.astype(mx.float32) for x in inputs], mask=mask)
    got, got_state = kernel(*inputs, mask=mask)
    if mask is not None:  # on masked positions the two return different y
        wanted, got = (mx.where(mask[..., None, None], y, 0) for y in (wanted, got.astype(mx.float32)))
    rounding = {mx.float32: FLOAT32, mx.float16: FLOAT16, mx.bfloat16: BFLOAT16}[inputs[0].dtype]
    assert error(got, wanted) <= rounding
    assert error(got_state, wanted_state) <= FLOAT32


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16], ids=str)
@pytest.mark.parametrize("kernel", ["gated_delta_kernel", "gated_delta_kernel_unpacked"])
def test_gated_delta_at_the_familys_head_width(gated_delta: Any, metal: Session, kernel: str, dtype: mx.Dtype) -> None:
    inputs = delta_inputs(gated_delta, 1, 5, Hk=2, Hv=6, Dk=128, Dv=128, dtype=dtype)
    delta_case(gated_delta, getattr(gated_delta, kernel), inputs)
    assert len(metal.launches) == 1
    assert metal.last.warnings == ()


def test_gated_delta_with_unequal_widths(gated_delta: Any) -> None:
    inputs = delta_inputs(gated_delta, 1, 9, Hk=2, Hv=6, Dk=64, Dv=48, dtype=mx.float16)
    delta_case(gated_delta, gated_delta.gated_delta_kernel, inputs)


def test_gated_delta_with_rows_of_different_lengths(gated_delta: Any) -> None:
    inputs = delta_inputs(gated_delta, 2, 8, Hk=2, Hv=4, Dk=128, Dv=128)
    mask = mx.arange(8)[None] >= mx.array([0, 3])[:, None]
    delta_case(gated_delta, gated_delta.gated_delta_kernel, inputs, mask)


def test_gated_delta_with_a_decay_for_each_key_column(gated_delta: Any) -> None:
    inputs = delta_inputs(gated_delta, 1, 6, Hk=2, Hv=4, Dk=128, Dv=128, vector=True)
    delta_case(gated_delta, gated_delta.gated_delta_kernel, inputs)


def test_gated_delta_packed_is_bitwise_the_explicit_tree(gated_delta: Any) -> None:
    inputs = delta_inputs(gated_delta, 1, 5, Hk=2, Hv=4, Dk=128, Dv=128, dtype=mx.bfloat16)
    packed = gated_delta.gated_delta_kernel(*inputs)
    tree = gated_delta.gated_delta_kernel_xtree(*inputs)
    assert all(bool(mx.array_equal(a, b)) for a, b in zip(packed, tree))


def test_mamba_state_update() -> None:
    ssm = private_copy("mlx_lm.models.ssm")
    mx.random.seed(1)
    B, H, D, G, N = 2, 8, 64, 2, 128
    x, a = mx.random.normal((B, 1, H, D)), mx.log(mx.arange(1, H + 1).astype(mx.float32))
    b, c = mx.random.normal((B, 1, G, N)), mx.random.normal((B, 1, G, N))
    d, dt, bias = mx.random.normal((H,)), mx.random.normal((B, 1, H)), mx.random.normal((H,))
    state = mx.random.normal((B, H, D, N))
    arguments = (x, a, b, c, d, dt, bias, state, (0.001, 100.0))
    for got, wanted in zip(ssm.ssm_update_kernel(*arguments), ssm.ssm_attn(*arguments)):
        assert error(got, wanted) <= FLOAT32


def test_router_top_k() -> None:
    from mlx_lm.kernels import expert_routing

    mx.random.seed(2)
    logits, bias = mx.random.normal((5, 160)), mx.random.normal((160,)) * 0.1
    chosen, weights = expert_routing(logits, bias, top_k=8, multiplier=1.5, score_eps=1e-20, route_scale=2.0)
    scores = mx.sigmoid(logits * 1.5)
    wanted = mx.argsort(-(scores + bias), axis=-1)[:, :8]
    picked = mx.take_along_axis(scores, wanted, -1)
    assert mx.array_equal(chosen.astype(mx.int32), wanted.astype(mx.int32))
    assert error(weights, picked / (picked.sum(-1, keepdims=True) + 1e-20) * 2.0) <= FLOAT32


@pytest.mark.parametrize("width", [512, 2048])
def test_norm_add_norm(width: int) -> None:
    from mlx_lm.kernels import norm_add_norm, pre_norm

    mx.random.seed(3)
    branch = mx.random.normal((3, width)).astype(mx.bfloat16)
    stream, alpha, beta = mx.random.normal((3, width)), mx.random.normal((width,)), mx.random.normal((width,))
    weight = mx.random.normal((width,)).astype(mx.bfloat16)
    norm = nn.RMSNorm(width, eps=1e-6)
    norm.weight = norm_weight = mx.random.normal((width,)).astype(mx.bfloat16)
    got, normed = norm_add_norm(
        branch, stream, alpha=alpha, beta=beta, post_weight=weight, post_eps=1e-5, next_norm=norm
    )
    wanted = alpha * stream + beta * mx.fast.rms_norm(weight * branch, None, 1e-5).astype(mx.float32)
    assert got is not None
    assert error(got, wanted) <= FLOAT32
    factor = norm_weight.astype(mx.float32)
    assert normed is not None
    assert error(normed, mx.fast.rms_norm(wanted, factor, 1e-6)) <= BFLOAT16
    assert error(pre_norm(stream, norm, dtype=mx.bfloat16), mx.fast.rms_norm(stream, factor, 1e-6)) <= BFLOAT16


def test_expert_outputs_normed_and_combined() -> None:
    from mlx_lm.kernels import post_expert_norm_combine

    mx.random.seed(4)
    experts, weights = mx.random.normal((3, 8, 1024)), mx.random.uniform(shape=(3, 8))
    factor = mx.random.normal((1024,))
    wanted = (mx.fast.rms_norm(experts * factor, None, 1e-6) * weights[..., None]).sum(1)
    assert error(post_expert_norm_combine(experts, weights, norm_weight=factor, eps=1e-6), wanted) <= FLOAT32


def test_query_and_key_norm_with_and_without_rotary() -> None:
    from mlx_lm.kernels import qk_norm, qk_norm_rope

    mx.random.seed(5)
    qk = mx.random.normal((2, 3, 2 * (8 + 2) * 128))
    heads = {"n_heads": 8, "n_kv_heads": 2, "head_dim": 128, "eps": 1e-6, "query_scale": 0.5}
    plain = mx.fast.rms_norm(qk[..., : 10 * 128].reshape(2, 3, 10, 128), None, 1e-6)
    turned = mx.fast.rope(plain.swapaxes(1, 2), 128, traditional=True, base=10000.0, scale=1.0, offset=7).swapaxes(1, 2)
    for got, wanted in (
        (qk_norm(qk, **heads), plain),
        (qk_norm_rope(qk, **heads, rope_base=10000.0, offset=7), turned),
    ):
        assert error(got[0], wanted[:, :, :8] * 0.5) <= FLOAT32
        assert error(got[1], wanted[:, :, 8:]) <= FLOAT32


def test_gated_norm_of_strided_inputs() -> None:
    from mlx_lm.kernels import rms_norm_sigmoid_gate

    mx.random.seed(6)
    x = mx.random.normal((2, 3, 4, 128)).transpose(0, 2, 1, 3)
    gate = mx.random.normal((2, 3, 8 * 128))[..., : 4 * 128]
    normed = mx.fast.rms_norm(x.transpose(0, 2, 1, 3), None, 1e-6)
    wanted = (normed * mx.sigmoid(gate.reshape(2, 3, 4, 128))).reshape(2, 3, 512)
    assert error(rms_norm_sigmoid_gate(x, gate, eps=1e-6), wanted) <= FLOAT32


def test_rwkv_state_update() -> None:
    rwkv7 = private_copy("mlx_lm.models.rwkv7")
    mx.random.seed(7)
    B, T, H, D = 1, 6, 4, 64
    r, w, k, v, a, b = (mx.random.normal((B, T, H, D)) * 0.3 for _ in range(6))
    w, state = mx.sigmoid(w), mx.random.normal((B, H, D, D)) * 0.1
    got, got_state = rwkv7.wkv7_kernel(r, w, k, v, a, b, state)
    wanted = []
    for t in range(T):
        y, state = rwkv7._wkv7_step_ops(r[:, t], w[:, t], k[:, t], v[:, t], a[:, t], b[:, t], state)
        wanted.append(y)
    assert error(got, mx.stack(wanted, 1).reshape(got.shape)) <= FLOAT32
    assert error(got_state, state) <= FLOAT32


def test_ternary_linear_layer() -> None:
    from mlx_lm.models.bitlinear_layers import BitLinear

    mx.random.seed(8)
    layer = BitLinear(256, 128, bias=False)
    layer.weight = mx.random.randint(0, 256, layer.weight.shape).astype(mx.uint8)
    x = mx.random.normal((3, 256))
    packed = np.array(layer.weight)
    unpacked = np.concatenate([((packed >> (2 * j)) & 3).astype(np.float64) - 1 for j in range(4)], 0)
    wanted = np.array(x, np.float64) @ unpacked.T * np.array(layer.weight_scale, np.float64)
    assert error(layer(x), wanted) <= FLOAT32
