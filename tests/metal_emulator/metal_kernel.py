"""`mx.fast.metal_kernel`, emulated: same arguments, same generated signature, same traps.

Traps of MLX's that are kept: an input of fewer than 8 elements arrives in the `constant` address space, one without
dimensions by reference; `NAME_shape`, `NAME_strides`, `NAME_ndim` and the thread attributes exist only if the source
names them; an input that is not row contiguous is copied before every launch unless ensure_row_contiguous is False.
Not kept: laziness. A launch happens when it is called.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import mlx.core as mx
import numpy as np

from tests.metal_emulator.arrays import NUMPY_TYPES, TYPE_NAMES, Input, as_input, as_output, initial
from tests.metal_emulator.kernel import Out, View
from tests.metal_emulator.signature import ATTRIBUTE_KINDS

if TYPE_CHECKING:
    from tests.metal_emulator.session import Session

SMALL = 8  # elements; fewer arrive in the constant address space
SCALAR_ATTRIBUTES = ("_index_in_", "quadgroups_per_", "simdgroups_per_", "threads_per_simdgroup", "execution_width")
Template = Sequence[tuple[str, mx.Dtype | int | bool]]


@dataclass(frozen=True)
class Definition:
    """What mx.fast.metal_kernel is given."""

    name: str
    input_names: tuple[str, ...]
    output_names: tuple[str, ...]
    source: str
    header: str
    ensure_row_contiguous: bool
    atomic_outputs: bool


@dataclass(frozen=True)
class Generated:
    """The translation unit MLX makes of a definition for one set of argument types."""

    text: str
    kernel: str
    template: str


class EmulatedKernel:
    """What mx.fast.metal_kernel returns inside `emulated_metal()`; outside, calling it is an error."""

    def __init__(self, definition: Definition, session: Callable[[], Session]) -> None:
        self.definition = definition
        self._session = session

    def __call__(
        self,
        *,
        inputs: Sequence[Any],
        output_shapes: Sequence[Sequence[int]],
        output_dtypes: Sequence[mx.Dtype],
        grid: tuple[int, int, int],
        threadgroup: tuple[int, int, int],
        template: Template | None = None,
        init_value: float | None = None,
        verbose: bool = False,
        stream: object = None,
    ) -> list[mx.array]:
        d = self.definition
        _same_length("inputs", inputs, d.input_names)
        _same_length("output_shapes", output_shapes, d.output_names)
        _same_length("output_dtypes", output_dtypes, d.output_names)
        arrays = [x if isinstance(x, mx.array) else mx.array(x) for x in inputs]
        bound = [as_input(a, d.ensure_row_contiguous) for a in arrays]
        generated = generate(d, arrays, output_dtypes, template or ())
        if verbose:
            print(f"Generated source code for `{d.name}`:\n```\n{generated.text}\n```")
        buffers, first_output = _buffers(d, bound)
        for i, (shape, dtype) in enumerate(zip(output_shapes, output_dtypes)):
            start = None if init_value is None else initial(init_value, dtype)
            buffers[first_output + i] = Out(tuple(shape), NUMPY_TYPES[dtype], start)
        # As MLX clips it: no side of a threadgroup is longer than the grid's.
        clipped = [max(1, min(t, g)) for t, g in zip(threadgroup, grid)]
        filled = len(output_dtypes) if init_value is not None else 0
        done = self._session().launch(d, generated, bound, buffers, grid, clipped, filled)
        return [as_output(done.outputs[first_output + i], dtype) for i, dtype in enumerate(output_dtypes)]


def _same_length(what: str, got: Sequence[object], names: Sequence[str]) -> None:
    if len(got) != len(names):
        raise ValueError(f"[metal_kernel] Expected `{what}` to have size {len(names)} but got size {len(got)}.")


def generate(d: Definition, inputs: Sequence[mx.array], outputs: Sequence[mx.Dtype], template: Template) -> Generated:
    """The source as MLX generates it, line marks added."""
    values = [(name, _template_value(v), _template_kind(v)) for name, v in template]
    kernel = "custom_kernel_" + d.name
    if values:
        kernel += "_" + "_".join(value for _, value, _ in values)
    for a in inputs:
        kernel += f"_{TYPE_NAMES[a.dtype]}" + ("s" if a.ndim == 0 else "c" if a.size < SMALL else "")
    kernel += "".join(f"_{TYPE_NAMES[dtype]}" for dtype in outputs)
    arguments = ", ".join(value for _, value, _ in values)
    text = f'#line 1 "{d.name}.header"\n{d.header}\n'
    if values:
        text += "template <" + ", ".join(f"{kind} {name}" for name, _, kind in values) + ">\n"
    parameters = ",\n".join(_parameters(d, inputs, outputs))
    text += f'[[kernel]] void {kernel}(\n{parameters}) {{\n#line 1 "{d.name}.source"\n{d.source}\n}}\n'
    if values:
        made = f"{kernel}<{arguments}>"
        text += f'\ntemplate [[host_name("{kernel}")]] [[kernel]] decltype({made}) {made};\n'
    return Generated(text, kernel, arguments)


def _parameters(d: Definition, inputs: Sequence[mx.array], outputs: Sequence[mx.Dtype]) -> list[str]:
    """The kernel's parameters, one a line."""
    lines = []
    for name, a in zip(d.input_names, inputs):
        space = "constant" if a.size < SMALL else "device"
        declared = [f"const {space} {TYPE_NAMES[a.dtype]}{'*' if a.ndim else '&'} {name}"]
        if a.ndim:
            kinds = {
                "_shape": "const constant int*",
                "_strides": "const constant int64_t*",
                "_ndim": "const constant int&",
            }
            declared += [f"{kind} {name}{suffix}" for suffix, kind in kinds.items() if name + suffix in d.source]
        lines += [f"  {one} [[buffer({len(lines) + i})]]" for i, one in enumerate(declared)]
    for name, dtype in zip(d.output_names, outputs):
        kind = f"atomic<{TYPE_NAMES[dtype]}>" if d.atomic_outputs else TYPE_NAMES[dtype]
        lines.append(f"  device {kind}* {name} [[buffer({len(lines)})]]")
    named = [a for a in sorted(ATTRIBUTE_KINDS) if a in d.source]
    return [*lines, *[f"  {_attribute_type(a)} {a} [[{a}]]" for a in named]]


def _attribute_type(name: str) -> str:
    return "uint" if any(part in name for part in SCALAR_ATTRIBUTES) else "uint3"


def _buffers(d: Definition, inputs: Sequence[Input]) -> tuple[dict[int, np.ndarray | View | Out], int]:
    """The inputs and what the source asks of their shapes, by index; and the index of the first output."""
    listed: list[np.ndarray | View | Out] = []
    for name, one in zip(d.input_names, inputs):
        listed.append(one.view)
        if one.array.ndim:
            facts = {
                "_shape": np.array(one.array.shape, np.int32),
                "_strides": np.array(one.strides, np.int64),
                "_ndim": np.array([one.array.ndim], np.int32),
            }
            listed += [fact for suffix, fact in facts.items() if name + suffix in d.source]
    return dict(enumerate(listed)), len(listed)


def _template_value(value: mx.Dtype | int | bool) -> str:
    return TYPE_NAMES[value] if isinstance(value, mx.Dtype) else str(int(value))


def _template_kind(value: mx.Dtype | int | bool) -> str:
    if isinstance(value, mx.Dtype):
        return "typename"
    return "bool" if isinstance(value, bool) else "int"
