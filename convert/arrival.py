"""Shards of a hub repository, fetched one after the other while others are converted, and deleted when done with.

Everything lies in the hub cache, verified by checksum, as `hub.download` would have put it there. A shard that is
used up is deleted only on demand, and only from that cache; a folder of the user's is never touched.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterable
from pathlib import Path

from mlx_qwen35.errors import DownloadError
from mlx_qwen35.hub.cache import Listing, RemoteFile
from mlx_qwen35.hub.download import ask, repo_cache
from mlx_qwen35.hub.fetch import Watch, disk_error, fetch_blob
from mlx_qwen35.hub.http import Hub, Retry
from mlx_qwen35.hub.listing import is_weight
from mlx_qwen35.hub.parallel import Stopped, in_parallel, pausing
from mlx_qwen35.hub.progress import Meter, ProgressCallback

AHEAD = 2  # shards fetched before they are needed, where used ones are deleted: the disk may hold no more


class Arrival:
    """The files of one repository at one commit, coming into the cache."""

    def __init__(self, hub_id: str, commit: str, hub: Hub, retry: Retry | None = None) -> None:
        self.hub_id, self.commit, self.hub = hub_id, commit, hub
        self.delete_used = False
        self.progress: ProgressCallback = lambda progress: None
        self._retry = retry or Retry()
        self._connection = hub.connect()
        self._repo = repo_cache(hub, hub_id, commit)
        self._listing: Listing = ask(self._connection, hub_id, commit, self._retry)
        self._stop = threading.Event()
        self._changed = threading.Condition()
        self._error: BaseException | None = None
        self._waiting: list[RemoteFile] = []
        self._wanted = 0  # position in _waiting of the last file that was asked for
        self._thread: threading.Thread | None = None

    @property
    def folder(self) -> Path:
        """The snapshot; its files appear one by one."""
        return self._repo.snapshot(self.commit)

    def covers(self, file: Path) -> bool:
        return file.is_relative_to(self.folder)

    def fetch_small_files(self) -> None:
        """Config, tokenizer, templates and the like, now."""
        small = [f for f in self._listing.files if not is_weight(f.path) and not self._repo.holds(self.commit, f)]
        in_parallel(small, lambda file: self._fetch(file, Meter(self.hub_id, 1, lambda p: None)), self._stop)

    def coming_bytes(self, files: Iterable[Path]) -> int:
        """Bytes of these weight files that are not here yet; at most what is here at once where used ones go."""
        sizes = [file.size for file in self._remote(files)]
        return sum(sorted(sizes)[-AHEAD - 1 :]) if self.delete_used else sum(sizes)

    def start(self, files: Iterable[Path]) -> None:
        """Begin to fetch these weight files, in this order, in the background."""
        self._waiting = self._remote(files)
        if self._waiting:
            self._repo.save_listing(self._listing)
            self._thread = threading.Thread(target=self._run, daemon=True)
            self._thread.start()

    def wait_for(self, file: Path) -> None:
        """Return when this file is here in full. Raises DownloadError, one line."""
        with self._changed:
            while missing := self._remote([file]):
                if missing[0] in self._waiting:
                    self._wanted = max(self._wanted, self._waiting.index(missing[0]))
                    self._changed.notify_all()
                if self._error is not None:
                    raise self._error
                if self._thread is None:
                    raise DownloadError(f"{self.hub_id}: {file.name} is not downloaded. Run the same command again.")
                self._changed.wait(0.2)

    def release(self, file: Path) -> None:
        """This file is not needed any more."""
        if not self.delete_used:
            return
        blob = file.resolve()
        file.unlink(missing_ok=True)
        if blob.is_relative_to(self._repo.folder.resolve()):
            blob.unlink(missing_ok=True)

    def close(self) -> None:
        """Stop fetching; what has arrived stays. A snapshot that became complete is made known as such."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(5)
        if all(self._repo.holds(self.commit, file) for file in self._listing.files):
            # Only a note that spares the next start a question to the hub; the files themselves are here either way.
            with contextlib.suppress(OSError):
                self._repo.remember("main", self.commit)

    def _remote(self, files: Iterable[Path]) -> list[RemoteFile]:
        """Of these files of the snapshot, those that are not here."""
        found = [self._listing.find(file.relative_to(self.folder).as_posix()) for file in files]
        return [file for file in found if file is not None and not self._repo.holds(self.commit, file)]

    def _run(self) -> None:
        meter = Meter(self.hub_id, sum(f.size for f in self._waiting), lambda progress: self.progress(progress))
        try:
            for i, file in enumerate(self._waiting):
                with self._changed:
                    while self.delete_used and i > self._wanted + AHEAD and not self._stop.is_set():
                        self._changed.wait(0.2)
                self._fetch(file, meter)
                with self._changed:
                    self._changed.notify_all()
        except Stopped:
            pass  # close() asked for it, and nobody waits for a file any more
        except OSError as error:
            self._fail(disk_error(error, self.hub.cache))
        except BaseException as error:
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        with self._changed:
            self._error = error
            self._changed.notify_all()

    def _fetch(self, file: RemoteFile, meter: Meter) -> None:
        watch = Watch(meter.advance, meter.found, pausing(self._stop), lambda line: None)
        fetch_blob(self._connection, self._listing, file, self._repo, self._retry, watch)
        self._repo.link(self.commit, file)
