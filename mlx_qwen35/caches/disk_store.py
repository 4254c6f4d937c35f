"""Prefixes that survive a restart: the prefix tree's nodes on disk, written behind the engine's back.

Whatever is wrong with the disk or with a file is a miss and one line of warning, never an exception and never wrong
data. Knows nothing of MLX and of what the tensors mean; the tree in memory is prefix_store.py.
"""

from __future__ import annotations

import contextlib
from array import array
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mlx_qwen35.caches import disk_files, disk_folder
from mlx_qwen35.caches.disk_files import CHECKPOINT, FILE_NAME, FINGERPRINT, SEGMENT, Blob, Damaged, Label
from mlx_qwen35.caches.disk_notices import Notices
from mlx_qwen35.caches.disk_writer import DiskStats, DiskWriter, Job, Limits

GIB = 1 << 30


@dataclass(frozen=True)
class Entry:
    """A node on disk. `ids` are those of its own span, array("I"); sizes are of files, and no checkpoint is 0."""

    key: str
    parent: str
    ids: array[int]
    segment_bytes: int
    checkpoint_bytes: int


class DiskStore:
    """The nodes of one fingerprint below `folder`, which other models and other processes may share.

    byte_budget: bytes on disk, over all fingerprints; old files go before new ones are written.
    daily_write_budget: bytes written per local day, over all processes.
    queue_bytes: bytes that may wait in memory for the disk. warn: takes one line; called from any thread.
    """

    def __init__(
        self,
        folder: Path,
        fingerprint: str,
        *,
        byte_budget: int,
        daily_write_budget: int,
        warn: Callable[[str], None],
        queue_bytes: int = GIB,
        retry_seconds: float = 60.0,
    ) -> None:
        if not FINGERPRINT.fullmatch(fingerprint):
            raise ValueError(f"fingerprint {fingerprint[:140]!r} is not 16 to 128 hexadecimal digits")
        self.folder, self.fingerprint = Path(folder), fingerprint
        self._byte_budget = byte_budget
        self._notices = Notices(self.folder, warn)
        limits = Limits(byte_budget, daily_write_budget, queue_bytes, retry_seconds)
        self._writer = DiskWriter(self.folder, fingerprint, limits, self._notices)

    def put(
        self,
        key: str,
        parent: str,
        ids: Sequence[int],
        segment: Mapping[str, Blob],
        checkpoint: Mapping[str, Blob] | None,
    ) -> bool:
        """Queue a node; returns at once, and False where it is not queued.

        Its buffers must not change afterwards. A node on disk is not written again.

        Raises ValueError when `key` is not node_key(parent, ids), or a blob contradicts itself.
        """
        if not len(ids) or disk_files.node_key(parent, ids) != key:
            raise ValueError(f"{key!r} is not the key of {len(ids)} ids after {parent!r}")
        drafts = [disk_files.draft(Label(self.fingerprint, key, SEGMENT, parent), segment, ids)]
        if checkpoint is not None:
            drafts.append(disk_files.draft(Label(self.fingerprint, key, CHECKPOINT), checkpoint))
        return self._writer.enqueue(Job(key, parent, tuple(drafts)))

    def put_checkpoint(self, key: str, checkpoint: Mapping[str, Blob]) -> bool:
        """Queue a checkpoint for a node that is on disk or queued before it. Raises ValueError as `put`."""
        draft = disk_files.draft(Label(self.fingerprint, key, CHECKPOINT), checkpoint)
        return self._writer.enqueue(Job(key, key, (draft,)))

    def lost(self) -> list[str]:
        """Keys of nodes of which a file was not written after all, or was evicted, since this was last asked."""
        return self._writer.lost()

    @property
    def is_full(self) -> bool:
        """Whether much waits to be written already; what is put now may be dropped."""
        return self._writer.is_full

    def touch(self, keys: Sequence[str]) -> None:
        """These nodes have just been used: they are evicted later than others. Returns at once."""
        self._writer.touch(keys)

    def flush(self, timeout: float) -> bool:
        """Wait until all that is queued is written or dropped; False if that took longer than `timeout` seconds."""
        return self._writer.flush(timeout)

    def close(self, timeout: float = 10.0) -> None:
        """Write what is queued for at most `timeout` seconds, drop the rest. Reading goes on to work."""
        self._writer.close(timeout)

    def stats(self) -> DiskStats:
        """What is on disk and waiting, and what was dropped since opening, by reason."""
        return self._writer.stats()

    def read_segment(self, key: str) -> dict[str, Blob] | None:
        """The KV of a node's span, every byte checked; None (a miss) if it is not there or not sound."""
        return self._read(key, SEGMENT)

    def read_checkpoint(self, key: str) -> dict[str, Blob] | None:
        """The state at the end of a node's span, every byte checked; None (a miss) if it is not there or not sound."""
        return self._read(key, CHECKPOINT)

    def entries(self) -> list[Entry]:
        """Every node that is whole, as are all its ancestors; parents before children. Reads headers and ids only."""
        spans: dict[str, tuple[str, array[int], int]] = {}
        checkpoints: dict[str, int] = {}
        damaged: list[tuple[Path, str]] = []
        try:
            for file in disk_folder.listing(self.folder):
                if file.node[0] != self.fingerprint:
                    continue
                # What another process has evicted since the listing is no news.
                with contextlib.suppress(FileNotFoundError):
                    try:
                        if file.kind == SEGMENT:
                            spans[file.node[1]] = disk_files.read_span(file.path)
                        else:
                            checkpoints[file.node[1]] = disk_files.read_metadata(file.path)[1]
                    except Damaged as error:
                        damaged.append((file.path, str(error)))
        except OSError as error:
            self._notices.unreadable(error)
        self._discard(damaged)
        return self._from_the_root(spans, checkpoints)

    def _from_the_root(self, spans: dict[str, tuple[str, array[int], int]], checkpoints: dict[str, int]) -> list[Entry]:
        children: dict[str, list[str]] = {}
        for key, (parent, _, _) in spans.items():
            children.setdefault(parent, []).append(key)
        found: list[Entry] = []
        ready = deque(children.get(self.fingerprint, ()))
        while ready:
            key = ready.popleft()
            parent, ids, size = spans[key]
            found.append(Entry(key, parent, ids, size, checkpoints.get(key, 0)))
            ready.extend(children.get(key, ()))
        return found

    def _read(self, key: str, kind: str) -> dict[str, Blob] | None:
        path = self.folder / self.fingerprint / Label(self.fingerprint, key, kind).name
        if not FILE_NAME.fullmatch(path.name):
            return None
        try:
            if path.parent.is_symlink():
                return None  # the writer and the listing do not follow it either
            return disk_files.read(path, self._byte_budget)
        except Damaged as error:
            self._discard([(path, str(error))])
        except (FileNotFoundError, NotADirectoryError):
            pass  # evicted, perhaps by another process; or nothing was ever stored
        except OSError as error:
            self._notices.unreadable(error)
        except MemoryError:
            pass  # room for other things is what the caller needs now
        return None

    def _discard(self, damaged: list[tuple[Path, str]]) -> None:
        for path, _ in damaged:
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
        self._notices.damaged(damaged)
