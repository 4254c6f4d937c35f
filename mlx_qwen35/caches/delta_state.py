"""What one Gated DeltaNet layer remembers: the convolution's tail and the recurrent state S."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx

from mlx_qwen35.caches.kv import own_copy
from mlx_qwen35.metal_kernels.operations import gated_delta

Snapshot = tuple[mx.array, mx.array]  # conv tail [B, width - 1, conv_dim] and S [B, Hv, Dv, Dk]


@dataclass(frozen=True)
class DraftWindow:
    """The inputs of a window of which only the first tokens may come to stay. Small beside S.

    inputs: [B, width - 1 + T, conv_dim], the convolution's, old tail first
    k: [B, T, Hk, Dk]   v: [B, T, Hv, Dv]   log_decay, beta: [B, T, Hv]   all float32, as the window computed them
    """

    inputs: mx.array
    k: mx.array
    v: mx.array
    log_decay: mx.array
    beta: mx.array

    @property
    def tokens(self) -> int:
        return self.k.shape[1]

    def row(self, i: int) -> DraftWindow:
        one = slice(i, i + 1)
        return DraftWindow(self.inputs[one], self.k[one], self.v[one], self.log_decay[one], self.beta[one])

    def tail(self, kept: int) -> mx.array:
        """The convolution's tail after `kept` tokens: rows [kept, kept + width - 1), which reach into the old tail."""
        width = self.inputs.shape[1] - self.tokens
        return self.inputs[:, kept : kept + width]

    def replay(self, kept: int, state: mx.array | None) -> mx.array | None:
        """S after the first `kept` tokens, from the S before the window."""
        if kept == 0:
            return state
        k, v, log_decay, beta = (x[:, :kept] for x in (self.k, self.v, self.log_decay, self.beta))
        return gated_delta(k, k, v, log_decay, beta, state)[1]  # no query: the outputs are never computed


class DeltaState:
    """`conv_tail` [B, width - 1, conv_dim]: the last raw inputs of the convolution, in the activation dtype.
    `delta` [B, Hv, Dv, Dk]: S, always float32: a bfloat16 state drifts, and turns to NaN on very long contexts.

    S forgets nothing on demand, so it cannot be trimmed. A draft window is therefore held beside the S before it
    (`hold`), and `commit` says how many of its tokens came to stay; they are replayed when S is next asked for.
    """

    def __init__(self) -> None:
        self._conv_tail: mx.array | None = None
        self._delta: mx.array | None = None
        self._draft: DraftWindow | None = None  # not yet committed
        self._pending: tuple[DraftWindow, int] | None = None  # committed, not yet replayed
        self.length = 0
        # Rows that moved on together keep their arrays together: [(arrays of all rows), which of them is this one].
        self._shared: tuple[Snapshot, int] | None = None

    @property
    def conv_tail(self) -> mx.array | None:
        self._settle()
        return self._conv_tail

    @property
    def delta(self) -> mx.array | None:
        self._settle()
        return self._delta

    def advance(self, conv_tail: mx.array, delta: mx.array, tokens: int) -> None:
        """Replace the memory by the one after a window of `tokens`, all of which stay."""
        assert self._draft is None
        self._shared = self._pending = None
        self._conv_tail, self._delta = conv_tail, delta
        self.length += tokens

    def hold(self, draft: DraftWindow) -> None:
        """Remember a window's inputs until `commit` says how much of it stays. S is settled by then."""
        self._settle()
        self._draft = draft

    def commit(self, kept: int) -> None:
        """The first `kept` tokens of the held window stay; the rest never happened."""
        assert self._draft is not None
        assert 0 <= kept <= self._draft.tokens
        self._pending, self._draft = (self._draft, kept), None
        self.length += kept

    def _settle(self) -> None:
        assert self._draft is None, "the last window is not committed"
        if self._shared is not None:
            (tails, deltas), row = self._shared
            self._conv_tail, self._delta = tails[row : row + 1], deltas[row : row + 1]
            self._shared = None
        if self._pending is not None:
            draft, kept = self._pending
            self._conv_tail, self._delta = draft.tail(kept), draft.replay(kept, self._delta)
            self._pending = None

    def part(self) -> None:
        """Keep this row's arrays alone: the others move on without it, and it would keep theirs alive."""
        if self._shared is not None:
            self._settle()
            assert self._conv_tail is not None
            assert self._delta is not None
            self._conv_tail, self._delta = own_copy(self._conv_tail), own_copy(self._delta)
            mx.async_eval(self._conv_tail, self._delta)

    def snapshot(self) -> Snapshot:
        """The memory as it is now, in arrays of its own. Not before the first token."""
        self._settle()
        assert self._conv_tail is not None
        assert self._delta is not None
        return own_copy(self._conv_tail), own_copy(self._delta)

    def restore(self, snapshot: Snapshot, length: int) -> None:
        """Become what `snapshot` was, after `length` tokens. The snapshot stays as it is."""
        self._draft = self._pending = self._shared = None
        # Arrays are values: what comes after replaces them and never writes into them.
        self._conv_tail, self._delta = snapshot
        self.length = length

    # mlx-lm's cache protocol: what its generate loop asks of a cache.

    @property
    def offset(self) -> int:
        return self.length

    @property
    def state(self) -> list[mx.array]:
        """The live arrays, for `mx.eval`."""
        if self._shared is not None:
            return list(self._shared[0])
        return [a for a in (self.conv_tail, self.delta) if a is not None]

    @property
    def nbytes(self) -> int:
        return sum(a.nbytes for a in self.state)

    def is_trimmable(self) -> bool:
        return False

    def empty(self) -> bool:
        return self.length == 0

    @staticmethod
    def together(rows: Sequence[DeltaState]) -> tuple[mx.array | None, mx.array | None]:
        """Tails and states of several sequences, stacked; without a copy where they moved on together last time."""
        first = rows[0]._shared
        if first is not None and first[0][0].shape[0] == len(rows):
            arrays = first[0]
            if all(r._shared is not None and r._shared[0] is arrays and r._shared[1] == i for i, r in enumerate(rows)):
                return arrays
        known = [row for row in rows if row.delta is not None]
        if not known:
            return None, None

        def joined(arrays: Sequence[mx.array | None]) -> mx.array:
            example = next(a for a in arrays if a is not None)
            # Before its first token a sequence remembers zeros.
            return mx.concatenate([mx.zeros_like(example) if a is None else a for a in arrays])

        return joined([row.conv_tail for row in rows]), joined([row.delta for row in rows])

    @staticmethod
    def advance_together(rows: Sequence[DeltaState], conv_tails: mx.array, deltas: mx.array, tokens: int) -> None:
        """`advance` for the rows of a group; row i is at index i of the arrays."""
        arrays = conv_tails, deltas
        for i, row in enumerate(rows):
            assert row._draft is None
            row._conv_tail = row._delta = row._pending = None
            row._shared = (arrays, i)
            row.length += tokens
