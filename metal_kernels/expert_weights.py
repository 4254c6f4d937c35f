"""The weights of a layer's experts, as checkpoints pack them and as the kernels of expert_mlp.py take them.

Whole arrays only, with the first row that is meant: a slice that is no block of its array would be copied by MLX
before every launch. Knows nothing of routing.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx

SMALLEST = 8  # elements; MLX hands smaller inputs to a kernel in another address space
RUN = 16  # neighbours of a row that a lane takes at once

# The numbers packed_rows.metal knows modes by. Weights that are not packed go by their dtype.
MODES = {"affine": 0, "mxfp4": 1, "nvfp4": 2, "mxfp8": 3}
PLAIN = {mx.bfloat16: 4, mx.float16: 5, mx.float32: 6}
AFFINE_BITS = (2, 3, 4, 5, 6, 8)


@dataclass(frozen=True, eq=False)
class Matrices:
    """One projection of all experts, or of the shared one.

    weight: [E, stored, width], packed as mx.quantize does it; of the shared expert [stored, width]
    scales, biases: None where the mode has none; bits is 16 or 32 where nothing is packed
    rows: how many outputs are meant, from `first` on, of the `stored` rows (gate and up in one array, say)
    """

    weight: mx.array
    scales: mx.array | None
    biases: mx.array | None
    bits: int
    group_size: int
    mode: str | None
    rows: int
    first: int = 0

    @functools.cached_property
    def inputs(self) -> int:
        """Width of a row, unpacked."""
        return self.weight.shape[-1] * self.weight.dtype.size * 8 // self.bits

    @property
    def stored(self) -> int:
        return self.weight.shape[-2]

    @property
    def format(self) -> tuple[int, int, int]:
        """Mode, bits and group as the kernel's text numbers them."""
        mode = MODES[self.mode] if self.mode else PLAIN[self.weight.dtype]
        return mode, self.bits, self.group_size

    @property
    def buffers(self) -> list[mx.array]:
        """Weight, scales, biases. A kernel has always three: where there are fewer, the last stands in, unread."""
        scales = self.weight if self.scales is None else self.scales
        return [self.weight, scales, scales if self.biases is None else self.biases]

    def row_bytes(self) -> int:
        """Bytes of one row: weights, scales, biases."""
        arrays = (a for a in (self.weight, self.scales, self.biases) if a is not None)
        return sum(a.shape[-1] * a.dtype.size for a in arrays)

    def complaint(self) -> str | None:
        """Why a kernel cannot take these, or None. Evaluates the arrays."""
        known = self.mode in MODES if self.mode else self.weight.dtype in PLAIN
        if not known or (self.mode == "affine" and self.bits not in AFFINE_BITS):
            return f"no kernel for {self.bits} bits, mode {self.mode}, {self.weight.dtype}"
        if any(n % RUN for n in (self.inputs, self.rows, self.group_size)) or self.inputs % self.group_size:
            return f"{self.rows} rows of {self.inputs} in groups of {self.group_size}; all must be multiples of {RUN}"
        if not 0 <= self.first <= self.stored - self.rows:
            return f"rows {self.first} to {self.first + self.rows} of {self.stored}"
        for array in (a for a in (self.weight, self.scales, self.biases) if a is not None):
            if array.size < SMALLEST:
                return f"an array of {array.shape}, fewer than {SMALLEST} elements"
            if not memoryview(array).c_contiguous:  # pyright: ignore[reportArgumentType]
                return f"an array of {array.shape} that is a view with strides; pass the whole array and first"
        return None


def packed(
    weight: mx.array,
    scales: mx.array,
    biases: mx.array | None,
    group_size: int,
    bits: int,
    mode: str = "affine",
    rows: int | None = None,
    first: int = 0,
) -> Matrices:
    """Weights as mx.quantize returns them."""
    return Matrices(weight, scales, biases, bits, group_size, mode, rows or weight.shape[-2] - first, first)


def plain(weight: mx.array, rows: int | None = None, first: int = 0) -> Matrices:
    """Weights that are not packed."""
    return Matrices(weight, None, None, weight.dtype.size * 8, RUN, None, rows or weight.shape[-2] - first, first)


@dataclass(frozen=True, eq=False)
class ExpertWeights:
    """A layer's experts, `chosen` of them a token, and the shared one. Raises ValueError for what no kernel takes.

    Made once a layer: it evaluates the arrays, and keeps them.
    """

    gate: Matrices
    up: Matrices
    down: Matrices
    shared_gate: Matrices
    shared_up: Matrices
    shared_down: Matrices
    chosen: int
    launches: dict[Any, Any] = field(default_factory=dict, init=False, repr=False)  # expert_mlp.py's, made ready

    def __post_init__(self) -> None:
        for name in ("gate", "up", "down", "shared_gate", "shared_up", "shared_down"):
            if complaint := getattr(self, name).complaint():
                raise ValueError(f"[expert_mlp] {name}: {complaint}")
        for gate, up, down in [(self.gate, self.up, self.down), (self.shared_gate, self.shared_up, self.shared_down)]:
            if gate.format != up.format or [a.dtype for a in gate.buffers] != [a.dtype for a in up.buffers]:
                raise ValueError(
                    f"[expert_mlp] gate is packed as {gate.format}, up as {up.format}; they share a launch"
                )
            if gate.rows != up.rows or down.inputs != gate.rows or (gate.inputs, down.rows) != (self.width,) * 2:
                raise ValueError(
                    f"[expert_mlp] gate {gate.rows} x {gate.inputs}, up {up.rows} x {up.inputs} and down {down.rows} x "
                    f"{down.inputs} must be F x C, F x C and C x F, with one C of {self.width}"
                )

    @functools.cached_property
    def width(self) -> int:
        """C, the model's."""
        return self.gate.inputs

    @functools.cached_property
    def hidden(self) -> int:
        """Values between the two launches, a token: of the chosen experts, then of the shared one."""
        return self.chosen * self.gate.rows + self.shared_gate.rows

    @functools.cached_property
    def shape_class(self) -> str:
        """What decides how fast a kernel is on these: sizes and formats, for whoever remembers measurements."""
        pairs = [(self.gate, self.down), (self.shared_gate, self.shared_down)]
        parts = [f"{first.rows} {first.format} {second.format}" for first, second in pairs]
        return f"{self.chosen} of {self.gate.weight.shape[0]} x {self.width} x {' + '.join(parts)}"

    def active_bytes(self) -> int:
        """What one token cannot do without: its experts' rows and the shared one's, read once."""
        routed = sum(m.rows * m.row_bytes() for m in (self.gate, self.up, self.down))
        shared = sum(m.rows * m.row_bytes() for m in (self.shared_gate, self.shared_up, self.shared_down))
        return self.chosen * routed + shared
