"""What the MTP layer remembers of one sequence: keys and values of its own, and the hidden state it goes on from.

Its entry for position t is made of the trunk's hidden state at t and of the token at t + 1. So it trails the other
layers by one, and what it lacks is the last hidden state. Counted by the tokens they are made of, its entries are
spans like those of other layers: a span's KV, stored once, and at its end a checkpoint, here the hidden state.

Pairs wait until somebody asks for what they make: one pass over many costs what one over a single pair does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import mlx.core as mx

from mlx_qwen35.caches.kv import AttentionCache, Segment, SequenceKV, own_copy

# hidden states [n, C] and the embeddings of the tokens after them [n, C] go into a cache, in the order of the text
Feed = Callable[[mx.array, mx.array, AttentionCache], object]
MOST_WAITING = 64  # pairs; they hold memory, and each pass costs something, however few it is over


class LastHidden:
    """`value` [1, C]: the trunk's hidden state after the final norm at the text's last token; None before the first."""

    def __init__(self) -> None:
        self.value: mx.array | None = None
        self.length = 0

    def snapshot(self) -> tuple[mx.array, ...]:
        """A copy. Not before the first token."""
        assert self.value is not None
        return (own_copy(self.value),)

    def restore(self, snapshot: tuple[mx.array, ...], length: int) -> None:
        """Become what `snapshot` was, after `length` tokens."""
        (self.value,), self.length = snapshot, length

    def part(self) -> None:
        """Keep this row's numbers alone: a slice keeps those of the others alive."""
        if self.value is not None:
            self.value = own_copy(self.value)

    @property
    def state(self) -> list[mx.array]:
        return [] if self.value is None else [self.value]

    @property
    def nbytes(self) -> int:
        return sum(a.nbytes for a in self.state)


class DraftKV:
    """Keys and values of the MTP layer, in step with the trunk: `length` is that of the text.

    Moves with the step and its commit like the other layers (`see`, `commit`); drafts are made in its `kv`, and taken
    back (`lend`, `take_back`).
    """

    def __init__(self, make: Callable[[], SequenceKV], feed: Feed, last: LastHidden) -> None:
        """make: caches for its entries, in the format of the other layers"""
        self._make, self._feed, self._last = make, feed, last
        self.kv = make()
        self.length = 0
        self._waiting: list[tuple[mx.array, mx.array]] = []
        self._held: tuple[mx.array, mx.array] | None = None  # a window of which `commit` is yet to say what stays
        self._ahead = False  # whether the pair of the last token and the next is in the cache already

    # The trunk moves on

    def see(self, hidden: mx.array, embeddings: mx.array, draft: bool) -> None:
        """The trunk has had a window.   hidden, embeddings: [T, C]   draft: `commit` says how much of it stays"""
        assert self._held is None, "the last window is not committed"
        self._held = (hidden, embeddings)
        if not draft:
            self.commit(hidden.shape[0])

    def commit(self, kept: int) -> None:
        """The first `kept` tokens of the window stay; the rest never happened."""
        assert self._held is not None
        (hidden, embeddings), self._held = self._held, None
        last = self._last
        if kept == 0:
            self._forget_next()
            return
        if hidden.shape[0] == 1 and last.value is not None:  # plain decode: nothing to cut
            before, after, last.value = last.value, embeddings, hidden
        else:
            before = hidden[: kept - 1] if last.value is None else mx.concatenate([last.value, hidden[: kept - 1]])
            after, last.value = embeddings[kept - before.shape[0] : kept], hidden[kept - 1 : kept]
        known = 1 if self._ahead else 0
        self._ahead = False
        if before.shape[0] > known:
            self._waiting.append((before[known:], after[known:]) if known else (before, after))
        self.length += kept
        last.length = self.length
        if sum(pair[0].shape[0] for pair in self._waiting) >= MOST_WAITING:
            self.settle()

    def settle(self) -> None:
        """Have all pairs of the text in the cache, and no others."""
        self._forget_next()
        if self._waiting:
            self._feed(*self._pairs(), self.kv)
            mx.async_eval(self.kv.state, self._last.state)

    # Drafts

    def lend(self, next_embedding: mx.array) -> tuple[mx.array, mx.array]:
        """Hidden states and embeddings [n, C] to feed before the first draft: all that waits, and the next token's.

        next_embedding: [1, C], of a token that is drawn and not in the trunk yet. The text is not empty.
        """
        assert self._last.value is not None
        self._forget_next()
        self._waiting.append((self._last.value, next_embedding))
        self._ahead = True
        return self._pairs()

    def take_back(self, drafts: int) -> None:
        """Drafts chained after the first pass have left so many entries, made of the layer's own output."""
        self.kv.trim(drafts)

    def _pairs(self) -> tuple[mx.array, mx.array]:
        waiting, self._waiting = self._waiting, []
        if len(waiting) == 1:
            return waiting[0]
        hidden, embeddings = (mx.concatenate(list(arrays)) for arrays in zip(*waiting))
        return hidden, embeddings

    def _forget_next(self) -> None:
        if self._ahead:
            self.kv.trim(1)
            self._ahead = False

    # Spans, as other layers have them

    def segment(self, start: int, end: int) -> Segment:
        """Copies of the entries made of tokens [start, end); the text's first token makes none, and has zeros."""
        self.settle()
        if start > 0:
            return self.kv.segment(start - 1, end - 1)
        if end > 1:
            made = self.kv.segment(0, end - 1)
            return tuple(mx.concatenate([mx.zeros_like(a[:, :, :1]), a], axis=2) for a in made)
        # No entry was made yet: another cache shows what one looks like.
        assert self._last.value is not None
        example = self._make()
        self._feed(self._last.value, self._last.value, example)
        return tuple(mx.zeros_like(a) for a in example.segment(0, 1))

    def load(self, segments: Sequence[Segment]) -> None:
        """Hold exactly these segments, one after another."""
        self._waiting, self._held, self._ahead = [], None, False
        self.length = sum(segment[0].shape[2] for segment in segments)
        made = [tuple(a[:, :, 1:] for a in segments[0]), *segments[1:]] if segments else []
        self.kv = self._make()
        self.kv.load([segment for segment in made if segment[0].shape[2]])

    @property
    def state(self) -> list[mx.array]:
        """The live arrays, for `mx.eval`."""
        return [*self.kv.state, *(a for pair in self._waiting for a in pair)]

    @property
    def nbytes(self) -> int:
        return self.kv.nbytes
