"""One kernel function of Metal source, compiled and ready to launch with numpy arrays for buffers.

`metal_kernel.py` builds on it for mx.fast.metal_kernel; for a [[kernel]] with a signature of its own (MLX's headers)
use it directly:

    kernel = Kernel(Unit(text, "affine_qmv_fast", "float, 64, 4, false", (mlx_include(),)))
    done = kernel.run({0: array, 4: Out((1, 256), np.float32)}, grid=(32, 64, 1), threadgroup=(32, 2, 1))
    done.outputs[4]
"""

from __future__ import annotations

import ctypes
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from tests.metal_emulator import machine
from tests.metal_emulator.compile import Unit, build, runtime
from tests.metal_emulator.counters import Counters
from tests.metal_emulator.errors import NO_BUFFER, Fault, KernelFault, Record
from tests.metal_emulator.options import Options

Dimensions = Sequence[int]


@dataclass(frozen=True)
class Out:
    """A buffer the kernel writes. Without `init` it holds NaNs, and reading or leaving an element is a fault."""

    shape: tuple[int, ...]
    dtype: np.dtype | type
    init: float | int | None = None


@dataclass(frozen=True)
class View:
    """Memory that someone else owns and keeps. `shift`: its first byte's, from an address aligned for all types."""

    address: int
    size: int
    element: int
    shift: int = 0


@dataclass(frozen=True)
class Done:
    """A launch that ended. `outputs` by buffer index, also those of buffers that went in and may be written."""

    outputs: dict[int, np.ndarray]
    counters: Counters
    faults: tuple[Fault, ...]
    warnings: tuple[Fault, ...]

    def raise_faults(self, name: str) -> None:
        """KernelFault, if there were any."""
        if self.faults:
            raise KernelFault(f"{name}:\n  " + "\n  ".join(map(str, self.faults)))


class Kernel:
    """Compiled on construction. Raises CompileError where the Metal compiler would refuse it."""

    def __init__(self, unit: Unit, options: Options | None = None) -> None:
        self.unit = unit
        self.options = options or Options()
        runtime()
        built = build(unit, self.options)
        self.parameters = built.parameters
        self.compile_seconds = built.seconds
        self._path = built.library
        self._library = ctypes.CDLL(str(built.library))
        self._entry = ctypes.cast(self._library.mtl_entry, ctypes.c_void_p).value or 0
        self._begin, self._end = _mapped(built.library)

    def run(
        self,
        buffers: Mapping[int, np.ndarray | View | Out],
        grid: Dimensions,
        threadgroup: Dimensions,
        threadgroup_bytes: Mapping[int, int] | None = None,
        options: Options | None = None,
    ) -> Done:
        """Launch `grid` threads; buffers that are not given are unbound, and touching them is a fault.

        `options` replaces the schedule and on_fault of the kernel's own; how it is compiled stands.
        """
        how = options or self.options
        bound = machine.Bound()
        names = {p.kind: p.name for p in self.parameters if p.is_buffer}
        for parameter in self.parameters:
            if parameter.is_buffer and parameter.kind in buffers:
                _bind(bound, parameter.kind, buffers[parameter.kind], parameter.const)
        kinds = [p.kind for p in self.parameters]
        place = (self._entry, self._begin, self._end)
        stats = machine.launch(runtime(), place, kinds, bound, grid, threadgroup, threadgroup_bytes or {}, how)
        found = self._faults(stats, names, bound.sizes)
        unwritten = {names[i]: stats.unwritten[i] for i in names if stats.unwritten[i]}
        for name, count in unwritten.items():
            found.append(Fault("output left unwritten", f"output left unwritten: {count} elements of '{name}'", False))
        faults = tuple(f for f in found if not f.warning)
        warnings = tuple(f for f in found if f.warning)
        done = Done(bound.outputs, machine.counters(stats, names), faults, warnings)
        if how.on_fault == "raise":
            done.raise_faults(self.unit.kernel)
        return done

    def _faults(self, stats: machine.Stats, names: Mapping[int, str], sizes: Mapping[int, int]) -> list[Fault]:
        """One of a kind and line; the runtime counts by instruction."""
        found: dict[tuple[int, str | None, str], tuple[Record, int | None]] = {}
        for raw in stats.record[: stats.records]:
            buffer = None if raw.buffer == NO_BUFFER else names.get(raw.buffer, f"buffer {raw.buffer}")
            thread, group = tuple(raw.position), tuple(raw.threadgroup)
            one = Record(raw.code, buffer, raw.offset, raw.size, raw.other, thread, group, raw.count)
            key = (raw.code, buffer, self._line(raw.site))
            if key in found:
                one = replace(found[key][0], count=found[key][0].count + one.count)
            found[key] = (one, sizes.get(raw.buffer))
        return [record.fault(line, size) for (_, _, line), (record, size) in found.items()]

    def _line(self, site: int) -> str:
        """The line of the source that an address comes from, the innermost outside the shim."""
        if not self._begin <= site < self._end:
            return "?"
        command = ["addr2line", "-i", "-e", str(self._path), hex(site - self._begin - 1)]
        frames = subprocess.run(command, capture_output=True, text=True).stdout.strip().split("\n")
        frame = next((f for f in frames if not re.search(r"/shim/\w+\.h:", f)), frames[0])
        file, _, rest = frame.rpartition(":")
        digits = re.match(r"\d+", rest)
        line, name = int(digits.group()) if digits else 0, Path(file).name
        if not line:
            return f"{name} (where lines were merged)"
        lines = _source_lines(self.unit.source, name) or (
            Path(file).read_text().split("\n") if Path(file).is_file() else []
        )
        shown = lines[line - 1].strip()[:110] if line <= len(lines) else ""
        return f"{name}:{line}: {shown}"


def _bind(bound: machine.Bound, index: int, value: np.ndarray | View | Out, const: bool) -> None:
    if isinstance(value, Out):
        array = np.empty(value.shape, value.dtype)
        if value.init is None:
            array.reshape(-1).view(np.uint8)[:] = 0xFF  # NaN in every float format
        else:
            array[...] = value.init
        flags = machine.OUTPUT | (0 if value.init is None else machine.INITIALISED)
        bound.add_output(index, array, flags)
    elif isinstance(value, View):
        assert const, "a view is read only"
        bound.add(index, value.address, value.size, machine.CONST, value.element, value.shift)
    elif const:
        array = np.ascontiguousarray(value)
        bound.keep.append(array)
        bound.add(index, array.ctypes.data, array.nbytes, machine.CONST, array.itemsize)
    else:
        bound.add_output(index, np.array(value, order="C"), machine.OUTPUT | machine.INITIALISED)


def _mapped(library: Path) -> tuple[int, int]:
    """Where in memory the library's code and constants lie; another process may have put an equal one in its place."""
    spans = [
        [int(x, 16) for x in line.split()[0].split("-")]
        for line in Path("/proc/self/maps").read_text().splitlines()
        if line.removesuffix(" (deleted)").endswith(str(library))
    ]
    return min(s[0] for s in spans), max(s[1] for s in spans)


def _source_lines(source: str, name: str) -> list[str]:
    """The part of the source that a `#line 1 "name"` begins, or all of it."""
    if name == "kernel.metal":  # as compile.py calls it
        return source.split("\n")
    marked = re.split(r'(?m)^#line 1 "([^"]*)"\n', source)
    parts = dict(zip(marked[1::2], marked[2::2]))
    return parts[name].split("\n") if name in parts else []
