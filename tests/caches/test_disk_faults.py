"""The disk store when the world is unkind: kill -9, a full disk, a read-only or vanishing folder, a second process."""

from __future__ import annotations

import fcntl
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mlx_qwen35.caches import disk_writer
from mlx_qwen35.caches.disk_folder import COUNTER_NAME
from tests.caches.disk_nodes import MB, ROOT, content, disk_usage, files_of, is_right, open_store, put, same

ROUNDS = 20


def start(folder: Path, seed: int, budget: int, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "tests.caches.disk_nodes", str(folder), str(seed), str(budget)]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    return process


def kill(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGKILL)
    process.communicate()


def check_everything(folder: Path) -> int:
    """Opens without a warning, sees only whole and right files; how many nodes."""
    store = open_store(folder)
    # The counter's temporary has one name, and is overwritten.
    assert not [path for path in files_of(folder) if path.suffix == ".tmp" and COUNTER_NAME not in path.name]
    entries = store.entries()
    for entry in entries:
        size = entry.ids[2]
        assert is_right(store, entry.key, size)
        state = store.read_checkpoint(entry.key)
        assert state is None or same(state, content(entry.key, "checkpoint", size))
        assert (state is None) == (entry.checkpoint_bytes == 0)
    return len(entries)


def test_kill_9_at_any_moment_leaves_only_whole_files(tmp_path: Path, clean_environment: dict[str, str]) -> None:
    moments = random.Random(3)
    interrupted = nodes = 0
    for seed in range(ROUNDS):
        process = start(tmp_path / "cache", seed * 1000, 2 * MB, clean_environment)
        time.sleep(moments.uniform(0, 0.06))
        kill(process)
        interrupted += any(path.suffix == ".tmp" for path in files_of(tmp_path / "cache"))
        nodes = check_everything(tmp_path / "cache")
        assert disk_usage(tmp_path / "cache") <= 2 * MB
    assert nodes
    assert interrupted, "no kill fell into a write; the moments prove nothing"


