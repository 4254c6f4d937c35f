"""What a step of a Gated DeltaNet layer is given and leaves behind, for the rows of a batch. No arithmetic.

Rows have windows of their own lengths; tokens of all rows lie side by side, row after row, without padding.

Letters: B rows, N tokens of all rows, P held tokens of all rows, Hk/Hv key/value heads, Dk/Dv widths,
W width of the convolution, conv_dim = 2 Hk Dk + Hv Dv. Value head h reads key head h // (Hv / Hk).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import mlx.core as mx

MOST_TOKENS = 8  # a row


class Columns(NamedTuple):
    """Columns of a projection's output [N, any], from `first` on. A slice would be copied before a kernel reads it."""

    array: mx.array
    first: int = 0

    def cut(self, width: int) -> mx.array:
        return self.array[:, self.first : self.first + width]


@dataclass(frozen=True)
class Projected:
    """What the input projections made: conv_dim columns of q | k | v, Hv Dv of the gate z, Hv each of a and b."""

    qkv: Columns
    z: Columns
    a: Columns
    b: Columns


@dataclass(frozen=True)
class DeltaWeights:
    """conv: [conv_dim, W, 1]   A_log, dt_bias: [Hv]   norm: [Dv], eps: of the gated RMSNorm. All float32 but conv.

    Made once a layer, and checked here; raises ValueError.
    """

    conv: mx.array
    A_log: mx.array
    dt_bias: mx.array
    norm: mx.array
    eps: float
    Hk: int

    def __post_init__(self) -> None:
        vectors = (self.A_log, self.dt_bias, self.norm)
        if any(x.ndim != 1 or x.dtype != mx.float32 for x in vectors) or self.A_log.shape != self.dt_bias.shape:
            found = ", ".join(f"{x.shape} {x.dtype}" for x in vectors)
            raise ValueError(
                f"[delta_step] A_log, dt_bias and norm are {found} but must be [Hv], [Hv] and [Dv] float32"
            )
        rest = self.conv_dim - self.Hv * self.Dv
        if self.Hv % self.Hk or rest <= 0 or rest % (2 * self.Hk):
            raise ValueError(
                f"[delta_step] conv {self.conv.shape} is no 2 Hk Dk + Hv Dv channels, "
                f"with Hk = {self.Hk}, Hv = {self.Hv} a multiple of it, and Dv = {self.Dv}"
            )

    @functools.cached_property
    def taps(self) -> mx.array:
        """conv as [W, conv_dim], float32."""
        return mx.contiguous(self.conv[:, :, 0].T.astype(mx.float32))

    @functools.cached_property
    def rate(self) -> mx.array:
        """-exp(A_log): the log decay for one unit of a token's time step. [Hv]"""
        return -mx.exp(self.A_log)

    @functools.cached_property
    def scales(self) -> mx.array:
        """[2 Hk, 1]: of queries and keys that the norm has brought to a mean square of 1: q / Dk, k / sqrt(Dk)."""
        return mx.array([[1 / self.Dk]] * self.Hk + [[self.Dk**-0.5]] * self.Hk)

    @functools.cached_property
    def conv_dim(self) -> int:
        return self.conv.shape[0]

    @functools.cached_property
    def W(self) -> int:
        return self.conv.shape[1]

    @functools.cached_property
    def Hv(self) -> int:
        return self.A_log.shape[0]

    @functools.cached_property
    def Dv(self) -> int:
        return self.norm.shape[0]

    @functools.cached_property
    def Dk(self) -> int:
        return (self.conv_dim - self.Hv * self.Dv) // (2 * self.Hk)


@dataclass(frozen=True)
class HeldWindow:
    """What a draft window leaves for its replay.   k: [P, Hk, Dk]   v: [P, Hv, Dv]   log_decay, beta: [P, Hv]
    all float32, as the window computed them
    """

    k: mx.array
    v: mx.array
    log_decay: mx.array
    beta: mx.array


@dataclass(frozen=True)
class DeltaMemory:
    """What one layer remembers of B rows.

    inputs: [B (W - 1) + P, conv_dim], the convolution's: for each row the tail before its held window, then the window
    state: [B, Hv, Dv, Dk], float32, S before the held windows   window: None if nothing is held, and then P = 0
    """

    inputs: mx.array
    state: mx.array
    window: HeldWindow | None = None


class Stepped(NamedTuple):
    """What a step returns. output: [N, Hv, Dv]   the others: as in DeltaMemory, of the rows after the step"""

    output: mx.array
    inputs: mx.array
    state: mx.array
    k: mx.array | None = None
    v: mx.array | None = None
    log_decay: mx.array | None = None
    beta: mx.array | None = None

    @property
    def memory(self) -> DeltaMemory:
        _, inputs, state, k, v, log_decay, beta = self
        if k is None or v is None or log_decay is None or beta is None:
            return DeltaMemory(inputs, state)
        return DeltaMemory(inputs, state, HeldWindow(k, v, log_decay, beta))


class StepRows:
    """The rows of a step, for all its layers.   tokens: of each row's window   held: of the window that its memory
    holds, 0 for none   kept: how many of those came to stay
    """

    def __init__(self, tokens: Sequence[int], held: Sequence[int] = (), kept: Sequence[int] = ()) -> None:
        self.tokens, self.held = tuple(tokens), tuple(held) or (0,) * len(tokens)
        self.kept = tuple(kept) or (0,) * len(tokens)
        if not (len(self.tokens) == len(self.held) == len(self.kept) > 0):
            raise ValueError(f"[delta_step] tokens {tokens}, held {held} and kept {kept} must be of the same rows")
        if not all(1 <= t <= MOST_TOKENS for t in self.tokens):
            raise ValueError(f"[delta_step] windows must have 1 to {MOST_TOKENS} tokens but have {self.tokens}")
        if not all(0 <= n <= p for n, p in zip(self.kept, self.held)):
            raise ValueError(f"[delta_step] {self.kept} tokens kept, of windows of {self.held}")
        self.starts, self.held_starts = _starts(self.tokens), _starts(self.held)
        table = list(zip(self.starts, self.tokens, self.held_starts, self.kept))
        self.table = mx.array(
            [*table, (0, 0, 0, 0)], mx.int32
        )  # a row more: never fewer than 8 elements, see delta_step.SMALLEST


@functools.lru_cache(256)  # decode asks for the same ones in every layer of every step
def step_rows(tokens: tuple[int, ...], held: tuple[int, ...], kept: tuple[int, ...]) -> StepRows:
    """`StepRows`, of which equal ones are made once."""
    return StepRows(tokens, held, kept)


def _starts(lengths: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(sum(lengths[:i]) for i in range(len(lengths)))
