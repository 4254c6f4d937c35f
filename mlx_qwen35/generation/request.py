"""What the engine is asked, and the line over which it answers: token ids in, token ids out."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from mlx_qwen35.caches.holds import Hold
from mlx_qwen35.generation.guides import Guide
from mlx_qwen35.generation.scores import Score
from mlx_qwen35.options import GREEDY, PLAIN, Draft, Sampling

EndReason = Literal["stop", "length", "cancelled"]


@dataclass(frozen=True)
class Request:
    """One text to continue.

    ids: the prompt   stop_ids: tokens that end the answer (the last one yielded)   max_tokens: of the answer
    known_tokens: ids from here up have no token and are never drawn
    checkpoints: positions in the prompt where later prompts are likely to branch off
    kv_bits: of the KV cache, 8 or 4; 16 keeps keys and values as they are
    hold: of the session whose next turn will go on from this one
    draft: see `options.CacheOptions`; None leaves it to the engine
    guide: says what may come where; forked, so that a request can be asked again
    logprobs: tell with each token its log-probability, and of so many others; None tells none
    """

    ids: Sequence[int]
    known_tokens: int
    max_tokens: int
    sampling: Sampling = GREEDY
    stop_ids: frozenset[int] = frozenset()
    seed: int | None = None
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    checkpoints: Sequence[int] = ()
    kv_bits: int = PLAIN
    hold: Hold | None = None
    draft: Draft | None = None
    guide: Guide | None = None
    logprobs: int | None = None


@dataclass(frozen=True)
class Prefilled:
    """`done` of `total` prompt tokens are computed; `cached` of them were known."""

    done: int
    total: int
    cached: int


@dataclass(frozen=True)
class Reuse:
    """What the prefix store had for a prompt, when its turn came.

    cached: tokens not computed again   common: tokens shared with the nearest earlier text
    nearest: that text's ids, as far as they are kept   lost: more would have been reused, had it not been evicted
    queued: seconds until then
    """

    cached: int = 0
    common: int = 0
    nearest: Sequence[int] = ()
    lost: bool = False
    queued: float = field(default=0.0, compare=False)


@dataclass(frozen=True)
class Ended:
    """How an answer ended. Times in seconds; `queued` until its prefill began."""

    reason: EndReason
    queued: float
    prefill: float
    decode: float


@dataclass(frozen=True)
class Decoded:
    """How an answer came about so far: steps that drew tokens of it, tokens drafted ahead, and those that stayed."""

    steps: int = 0
    drafted: int = 0
    accepted: int = 0

    def and_step(self, drafted: int, accepted: int) -> Decoded:
        return Decoded(self.steps + 1, self.drafted + drafted, self.accepted + accepted)


Item = int | Score | Prefilled


class Line:
    """Items of one answer, from the engine to one reader. Thread-safe.

    Iterating yields `Prefilled`, and token ids or, where asked for, a `Score` each; afterwards `ended` is set. Raises
    what went wrong with the request.
    """

    def __init__(self) -> None:
        self._items: queue.SimpleQueue[Item | Ended | BaseException] = queue.SimpleQueue()
        self._drawn: list[Item] = []
        self._cancelled = threading.Event()
        self._on_item: Callable[[], object] | None = None
        self.reuse = Reuse()  # final with the first item
        self.decoded = Decoded()
        self.ended: Ended | None = None

    @property
    def waiting(self) -> int:
        """Items that are not read yet."""
        return self._items.qsize() + len(self._drawn)

    @property
    def cancelled(self) -> bool:
        return self._cancelled.is_set()

    def cancel(self) -> None:
        """Nobody reads on: the engine ends the answer before its next step."""
        self._cancelled.set()

    def listen(self, on_item: Callable[[], object]) -> None:
        """Call `on_item` on the engine's thread whenever there is something to read.

        If it raises, that says that nobody reads any more (its event loop was closed), and cancels.
        """
        self._on_item = on_item
        on_item()

    def hold(self, item: Item) -> None:
        """For the engine: as `put`, but nobody is woken for it before `release`, or the next `put`."""
        self._drawn.append(item)

    def release(self) -> None:
        """Send what is held."""
        if self._drawn:
            drawn, self._drawn = self._drawn, []
            self._send(drawn)

    def put(self, item: Item | Ended | BaseException) -> None:
        """For the engine. An `Ended` or an error is the last item."""
        drawn, self._drawn = self._drawn, []
        self._send([*drawn, item])

    def _send(self, items: Sequence[Item | Ended | BaseException]) -> None:
        for item in items:
            self._items.put(item)
        on_item = self._on_item
        if on_item is not None:
            try:
                on_item()
            except Exception:  # one reader's trouble is not that of those who share the batch
                self._on_item = None
                self.cancel()

    def poll(self) -> Item | None:
        """The next item if there is one. StopIteration after the last."""
        try:
            return self._read(self._items.get_nowait())
        except queue.Empty:
            return None

    def __iter__(self) -> Iterator[Item]:
        while True:
            try:
                yield self._read(self._items.get())
            except StopIteration:
                return

    def _read(self, item: Item | Ended | BaseException) -> Item:
        if isinstance(item, Ended):
            self.ended = item
            raise StopIteration
        if isinstance(item, BaseException):
            raise item
        return item
