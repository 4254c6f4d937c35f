"""The thread that writes the prefix store's files: a queue bounded in bytes before it, two budgets behind it.

What cannot be written is dropped and counted by reason; nothing here raises or keeps the caller waiting. Knows
nothing of what a node means; reading is disk_store.py.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mlx_qwen35.caches import disk_files, disk_folder
from mlx_qwen35.caches.disk_files import CHECKPOINT, SEGMENT, Damaged, Draft, Label
from mlx_qwen35.caches.disk_folder import StoredFile, on_disk
from mlx_qwen35.caches.disk_notices import Notices
from mlx_qwen35.hub.cache import locked

# Why a node was not written.
QUEUE_FULL = "queue full"
TOO_LARGE = "larger than the budget"
NO_ROOM = "no room beside the nodes it needs"
DAILY_BUDGET = "daily write budget used up"
NO_PARENT = "its parent is not on disk"
DISK_TROUBLE = "disk trouble"
BUSY = "another process held the lock too long"
CLOSED = "store closed"
DEFECT = "defect"

_LOCK_SECONDS = 30.0  # the other process writes one node, and a large one on a slow disk takes seconds
_LOCK_SECONDS_AT_OPEN = 0.5


@dataclass(frozen=True)
class Limits:
    """In bytes: on disk over all fingerprints, written per local day, waiting in memory; and seconds between tries."""

    byte_budget: int
    daily_write_budget: int
    queue_bytes: int
    retry_seconds: float


@dataclass(frozen=True)
class DiskStats:
    """`bytes_on_disk` is of all fingerprints, in whole blocks, as of the last write; the rest as of now."""

    bytes_on_disk: int
    written_today: int
    queued_bytes: int
    dropped: dict[str, int]


@dataclass(frozen=True)
class Job:
    """The files of one node; `needs` is the node that must be on disk before them, or the fingerprint."""

    key: str
    needs: str
    drafts: tuple[Draft, ...]

    @property
    def size(self) -> int:
        return sum(draft.size for draft in self.drafts)


class _LockBusy(Exception):
    pass


class DiskWriter:
    """Writes nodes of one fingerprint below `folder`. Every method may be called from any thread."""

    def __init__(self, folder: Path, fingerprint: str, limits: Limits, notices: Notices) -> None:
        self._folder, self._fingerprint, self._limits, self._notices = folder, fingerprint, limits, notices
        self._suspended_until = 0.0
        self._parents: dict[Path, str] = {}  # see disk_folder.to_evict
        self._bytes_on_disk = 0
        self._changed = threading.Condition()  # guards what follows
        self._jobs: deque[Job] = deque()
        self._touched: dict[str, None] = {}  # in order of last use
        self._queued = 0
        self._dropped: Counter[str] = Counter()
        self._lost: list[str] = []
        self._working = self._closed = False
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._make_room_at_open()

    def enqueue(self, job: Job) -> bool:
        """Take over a node to be written; returns at once, whether it is queued (it may yet be lost) or not."""
        with self._changed:
            self._queued += job.size
            if self._closed:
                self._finish(job, CLOSED)
            elif self._suspended_until > time.monotonic():
                self._finish(job, DISK_TROUBLE)
            elif self._queued > self._limits.queue_bytes:
                self._finish(job, QUEUE_FULL)
            else:
                self._jobs.append(job)
                self._wake()
                return True
            return False

    @property
    def is_full(self) -> bool:
        """Whether a third of the queue is taken: a node may be that large."""
        with self._changed:
            return self._queued > self._limits.queue_bytes // 3

    def lost(self) -> list[str]:
        """Keys of nodes of which a file was not written after all, or was evicted, since this was last asked."""
        with self._changed:
            lost, self._lost = self._lost, []
            return lost

    def touch(self, keys: Sequence[str]) -> None:
        with self._changed:
            for key in keys:
                self._touched.pop(key, None)
                self._touched[key] = None
            self._wake()

    def flush(self, timeout: float) -> bool:
        with self._changed:
            return self._changed.wait_for(lambda: not (self._jobs or self._touched or self._working), timeout)

    def close(self, timeout: float) -> None:
        with self._changed:
            self._closed = True
        self.flush(timeout)
        self._stop.set()
        with self._changed:
            while self._jobs:
                self._finish(self._jobs.popleft(), CLOSED)
            self._touched.clear()
            self._changed.notify_all()

    def stats(self) -> DiskStats:
        written = disk_folder.written_today(self._folder)
        with self._changed:
            return DiskStats(self._bytes_on_disk, written, self._queued, dict(self._dropped))

    def _wake(self) -> None:
        if self._closed:
            self._touched.clear()
        elif self._thread is None:
            self._thread = threading.Thread(target=self._run, name="prefix store writer", daemon=True)
            self._thread.start()
        self._changed.notify_all()

    def _finish(self, job: Job, reason: str | None) -> None:
        self._queued -= job.size
        if reason is not None:
            self._dropped[reason] += 1
            self._lost.append(job.key)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._jobs or self._touched or self._stop.is_set())
                if self._stop.is_set():
                    return
                touched, self._touched = self._touched, {}
                job = self._jobs.popleft() if self._jobs else None
                self._working = True
            reason = None
            try:
                self._renew(touched)
                reason = self._store(job) if job else None
            except Exception as error:
                # A defect of ours must neither stop later writes nor let flush() wait for ever.
                self._notices.defect(error)
                reason = DEFECT
            with self._changed:
                self._working = False
                if job:
                    self._finish(job, reason)
                job = None  # its buffers are free before the next one is waited for
                self._changed.notify_all()

    def _store(self, job: Job) -> str | None:
        """Write a node; the reason if it was dropped."""
        if self._suspended_until > time.monotonic():
            return DISK_TROUBLE
        try:
            with self._locked(_LOCK_SECONDS):
                return self._store_locked(job)
        except _LockBusy:
            return CLOSED if self._stop.is_set() else BUSY
        except OSError as error:
            self._suspend(error)
            return DISK_TROUBLE

    def _store_locked(self, job: Job) -> str | None:
        files = disk_folder.listing(self._folder)
        names = {file.path.name for file in files if file.node[0] == self._fingerprint}
        missing = [draft for draft in job.drafts if not self._is_stored(draft.label, names)]
        if not missing:
            self._renew({job.key: None})
            return None
        if job.needs != self._fingerprint and Label(self._fingerprint, job.needs, SEGMENT).name not in names:
            return NO_PARENT
        need = sum(on_disk(draft.size) for draft in missing)
        if need > self._limits.byte_budget:
            return TOO_LARGE
        if disk_folder.written_today(self._folder) + need > self._limits.daily_write_budget:
            self._notices.daily_budget(disk_folder.today(), self._limits.daily_write_budget)
            return DAILY_BUDGET
        if not self._make_room(files, need, {job.key, job.needs}):
            return NO_ROOM
        disk_folder.count_written(self._folder, need)
        home = self._folder / self._fingerprint
        home.mkdir(mode=0o700, exist_ok=True)
        if home.is_symlink():
            raise OSError(errno.ELOOP, f"{home} is a link, which may lead anywhere")
        for draft in missing:
            disk_files.write(home, draft)
            self._parents[home / draft.label.name] = draft.label.parent
            self._notices.forget(home / draft.label.name)
            self._bytes_on_disk += on_disk(draft.size)
        return None

    def _is_stored(self, label: Label, names: set[str]) -> bool:
        """Whether the file is there, with a sound header; a damaged one makes way."""
        path = self._folder / self._fingerprint / label.name
        if label.name not in names:
            return False
        try:
            disk_files.read_metadata(path)
        except Damaged as error:
            path.unlink(missing_ok=True)
            self._notices.damaged([(path, str(error))])
            return False
        return True

    def _make_room(self, files: list[StoredFile], need: int, nodes: set[str]) -> bool:
        """Evict until `need` bytes fit into the budget, sparing `nodes` and those that queued ones hang on."""
        with self._changed:
            keep = {(self._fingerprint, key) for key in nodes | {job.needs for job in self._jobs}}
        total = sum(file.size for file in files)
        evicted = disk_folder.to_evict(files, total + need - self._limits.byte_budget, keep, self._parents)
        if evicted is None:
            return False
        disk_folder.remove(evicted)
        self._bytes_on_disk = total - sum(file.size for file in evicted)
        with self._changed:
            self._lost += [file.node[1] for file in evicted if file.node[0] == self._fingerprint]
        return True

    def _make_room_at_open(self) -> None:
        """Clear away what dead processes left, and come below a budget that has become smaller."""
        try:
            with self._locked(_LOCK_SECONDS_AT_OPEN):
                self._make_room(disk_folder.listing(self._folder), 0, set())
        except _LockBusy:
            pass  # the process that holds it does the same
        except OSError as error:
            self._suspend(error)

    def _renew(self, keys: dict[str, None]) -> None:
        """Last use is the files' modification time: cheap, and seen by other processes."""
        for key in keys:
            for kind in (SEGMENT, CHECKPOINT):
                with contextlib.suppress(OSError):
                    path = self._folder / self._fingerprint / Label(self._fingerprint, key, kind).name
                    os.utime(path, follow_symlinks=False)

    def _suspend(self, error: OSError) -> None:
        self._suspended_until = time.monotonic() + self._limits.retry_seconds
        self._notices.unwritable(error, self._limits.retry_seconds)

    @contextlib.contextmanager
    def _locked(self, patience: float) -> Iterator[None]:
        deadline = time.monotonic() + patience

        def pause(seconds: float) -> None:
            if self._stop.wait(seconds) or time.monotonic() > deadline:
                raise _LockBusy

        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with locked(self._folder / disk_folder.LOCK_NAME, pause, lambda: None):
            yield
