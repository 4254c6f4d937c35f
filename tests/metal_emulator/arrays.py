"""MLX arrays as a kernel sees them: the address, the strides, whether MLX would copy first; and outputs back."""

from __future__ import annotations

import ctypes
import functools
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from tests.metal_emulator.kernel import View

TYPE_NAMES = {
    mx.bool_: "bool",
    mx.uint8: "uint8_t",
    mx.uint16: "uint16_t",
    mx.uint32: "uint32_t",
    mx.uint64: "uint64_t",
    mx.int8: "int8_t",
    mx.int16: "int16_t",
    mx.int32: "int32_t",
    mx.int64: "int64_t",
    mx.float16: "float16_t",
    mx.bfloat16: "bfloat16_t",
    mx.float32: "float",
    mx.complex64: "complex64_t",
}
# numpy has no bfloat16: its bits travel as uint16.
NUMPY_TYPES = {
    **{d: np.dtype(n.removesuffix("_t")) for d, n in TYPE_NAMES.items() if n.endswith("_t") and "int" in n},
    mx.bool_: np.dtype(bool),
    mx.float16: np.dtype(np.float16),
    mx.bfloat16: np.dtype(np.uint16),
    mx.float32: np.dtype(np.float32),
    mx.complex64: np.dtype(np.complex64),
}
ALIGNED = 16  # bytes: the largest alignment a type of Metal asks for, but long4 and its like


@dataclass(frozen=True)
class Input:
    """An input of a launch. `array` owns the memory of `view` and must be kept until the launch has ended."""

    array: mx.array
    view: View
    strides: tuple[int, ...]  # in elements
    copied: bool  # MLX launches a copy first, on every call


def as_input(array: mx.array, ensure_row_contiguous: bool) -> Input:
    """What MLX binds: the array itself, or a contiguous copy of it where it has to be one."""
    mx.eval(array)
    strides = _strides(array)
    copied = ensure_row_contiguous and not is_row_contiguous(array.shape, strides)
    if copied:
        array = mx.contiguous(array)
        mx.eval(array)
        strides = row_contiguous_strides(array.shape)
    if any(s < 0 for s in strides):
        raise ValueError("an input with negative strides is not supported")
    reach = 1 + sum((d - 1) * s for d, s in zip(array.shape, strides)) if array.size else 0
    address = _address(array)
    view = View(address, reach * array.itemsize, array.itemsize, (address - _base()) % ALIGNED)
    return Input(array, view, strides, copied)


@functools.cache
def _base() -> int:
    """Where MLX's CPU allocator begins an array, modulo ALIGNED: 8, after the size it keeps. On Metal it is 0."""
    fresh = mx.zeros(64)
    mx.eval(fresh)
    return _address(fresh) % ALIGNED


def row_contiguous_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    strides, step = [], 1
    for d in reversed(shape):
        strides.append(step)
        step *= max(1, d)
    return tuple(reversed(strides))


def is_row_contiguous(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    """As MLX's flag has it: a side of length 1 may have any stride."""
    return all(d <= 1 or s == w for d, s, w in zip(shape, strides, row_contiguous_strides(shape)))


def _strides(array: mx.array) -> tuple[int, ...]:
    if array.ndim == 0 or array.size == 0:
        return row_contiguous_strides(array.shape)
    held = memoryview(array).strides  # pyright: ignore[reportArgumentType]
    return tuple(s // array.itemsize for s in held) if held else row_contiguous_strides(array.shape)


def as_output(array: np.ndarray, dtype: mx.Dtype) -> mx.array:
    """A kernel's output as an array of its dtype."""
    made = mx.array(array)
    return made.view(mx.bfloat16) if dtype == mx.bfloat16 else made


def initial(value: float, dtype: mx.Dtype) -> float | int:
    """An init_value as numpy stores it, bfloat16 as bits."""
    if dtype == mx.bfloat16:
        return int(mx.array(value, dtype).view(mx.uint16).item())  # pyright: ignore[reportArgumentType]
    return value


class _PyBuffer(ctypes.Structure):
    """Python's Py_buffer: the way to an array's memory that needs no copy and no known format."""

    _fields_ = [
        *[("buf", ctypes.c_void_p), ("obj", ctypes.py_object), ("len", ctypes.c_ssize_t)],
        *[("itemsize", ctypes.c_ssize_t), ("readonly", ctypes.c_int), ("ndim", ctypes.c_int)],
        *[("format", ctypes.c_char_p), ("shape", ctypes.c_void_p), ("strides", ctypes.c_void_p)],
        *[("suboffsets", ctypes.c_void_p), ("internal", ctypes.c_void_p)],
    ]


_STRIDES = 0x18  # PyBUF_STRIDES


def _address(array: mx.array) -> int:
    if not array.size:
        return 0
    view = _PyBuffer()
    ctypes.pythonapi.PyObject_GetBuffer(ctypes.py_object(array), ctypes.byref(view), _STRIDES)
    address = view.buf or 0
    ctypes.pythonapi.PyBuffer_Release(ctypes.byref(view))
    return address
