"""The prefix store as sequences use it: what is restored is what was computed, within its budget, and nothing leaks.

Caches here hold what their ids say, so that anybody can tell right from wrong without a network.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import mlx.core as mx
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mlx_qwen35.caches.blobs import Layouts
from mlx_qwen35.caches.delta_state import DeltaState
from mlx_qwen35.caches.disk_tree import DiskTree
from mlx_qwen35.caches.kv import KVCache
from mlx_qwen35.caches.prefix_store import PrefixStore
from mlx_qwen35.caches.prefix_tree import Node
from mlx_qwen35.caches.rows import SequenceCache
from tests.caches.disk_nodes import MB, open_store
from tests.support.cranked import check_store

FINGERPRINT = "ab" * 16
TOKEN = 2 * 4  # bytes of KV
STATE = 4 + 2 * 4  # of a checkpoint


def fed(cache: SequenceCache, ids: list[int]) -> None:
    """A window of `ids`: KV holds them, S sums them up in their order, the tail holds the last two."""
    kv, state = cache
    assert isinstance(kv, KVCache)
    assert isinstance(state, DeltaState)
    spans = mx.array(ids, mx.float32).reshape(1, 1, -1, 1)
    kv.extend(spans, -spans)
    total = 0.0 if state.delta is None else float(state.delta.item())  # pyright: ignore[reportArgumentType]
    tail = mx.zeros((1, 2, 1)) if state.conv_tail is None else state.conv_tail
    for token in ids:
        total = (total * 3 + token + 1) % 65521
    state.advance(mx.concatenate([tail, spans[0]], axis=1)[:, -2:], mx.array([total]).reshape(1, 1, 1, 1), len(ids))


def empty() -> SequenceCache:
    return [KVCache(), DeltaState()]


def holds(cache: SequenceCache, ids: list[int]) -> bool:
    """Whether these caches are those after `ids`."""
    kv, state = cache
    assert isinstance(kv, KVCache)
    assert isinstance(state, DeltaState)
    if not ids:
        return kv.length == state.length == 0
    expected = empty()
    fed(expected, ids)
    numbers = [mx.concatenate([a.flatten() for layer in c for a in layer.state]).tolist() for c in (cache, expected)]
    return kv.length == state.length == len(ids) and numbers[0] == numbers[1]


@dataclass
class Live:
    """A sequence that goes on, on the store's pin."""

    cache: SequenceCache
    node: Node
    ids: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Op:
    """What happens next: a text comes (and stays, or ends), memory shrinks, files are saved, a new process starts."""

    kind: str
    ids: list[int] = field(default_factory=list)
    spans: list[int] = field(default_factory=list)
    stays: bool = False
    number: int = 0


ops = st.one_of(
    st.builds(
        Op,
        kind=st.just("text"),
        ids=st.lists(st.integers(0, 2), min_size=1, max_size=10),
        spans=st.lists(st.integers(1, 4), min_size=1, max_size=3),
        stays=st.booleans(),
    ),
    st.builds(Op, kind=st.just("shrink"), number=st.integers(0, 200)),
    st.builds(Op, kind=st.just("end"), number=st.integers(0, 3)),
    st.builds(Op, kind=st.sampled_from(["save", "restart"])),
)


def begin(store: PrefixStore, root: Node, op: Op) -> Live:
    """A prompt: what is known of it is restored, the rest computed, with checkpoints after the spans."""
    cache = empty()
    found = store.match(root, op.ids)
    node = store.restore(found, cache)
    assert node.end <= found.length < len(op.ids)
    assert holds(cache, op.ids[: node.end])
    live = Live(cache, node, op.ids[: node.end])
    for span in [*op.spans, len(op.ids)]:
        new = op.ids[len(live.ids) : len(live.ids) + span]
        if new:
            fed(cache, new)
            live.ids = live.ids + new
            live.node = store.add(live.node, new, cache)
    return live


@contextmanager
def opened(folder: Path | None, budget: int) -> Iterator[tuple[PrefixStore, Node]]:
    store = PrefixStore(budget)
    yield store, store.root(FINGERPRINT, disk_in(folder))
    store.close()
    assert store.nbytes == 0


def disk_in(folder: Path | None) -> Callable[[], DiskTree | None]:
    example_cache = empty()
    fed(example_cache, [1])
    if folder is None:
        return lambda: None
    return lambda: DiskTree(open_store(folder, byte_budget=MB, fingerprint=FINGERPRINT), Layouts.of(example_cache))


