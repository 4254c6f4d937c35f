"""The graph of a function as a list of nodes, as Metal would run it. Nothing is evaluated, on any machine.

MLX's export names every primitive with its shapes. Without a GPU it would take fused operations apart, so while a graph
is recorded `mx.fast`, Metal kernels and compiled functions are replaced by stand-ins that leave one node each.
"""

from __future__ import annotations

import functools
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import mlx.core as mx

from mlx_qwen35.metal_kernels.expert_weights import Matrices

MODULES = ("mlx.nn", "mlx_")  # whose compiled functions are replaced: MLX's, mlx-lm's and ours
KERNEL, COMPILED = "kernel ", "compiled "  # before the names of such nodes
LEAVES = ("Broadcast", "Full", "AsType", "Reshape", "ExpandDims", "Squeeze", "Transpose", "Slice", "Split", "Flatten")


@dataclass(frozen=True)
class Value:
    """An array of the graph: its name there, and what it looks like."""

    key: str
    shape: tuple[int, ...]
    itemsize: int


@dataclass(frozen=True)
class Node:
    """One primitive, or one stand-in. arguments: the primitive's, as MLX exports them, or the stand-in's by name"""

    name: str
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    arguments: Any = None


@dataclass(frozen=True)
class Graph:
    """Nodes in an order in which they can run.

    inputs, outputs: names of arrays   merged: primitives that run once more than the nodes show, since MLX's export
    merges equal ones and its evaluation does not
    """

    nodes: tuple[Node, ...]
    inputs: tuple[Value, ...]
    outputs: tuple[str, ...]
    merged: Counter[str]


Function = Callable[[Sequence[mx.array]], Sequence[mx.array]]


def record(function: Function, inputs: Sequence[mx.array], twin: Function | None = None) -> Graph:
    """The graph of `function(inputs)`, of which only shapes and dtypes are looked at.

    twin: the same function on objects of its own, where `function` keeps something of its first call
    """
    exported: list[dict[str, Any]] = []
    with stand_ins() as calls:
        mx.export_function(exported.append, lambda *x: list(function(x)), *inputs)
    with stand_ins():
        labels = _labels((twin or function)(inputs))
    found = {e["type"]: e for e in exported if e["type"] != "primitive"}
    nodes = [_node(e, calls) for e in exported if e["type"] == "primitive"]
    kept = Counter(e["name"] for e in exported if e["type"] == "primitive")
    # Some primitives are called otherwise in one of the two.
    merged = Counter({n: c for n, c in (labels - kept).items() if n in kept and n not in LEAVES})
    outputs = tuple(key for key, *_ in found["outputs"]["outputs"])
    return Graph(_reached(nodes, outputs), tuple(map(_value, found["inputs"]["inputs"])), outputs, merged)


def _value(exported: tuple[str, tuple[int, ...], mx.Dtype]) -> Value:
    key, shape, dtype = exported
    return Value(key, tuple(shape), dtype.size)


def _node(primitive: dict[str, Any], calls: list[Call]) -> Node:
    inputs, outputs = ([_value(v) for v in primitive[side]] for side in ("inputs", "outputs"))
    if primitive["name"] != "Depends":
        return Node(primitive["name"], tuple(inputs), tuple(outputs), primitive["arguments"])
    call = calls[inputs[-1].shape[0] - 1]  # the marker's length tells which call it was
    return Node(call.name, tuple(inputs[len(outputs) : -1]), tuple(outputs), call.facts)


def _reached(nodes: Sequence[Node], outputs: Sequence[str]) -> tuple[Node, ...]:
    """Without what only the stand-ins' placeholders were made of."""
    needed, kept = set(outputs), []
    for node in reversed(nodes):
        if needed & {v.key for v in node.outputs}:
            needed |= {v.key for v in node.inputs}
            kept.append(node)
    return tuple(reversed(kept))


def _labels(outputs: Sequence[mx.array]) -> Counter[str]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "graph.dot"
        mx.export_to_dot(str(path), *outputs)
        return Counter(re.findall(r'label ="(\w+)"', path.read_text()))


@dataclass(frozen=True)
class Call:
    """One use of a stand-in. facts: what the table of launches needs to know of it"""

    name: str
    facts: dict[str, Any]


