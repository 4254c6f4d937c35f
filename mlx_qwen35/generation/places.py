"""Who is in the batch and who waits: places are given as memory allows, and what a text leaves behind is remembered."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import mlx.core as mx

from mlx_qwen35.caches.prefix_store import PrefixStore
from mlx_qwen35.caches.prefix_tree import Match, Node
from mlx_qwen35.errors import TooLongError
from mlx_qwen35.generation.cache_format import CacheFormat
from mlx_qwen35.generation.request import Reuse
from mlx_qwen35.generation.row import Row
from mlx_qwen35.generation.sampling import Sampler
from mlx_qwen35.generation.stats import Counters
from mlx_qwen35.options import GIB

MAX_ROWS = 16  # sequences in one step
MAX_WAITING = 256  # requests in line; more are refused
PATIENCE_SECONDS = 1.0  # with a reader who does not read, while others wait
QUESTION = 256  # tokens; a longer one is not read twice
WORTH_READING = 16  # tokens; fewer are prefilled with the next question in a step that it needs anyway

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Limits:
    """cache_bytes: for live sequences and remembered prefixes together   prefix_bytes: of these, for prefixes"""

    cache_bytes: int = 4 * GIB
    prefix_bytes: int = 2 * GIB
    max_rows: int = MAX_ROWS
    max_waiting: int = MAX_WAITING
    overlap: bool = field(default_factory=mx.metal.is_available)  # whether a step may begin before the last was read


class Places:
    """The rows of the batch, and the requests in line for a place. Lives on the MLX thread."""

    def __init__(
        self, formats: Callable[[int], CacheFormat], store: PrefixStore, limits: Limits, counters: Counters
    ) -> None:
        """formats: kv_bits -> how such caches are made; called for each number once"""
        self.rows: list[Row] = []
        self.waiting: list[Row] = []
        self.ahead: Row | None = None  # reads ahead; only while there are no rows
        self._make_format, self._formats = formats, {}
        self._store, self._limits, self._counters = store, limits, counters

    def admit(self) -> None:
        """Let requests in, in the order they came, as far as memory goes. Who prefills first is the pacer's choice."""
        while len(self.rows) < self._limits.max_rows:
            row = next((row for row in self.waiting if not row.is_full), None)
            if row is None:
                return
            try:
                needed = self._format(row).sizes.sequence(len(row.ids))
                if needed > self._limits.cache_bytes:
                    raise self._too_long(row, needed)
                room = self._limits.cache_bytes - self.live_bytes - needed
                if room < 0:
                    return  # those behind wait too, or a long prompt would never get its turn
                self.waiting.remove(row)
                self._enter(row, room)
                self.rows.append(row)
            except Exception as error:
                if row in self.waiting:
                    self.waiting.remove(row)
                row.fail(error)

    def _format(self, row: Row) -> CacheFormat:
        return self.format_of(row.request.kv_bits)

    def _root(self, row: Row) -> Node:
        """Of the texts among which the row's own is looked for, and remembered."""
        apart = row.request.hold and row.request.hold.root
        return apart or self._format(row).root

    def format_of(self, bits: int) -> CacheFormat:
        if bits not in self._formats:
            self._formats[bits] = self._make_format(bits)
        return self._formats[bits]

    def _enter(self, row: Row, room: int) -> None:
        """Give the row its caches, with what is known of its text. room: bytes that the budget leaves for prefixes"""
        node, reuse = self._restore(row, self._store.match(self._root(row), row.ids))
        if node.ahead:
            self._counters.used_ahead(node.ahead)
            # Whoever was read ahead for will be again, from here: that costs a question more, but nobody's time.
            row.pass_by(QUESTION)
            node.ahead = 0
        if not self._make_room(room):
            self._unpin(row)
            self._make_room(room)
        if not row.answered:
            self._counters.entered(row.prompt_tokens, reuse.cached, row.started - row.arrived)

    def _restore(self, row: Row, found: Match) -> tuple[Node, Reuse]:
        request, form = row.request, self._format(row)
        sampler = row.sampler or Sampler(request.sampling, request.known_tokens, request.seed, request.logit_bias)
        cache = form.make()
        node = self._store.restore(found, cache)
        nearest = found.nearest.all_ids() if found.common and not row.answered else ()
        queued = (row.started or time.perf_counter()) - row.arrived
        reuse = Reuse(node.end, found.common, nearest, found.lost or node is not found.node, queued)
        row.enter(cache, sampler, node, reuse, form.sizes.stride)
        return node, reuse

    def enter_ahead(self, row: Row) -> bool:
        """The same for a row that reads ahead, while there are no others; False where it should not.

        That is where its session was closed; where its text is known, by this or a later prompt; where little is left
        of it; or where live caches would take memory from what is remembered. Beyond that it makes room among prefixes
        as any other text does.
        """
        sizes, end = self._format(row).sizes, row.prompt_tokens - 1  # the last token only says that the text goes on
        found = self._store.match(self._root(row), row.ids)
        if row.request.hold is not None and row.request.hold.closed:
            return False
        if found.common >= end or end - found.length < WORTH_READING:
            return False
        needed = sizes.sequence(row.prompt_tokens) + self._store.nbytes + sizes.text(end - found.length)
        if needed > self._limits.cache_bytes or sizes.text(end) > self._limits.prefix_bytes:
            return False
        self._restore(row, found)
        self.ahead = row
        return True

    def leave_ahead(self, keep: bool) -> None:
        """It is done, or gives way. keep: what it read since its last checkpoint"""
        row, self.ahead = self.ahead, None
        assert row is not None
        try:
            if keep:
                self.remember_ahead(row)
                if row.request.hold is not None and row.node is not None:
                    row.request.hold.move([*row.request.hold.nodes, row.node])
        finally:
            self._release(row)

    def remember_ahead(self, row: Row) -> None:
        """A checkpoint where it stands; what was read up to there counts as used when somebody begins there."""
        before = row.node
        assert before is not None
        begun, before.ahead = before.end - before.ahead, 0
        self.remember(row)
        assert row.node is not None
        row.node.ahead = row.node.end - begun

    def _unpin(self, row: Row) -> None:
        """What the row has copied need not stay in the store while it runs; it leaves all of it there at its end."""
        assert row.node is not None
        self._store.unpin(row.node)
        row.node = self._root(row)
        self._store.pin(row.node)
        row.is_tight = True

    def _make_room(self, room: int) -> bool:
        """Prefixes shrink to their budget and to `room` bytes; False where rows and their pins need more than that."""
        self._store.byte_budget = min(self._limits.prefix_bytes, max(0, room))
        self._store.shrink(self._store.byte_budget)
        return self._store.squeeze(max(0, room))

    def relieve(self, collect: Callable[[], None]) -> None:
        """Live sequences have grown: remembered prefixes make room, then the youngest sequence waits.

        collect: reads the step in flight
        """
        if not self._make_room(self._limits.cache_bytes - self.live_bytes):
            for row in self.rows:
                self._unpin(row)
            self._make_room(self._limits.cache_bytes - self.live_bytes)
        if self.live_bytes <= self._limits.cache_bytes:
            return
        collect()
        if (live := self.live_bytes) <= self._limits.cache_bytes:
            return  # the step in flight was somebody's last
        if len(self.rows) > 1:
            self._set_aside(max(self.rows, key=lambda row: row.arrived))
        elif self.rows:
            row = self.rows[0]
            self.retire(row)
            row.fail(self._too_long(row, live))

    def _set_aside(self, row: Row) -> None:
        """The row gives up its place and waits for another; what is known of its text is then prefilled again."""
        self.let_go(row)
        self._wait_again(row, 0)

    def set_paused_aside(self, now: float) -> None:
        """A reader who has stopped reading keeps no place from those who wait; it gets one when it reads on."""
        for row in [row for row in self.rows if row.paused_for(now) > PATIENCE_SECONDS]:
            if any(not other.is_full for other in self.waiting):
                self.retire(row)
                self._wait_again(row, len(self.waiting))

    def _wait_again(self, row: Row, at: int) -> None:
        row.leave()
        self._counters.set_aside()
        self.waiting.insert(at, row)

    def _too_long(self, row: Row, needed: int) -> TooLongError:
        return TooLongError(
            f"A text of {len(row.ids):,} tokens needs {needed / GIB:.1f} GiB of cache; the budget is "
            f"{self._limits.cache_bytes / GIB:.1f} GiB. Shorten it, quantize the KV cache, or take a smaller model."
        )

    @property
    def live_bytes(self) -> int:
        """What the rows' caches take, counted before it is taken."""
        rows = [*self.rows, *([self.ahead] if self.ahead else ())]
        return sum(self._format(row).sizes.sequence(max(row.fed, len(row.ids))) for row in rows)

    def remember(self, row: Row) -> None:
        assert row.cache is not None
        assert row.node is not None
        row.node = self._store.add(row.node, row.ids[row.node.end : row.fed], row.cache)

    def retire(self, row: Row) -> None:
        """Out of the batch; what was computed stays behind in the prefix store."""
        # A step in flight has fed the token that is known by now: the caches hold exactly these ids.
        assert row.fed <= len(row.ids)
        self.rows.remove(row)
        self._make_room(self._limits.cache_bytes - self.live_bytes)
        self._remember_safely(row)

    def _remember_safely(self, row: Row) -> None:
        """Leave the row's text in the store and release its caches. Failing to remember is no failure of the answer."""
        try:
            self.remember(row)
            if row.request.hold is not None:
                row.request.hold.move(row.landmarks)
        except Exception as error:
            log.warning("A text of %d tokens could not be remembered: %s", row.fed, error)
        finally:
            self._release(row)

    def let_go(self, row: Row) -> None:
        """Out of the batch; what was computed since the last checkpoint is lost."""
        self.rows.remove(row)
        self._release(row)

    def _release(self, row: Row) -> None:
        if row.node is not None:
            self._store.unpin(row.node)
        row.node = row.cache = None
