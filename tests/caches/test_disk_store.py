"""The disk store as the prefix tree sees it: what comes back after a restart, and how damage stays a miss."""

from __future__ import annotations

import threading
from array import array
from pathlib import Path

import pytest

from mlx_qwen35.caches import disk_writer
from mlx_qwen35.caches.disk_files import Blob, node_key
from tests.caches.disk_nodes import MB, OTHER, ROOT, content, files_of, is_right, open_store, put, same


def test_a_tree_survives_a_restart(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    a = put(store, ROOT, [1, 2, 3])
    b = put(store, a, [4], checkpoint=False)
    c = put(store, a, array("I", [5, 6]))
    d = put(store, b, [7])
    store.close()

    store = open_store(tmp_path)
    entries = {entry.key: entry for entry in store.entries()}
    assert {(e.key, e.parent, tuple(e.ids)) for e in entries.values()} == {
        (a, ROOT, (1, 2, 3)),
        (b, a, (4,)),
        (c, a, (5, 6)),
        (d, b, (7,)),
    }
    order = list(entries)
    assert all(e.parent == ROOT or order.index(e.parent) < order.index(e.key) for e in entries.values())
    for key in (a, b, c, d):
        assert is_right(store, key)
        assert (entries[key].checkpoint_bytes > 0) == (key != b)
        assert entries[key].segment_bytes == (tmp_path / ROOT / f"{key}.segment.safetensors").stat().st_size
    assert same(store.read_checkpoint(d), content(d, "checkpoint"))
    assert store.read_checkpoint(b) is None


def test_a_node_gains_a_checkpoint_later(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    a = put(store, ROOT, [1], checkpoint=False)
    store.put_checkpoint(a, content(a, "checkpoint"))
    assert store.flush(60)
    assert same(store.read_checkpoint(a), content(a, "checkpoint"))
    store.put_checkpoint(node_key(a, [2]), content(a, "checkpoint"))
    assert store.flush(60)
    assert store.stats().dropped == {disk_writer.NO_PARENT: 1}


def test_writing_a_node_again_writes_nothing(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    a = put(store, ROOT, [1])
    before = store.stats()
    put(store, ROOT, [1])
    assert store.stats() == before
    assert is_right(store, a)


def test_size_grows_with_the_tokens_and_not_with_their_square(tmp_path: Path) -> None:
    """A history of 50 turns: each stores its own span, whose size does not depend on what came before."""
    store = open_store(tmp_path)
    parent = ROOT
    for turn in range(50):
        parent = put(store, parent, [turn] * 100, 2000, checkpoint=False)
    payload = sum(len(blob.data) for blob in content(parent, "segment", 2000).values()) + 400
    assert sum(path.stat().st_size for path in files_of(tmp_path)) < 50 * (payload + 1024)


def test_models_share_the_folder_and_not_their_prefixes(tmp_path: Path) -> None:
    ours, theirs = open_store(tmp_path), open_store(tmp_path, fingerprint=OTHER)
    a = put(ours, ROOT, [1])
    assert theirs.entries() == []
    assert theirs.read_segment(a) is None
    b = put(theirs, OTHER, [1])
    assert a != b
    assert [entry.key for entry in ours.entries()] == [a]


def test_a_damaged_segment_is_one_warning_and_takes_its_subtree_along(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    a = put(store, ROOT, [1])
    b = put(store, a, [2])
    put(store, b, [3])
    path = tmp_path / ROOT / f"{b}.segment.safetensors"
    raw = bytearray(path.read_bytes())
    raw[-3] ^= 4  # in the KV, which listing does not read
    path.write_bytes(raw)

    warnings: list[str] = []
    store = open_store(tmp_path, warnings)
    assert len(store.entries()) == 3
    assert store.read_segment(b) is None
    assert store.read_segment(b) is None
    assert len(warnings) == 1
    assert str(path) in warnings[0]
    assert "checksum" in warnings[0]
    assert not path.exists()
    assert [entry.key for entry in store.entries()] == [a]
    # Nodes are named by all their text, so the subtree is right again as soon as the gap is filled.
    put(store, a, [2])
    assert len(store.entries()) == 3
    assert is_right(store, b)


def test_a_damaged_checkpoint_leaves_the_segment(tmp_path: Path) -> None:
    a = put(open_store(tmp_path), ROOT, [1])
    path = tmp_path / ROOT / f"{a}.checkpoint.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    warnings: list[str] = []
    store = open_store(tmp_path, warnings)
    (entry,) = store.entries()
    assert (entry.key, entry.checkpoint_bytes) == (a, 0)
    assert len(warnings) == 1
    assert is_right(store, a)


def test_many_damaged_files_are_one_line(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    for i in range(5):
        put(store, ROOT, [i])
    for path in files_of(tmp_path):
        path.write_bytes(b"<html>")
    warnings: list[str] = []
    store = open_store(tmp_path, warnings)
    assert store.entries() == []
    assert store.entries() == []
    assert len(warnings) == 1
    assert "9 others" in warnings[0]
    assert files_of(tmp_path) == []


def test_what_is_not_ours_is_left_alone(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    a = put(store, ROOT, [1])
    outside = tmp_path / "outside.safetensors"
    outside.write_bytes(b"precious")
    (tmp_path / ROOT / "notes.txt").write_text("precious")
    (tmp_path / "my folder").mkdir()
    (tmp_path / "my folder" / f"{a}.segment.safetensors").write_text("precious")
    b = node_key(a, [2])
    folder = tmp_path / ROOT / f"{b}.segment.safetensors"
    folder.mkdir()
    (folder / "inside").write_text("precious")
    c = node_key(a, [3])
    (tmp_path / ROOT / f"{c}.segment.safetensors").symlink_to(outside)

    warnings: list[str] = []
    store = open_store(tmp_path, warnings, byte_budget=1)  # everything of ours has to go
    assert store.entries() == []
    for key in (b, c, b, c):
        assert store.read_segment(key) is None
    assert len(warnings) == 1  # the folder; the link, which was listed, went with the rest
    assert files_of(tmp_path) == sorted(
        [outside, tmp_path / ROOT / "notes.txt", tmp_path / "my folder" / f"{a}.segment.safetensors", folder / "inside"]
    )
    assert outside.read_bytes() == b"precious"


def test_a_fingerprint_folder_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    a = put(open_store(elsewhere), ROOT, [1])
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / ROOT).symlink_to(elsewhere / ROOT)
    before = files_of(elsewhere)
    warnings: list[str] = []
    store = open_store(tmp_path / "cache", warnings)
    assert store.entries() == []
    assert store.read_segment(a) is None
    put(store, ROOT, [2])
    assert len(warnings) == 1
    assert files_of(elsewhere) == before


def test_the_queue_is_bounded_in_bytes_and_says_what_it_dropped(tmp_path: Path) -> None:
    store = open_store(tmp_path, queue_bytes=3 * MB)
    for i in range(100):
        key = node_key(ROOT, [i])
        store.put(key, ROOT, [i], {"k": Blob("U8", (MB,), bytes(MB))}, None)
        assert store.stats().queued_bytes <= 3 * MB
    assert store.flush(60)
    stats = store.stats()
    assert stats.queued_bytes == 0
    assert set(stats.dropped) == {disk_writer.QUEUE_FULL}
    assert len(store.entries()) + stats.dropped[disk_writer.QUEUE_FULL] == 100
    assert len(store.entries()) >= 2


def test_a_child_whose_parent_was_dropped_is_not_written(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    put(store, node_key(ROOT, [1]), [2])
    assert store.stats().dropped == {disk_writer.NO_PARENT: 1}
    assert files_of(tmp_path) == []


def test_closing_writes_what_waits_and_then_takes_no_more(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    keys = [node_key(ROOT, [i]) for i in range(5)]
    for i, key in enumerate(keys):
        store.put(key, ROOT, [i], content(key, "segment"), None)
    store.touch(keys)
    store.close()
    assert all(is_right(store, key) for key in keys)
    put(store, ROOT, [9])
    store.touch(keys)
    assert store.flush(1)
    assert store.stats().dropped == {disk_writer.CLOSED: 1}
    store.close()


def test_closing_without_patience_drops_and_counts(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    for i in range(20):
        store.put(node_key(ROOT, [i]), ROOT, [i], {"k": Blob("U8", (MB,), bytes(MB))}, None)
    store.close(0)
    assert store.flush(60)
    dropped = store.stats().dropped.get(disk_writer.CLOSED, 0)
    assert dropped + len(open_store(tmp_path).entries()) == 20


def test_threads_read_and_write_at_once(tmp_path: Path) -> None:
    store = open_store(tmp_path, byte_budget=2 * MB)
    wrong: list[str] = []

    def use(seed: int) -> None:
        for turn in range(40):
            ids = [(seed + turn) % 7]
            key = node_key(ROOT, ids)
            store.put(key, ROOT, ids, content(key, "segment", 30_000), content(key, "checkpoint", 30_000))
            found = store.read_segment(key)
            if found is not None and not same(found, content(key, "segment", 30_000)):
                wrong.append(key)
            store.touch([key])
            store.entries()

    threads = [threading.Thread(target=use, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert store.flush(60)
    assert not wrong
    assert set(store.stats().dropped) <= {disk_writer.QUEUE_FULL}


def test_mistakes_of_the_caller_are_raised_where_they_are_made(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    with pytest.raises(ValueError, match="not the key"):
        store.put("0" * 40, ROOT, [1], {}, None)
    with pytest.raises(ValueError, match="not the key"):
        store.put(node_key(ROOT, []), ROOT, [], {}, None)
    with pytest.raises(ValueError, match="hexadecimal"):
        open_store(tmp_path, fingerprint="../escape")
    assert store.read_segment("../../etc/passwd") is None
