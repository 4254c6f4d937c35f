"""The runtime's structs as ctypes, and one launch through them. Must match runtime/machine.h field by field."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tests.metal_emulator.counters import Counters
from tests.metal_emulator.errors import KernelFault
from tests.metal_emulator.options import SCHEDULES, Options

CONST, OUTPUT, INITIALISED = 1, 2, 4
BUFFERS, RECORDS = 32, 64
_u32, _u64 = ctypes.c_uint32, ctypes.c_uint64
# The machine is one: a launch at a time, whichever thread asks.
_lock = threading.Lock()


class _Buffer(ctypes.Structure):
    _fields_ = [("data", ctypes.c_void_p), ("size", _u64), ("flags", _u32), ("element", _u32), ("shift", _u64)]


class _Record(ctypes.Structure):
    _fields_ = [
        *[("code", _u32), ("buffer", _u32), ("offset", ctypes.c_int64), ("size", _u32), ("other", _u32)],
        *[("position", _u32 * 3), ("threadgroup", _u32 * 3), ("site", _u64), ("count", _u64)],
    ]


class _Launch(ctypes.Structure):
    _fields_ = [
        *[("entry", ctypes.c_void_p), ("arguments", ctypes.c_int32), ("kinds", ctypes.c_void_p)],
        *[("buffers", ctypes.c_void_p), ("grid", _u32 * 3), ("threads", _u32 * 3)],
        *[("schedule", _u32), ("seed", _u32), ("checked", _u32)],
        *[("code_begin", _u64), ("code_end", _u64), ("threadgroup_bytes", _u32 * 8)],
    ]


_SCALARS = """
    flops special simd_ops matrix_ops tensor_ops matrix_flops threadgroup_barriers simdgroup_barriers
    threadgroup_loaded threadgroup_stored threadgroup_bytes threads threadgroups atomics simd_diverged
""".split()  # noqa: SIM905
_PER_BUFFER = ["loaded", "stored", "unique", "threadgroup_unique"]


class Stats(ctypes.Structure):
    """What a launch leaves behind."""

    _fields_ = [
        *[(name, _u64) for name in [*_SCALARS, "faults", "records"]],
        *[(name, _u64 * BUFFERS) for name in [*_PER_BUFFER, "unwritten"]],
        ("record", _Record * RECORDS),
    ]


class Bound:
    """The buffers of one launch, and what must live until it ends."""

    def __init__(self) -> None:
        self.slots = (_Buffer * BUFFERS)()
        self.sizes: dict[int, int] = {}
        self.outputs: dict[int, np.ndarray] = {}
        self.keep: list[object] = []

    def add(self, index: int, address: int, size: int, flags: int, element: int, shift: int = 0) -> None:
        self.slots[index] = _Buffer(address, size, flags, max(1, element), shift)
        self.sizes[index] = size

    def add_output(self, index: int, array: np.ndarray, flags: int) -> None:
        self.outputs[index] = array
        self.add(index, array.ctypes.data, array.nbytes, flags, array.itemsize)


def launch(
    runtime: ctypes.CDLL,
    place: tuple[int, int, int],
    kinds: Sequence[int],
    bound: Bound,
    grid: Sequence[int],
    threadgroup: Sequence[int],
    threadgroup_bytes: Mapping[int, int],
    options: Options,
) -> Stats:
    """Run one launch. Raises KernelFault where Metal would refuse it.

    place: the address of the kernel's entry, and the first and last address of its library.
    """
    kinds_array = (ctypes.c_int32 * len(kinds))(*kinds)
    sides = [(_u32 * 3)(*[*map(int, side), 1, 1, 1][:3]) for side in (grid, threadgroup)]
    memory = (_u32 * 8)(*[threadgroup_bytes.get(i, 0) for i in range(8)])
    how = (SCHEDULES.index(options.schedule), options.seed * 2 + 1, int(options.check))
    asked = _Launch(
        *[place[0], len(kinds), ctypes.addressof(kinds_array), ctypes.addressof(bound.slots)],
        *[*sides, *how, place[1], place[2], memory],
    )
    stats = Stats()
    with _lock:
        code = runtime.mtl_run(ctypes.byref(asked), ctypes.byref(stats))
    if code == 1:
        raise MemoryError("the emulator could not map the buffers of a launch (8 GiB each at most)")
    if code == 2:
        raise KernelFault(f"threadgroup {tuple(threadgroup)} has more than 1024 threads, or more than 64 arguments")
    return stats


def counters(stats: Stats, names: Mapping[int, str]) -> Counters:
    """The numbers under the buffers' names."""
    numbers: dict[str, Any] = {name: getattr(stats, name) for name in _SCALARS}
    for key in _PER_BUFFER:
        array = getattr(stats, key)
        numbers[key] = {names[i]: array[i] for i in sorted(names) if array[i]}
    return Counters(**numbers)