class Recorder:
    """Leaves one node for each call of a stand-in. `calls` in order; `paused`: inside of what is one node already."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.paused = False

    def leave(self, name: str, inputs: Sequence[mx.array], like: Sequence[tuple[Any, mx.Dtype]], **facts: Any) -> Any:
        """like: shapes and dtypes of the outputs"""
        self.calls.append(Call(name, facts))
        marker = mx.zeros(len(self.calls), mx.uint8)
        return _DEPENDS([mx.zeros(shape, dtype) for shape, dtype in like], [*inputs, marker])


_DEPENDS = mx.depends  # how nodes are left; the network's own say an order only, and leave nothing
_recorders: list[Recorder] = []  # stand-ins may outlive the recording they were made in, and leave in the innermost


def _leave(name: str, inputs: Sequence[mx.array], like: Sequence[tuple[Any, mx.Dtype]], **facts: Any) -> Any:
    if not _recorders:
        return unnamed(inputs, like)
    return _recorders[-1].leave(name, inputs, like, **facts)


def unnamed(inputs: Sequence[mx.array], like: Sequence[tuple[Any, mx.Dtype]]) -> list[mx.array]:
    """One cheap node with these outputs, for graphs that nobody reads."""
    return _DEPENDS([_empty(tuple(shape), dtype) for shape, dtype in like], list(inputs))


@functools.cache
def _empty(shape: tuple[int, ...], dtype: mx.Dtype) -> mx.array:
    return mx.zeros(shape, dtype)


def _unless_paused(real: Callable[..., Any], stand_in: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *a, **k: (real if _recorders[-1].paused else stand_in)(*a, **k)


def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """A compiled function that is one launch leaves one node; what compiles to more is counted part by part."""

    @functools.wraps(function)
    def call(*arguments: Any, **options: Any) -> Any:
        if not _recorders or _recorders[-1].paused:
            return function(*arguments, **options)
        _recorders[-1].paused = True  # MLX keeps what it compiled: no stand-in may get into it
        try:
            one, result = _launches(function, arguments, options) == 1, function(*arguments, **options)
        finally:
            _recorders[-1].paused = False
        if not one or not isinstance(result, mx.array):
            return result
        arrays = [x for x in arguments if isinstance(x, mx.array)]
        return _leave(COMPILED + getattr(function, "__name__", "function"), arrays, [(result.shape, result.dtype)])[0]

    return call


@contextmanager
def stand_ins() -> Iterator[list[Call]]:
    """Inside, code sees a machine with Metal, and each fused operation leaves one node. Yields the calls, in order.

    Checks that would evaluate weights pass unseen.
    """
    recorder = Recorder()
    real_compile, compiled = mx.compile, _compiled_functions()

    def compile(function: Callable[..., Any], *arguments: Any, **options: Any) -> Callable[..., Any]:
        return _compiled(real_compile(function, *arguments, **options))

    replaced = [(mx.fast, name, _unless_paused(getattr(mx.fast, name), made)) for name, made in _fused().items()]
    replaced += [(mx, name, _unless_paused(getattr(mx, name), made)) for name, made in _unfused().items()]
    replaced += [(module, name, _compiled(function)) for module, name, function in compiled]
    replaced += [(mx, "compile", compile), (mx.metal, "is_available", lambda: True)]
    replaced += [(mx, "default_device", lambda: mx.Device(mx.gpu)), (Matrices, "complaint", lambda _: None)]
    with ExitStack() as stack:
        for place, name, made in replaced:
            stack.enter_context(patch.object(place, name, made))
        # Kernels are kept by whoever builds them; those of the stand-ins must not outlive them, nor others come in.
        forget_kernels()
        stack.callback(forget_kernels)
        _recorders.append(recorder)
        stack.callback(_recorders.pop)
        yield recorder.calls


def _fused() -> dict[str, Callable[..., Any]]:
    """Stand-ins for mx.fast, with the outputs, and the casts of inputs, that the real ones have."""
    real_attention = mx.fast.scaled_dot_product_attention

    def rms_norm(x: mx.array, weight: mx.array | None, eps: float, **_: Any) -> mx.array:
        dtype = x.dtype if weight is None else mx.result_type(x, weight)
        inputs = [x.astype(dtype)] if weight is None else [x.astype(dtype), weight.astype(dtype)]
        return _leave("RMSNorm", inputs, [(x.shape, dtype)])[0]

    def rope(x: mx.array, dims: int, *, offset: Any, freqs: mx.array | None = None, **_: Any) -> mx.array:
        inputs = [x, *(a for a in (offset, freqs) if isinstance(a, mx.array))]
        return _leave("RoPE", inputs, [(x.shape, x.dtype)], partial=dims < x.shape[-1])[0]

    def attention(q: mx.array, k: mx.array, v: mx.array, *, scale: float, mask: Any = None, **options: Any) -> mx.array:
        if q.shape[2] > 8:  # MLX itself takes it apart for heads of 256
            return real_attention(q, k, v, scale=scale, mask=mask, **options)
        inputs = [q, k, v, *([mask] if isinstance(mask, mx.array) else [])]
        return _leave("ScaledDotProductAttention", inputs, [((*q.shape[:-1], v.shape[-1]), q.dtype)])[0]

    def gated_delta_update(q: mx.array, k: Any, v: mx.array, g: Any, beta: Any, state: Any = None, *_: Any) -> Any:
        state = mx.zeros((v.shape[0], v.shape[2], v.shape[3], q.shape[3]), mx.float32) if state is None else state
        return _leave("GatedDeltaUpdate", [q, k, v, g, beta, state], [(v.shape, v.dtype), (state.shape, state.dtype)])

    def metal_kernel(name: str, ensure_row_contiguous: bool = True, **_: Any) -> Callable[..., list[mx.array]]:
        def launch(inputs: Sequence[Any], output_shapes: Any, output_dtypes: Any, **how: Any) -> list[mx.array]:
            filled = len(output_dtypes) if how.get("init_value") is not None else 0
            arrays = [x for x in inputs if isinstance(x, mx.array)]
            like = list(zip(output_shapes, output_dtypes))
            return _leave(KERNEL + name, arrays, like, filled=filled, copies=ensure_row_contiguous)

        return launch

    return {
        "rms_norm": rms_norm,
        "rope": rope,
        "scaled_dot_product_attention": attention,
        "gated_delta_update": gated_delta_update,
        "metal_kernel": metal_kernel,
    }


def _unfused() -> dict[str, Callable[..., Any]]:
    """Stand-ins for what MLX cannot export (contiguous), what it takes apart without a GPU (dequantize), and what moves
    nothing (depends).
    """

    def contiguous(x: mx.array, *_: Any, **__: Any) -> mx.array:
        return _leave("Contiguous", [x], [(x.shape, x.dtype)])[0]

    def dequantize(w: mx.array, scales: mx.array, biases: Any = None, *a: Any, **k: Any) -> mx.array:
        shape = (*scales.shape[:-1], scales.shape[-1] * (a[0] if a else k["group_size"]))
        inputs = [w, scales] if biases is None else [w, scales, biases]
        return _leave("Dequantize", inputs, [(shape, mx.bfloat16 if biases is None else scales.dtype)])[0]

    def depends(inputs: Any, dependencies: Any) -> Any:
        return inputs

    return {"contiguous": contiguous, "dequantize": dequantize, "depends": depends}


def _launches(function: Callable[..., Any], arguments: Sequence[Any], options: dict[str, Any]) -> int:
    """Of a compiled function, seen from arguments that nobody traces."""
    plain = [mx.zeros(x.shape, x.dtype) if isinstance(x, mx.array) else x for x in arguments]
    labels = _labels([function(*plain, **options)])
    return sum(count for name, count in labels.items() if name not in LEAVES)


def _compiled_functions() -> list[tuple[Any, str, Callable[..., Any]]]:
    kind = type(mx.compile(lambda x: x))
    modules = [m for n, m in list(sys.modules.items()) if m is not None and n.startswith(MODULES)]
    return [(m, n, f) for m in modules for n, f in list(vars(m).items()) if type(f) is kind]


def forget_kernels() -> None:
    for name, module in list(sys.modules.items()):
        if name.startswith("mlx_qwen35.metal_kernels."):
            for kept in list(vars(module).values()):
                if hasattr(kept, "cache_clear"):
                    kept.cache_clear()
