"""The disk store's two budgets: what goes, what stays, and that neither is ever exceeded."""

from __future__ import annotations

import fcntl
import json
import os
import threading
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from mlx_qwen35.caches import disk_files, disk_folder, disk_writer
from mlx_qwen35.caches.disk_files import CHECKPOINT, SEGMENT
from mlx_qwen35.caches.disk_folder import StoredFile, to_evict
from tests.caches.disk_nodes import MB, OTHER, ROOT, content, disk_usage, files_of, is_right, open_store, put

BLOCK = disk_folder.BLOCK
SMALL = 2 * BLOCK  # a node of 64 elements: a segment and a checkpoint of one block each


def age(folder: Path, key: str, seconds: float, kind: str = "*") -> None:
    for path in folder.rglob(f"{key}.{kind}.safetensors"):
        time = path.stat().st_mtime - seconds
        os.utime(path, (time, time))


def keys(folder: Path, kind: str = SEGMENT) -> set[str]:
    return {path.name[:40] for path in folder.rglob(f"*.{kind}.safetensors")}


def test_the_least_recently_used_leaf_makes_way(tmp_path: Path) -> None:
    store = open_store(tmp_path, byte_budget=4 * SMALL)
    nodes = [put(store, ROOT, [i]) for i in range(4)]
    for i, node in enumerate(nodes):
        age(tmp_path, node, 100 - i)
    store.touch([nodes[0]])
    new = put(store, ROOT, [9])
    assert keys(tmp_path) == keys(tmp_path, CHECKPOINT) == {nodes[0], nodes[2], nodes[3], new}


def test_an_inner_node_may_lose_its_checkpoint_but_not_its_segment(tmp_path: Path) -> None:
    store = open_store(tmp_path, byte_budget=4 * BLOCK)
    inner = put(store, ROOT, [1])
    leaf = put(store, inner, [2])
    age(tmp_path, inner, 100)
    assert disk_usage(tmp_path) == 4 * BLOCK
    new = put(store, ROOT, [3], checkpoint=False)
    assert keys(tmp_path) == {inner, leaf, new}
    assert keys(tmp_path, CHECKPOINT) == {leaf}
    assert {entry.key for entry in store.entries()} == {inner, leaf, new}


def test_a_leaf_without_checkpoint_goes_first_and_its_useless_ancestors_with_it(tmp_path: Path) -> None:
    store = open_store(tmp_path, byte_budget=4 * BLOCK)
    old = put(store, ROOT, [1])
    age(tmp_path, old, 1000)
    inner = put(store, ROOT, [2], checkpoint=False)
    put(store, inner, [3], checkpoint=False)
    new = put(store, ROOT, [4], checkpoint=False)
    assert keys(tmp_path) == {old, new}


def test_files_of_another_model_count_and_go_when_they_are_older(tmp_path: Path) -> None:
    theirs = open_store(tmp_path, fingerprint=OTHER, byte_budget=4 * SMALL)
    old = put(theirs, OTHER, [1])
    young = put(theirs, OTHER, [2])
    age(tmp_path, old, 100)
    ours = open_store(tmp_path, byte_budget=3 * SMALL)
    mine = put(ours, ROOT, [1])
    age(tmp_path, mine, 50)
    put(ours, ROOT, [2])
    assert keys(tmp_path / OTHER) == {young}
    put(ours, ROOT, [3])
    assert keys(tmp_path / OTHER) == {young}
    assert mine not in keys(tmp_path / ROOT)
    age(tmp_path, young, 100)
    put(ours, ROOT, [4])
    assert not (tmp_path / OTHER).exists()


