"""Which implementation of an operation runs: chosen by measurement on Metal, the fast mx form elsewhere.

On Metal the first call of a shape class checks every candidate against the reference on seeded data, times those that
are right, and keeps the fastest; the choice outlives the process (choices.py). A candidate that fails, differs or gives
NaN is named once and never used again on that machine. Knows nothing of what the operations compute.
"""

from __future__ import annotations

import functools
import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx

from mlx_qwen35.errors import ConfigError
from mlx_qwen35.metal_kernels.choices import ChoiceFile, Known
from mlx_qwen35.metal_kernels.override import REFERENCE, VARIABLE, Override

_LOG = logging.getLogger(__name__)
CALLS = 10  # of a candidate in one timed round, enough to hide the clock and the queue
ROUNDS = 5  # the fastest counts: whatever else the machine does only adds
# Largest difference to the reference, as a part of its largest value. The reference rounds once at its end; so may a
# candidate, and where it hands over in this dtype once more.
TOLERANCE = {mx.float32: 1e-5, mx.float16: 2.0**-9, mx.bfloat16: 2.0**-6}


@dataclass(frozen=True)
class Candidate:
    """One implementation. fits: whether it takes such arguments at all, which is no fault where it does not"""

    name: str
    call: Callable[..., Any]
    needs_metal: bool = False
    fits: Callable[..., bool] = lambda *_: True


def shapes_of(*arguments: Any) -> str:
    """Shapes and dtypes; lengths above 8 stand for all up to the next power of two."""
    return " ".join([_shape_of(x.shape, x.dtype) if isinstance(x, mx.array) else "-" for x in arguments])


@functools.lru_cache(4096)  # asked for every operation of every token
def _shape_of(shape: tuple[int, ...], dtype: mx.Dtype) -> str:
    sizes = [n if n <= 8 else 1 << (n - 1).bit_length() for n in shape]
    return "x".join(map(str, sizes)) + str(dtype).removeprefix("mlx.core.")


def seeded(*arguments: Any) -> tuple[Any, ...]:
    """Normal values in place of floating arrays, always the same ones; everything else as it is."""
    return tuple(
        mx.random.normal(x.shape, key=mx.random.key(i)).astype(x.dtype)
        if isinstance(x, mx.array) and mx.issubdtype(x.dtype, mx.floating)
        else x
        for i, x in enumerate(arguments)
    )


@dataclass(frozen=True)
class Operation:
    """The candidates for one thing to compute, all with one signature; the first is its definition, the second the
    fast form in mx, which runs anywhere.

    example: arguments to measure with, made of those of the first call   shape_class: what a choice holds for
    tolerance: by dtype of an output
    """

    name: str
    candidates: tuple[Candidate, ...]
    example: Callable[..., tuple[Any, ...]] = seeded
    shape_class: Callable[..., str] = shapes_of
    tolerance: dict[mx.Dtype, float] = field(default_factory=lambda: TOLERANCE)

    def named(self, name: str) -> Candidate:
        return next(c for c in self.candidates if c.name == name)

    @property
    def reference(self) -> Candidate:
        return self.candidates[0]

    @property
    def off_metal(self) -> Candidate:
        return self.candidates[1]


