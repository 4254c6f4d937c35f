"""The engine: requests join and leave between steps, and every step serves all of them. Token ids in, token ids out.

On Metal, as long as the caches are small, a turn launches a step before it reads what the step before drew, so that the
device does not wait for Python.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import TypeVar

from mlx_qwen35.caches.holds import Hold
from mlx_qwen35.caches.prefix_store import PrefixStore
from mlx_qwen35.errors import BusyError
from mlx_qwen35.generation.ahead import Ahead
from mlx_qwen35.generation.cache_format import CacheFormat, CacheSizes
from mlx_qwen35.generation.checks import check
from mlx_qwen35.generation.freed import give_back
from mlx_qwen35.generation.handing import Handing
from mlx_qwen35.generation.mlx_thread import MLXThread
from mlx_qwen35.generation.pacing import Pacer
from mlx_qwen35.generation.places import Limits, Places
from mlx_qwen35.generation.request import Line, Request
from mlx_qwen35.generation.row import Row
from mlx_qwen35.generation.speculation import Speculation
from mlx_qwen35.generation.stats import Counters, Stats
from mlx_qwen35.generation.stepping import Launcher, Step
from mlx_qwen35.hub.text_sizes import prefill_window
from mlx_qwen35.models.model import Model
from mlx_qwen35.options import GREEDY, PLAIN, Draft

T = TypeVar("T")
# A step that begins while the last one runs copies the KV buffers which that one still reads: MLX writes in place only
# where nobody else holds the buffer. Up to here (not measured on Apple hardware) that costs less than waiting does.
OVERLAP_BYTES = 128 << 20
SAVE_EVERY = 32  # turns
PAUSE_SECONDS = 0.002  # between looks at readers, or a disk, that are slow


class Engine:
    """Serves requests in one batch. `submit` may be called from any thread; all else happens on the MLX thread."""

    def __init__(
        self,
        model: Model,
        thread: MLXThread,
        formats: Callable[[int], CacheFormat],
        store: PrefixStore,
        limits: Limits,
        draft: Draft = "auto",
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """formats: kv_bits -> how such caches are made; called on the MLX thread, and for each number once

        draft: for requests that do not say   clock: seconds, of steps
        """
        self._model, self._thread, self._store, self._limits = model, thread, store, limits
        self._counters = Counters()
        self._places = Places(formats, store, limits, self._counters)
        self._pacer = Pacer(self._largest_window(1))
        self._speculation, self._clock = Speculation(model, draft), clock
        self._handing = Handing(self._places, self._speculation, self._counters, model.config.max_context)
        self._launcher = Launcher(model, self._speculation, self._handing.tell)
        self._ahead = Ahead(self._places, self._post_computing, self._read_ahead, lambda: self._others, self._wake)
        self._busy_at = clock()
        self._arrivals: deque[Row] = deque()
        self._lock = threading.Lock()
        self._running = self._closed = False
        self._flying: Step | None = None
        self._read_at = 0.0
        self._turns = 0

    def submit(self, request: Request) -> Line:
        """Take a request in; its answer comes over the line.

        Raises RequestError when the prompt is empty or leaves no room in the context, or when too many are waiting.
        """
        check(request, self._model.config)
        line = Line()
        with self._lock:
            if len(self._arrivals) + len(self._places.waiting) >= self._limits.max_waiting:
                raise BusyError(
                    f"{self._limits.max_waiting} requests are waiting already, which is the limit. Try again later."
                )
            if self._closed:
                raise BusyError("The model was closed.")
            self._arrivals.append(Row(request, line))
        if not self._wake():
            raise BusyError("The model was closed.")
        return line

    def _wake(self) -> bool:
        """Have turns taken, if they are not; False once the thread was closed."""
        with self._lock:
            start, self._running = not self._running, True
        return not start or self._thread.post(self._turn)

    # Reading ahead

    def read_ahead(self, ids: Sequence[int], kv_bits: int = PLAIN, hold: Hold | None = None) -> Line:
        """Prefill all but the last token of a text, and remember it, as long as nobody else is served.

        The line ends without an item: "stop" when there is nothing left to do, "cancelled" where others came, or were
        there: what was read until then is remembered, and it may be asked again. Raises RequestError.
        """
        request = Request(ids, 1, 1, GREEDY, checkpoints=[len(ids) - 1], kv_bits=kv_bits, hold=hold)
        check(request, self._model.config)
        return self._ahead.ask(request)

    @property
    def quiet_seconds(self) -> float:
        """Since the last request ended; 0 while there are any."""
        return 0.0 if self._others else max(0.0, self._clock() - self._busy_at)

    @property
    def _others(self) -> bool:
        """Whether there is anything more urgent than reading ahead."""
        return self._closed or self._busy or bool(self._arrivals)

    def _read_ahead(self, row: Row) -> None:
        """The next window, as long as one beside which others decode: somebody may arrive in it, and wait."""
        tokens = min(row.next_window(self._pacer.tokens(shared=True)), self._largest_window(row.target))
        began = self._clock()
        self._launcher.launch([], [(row, tokens)], began).read()
        self._pacer.observe(tokens, self._clock() - began)
        self._counters.read_ahead(tokens)

    def _post_computing(self, job: Callable[[], object]) -> bool:
        def computing() -> None:
            with self._model.arithmetic():
                job()

        return self._thread.post(computing)

    def close(self) -> None:
        """End all answers, save what is to outlive the process, and let go of the caches. Waits for the step."""
        self._thread.call(self._close)

    def _close(self) -> None:
        self._give_up()
        self._store.close()

    def with_prefixes(self, kv_bits: int, work: Callable[[PrefixStore, CacheFormat], T]) -> T:
        """Run `work` on what is remembered, between two steps."""
        return self._thread.call(lambda: work(self._store, self._places.format_of(kv_bits)))

    def post(self, job: Callable[[], object]) -> None:
        """Run `job`, which must not raise, between two steps; returns at once."""
        self._thread.post(job)

    @property
    def prefix_bytes(self) -> int:
        """The budget for what is remembered."""
        return self._limits.prefix_bytes

    @property
    def spare_bytes(self) -> int:
        """What live sequences leave of the budget."""
        return max(0, self._limits.cache_bytes - self._places.live_bytes)

    def sizes(self, kv_bits: int) -> CacheSizes:
        """What caches of this format take."""
        return self._thread.call(lambda: self._places.format_of(kv_bits).sizes)

    def stats(self) -> Stats:
        """How the engine is doing. From any thread; numbers may be a step old."""
        return self._counters.stats(
            rows=len(self._places.rows),
            waiting=len(self._places.waiting) + len(self._arrivals),
            live_bytes=self._places.live_bytes,
            prefix_bytes=self._store.nbytes,
            evictions=self._store.evictions,
            draft_depth=self._speculation.depth,
            draft_note=self._speculation.why,
        )

    # A turn

    def _turn(self) -> None:
        """One step: launch it, then read the one before. Goes on by itself while there is work."""
        if self._thread.closing:
            self._give_up()
            return
        with self._model.arithmetic():
            self._serve()
        self._go_on()

    def _serve(self) -> None:
        try:
            self._welcome()
            if self._busy:
                self._busy_at = self._clock()
                self._ahead.give_way()
            self._dismiss_cancelled()
            self._places.set_paused_aside(time.perf_counter())
            self._places.relieve(self._collect)
            self._places.admit()
            step = self._next_step()
            self._collect()
            self._flying = step
            speculates = step is not None and step.speculates
            if speculates or not (self._limits.overlap and self._places.live_bytes <= OVERLAP_BYTES):
                self._collect()
            if self._flying is not None:
                self._handing.tell()  # the device is busy
            self._save()
        except BaseException as error:  # a defect, or out of memory: the rows of this step end, the engine goes on
            self._fail_all(error)

    def _save(self) -> None:
        """New prefixes go to disk where nobody waits; now and then also where somebody always does."""
        self._turns += 1
        if not self._busy:
            if not self._store.save_one() and not self._store.unsaved:
                self._places.relieve(self._collect)  # what the last row held may go now
                give_back()
        elif self._turns % SAVE_EVERY == 0:
            self._store.save_one()

    @property
    def _busy(self) -> bool:
        return bool(self._places.rows or self._places.waiting or self._flying)

    def _go_on(self) -> None:
        if self._busy or self._store.unsaved:
            if self._flying is None and not any(row.prefilling or row.decoding for row in self._places.rows):
                time.sleep(PAUSE_SECONDS)  # all readers are slow, or the disk is
            self._turn_again()
            return
        with self._lock:
            self._running = bool(self._arrivals)
        if self._running:
            self._turn_again()

    def _turn_again(self) -> None:
        if not self._thread.post(self._turn):
            self._give_up()

    def _welcome(self) -> None:
        with self._lock:
            while self._arrivals:
                self._places.waiting.append(self._arrivals.popleft())

    def _dismiss_cancelled(self) -> None:
        for row in [row for row in self._places.waiting if row.line.cancelled]:
            self._places.waiting.remove(row)
            row.end("cancelled")
        for row in [row for row in self._places.rows if row.line.cancelled]:
            self._places.retire(row)
            row.end("cancelled")

    def _largest_window(self, tokens: int) -> int:
        """Of a prompt of `tokens` tokens, for the memory of a step."""
        return prefill_window(self._model.config.num_heads, tokens)

    # Launching

    def _next_step(self) -> Step | None:
        if any(row.waits_for_token for row in self._places.rows):
            self._collect()
        now = self._clock()
        decoding = [row for row in self._places.rows if not row.prefilling and row.decoding]
        prefilling = [row for row in self._places.rows if row.prefilling]
        shares = self._pacer.share(prefilling, bool(decoding), now)
        prefills = [(row, min(tokens, self._largest_window(row.target))) for row, tokens in shares]
        if not decoding and not prefills:
            self._handing.tell()
            return None
        for row in self._places.rows:
            if not row.prefilling and row not in decoding:
                row.part()
        return self._launch(decoding, prefills, now)

    def _launch(self, decoding: Sequence[Row], prefills: Sequence[tuple[Row, int]], now: float) -> Step:
        step = self._launcher.launch(decoding, prefills, now)
        for row, error in step.failed:
            self._handing.fail(row, error)
        for row, _ in prefills:
            if row.at_checkpoint and not row.is_tight:
                self._places.remember(row)
        return step

    # Reading

    def _collect(self) -> None:
        """Wait for the step in flight; hand out what it drew."""
        step, self._flying = self._flying, None
        if step is None:
            return
        drawn = step.read()
        now = self._clock()
        seconds = now - max(step.launched, self._read_at)
        self._read_at = now
        self._pacer.observe(step.window_tokens, seconds)
        for row, done in step.prefilled:
            if not row.done:
                row.progress(done)
        told = self._handing.take(drawn)
        if step.window_tokens == 0:
            self._speculation.stepped(step.drafts, told, seconds)
        self._counters.stepped(step.window_tokens, told, seconds)

    # Leaving

    def _fail_all(self, error: BaseException) -> None:
        self._flying = None
        for row in list(self._places.rows):
            self._handing.fail(row, error)

    def _give_up(self) -> None:
        """Whoever waits for an answer learns that it was cut short; nobody is let in any more."""
        with self._lock:
            self._closed = True
        self._welcome()
        self._flying = None
        self._ahead.drop()
        for row in self._places.waiting:
            row.end("cancelled")
        for row in list(self._places.rows):
            self._places.retire(row)
            row.end("cancelled")
        self._places.waiting.clear()