def test_orphans_and_damaged_headers_go_before_anything_of_use(tmp_path: Path) -> None:
    store = open_store(tmp_path, byte_budget=4 * SMALL)
    a, b = put(store, ROOT, [1]), put(store, ROOT, [2])
    child = put(store, b, [3])
    put(store, ROOT, [4])
    (tmp_path / ROOT / f"{b}.segment.safetensors").write_bytes(b"garbage")
    age(tmp_path, a, 1000)
    store = open_store(tmp_path, byte_budget=4 * SMALL)
    new = put(store, ROOT, [5])
    assert {a, child, new} <= keys(tmp_path)
    assert b not in keys(tmp_path)
    newer = put(store, ROOT, [6])
    assert {a, new, newer} <= keys(tmp_path)
    assert child not in keys(tmp_path)


def test_the_path_to_a_new_node_is_spared_and_what_cannot_fit_is_dropped_without_harm(tmp_path: Path) -> None:
    store = open_store(tmp_path, byte_budget=3 * BLOCK)
    a = put(store, ROOT, [1], checkpoint=False)
    b = put(store, a, [2], checkpoint=False)
    c = put(store, b, [3], checkpoint=False)
    put(store, c, [4])
    assert keys(tmp_path) == {a, b, c}
    assert store.stats().dropped == {disk_writer.NO_ROOM: 1}
    put(store, ROOT, [5], 100_000)
    assert keys(tmp_path) == {a, b, c}
    assert store.stats().dropped == {disk_writer.NO_ROOM: 1, disk_writer.TOO_LARGE: 1}