class Selection:
    """Chooses, remembers, and warns. One for a process; see operations.py."""

    def __init__(
        self,
        override: Override,
        file: ChoiceFile | None = None,
        warn: Callable[[str], None] = _LOG.warning,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """file: None where there is nothing to measure (off Metal) or nothing shall be kept"""
        self._override, self._file, self._warn, self._clock = override, file, warn, clock
        self.measuring = 0.0  # seconds spent on it so far; no step should be blamed for them
        self._known: Known | None = None
        self._chosen: dict[str, Candidate] = {}
        self._lock = threading.RLock()

    def run(self, operation: Operation, arguments: Sequence[Any]) -> Any:
        """Compute with the candidate of choice. Where it fails and the reference does not, it is dropped."""
        candidate = self.choose(operation, arguments)
        if candidate.name in (REFERENCE, self._override.wanted(operation.name)):
            return candidate.call(*arguments)
        try:
            return candidate.call(*arguments)
        except Exception as error:
            result = operation.reference.call(*arguments)  # raises too where the arguments are at fault
            self._reject(operation, candidate, _one_line(error))
            return result

    def choose(self, operation: Operation, arguments: Sequence[Any]) -> Candidate:
        if name := self._override.wanted(operation.name):
            return self._asked_for(operation, name)
        if not mx.metal.is_available():
            return operation.off_metal
        key = f"{operation.name} {operation.shape_class(*arguments)}"
        if key not in self._chosen:
            with self._lock:
                self._chosen[key] = self._known_choice(operation, key) or self._measured(operation, key, arguments)
        chosen = self._chosen[key]
        # A class holds arguments that are alike, not equal: one of them may be too large for what another was fine for.
        return chosen if chosen.fits(*arguments) else operation.off_metal

    def chosen(self) -> dict[str, Candidate]:
        """What was chosen in this process: operation and shape class -> candidate."""
        return dict(self._chosen)

    def rejected(self) -> dict[str, str]:
        """What is never used on this machine: "operation=candidate" -> why."""
        return dict(self._memory().rejected)

    def _asked_for(self, operation: Operation, name: str) -> Candidate:
        candidate = operation.named(name)
        if candidate.needs_metal and not mx.metal.is_available():
            raise ConfigError(f"{VARIABLE}: {operation.name}={name} needs Metal, which this machine does not have.")
        return candidate

    def _known_choice(self, operation: Operation, key: str) -> Candidate | None:
        """A choice of an earlier process, unless it is none of ours or was rejected since."""
        name = self._memory().chosen.get(key)
        usable = {c.name: c for c in operation.candidates if not self._is_rejected(operation, c)}
        return usable.get(name) if name else None

    def _measured(self, operation: Operation, key: str, arguments: Sequence[Any]) -> Candidate:
        """The fastest of those that agree with the reference, on seeded data."""
        start = self._clock()
        example = operation.example(*arguments)
        wanted = _arrays(operation.reference.call(*example))
        mx.eval(example, wanted)
        best, least = operation.reference, float("inf")
        for candidate in operation.candidates:
            if candidate.name == REFERENCE or self._is_rejected(operation, candidate) or not candidate.fits(*example):
                continue
            try:
                found = _arrays(candidate.call(*example))
                mx.eval(found)
                fault = _difference(found, wanted, operation.tolerance)
                seconds = self._seconds(candidate, example) if fault is None else 0.0
            except Exception as error:
                fault, seconds = _one_line(error), 0.0
            if fault is not None:
                self._reject(operation, candidate, fault)
            elif seconds < least:
                best, least = candidate, seconds
        self._memory().chosen[key] = best.name
        self._save()
        self.measuring += self._clock() - start
        return best

    def _seconds(self, candidate: Candidate, example: Sequence[Any]) -> float:
        """Of the fastest round."""
        fastest = float("inf")
        for _ in range(ROUNDS):
            start = self._clock()
            mx.eval([_arrays(candidate.call(*example)) for _ in range(CALLS)])
            fastest = min(fastest, self._clock() - start)
        return fastest

    def _is_rejected(self, operation: Operation, candidate: Candidate) -> bool:
        return f"{operation.name}={candidate.name}" in self._memory().rejected

    def _reject(self, operation: Operation, candidate: Candidate, why: str) -> None:
        with self._lock:
            self._chosen = {k: c for k, c in self._chosen.items() if c is not candidate}
            known, name = self._memory(), f"{operation.name}={candidate.name}"
            known.chosen = {
                k: c for k, c in known.chosen.items() if c != candidate.name or k.split()[0] != operation.name
            }
            if name not in known.rejected:
                known.rejected[name] = why
                self._warn(f"The kernel {name} is not used on this machine: {why}")
            self._save()

    def _memory(self) -> Known:
        if self._known is None:
            self._known = self._file.load() if self._file else Known()
        return self._known

    def _save(self) -> None:
        if self._file is None:
            return
        try:
            self._known = self._file.save(self._memory())
        except OSError as error:
            self._warn(f"{self._file.path} cannot be written ({error.strerror}): kernels are measured at every start.")
            self._file = None


def _difference(found: list[mx.array], wanted: list[mx.array], tolerance: dict[mx.Dtype, float]) -> str | None:
    """What is wrong with a result, or None."""
    if [(x.shape, x.dtype) for x in found] != [(y.shape, y.dtype) for y in wanted]:
        return "it gives other shapes or dtypes than the reference"
    for i, (x, y) in enumerate(zip(found, wanted)):
        if not mx.issubdtype(y.dtype, mx.floating):
            if not mx.array_equal(x, y):
                return f"output {i} differs from the reference"
            continue
        wide_x, wide_y = x.astype(mx.float32), y.astype(mx.float32)
        if not mx.isfinite(wide_x).all():
            return f"output {i} holds NaN or infinity"
        error = float(mx.abs(wide_x - wide_y).max() / mx.maximum(mx.abs(wide_y).max(), 1e-30))
        if error > tolerance.get(y.dtype, TOLERANCE[mx.float32]):
            return f"output {i} differs from the reference by {error:.1e} of its largest value"
    return None


def _arrays(result: Any) -> list[mx.array]:
    return [result] if isinstance(result, mx.array) else [x for x in result if x is not None]


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
