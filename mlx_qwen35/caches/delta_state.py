"""What one Gated DeltaNet layer remembers of one sequence: the convolution's last inputs and the recurrent state S.

S forgets nothing on demand, so it cannot be trimmed. A draft window is therefore kept beside the S before it, and
`commit` says how many of its tokens came to stay; they are replayed by the next step, or when S is asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx

from mlx_qwen35.caches.kv import own_copy
from mlx_qwen35.metal_kernels.delta_rows import DeltaMemory
from mlx_qwen35.metal_kernels.operations import gated_delta

Snapshot = tuple[mx.array, ...]  # conv tail [B, width - 1, conv_dim] and S [B, Hv, Dv, Dk]


@dataclass(frozen=True, eq=False)
class Moved:
    """The memory of rows that moved on together, in arrays that they share.   held: tokens of each row's window"""

    memory: DeltaMemory
    held: tuple[int, ...]

    @property
    def arrays(self) -> list[mx.array]:
        window = self.memory.window
        return [self.memory.inputs, self.memory.state, *(vars(window).values() if window is not None else ())]

    def settled(self, first: int, B: int, kept: int) -> Snapshot:
        """Tails and states of rows [first, first + B), which hold windows of one length, of which `kept` tokens stay.

        The tails are rows [kept, kept + width - 1) of old tail and window: after few tokens they reach into the old.
        """
        memory, T, before = self.memory, self.held[first], sum(self.held[:first])
        width = (memory.inputs.shape[0] - sum(self.held)) // len(self.held)

        def rows(x: mx.array, start: int, length: int) -> mx.array:
            return x[start : start + B * length].reshape(B, length, *x.shape[1:])

        tails = rows(memory.inputs, before + first * width, width + T)[:, kept : kept + width]
        states = memory.state[first : first + B]
        if kept:
            assert memory.window is not None
            w = memory.window
            k, v, log_decay, beta = (rows(x, before, T)[:, :kept] for x in (w.k, w.v, w.log_decay, w.beta))
            states = gated_delta(k, k, v, log_decay, beta, states)[1]  # no query: the outputs are never computed
        return tails, states


class DeltaState:
    """`conv_tail` [B, width - 1, conv_dim]: the last raw inputs of the convolution, in the activation dtype.
    `delta` [B, Hv, Dv, Dk]: S, always float32: a bfloat16 state drifts, and turns to NaN on very long contexts.

    B is 1 but where mlx-lm's tools run several texts of one length. Both are None before the first token.
    """

    def __init__(self) -> None:
        self._moved: Moved | None = None
        self._first, self._rows = 0, 1  # which rows of it are this one's
        self._kept: int | None = 0  # of the window it holds; None until `commit` says so
        self.length = 0

    @property
    def conv_tail(self) -> mx.array | None:
        settled = self._settled()
        return None if settled is None else settled[0]

    @property
    def delta(self) -> mx.array | None:
        settled = self._settled()
        return None if settled is None else settled[1]

    def advance(self, conv_tail: mx.array, delta: mx.array, tokens: int) -> None:
        """Replace the memory by the one after a window of `tokens`, all of which stay."""
        DeltaState.move([self], DeltaMemory(conv_tail.flatten(0, 1), delta), [tokens] * delta.shape[0], [False])

    def commit(self, kept: int) -> None:
        """The first `kept` tokens of the held window stay; the rest never happened."""
        assert self._moved is not None
        assert self._kept is None
        assert 0 <= kept <= self._moved.held[self._first]
        self._kept = kept
        self.length += kept

    def settle(self) -> None:
        """Replay what stays of the held window."""
        if self._moved is not None and self._moved.memory.window is not None:
            self._alone(self._moved.settled(self._first, self._rows, _kept(self)))

    def part(self) -> None:
        """Keep this row's arrays alone: the others move on without it, and it would keep theirs alive."""
        if self._moved is not None and len(self._moved.held) > self._rows:
            self._alone(self.snapshot())
            mx.async_eval(self.state)

    def snapshot(self) -> Snapshot:
        """The memory as it is now, in arrays of its own. Not before the first token."""
        settled = self._settled()
        assert settled is not None
        return own_copy(settled[0]), own_copy(settled[1])

    def restore(self, snapshot: Snapshot, length: int) -> None:
        """Become what `snapshot` was, after `length` tokens. The snapshot stays as it is."""
        # Arrays are values: what comes after replaces them and never writes into them.
        self._alone(snapshot)
        self.length = length

    def _settled(self) -> Snapshot | None:
        assert self._kept is not None, "the last window is not committed"
        if self._moved is None:
            return None
        settled = self._moved.settled(self._first, self._rows, self._kept)
        if self._kept:
            self._alone(settled)  # replayed once
        return settled

    def _alone(self, settled: Snapshot) -> None:
        tails, states = settled
        self._first, self._rows, self._kept = 0, states.shape[0], 0
        self._moved = Moved(DeltaMemory(tails.flatten(0, 1), states), (0,) * self._rows)

    # mlx-lm's cache protocol: what its generate loop asks of a cache.

    @property
    def offset(self) -> int:
        return self.length

    @property
    def state(self) -> list[mx.array]:
        """The live arrays, for `mx.eval`."""
        return [] if self._moved is None else self._moved.arrays

    @property
    def nbytes(self) -> int:
        return sum(a.nbytes for a in self.state)

    def is_trimmable(self) -> bool:
        return False

    def empty(self) -> bool:
        return self.length == 0

    @staticmethod
    def together(states: Sequence[DeltaState]) -> tuple[Moved, tuple[int, ...]] | None:
        """The memory of several sequences, and how much of its window each keeps.

        As it lies, without a copy, where they moved on together last time; else settled and joined. None if none of
        them has seen a token.
        """
        kept = tuple(_kept(s) for s in states for _ in range(s._rows))
        moved = states[0]._moved
        firsts = [sum(s._rows for s in states[:i]) for i in range(len(states))]
        in_order = all(s._moved is moved and s._first == first for s, first in zip(states, firsts))
        if moved is not None and in_order and len(moved.held) == len(kept):
            return moved, kept
        return _joined([s._settled() for s in states])

    @staticmethod
    def move(states: Sequence[DeltaState], memory: DeltaMemory, tokens: Sequence[int], drafts: Sequence[bool]) -> None:
        """The memory after a step in which each row had a window of `tokens`.

        drafts: of which states `commit` is yet to say how much stays; of the others all does. Where there is one, the
        memory holds every row's window.
        """
        held = tuple(tokens) if memory.window is not None else (0,) * len(tokens)
        moved, first = Moved(memory, held), 0
        for state, draft in zip(states, drafts):
            assert state._kept is not None, "the last window is not committed"
            rows = len(tokens) // len(states)  # several in one state move by the same
            state._moved, state._first, state._rows = moved, first, rows
            state._kept = None if draft else held[first]
            state.length += 0 if draft else tokens[first]
            first += rows


def _kept(state: DeltaState) -> int:
    assert state._kept is not None, "the last window is not committed"
    return state._kept


def _joined(settled: Sequence[Snapshot | None]) -> tuple[Moved, tuple[int, ...]] | None:
    known = [s for s in settled if s is not None]
    if not known:
        return None
    zeros = tuple(mx.zeros_like(a[:1]) for a in known[0])  # before its first token a sequence remembers these
    tails, states = (mx.concatenate(list(arrays)) for arrays in zip(*(s or zeros for s in settled)))
    return Moved(DeltaMemory(tails.flatten(0, 1), states), (0,) * states.shape[0]), (0,) * states.shape[0]
