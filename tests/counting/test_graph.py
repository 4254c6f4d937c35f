"""What the recorder sees of a graph: fused operations as one node each, and nothing lost or left behind."""

from __future__ import annotations

from collections import Counter

import mlx.core as mx
import mlx.nn as nn
import pytest

from mlx_qwen35.counting.graph import COMPILED, KERNEL, Graph, record
from mlx_qwen35.counting.host import cheap_nodes
from mlx_qwen35.metal_kernels import rms_norm
from tests.metal_emulator import Session

X = mx.zeros((2, 8), mx.bfloat16)


def names(graph: Graph) -> list[str]:
    return [n.name for n in graph.nodes if n.name not in ("Broadcast", "ExpandDims", "Squeeze")]


def test_fused_operations_are_one_node_each_without_a_gpu() -> None:
    norm = record(lambda a: [mx.fast.rms_norm(a[0], a[1], 1e-6)], [X, mx.ones(8, mx.bfloat16)])
    assert names(norm) == ["RMSNorm"]
    heads = mx.zeros((1, 2, 1, 64), mx.bfloat16)
    attention = record(lambda a: [mx.fast.scaled_dot_product_attention(*a, scale=1.0)], [heads] * 3)
    assert names(attention) == ["ScaledDotProductAttention"]


def test_a_norm_with_a_float32_weight_casts_what_it_reads() -> None:
    graph = record(lambda a: [mx.fast.rms_norm(a[0], a[1], 1e-6).astype(mx.bfloat16)], [X, mx.ones(8)])
    assert names(graph) == ["AsType", "RMSNorm", "AsType"]


def test_compiled_functions_are_one_node_and_so_are_compiled_ones_inside_them() -> None:
    outer = mx.compile(lambda x: nn.silu(x) * nn.softplus(x))
    assert names(record(lambda a: [nn.silu(a[0])], [X])) == [COMPILED + "silu"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nn, "outer", outer, raising=False)
        assert names(record(lambda a: [nn.outer(a[0])], [X])) == [COMPILED + "<lambda>"]  # pyright: ignore


def test_what_compiles_to_several_launches_is_counted_part_by_part() -> None:
    both = mx.compile(lambda x: mx.exp(x @ x.T) + 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nn, "both", both, raising=False)
        seen = Counter(names(record(lambda a: [nn.both(a[0])], [X])))  # pyright: ignore
    assert seen["Matmul"] == seen["Exp"] == 1


def test_a_computation_made_twice_runs_twice() -> None:
    """MLX's export merges equal primitives; evaluation does not."""
    assert record(lambda a: [mx.exp(a[0]) + mx.exp(a[0])], [X]).merged == Counter({"Exp": 1})


def test_what_no_output_needs_is_not_there() -> None:
    graph = record(lambda a: [mx.exp(a[0]), mx.fast.rms_norm(a[0], None, 1e-6)][:1], [X])
    assert names(graph) == ["Exp"]


def test_our_kernels_are_nodes_with_their_names() -> None:
    graph = record(lambda a: list(rms_norm.add_rms_norm_metal(a[0], a[0], a[1], 1e-6)), [X, mx.ones(8)])
    kernel = next(n for n in graph.nodes if n.name == KERNEL + "add_rms_norm")
    assert [v.shape for v in kernel.outputs] == [(2, 8), (2, 8)]


@pytest.mark.metal
def test_stand_ins_are_gone_after_it(metal: Session | None) -> None:
    """Kernels and compiled functions are kept by their modules; a stand-in kept there would compute zeros."""
    device = mx.zeros((2, 8)) + 1

    def right() -> bool:
        total, normed = rms_norm.add_rms_norm_metal(device, device, mx.ones(8), 1e-6)
        return bool(mx.array_equal(total, device * 2)) and bool(mx.allclose(normed, mx.ones((2, 8)), atol=1e-5))

    record(lambda a: [*rms_norm.add_rms_norm_metal(a[0], a[0], a[1], 1e-6), nn.silu(a[0])], [X, mx.ones(8)])
    assert right()
    with cheap_nodes():
        rms_norm.add_rms_norm_metal(X, X, mx.ones(8), 1e-6)
    assert right()
    assert mx.allclose(nn.silu(device), device * mx.sigmoid(device))
    assert mx.allclose(mx.fast.rms_norm(device, None, 1e-6), device, atol=1e-5)
