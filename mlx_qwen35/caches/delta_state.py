"""What one Gated DeltaNet layer remembers: the convolution's tail and the recurrent state S."""

from __future__ import annotations

import mlx.core as mx


class DeltaState:
    """`conv_tail` [B, width - 1, conv_dim]: the last raw inputs of the convolution, in the activation dtype.
    `delta` [B, Hv, Dv, Dk]: S, always float32: a bfloat16 state drifts, and turns to NaN on very long contexts.

    The state forgets nothing on demand, so it cannot be trimmed.
    """

    def __init__(self) -> None:
        self.conv_tail: mx.array | None = None
        self.delta: mx.array | None = None
        self.length = 0

    def advance(self, conv_tail: mx.array, delta: mx.array, tokens: int) -> None:
        """Replace the memory by the one after a window of `tokens`."""
        self.conv_tail, self.delta = conv_tail, delta
        self.length += tokens

    # mlx-lm's cache protocol: what its generate loop asks of a cache.

    @property
    def offset(self) -> int:
        return self.length

    @property
    def state(self) -> list[mx.array]:
        """The live arrays, for `mx.eval`."""
        return [a for a in (self.conv_tail, self.delta) if a is not None]

    @property
    def nbytes(self) -> int:
        return sum(a.nbytes for a in self.state)

    def is_trimmable(self) -> bool:
        return False

    def empty(self) -> bool:
        return self.length == 0