def test_two_processes_share_folder_and_budget(tmp_path: Path, clean_environment: dict[str, str]) -> None:
    """Both write the same nodes, and evict each other's."""
    folder = tmp_path / "cache"
    processes = [start(folder, 0, MB, clean_environment) for _ in range(2)]
    try:
        store = open_store(folder, byte_budget=MB)
        until = time.monotonic() + 3
        seen = 0
        while time.monotonic() < until:
            for entry in store.entries():
                found = store.read_segment(entry.key)
                assert found is None or same(found, content(entry.key, "segment", entry.ids[2]))
                seen += found is not None
            assert disk_usage(folder) <= MB
            put(store, ROOT, [9, 9, 3000], 3000)
        assert all(process.poll() is None for process in processes)
    finally:
        for process in processes:
            kill(process)
    assert seen
    assert check_everything(folder)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 1 MB."""
    folder = tmp_path / "small"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if not shutil.which("mount") or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small file system takes Linux and root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_one_warning_and_space_freed_later_is_used(small_disk: Path) -> None:
    warnings: list[str] = []
    store = open_store(small_disk, warnings, retry_seconds=0.0)
    nodes = [put(store, ROOT, [i], 30_000, checkpoint=False) for i in range(12)]
    dropped = store.stats().dropped
    assert set(dropped) == {disk_writer.DISK_TROUBLE}
    assert 0 < dropped[disk_writer.DISK_TROUBLE] < 12
    assert len(warnings) == 1
    assert "no space left" in warnings[0]
    assert all(path.suffix == ".safetensors" for path in files_of(small_disk))
    held = [key for key in nodes if is_right(store, key, 30_000)]
    assert len(held) == 12 - dropped[disk_writer.DISK_TROUBLE]

    for path in files_of(small_disk):
        path.unlink()
    assert is_right(store, put(store, ROOT, [99], 30_000, checkpoint=False), 30_000)
    assert len(warnings) == 1


LIMITED = """
import resource, signal, sys
from pathlib import Path
from tests.caches.disk_nodes import *
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
warnings = []
store = open_store(Path(sys.argv[1]), warnings)
a = put(store, ROOT, [1])
put(store, a, [2], 30_000)
put(store, a, [3])
print(len(warnings), store.stats().dropped, len(store.entries()), is_right(store, a), len(files_of(Path(sys.argv[1]))))
"""


def test_a_write_that_fails_half_way_leaves_nothing_and_pauses_writing(
    tmp_path: Path, clean_environment: dict[str, str]
) -> None:
    command = [sys.executable, "-c", LIMITED, str(tmp_path / "cache")]
    done = subprocess.run(command, env=clean_environment, capture_output=True, text=True, check=True)
    assert done.stdout == "1 {'disk trouble': 2} 1 True 2\n", done.stdout + done.stderr


@pytest.mark.parametrize("place", ["below a file", "/proc", "/dev/null"])
def test_a_folder_that_cannot_be_is_one_warning(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("")
    folder = {"below a file": tmp_path / "file" / "cache", "/proc": Path("/proc/cache")}.get(place, Path(place))
    warnings: list[str] = []
    store = open_store(folder, warnings)
    assert store.entries() == []
    for i in range(3):
        assert store.read_segment(put(store, ROOT, [i])) is None
    store.touch(["0" * 40])
    assert store.flush(60)
    assert store.stats().dropped == {disk_writer.DISK_TROUBLE: 3}
    assert len(warnings) == 1, warnings
    assert str(folder) in warnings[0]
    store.close()


def test_a_read_only_folder_is_still_read(tmp_path: Path) -> None:
    a = put(open_store(tmp_path), ROOT, [1])
    if os.geteuid() == 0:
        bind = ["mount", "--bind", str(tmp_path), str(tmp_path)]
        if not shutil.which("mount") or subprocess.run(bind, capture_output=True, check=False).returncode:
            pytest.skip("root ignores permissions, and cannot mount read-only here")
        subprocess.run(["mount", "-o", "remount,ro,bind", str(tmp_path)], check=True)
    else:
        for path in (tmp_path, tmp_path / ROOT):
            path.chmod(0o500)
        (tmp_path / ".lock").chmod(0o400)
    try:
        warnings: list[str] = []
        store = open_store(tmp_path, warnings, byte_budget=1_000_000)
        assert [entry.key for entry in store.entries()] == [a]
        assert is_right(store, a)
        put(store, ROOT, [2])
        store.touch([a])
        assert store.flush(60)
        assert len(warnings) == 1, warnings
    finally:
        if os.geteuid() == 0:
            subprocess.run(["umount", str(tmp_path)], check=True)
        else:
            for path in (tmp_path, tmp_path / ROOT):
                path.chmod(0o700)


def test_a_folder_that_vanishes_is_made_anew(tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    store = open_store(folder)
    a = put(store, ROOT, [1])
    shutil.rmtree(folder)
    assert store.read_segment(a) is None
    assert store.entries() == []
    assert is_right(store, put(store, ROOT, [2]))
    shutil.rmtree(folder)
    assert put(store, a, [3])  # its parent went with the folder
    assert store.stats().dropped == {disk_writer.NO_PARENT: 1}


def test_a_lock_held_by_another_process_delays_neither_engine_nor_close(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    with (tmp_path / ".lock").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another open file, which flock takes for another process
        open_store(tmp_path)
        key = disk_writer.disk_files.node_key(ROOT, [1])
        store.put(key, ROOT, [1], content(key, "segment"), None)
        assert not store.flush(0.05)
        store.close(0.05)
        assert store.flush(60)
    assert store.stats().dropped == {disk_writer.CLOSED: 1}


def test_a_file_where_the_fingerprint_folder_should_be_is_trouble_not_a_crash(tmp_path: Path) -> None:
    (tmp_path / ROOT).write_text("what is this")
    warnings: list[str] = []
    store = open_store(tmp_path, warnings)
    assert store.entries() == []
    assert store.read_segment(put(store, ROOT, [1])) is None
    assert store.stats().dropped == {disk_writer.DISK_TROUBLE: 1}
    assert (tmp_path / ROOT).read_text() == "what is this"
