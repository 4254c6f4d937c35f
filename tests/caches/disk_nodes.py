"""Nodes for tests of the disk store: contents follow from the key, so that anybody can tell right from wrong."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from mlx_qwen35.caches.disk_files import Blob, node_key
from mlx_qwen35.caches.disk_store import DiskStore

ROOT = "ab" * 20
OTHER = "cd" * 20
MB = 1_000_000


def content(key: str, kind: str, size: int = 64) -> dict[str, Blob]:
    """Tensors with awkward shapes and mixed widths, `size` elements in the largest."""

    def noise(name: str, count: int) -> bytes:
        return hashlib.shake_128(f"{key} {kind} {name}".encode()).digest(count)

    return {
        "0.keys": Blob("BF16", (1, 2, size // 2, 1), noise("0.keys", 2 * (size // 2) * 2)),
        "0.scales": Blob("U8", (3,), noise("0.scales", 3)),
        "10.state": Blob("F32", (size,), memoryview(noise("10.state", size * 4))),
        "empty": Blob("F16", (0, 4), b""),
    }


def same(found: dict[str, Blob] | None, expected: dict[str, Blob]) -> bool:
    return found is not None and {n: (b.dtype, b.shape, bytes(b.data)) for n, b in found.items()} == {
        n: (b.dtype, b.shape, bytes(b.data)) for n, b in expected.items()
    }


def open_store(folder: Path, warnings: list[str] | None = None, fingerprint: str = ROOT, **options: float) -> DiskStore:
    def warn(line: str) -> None:
        assert "\n" not in line
        if warnings is None:
            raise AssertionError(line)
        warnings.append(line)

    limits = {"byte_budget": 100 * MB, "daily_write_budget": 1000 * MB} | options
    return DiskStore(folder, fingerprint, warn=warn, **limits)  # type: ignore[arg-type]


def put(store: DiskStore, parent: str, ids: Sequence[int], size: int = 64, checkpoint: bool = True) -> str:
    """Queue a node and wait until it is dealt with; its key."""
    key = node_key(parent, ids)
    state = content(key, "checkpoint", size) if checkpoint else None
    store.put(key, parent, ids, content(key, "segment", size), state)
    assert store.flush(60)
    return key


def is_right(store: DiskStore, key: str, size: int = 64) -> bool:
    return same(store.read_segment(key), content(key, "segment", size))


def files_of(folder: Path) -> list[Path]:
    """Every file below the folder but the lock and the counter."""
    return sorted(p for p in folder.rglob("*") if not p.is_dir() and p.name not in (".lock", "written-today.json"))


def disk_usage(folder: Path) -> int:
    """Bytes that the prefixes take on disk, temporaries included, as the file system counts them."""
    total = 0
    for path in folder.rglob("*.safetensors*"):
        try:
            status = path.lstat()
        except FileNotFoundError:
            continue
        total += max(status.st_size, 512 * status.st_blocks)
    return total


def write_for_ever(folder: Path, seed: int, budget: int) -> None:
    """What the processes do that the tests kill or race: chains of nodes whose third id is their size."""
    store = open_store(folder, [], byte_budget=budget)
    print("ready", flush=True)
    for turn in range(1 << 30):
        parent = ROOT
        for depth in range(4):
            size = 20_000 + 1000 * (turn % 50)
            parent = put(store, parent, [seed, depth, size], size)


if __name__ == "__main__":
    os.nice(5)
    write_for_ever(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
