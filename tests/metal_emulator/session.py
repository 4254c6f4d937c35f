"""`emulated_metal()`: inside it, mx.fast.metal_kernel runs on the CPU, and every launch is recorded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from unittest.mock import patch

import mlx.core as mx
import numpy as np

from tests.metal_emulator.arrays import Input
from tests.metal_emulator.compile import Unit, mlx_include
from tests.metal_emulator.counters import Counters
from tests.metal_emulator.errors import CompileError, Fault
from tests.metal_emulator.kernel import Done, Kernel, Out, View
from tests.metal_emulator.lint import complaints
from tests.metal_emulator.metal_kernel import Definition, EmulatedKernel, Generated
from tests.metal_emulator.options import Options

# MLX puts its utils.h before every custom kernel.
PREAMBLE = '#include "mlx/backend/metal/kernels/utils.h"\n'


@dataclass(frozen=True)
class Launch:
    """One call of a kernel. MLX adds a launch of its own for each copied input and each filled output."""

    name: str
    inputs: tuple[tuple[str, mx.Dtype, tuple[int, ...]], ...]
    grid: tuple[int, ...]
    threadgroup: tuple[int, ...]
    copied: tuple[str, ...]  # inputs that were not row contiguous
    filled: int  # outputs with an init_value
    counters: Counters
    faults: tuple[Fault, ...]
    warnings: tuple[Fault, ...]


class Session:
    """The launches of one `emulated_metal()`, in order."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.launches: list[Launch] = []
        # Kernels whose text changed under one name: MLX then compiles again at every change.
        self.recompiled: list[str] = []
        self._kernels: dict[tuple[str, Options], Kernel] = {}
        self._texts: dict[str, str] = {}

    @property
    def last(self) -> Launch:
        return self.launches[-1]

    def total_launches(self) -> int:
        """With the copies and fills that MLX adds."""
        return sum(1 + len(one.copied) + one.filled for one in self.launches)

    def launch(
        self,
        definition: Definition,
        generated: Generated,
        inputs: Sequence[Input],
        buffers: dict[int, np.ndarray | View | Out],
        grid: Sequence[int],
        threadgroup: Sequence[int],
        filled: int,
    ) -> Done:
        """Compile if need be, run, record; raises KernelFault after recording."""
        kernel = self._kernel(definition, generated)
        keep = replace(self.options, on_fault="keep")
        done = kernel.run(buffers, grid, threadgroup, options=keep)
        seen = tuple((n, i.array.dtype, tuple(i.array.shape)) for n, i in zip(definition.input_names, inputs))
        copied = tuple(n for n, i in zip(definition.input_names, inputs) if i.copied)
        place = (tuple(grid), tuple(threadgroup), copied, filled)
        self.launches.append(Launch(definition.name, seen, *place, done.counters, done.faults, done.warnings))
        if self.options.on_fault == "raise":
            done.raise_faults(definition.name)
        return done

    def _kernel(self, definition: Definition, generated: Generated) -> Kernel:
        if self._texts.setdefault(generated.kernel, generated.text) != generated.text:
            self.recompiled.append(generated.kernel)
            self._texts[generated.kernel] = generated.text
        how = replace(self.options, schedule="forward", seed=1, on_fault="raise")
        key = (generated.text, how)
        if key not in self._kernels:
            if self.options.strict and (found := complaints(definition.header, definition.source)):
                raise CompileError(f"Metal would refuse the kernel {definition.name}:\n" + "\n".join(found))
            unit = Unit(PREAMBLE + generated.text, generated.kernel, generated.template, (mlx_include(),))
            self._kernels[key] = Kernel(unit, how)
        return self._kernels[key]


_sessions: list[Session] = []


def current() -> Session:
    """The innermost session; kernels that outlive theirs must not run unseen."""
    if not _sessions:
        raise RuntimeError("an emulated kernel was called outside `with emulated_metal():`")
    return _sessions[-1]


def metal_kernel(
    name: str,
    input_names: Sequence[str],
    output_names: Sequence[str],
    source: str,
    header: str = "",
    ensure_row_contiguous: bool = True,
    atomic_outputs: bool = False,
    compile_options: object = None,
) -> EmulatedKernel:
    """As mx.fast.metal_kernel; the options of compile_options change nothing here."""
    names = (tuple(input_names), tuple(output_names))
    return EmulatedKernel(Definition(name, *names, source, header, ensure_row_contiguous, atomic_outputs), current)


@contextmanager
def emulated_metal(options: Options | None = None, *, pretend_gpu: bool = True) -> Iterator[Session]:
    """Code inside sees a machine with Metal: kernels run emulated, mx.compile is off (a launch needs its values).

    With pretend_gpu, mx.metal.is_available() is True and mx.default_device() is mx.gpu, for code that asks. All
    other operations run on MLX's CPU backend as before. Sessions nest; a kernel that was built in one (and kept by
    functools.cache, say) runs in whichever is innermost when it is called.
    """
    session = Session(options or Options())
    with ExitStack() as stack:
        stack.enter_context(patch.object(mx.fast, "metal_kernel", metal_kernel))
        if pretend_gpu:
            stack.enter_context(patch.object(mx.metal, "is_available", lambda: True))
            stack.enter_context(patch.object(mx, "default_device", lambda: mx.Device(mx.gpu)))
        mx.disable_compile()
        _sessions.append(session)
        try:
            yield session
        finally:
            _sessions.pop()
            if not _sessions:
                mx.enable_compile()