def check(store: PrefixStore, lives: list[Live]) -> None:
    check_store(store)
    for live in lives:
        assert live.node.pins > 0
        assert live.node.all_ids() == live.ids
        assert live.node.segment is not None
        assert live.node.checkpoint is not None
        assert holds(live.cache, live.ids)


def play(store: PrefixStore, root: Node, steps: list[Op], lives: list[Live]) -> None:
    """Until the steps end."""
    for op in steps:
        if op.kind == "text":
            live = begin(store, root, op)
            lives.append(live)
            if not op.stays:
                store.unpin(lives.pop().node)
        elif op.kind == "shrink":
            fits = store.shrink(op.number)
            assert fits == (store.nbytes <= op.number)
            assert fits or lives
        elif op.kind == "end" and lives:
            store.unpin(lives.pop(op.number % len(lives)).node)
        elif op.kind == "save":
            while store.save_one():
                pass
            for disk in store._disks.values():
                assert disk.store.flush(60)
        assert store.shrink(store.byte_budget) or lives  # as every turn of the engine does
        check(store, lives)


def split(steps: list[Op]) -> list[list[Op]]:
    """The lives of the process."""
    runs: list[list[Op]] = [[]]
    for op in steps:
        if op.kind == "restart":
            runs.append([])
        else:
            runs[-1].append(op)
    return runs


def text(ids: list[int], *spans: int, stays: bool = False) -> Op:
    return Op("text", ids, list(spans) or [100], stays)


LOSING = [text([0, 1, 2, 0], 1, 1), Op("shrink"), text([0, 1, 2, 0, 1]), Op("save"), Op("shrink"), text([0, 1, 2, 0])]


@settings(max_examples=60)
@given(steps=st.lists(ops, max_size=12), budget=st.integers(20, 400))
@example(steps=LOSING, budget=400)
@example(steps=[text([0, 1, 2], 1, stays=True), text([0, 1, 1], 1), Op("shrink"), text([0, 1, 2, 2])], budget=400)
def test_what_is_restored_is_what_was_computed(steps: list[Op], budget: int) -> None:
    with opened(None, budget) as (store, root):
        lives: list[Live] = []
        play(store, root, [op for op in steps if op.kind != "restart"], lives)
        for live in lives:
            store.unpin(live.node)
        assert not any(node.pins for node in [root, *root.descendants()])
        assert store.shrink(0)
        assert store.nbytes == 0
        assert not any(node.segment or node.checkpoint for node in root.descendants())


@settings(max_examples=15)
@given(steps=st.lists(ops, max_size=10), budget=st.integers(20, 400))
@example(steps=[*LOSING, Op("restart"), text([0, 1, 2, 0, 2], 4), Op("shrink"), text([0, 1, 2, 0, 2, 1])], budget=400)
def test_and_so_it_is_from_disk_and_in_the_next_process(steps: list[Op], budget: int) -> None:
    with TemporaryDirectory() as folder:
        for run in split(steps):
            with opened(Path(folder) / "cache", budget) as (store, root):
                play(store, root, run, [])


def test_what_was_evicted_comes_back_from_disk_whole(tmp_path: Path) -> None:
    with opened(tmp_path / "cache", 10_000) as (store, root):
        play(store, root, [text([0, 1, 2, 0], 2), Op("save"), Op("shrink")], [])
        assert store.nbytes == 0
        live = begin(store, root, text([0, 1, 2, 0, 2]))
        assert store.match(root, [0, 1, 2, 0, 1]).length == 4
        assert live.node.path()[1].segment is not None
        store.unpin(live.node)
    with opened(tmp_path / "cache", 10_000) as (store, root):
        assert store.match(root, [0, 1, 2, 0, 2, 2]).length == 5
        store.unpin(begin(store, root, text([0, 1, 2, 0, 2, 2])).node)


def test_the_least_recently_used_text_goes_first() -> None:
    one = 3 * TOKEN + STATE
    with opened(None, 3 * one) as (store, root):
        play(store, root, [text([i, i, i]) for i in range(3)] + [text([0, 0, 0, 1])], [])
        assert [store.match(root, [i, i, i, 2]).length for i in range(3)] == [3, 0, 3]
        assert store.match(root, [1, 1, 1, 2]).lost
        assert store.nbytes <= 3 * one


def test_what_is_pinned_stays_and_frees_its_memory_afterwards() -> None:
    with opened(None, 10_000) as (store, root):
        live = begin(store, root, text([0, 1, 2, 0], 2))
        assert not store.shrink(0)
        assert store.nbytes == 4 * TOKEN + STATE  # the inner node lost its checkpoint, which nobody stands on
        assert store.match(root, [0, 1, 2, 0, 1]).length == 4
        store.unpin(live.node)
        assert store.shrink(0)
