"""The table: how many launches a node of the graph is on Metal, and which bytes they move. One table for every graph.

Read from MLX 0.32's Metal backend. Views cost nothing. An input that does not lie as a kernel wants it costs a copy, a
launch of its own. Concatenating is a copy for each part. Rotating a part of each head copies the whole first. A write
into a cache is one copy of what is new: its buffer is nobody else's, so it is written in place. Attention over fewer
than 4,096 keys is one launch, except on Max and Ultra chips, where it is two from 1,024 keys on.

Bytes are those of a launch's inputs and outputs, each once, as if every cache line came from memory once a launch; a
kernel whose threadgroups read the same line again moves more (the emulator counts those).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from mlx_qwen35.counting.graph import COMPILED, KERNEL, Graph, Node
from mlx_qwen35.counting.layouts import Layout, fresh, like, views

ELEMENTWISE = {
    "Abs", "Add", "AsType", "Cos", "Divide", "Equal", "Erf", "Exp", "Expm1", "Floor", "Greater", "GreaterEqual",
    "Less", "LessEqual", "Log", "Log1p", "LogAddExp", "LogicalAnd", "LogicalNot", "LogicalOr", "Maximum", "Minimum",
    "Multiply", "Negative", "NotEqual", "Power", "Remainder", "Rsqrt", "Select", "Sigmoid", "Sign", "Sin", "Sqrt",
    "Square", "Subtract", "Tanh", "BitwiseBinary", "FloorDivide",
}  # fmt: skip
WANT_ROWS = {"QuantizedMatmul", "GatherQMM", "Softmax", "LogSumExp", "Scan"}
WANT_ROWS_OR_COLUMNS = {"Matmul", "GatherMM"}
WANT_CONTIGUOUS = {"Convolution", "GatedDeltaUpdate"}
PRODUCTS = {"Matmul", "GatherMM", "QuantizedMatmul", "GatherQMM"}
SORTS = {"Sort", "ArgSort", "Partition", "ArgPartition"}
SORTED_AT_ONCE = 2048  # elements; more are sorted in blocks and merged
SHARED_SLACK = 16384  # bytes; `contiguous` keeps a view whose buffer is larger by no more than this


@dataclass
class Tally:
    """Of a graph, or of a part of one. flops: of matrix products outside our kernels   names: launches by name"""

    launches: float = 0
    nbytes: float = 0
    flops: float = 0
    names: Counter[str] = field(default_factory=Counter)

    def add(self, name: str, launches: float, nbytes: float) -> None:
        self.launches += launches
        self.nbytes += nbytes
        if launches:
            self.names[name] += launches  # pyright: ignore[reportArgumentType]

    def __sub__(self, other: Tally) -> Tally:
        names = Counter({n: c - other.names[n] for n, c in self.names.items() if c != other.names[n]})
        flops = self.flops - other.flops
        return Tally(self.launches - other.launches, self.nbytes - other.nbytes, flops, names)


def tally(graph: Graph, shares: Mapping[str, float]) -> Tally:
    """Launches and bytes of one run.   shares: by name of an input, the part of it that the step reads"""
    known = {v.key: fresh(v.shape, v.itemsize, shares.get(v.key, 1.0)) for v in graph.inputs}
    total = Tally()
    for node in graph.nodes:
        # What is no input and was made by no node is a constant.
        inputs = [known.get(v.key) or fresh(v.shape, v.itemsize) for v in node.inputs]
        outputs = _run(node, inputs, total)
        known |= {v.key: layout for v, layout in zip(node.outputs, outputs)}
    for name, count in graph.merged.items():
        total.add(name, count, 0)
    return total


def _run(node: Node, inputs: list[Layout], total: Tally) -> list[Layout]:
    """Count a node; where its outputs lie."""
    name, shapes = node.name, [v.shape for v in node.outputs]
    seen = views(name, inputs[0], node.arguments, shapes) if inputs else None
    if seen is not None:
        return seen
    outputs = [fresh(v.shape, v.itemsize) for v in node.outputs]
    # An array that is given twice is read once.
    read = sum({v.key: x.nbytes for v, x in zip(node.inputs, inputs)}.values())
    written = sum(o.nbytes for o in outputs)
    if math.prod(shapes[0]) == 0:
        return outputs
    if name == "Contiguous" and inputs[0].is_contiguous and inputs[0].owner <= outputs[0].owner + SHARED_SLACK:
        return [inputs[0]]
    if name == "SliceUpdate":
        total.add("cache write", 1, 2 * inputs[1].nbytes)
        return [inputs[0]]
    if name in ELEMENTWISE or name.startswith(COMPILED):
        outputs = [_lying_as(inputs, v.shape, v.itemsize) for v in node.outputs]
        total.add(name.removeprefix(COMPILED), 1, read + written)
    elif name in ("Concatenate", "Pad"):
        parts = len(inputs) if name == "Concatenate" else 2
        total.add("copy", parts, read + written)
    elif name in ("Reshape", "Flatten", "Unflatten", "Contiguous"):  # that could not be a view
        total.add("copy", 1, read + written)
    elif name == "Gather":  # rows of a table
        total.add(name, 1, 2 * written + sum(x.nbytes for x in inputs[1:]))
    elif name in SORTS:
        blocks = math.ceil(node.inputs[0].shape[-1] / SORTED_AT_ONCE)
        total.add(name, 1 if blocks == 1 else 2 + 2 * math.ceil(math.log2(blocks)), read + written)
    else:
        _launch(node, inputs, read, written, total)
    return outputs


def _launch(node: Node, inputs: list[Layout], read: float, written: float, total: Tally) -> None:
    """One launch, after the copies it asks for."""
    name = node.name
    indices = 2 if name in ("GatherQMM", "GatherMM") else 0  # which may lie in any way
    for place, layout in enumerate(inputs[: len(inputs) - indices]):
        if _must_copy(node, place, layout):
            total.add("copy", 1, 2 * layout.nbytes)
    if name == "RoPE" and node.arguments["partial"]:
        total.add("copy", 1, 2 * inputs[0].nbytes)
    if filled := name.startswith(KERNEL) and node.arguments["filled"]:
        total.add("fill", filled, written)
    total.add(name.removeprefix(KERNEL), 1, read + written)
    total.flops += _product_flops(node)


def _product_flops(node: Node) -> float:
    """Two for each multiplication of a matrix product; rows that are gathered count, experts that are not do not."""
    if node.name in PRODUCTS:
        return 2 * math.prod(node.outputs[0].shape) * node.inputs[0].shape[-1]
    if node.name == "ScaledDotProductAttention":
        return 4 * math.prod(node.inputs[0].shape) * node.inputs[1].shape[-2]
    return 0


def _must_copy(node: Node, place: int, layout: Layout) -> bool:
    """place: of the input among the node's"""
    name = node.name
    if name.startswith(KERNEL) and not node.arguments["copies"]:
        return False  # it reads by strides
    if name in WANT_CONTIGUOUS or name.startswith(KERNEL):
        return not layout.is_contiguous
    if name in WANT_ROWS:
        return not layout.rows_are_contiguous
    if name == "Matmul" and 1 not in node.inputs[place].shape[-2:]:
        return 1 not in layout.places.strides[-2:]  # rows may have gaps between them; a vector's product wants none
    if name in WANT_ROWS_OR_COLUMNS:
        return not layout.is_matrix_either_way
    if name == "RMSNorm":
        return not (layout.is_dense and layout.rows_are_contiguous)
    if name == "ScaledDotProductAttention" and place == 0:
        # Heads and tokens may lie either way round in queries of one sequence, but without gaps.
        turned = layout.viewed(layout.places.swapaxes(1, 2))
        return not (layout.is_contiguous or (turned.is_contiguous and layout.places.shape[0] == 1))
    # Keys and values only need whole rows.
    return name == "ScaledDotProductAttention" and layout.places.strides[-1] != 1


def _lying_as(inputs: Iterable[Layout], shape: tuple[int, ...], itemsize: int) -> Layout:
    """An elementwise result lies as its inputs do, where they all lie alike and without gaps."""
    whole = [x for x in inputs if x.places.shape == shape and not x.is_scalar]
    alike = {x.places.strides for x in whole}
    if len(alike) == 1 and whole[0].is_dense:
        return like(shape, itemsize, whole[0])
    return fresh(shape, itemsize)
