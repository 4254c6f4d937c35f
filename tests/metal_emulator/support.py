"""Helpers of the emulator's tests: small kernels in a line, and errors as one number."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from tests.metal_emulator import Options, Session, emulated_metal

# What most of the small kernels begin with.
PLACE = "uint i = thread_position_in_grid.x, t = thread_position_in_threadgroup.x;\n"


def run(
    source: str,
    *inputs: mx.array,
    threads: int = 64,
    threadgroup: int = 64,
    shape: Sequence[int] | None = None,
    dtype: mx.Dtype = mx.float32,
    options: Options | None = None,
    init_value: float | None = None,
    **definition: Any,
) -> tuple[mx.array, Session]:
    """Launch `source` on inputs a, b, ... (0, 1, 2 ... by default) with one output o; -> o, and what was recorded."""
    arrays = inputs or (mx.arange(threads).astype(mx.float32),)
    with emulated_metal(options) as session:
        names = list("abcdefgh"[: len(arrays)])
        kernel = mx.fast.metal_kernel(name="t", input_names=names, output_names=["o"], source=source, **definition)
        outputs = kernel(  # pyright: ignore[reportCallIssue]
            inputs=list(arrays),
            grid=(threads, 1, 1),
            threadgroup=(threadgroup, 1, 1),
            output_shapes=[tuple(shape or (threads,))],
            output_dtypes=[dtype],
            init_value=init_value,
        )
    return outputs[0], session


def written_for(package: str, version: str) -> pytest.MarkDecorator:
    """Skips where a test that calls another's insides meets a version it was not written for."""
    found = importlib.metadata.version(package)
    reason = f"written for {package} {version}x, whose kernels' arguments it knows; {found} is installed"
    return pytest.mark.skipif(not found.startswith(version), reason=reason)


def private_copy(name: str) -> Any:
    """A module imported anew: mlx-lm's build their kernels on import, and only where there is Metal."""
    spec = importlib.util.find_spec(name)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with emulated_metal():
        spec.loader.exec_module(module)
    return module


def error(got: mx.array | np.ndarray, wanted: mx.array | np.ndarray) -> float:
    """max |difference| / max |wanted|, in float64."""
    a, b = (_float64(x) for x in (got, wanted))
    assert a.shape == b.shape
    return float(np.abs(a - b).max() / np.abs(b).max())


def _float64(x: mx.array | np.ndarray) -> np.ndarray:
    return np.array(x.astype(mx.float32) if isinstance(x, mx.array) else x, dtype=np.float64)
