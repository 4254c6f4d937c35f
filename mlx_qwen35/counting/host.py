"""How long the host takes to build the graph of one step: it counts wherever it is not hidden behind the GPU.

Without a GPU, MLX takes fused operations apart, so each is replaced by one cheap node. What launching a Metal kernel
costs beyond that (MLX writes its signature at every call) is not seen here.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import mlx.core as mx

from mlx_qwen35.counting.graph import forget_kernels, unnamed
from mlx_qwen35.counting.networks import Step
from mlx_qwen35.metal_kernels.expert_weights import Matrices

ROUNDS = 25


def build_seconds(step: Step) -> float:
    """Seconds from Python to a graph that is ready to be evaluated: the fastest of some builds."""
    taken = []
    step.load(list(step.parameters.values()))
    inputs = step.inputs[len(step.parameters) :]
    with cheap_nodes():
        for _ in range(ROUNDS):
            start = time.thread_time()  # of this thread's processor, so that others' work does not count
            step.run(inputs)
            taken.append(time.thread_time() - start)
    return min(taken)


@contextmanager
def cheap_nodes() -> Iterator[None]:
    """Inside, code sees a machine with Metal; every fused operation is one node that means nothing."""
    with ExitStack() as stack:
        for name, made in _cheap().items():
            stack.enter_context(patch.object(mx.fast, name, made))
        stack.enter_context(patch.object(mx.metal, "is_available", lambda: True))
        stack.enter_context(patch.object(mx, "default_device", lambda: mx.Device(mx.gpu)))
        stack.enter_context(patch.object(Matrices, "complaint", lambda _: None))
        forget_kernels()
        stack.callback(forget_kernels)
        yield


def _cheap() -> dict[str, Callable[..., Any]]:
    def rms_norm(x: mx.array, weight: mx.array | None, eps: float, **_: Any) -> mx.array:
        return mx.stop_gradient(x if weight is None else x.astype(mx.result_type(x, weight)))

    def gated_delta_update(q: mx.array, k: Any, v: mx.array, g: Any, beta: Any, state: mx.array, *_: Any) -> Any:
        return unnamed((q, k, v, g, beta, state), ((v.shape, v.dtype), (state.shape, state.dtype)))

    def metal_kernel(name: str, **_: Any) -> Callable[..., list[mx.array]]:
        def launch(inputs: Any, output_shapes: Any, output_dtypes: Any, **_: Any) -> list[mx.array]:
            arrays = [x for x in inputs if isinstance(x, mx.array)]
            return unnamed(arrays, list(zip(output_shapes, output_dtypes)))

        return launch

    return {
        "rms_norm": rms_norm,
        "rope": lambda x, *_, **__: mx.stop_gradient(x),
        "scaled_dot_product_attention": lambda q, *_, **__: mx.stop_gradient(q),
        "gated_delta_update": gated_delta_update,
        "metal_kernel": metal_kernel,
    }