def test_a_smaller_budget_holds_from_the_start(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    for i in range(10):
        put(store, ROOT, [i])
    open_store(tmp_path, byte_budget=3 * SMALL)
    assert disk_usage(tmp_path) == 3 * SMALL


def test_the_budget_holds_at_every_moment(tmp_path: Path) -> None:
    """Somebody looks all the time; evicting after the write instead of before it is what they would catch."""
    budget = 3 * MB
    store = open_store(tmp_path, byte_budget=budget)
    worst, done = 0, threading.Event()

    def look() -> None:
        nonlocal worst
        while not done.is_set():
            worst = max(worst, disk_usage(tmp_path))

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        for i in range(40):
            put(store, ROOT, [i], 20_000 + 3000 * (i % 17))
    finally:
        done.set()
        watcher.join()
    assert budget / 2 < worst <= budget
    assert store.stats().bytes_on_disk == disk_usage(tmp_path)
    assert not store.stats().dropped


Shape = list[tuple[int, bool, int, int]]  # parent's place, has a checkpoint, size, last use


@given(
    st.lists(st.tuples(st.integers(-2, 30), st.booleans(), st.integers(1, 9), st.integers(0, 5)), max_size=30),
    st.integers(0, 200),
    st.sets(st.integers(0, 29), max_size=3),
)
def test_what_is_left_after_evicting_is_a_tree_that_fits(shape: Shape, excess: int, kept: set[int]) -> None:
    files: list[StoredFile] = []
    parents: dict[Path, str] = {}
    for i, (parent, checkpoint, size, used) in enumerate(shape):
        node = (ROOT, f"{i:040x}")
        path = Path(ROOT) / f"{i}.segment"
        # -2 is an orphan; a place further on than i - 1 means the node before this one.
        parents[path] = {-2: "f" * 40, -1: ROOT}.get(min(parent, i - 1), f"{min(parent, i - 1):040x}")
        files.append(StoredFile(path, node, SEGMENT, size, used))
        if checkpoint:
            files.append(StoredFile(Path(ROOT) / f"{i}.checkpoint", node, CHECKPOINT, size, used))
    keep = {(ROOT, f"{i:040x}") for i in kept}

    def reachable(some: list[StoredFile]) -> set[tuple[str, str]]:
        found: set[tuple[str, str]] = set()
        for file in some:
            parent = parents.get(file.path)
            if file.kind == SEGMENT and (parent == ROOT or (ROOT, parent) in found):
                found.add(file.node)
        return found

    before = reachable(files)
    evicted = to_evict(files, excess, keep, dict(parents))
    if evicted is None:
        kept_segments = [file for file in files if file.kind == SEGMENT and file.node in before & keep]
        assert not excess or kept_segments or sum(file.size for file in files) < excess
        return
    assert len(evicted) == len(set(evicted))
    assert sum(file.size for file in evicted) >= excess
    left = [file for file in files if file not in evicted]
    segments = {file.node for file in left if file.kind == SEGMENT and file.node in before}
    assert segments == reachable(left) & before  # nothing was cut off from the root
    assert before & keep <= segments


def test_the_daily_budget_survives_a_restart_and_is_told_once(tmp_path: Path) -> None:
    warnings: list[str] = []
    for _ in range(2):
        store = open_store(tmp_path, warnings, daily_write_budget=3 * SMALL)
        for i in range(5):
            put(store, ROOT, [i])
        assert store.stats().written_today == 3 * SMALL
        assert store.stats().dropped == {disk_writer.DAILY_BUDGET: 2}
        store.close()
    assert len(keys(tmp_path)) == 3
    assert len(warnings) == 2  # once for each run of the program


def test_the_daily_budget_starts_anew_the_next_day(tmp_path: Path) -> None:
    counter = tmp_path / disk_folder.COUNTER_NAME
    counter.write_text(json.dumps({"day": "2020-02-29", "bytes": 1 << 50}))
    store = open_store(tmp_path, daily_write_budget=SMALL)
    a = put(store, ROOT, [1])
    assert is_right(store, a)
    assert json.loads(counter.read_text()) == {"day": disk_folder.today(), "bytes": SMALL}


@given(
    st.one_of(st.binary(max_size=50), st.sampled_from([b'{"day": 1}', b"[]", b"[" * 900, b'{"day":"x","bytes":{}}']))
)
def test_a_damaged_counter_counts_as_zero(tmp_path_factory, raw: bytes) -> None:
    folder = tmp_path_factory.mktemp("counter")
    (folder / disk_folder.COUNTER_NAME).write_bytes(raw)
    assert disk_folder.written_today(folder) == 0
    today = {"day": disk_folder.today(), "bytes": -5}
    (folder / disk_folder.COUNTER_NAME).write_text(json.dumps(today))
    assert disk_folder.written_today(folder) == 0


def test_temporaries_of_dead_processes_are_removed_and_those_of_living_ones_left(tmp_path: Path) -> None:
    home = tmp_path / ROOT
    home.mkdir()
    dead = home / f".{'0' * 40}.segment.safetensors.99999999.0.tmp"  # beyond any process id of Linux or macOS
    living = home / f".{'0' * 40}.segment.safetensors.{os.getpid()}.0.tmp"
    forgotten = home / f".{'0' * 40}.segment.safetensors.{os.getpid()}.1.tmp"
    for path in (dead, living, forgotten):
        path.write_bytes(b"half")
    os.utime(forgotten, (1, 1))
    open_store(tmp_path)
    assert files_of(tmp_path) == [living]


def test_a_node_that_queued_ones_hang_on_is_spared(tmp_path: Path) -> None:
    """The parent has neither checkpoint nor child on disk yet, so it goes first if nobody looks at the queue."""
    store = open_store(tmp_path, byte_budget=3 * BLOCK)
    other = put(store, ROOT, [1], checkpoint=False)
    age(tmp_path, other, -100)  # younger than the parent will be
    parent = disk_files.node_key(ROOT, [2])
    child = disk_files.node_key(parent, [3])
    big = disk_files.node_key(ROOT, [4])
    with (tmp_path / disk_folder.LOCK_NAME).open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # nothing is written before all is queued
        store.put(parent, ROOT, [2], content(parent, "segment", 64), None)
        store.put(big, ROOT, [4], content(big, "segment", 900), None)  # two blocks
        store.put(child, parent, [3], content(child, "segment", 64), None)
    assert store.flush(60)
    assert keys(tmp_path) == {parent, child}
    assert not store.stats().dropped
