"""An engine that is turned by hand, on the test's own thread: a schedule of arrivals and cancellations repeats exactly.

The real thread adds only time; tests/generation/test_engine.py has it.
"""

from __future__ import annotations

import contextlib
import functools
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from mlx_qwen35.caches.blobs import Layouts
from mlx_qwen35.caches.disk_tree import DiskTree
from mlx_qwen35.caches.prefix_store import PrefixStore
from mlx_qwen35.generation.cache_format import CacheFormat, CacheSizes, one_token
from mlx_qwen35.generation.engine import Engine
from mlx_qwen35.generation.mlx_thread import MLXThread
from mlx_qwen35.generation.places import Limits
from mlx_qwen35.generation.request import Line, Request
from mlx_qwen35.generation.start import make_caches
from mlx_qwen35.models.model import Model

MANY = 20_000  # turns; no test needs a tenth of them
OpenDisk = Callable[[str, Layouts], DiskTree | None]


class Crank:
    """Stands for the MLX thread: jobs wait until they are called one by one."""

    closing = False

    def __init__(self) -> None:
        self.jobs: deque[Callable[[], object]] = deque()

    def post(self, job: Callable[[], object]) -> bool:
        self.jobs.append(job)
        return True

    def call(self, function: Callable[[], Any]) -> Any:
        return function()

    def turn(self) -> bool:
        """One job; False if there is none."""
        if not self.jobs:
            return False
        self.jobs.popleft()()
        return True


@dataclass
class Cranked:
    """An engine, its crank, and its store."""

    engine: Engine
    crank: Crank
    store: PrefixStore
    limits: Limits
    lines: list[tuple[Request, Line]] = field(default_factory=list)

    def submit(self, request: Request) -> Line:
        line = self.engine.submit(request)
        self.lines.append((request, line))
        return line

    def run(self) -> None:
        """Turn until nothing is left to do."""
        for _ in range(MANY):
            if not self.crank.turn():
                return
        raise AssertionError(f"still busy after {MANY} turns")

    def answer(self, request: Request) -> tuple[list[int], Line]:
        """The tokens of one request, with nobody else there, and its line."""
        line = self.submit(request)
        self.run()
        return read(line), line

    def windows(self, sizes: Sequence[int]) -> None:
        """Prefill in windows of these sizes, over and over, in place of measured ones."""
        left: deque[int] = deque()

        def tokens(shared: bool) -> int:
            if not left:
                left.extend(sizes)
            return left.popleft()

        self.engine._pacer.tokens = tokens  # pyright: ignore[reportAttributeAccessIssue]

    def assert_at_rest(self) -> None:
        """All requests have ended: nothing is pinned, nobody has a place, and the store's sum is right."""
        assert not self.engine._places.rows
        assert not self.engine._places.waiting
        assert self.engine.stats().live_bytes == 0
        check_store(self.store)
        assert self.store.nbytes <= self.limits.prefix_bytes
        assert not any(node.pins for root in self.store._roots.values() for node in [root, *root.descendants()])


def check_store(store: PrefixStore) -> None:
    """What holds of a store at any moment."""
    nodes = [node for root in store._roots.values() for node in root.descendants()]
    assert all(node.pins >= 0 for node in nodes)
    assert store.nbytes == sum(node.nbytes for node in nodes)
    held = {node.key for node in nodes if node.segment is not None or node.checkpoint is not None}
    assert held <= set(store._held)
    for node in nodes:
        assert node.end == len(node.all_ids())
        assert node.segment is None or all(step.segment is not None for step in node.path())


def cranked(
    model: Model,
    store: PrefixStore | None = None,
    open_disk: OpenDisk = lambda *_: None,
    stride: int | None = None,
    drafts: bool = True,
    exact: bool = False,
    clock: Callable[[], float] = time.perf_counter,
    **limits: Any,
) -> Cranked:
    """stride: between checkpoints inside a prompt, in place of a fair one, which tiny texts do not reach

    drafts: with what the MTP layer remembers   exact: `model` is an ExactModel   clock: seconds, of steps
    """
    crank, bounds = Crank(), Limits(**limits)
    store = store or PrefixStore(bounds.prefix_bytes)

    def make_format(kv_bits: int) -> CacheFormat:
        make = functools.partial(make_caches, model, kv_bits, drafts, exact)
        example = one_token(model, make)
        layouts, name = Layouts.of(example), f"{kv_bits:016x}"
        root = store.root(name, lambda: open_disk(name, layouts))
        sizes = CacheSizes.of(example)
        return CacheFormat(make, sizes if stride is None else Sizes(sizes.token, sizes.state, stride), root, layouts)

    engine = Engine(model, cast(MLXThread, crank), make_format, store, bounds, clock=clock)
    return Cranked(engine, crank, store, bounds)


@dataclass(frozen=True)
class Sizes(CacheSizes):
    """With a stride of the test's own."""

    every: int

    @property
    def stride(self) -> int:
        return self.every


def read(line: Line) -> list[int]:
    """The tokens that have come so far. Raises what went wrong with the request."""
    tokens: list[int] = []
    with contextlib.suppress(StopIteration):
        while (item := line.poll()) is not None:
            if isinstance(item, int):
                tokens.append(item)
    return tokens
