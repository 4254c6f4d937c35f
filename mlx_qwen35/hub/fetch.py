"""One file from the hub into the cache: in ranges, resumed, verified while it streams, renamed when whole.

`<blob>.part` grows beside the blob and survives a cut, Ctrl-C or kill; the next run, in any process, hashes
what is there and asks for the rest. Nothing takes the blob's name before its checksum is right. Knows one
file at a time; which files, and where they are shown, is download.py.
"""

import contextlib
import errno
import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import quote

from mlx_qwen35.errors import DownloadError
from mlx_qwen35.hub.cache import Listing, RemoteFile, RepoCache, locked, write_atomically
from mlx_qwen35.hub.http import Connection, Patience, Retry, TryAgain

CHUNK = 1 << 20
# A server that cuts after every few bytes must not keep us trying for ever.
PROGRESS_THAT_COUNTS = 1 << 20


@dataclass(frozen=True)
class Watch:
    """Who is told of bytes, and who may end a wait. Called from several threads.

    advance: bytes that arrived (negative: thrown away again); found: bytes that were here already; pause:
    sleeps, and raises when the download was stopped; note: one line for the person waiting.
    """

    advance: Callable[[int], None]
    found: Callable[[int], None]
    pause: Callable[[float], None]
    note: Callable[[str], None]


class WrongContent(Exception):
    """The bytes that arrived are not those of the file that the listing promised."""


def file_url(connection: Connection, listing: Listing, file: RemoteFile) -> str:
    return f"{connection.hub.endpoint}/{listing.hub_id}/resolve/{listing.commit}/{quote(file.path)}"


def fetch_blob(
    connection: Connection, listing: Listing, file: RemoteFile, repo: RepoCache, retry: Retry, watch: Watch
) -> None:
    """Make the cache hold the blob of `file`, verified. Safe against other threads and processes.

    Raises DownloadError, one line: gated or gone, no network after all retries, wrong content twice; OSError
    when the disk is full or the cache cannot be written.
    """
    blob = repo.blob(file)
    blob.parent.mkdir(parents=True, exist_ok=True)
    waiting = f"Another process is fetching {file.path}; waiting for it."
    with locked(repo.lock(file), watch.pause, lambda: watch.note(waiting)):
        if _is_whole(blob, file):
            watch.found(file.size)
            return
        part = PartFile(blob.with_name(blob.name + ".part"), file, watch)
        part.adopt(blob)
        try:
            _complete(connection, listing, file, part, retry, watch)
        except WrongContent:
            watch.note(f"{file.path} arrived damaged; fetching it once more.")
            try:
                _complete(connection, listing, file, part, retry, watch)
            except WrongContent:
                raise DownloadError(
                    f"{listing.hub_id}: {file.path} arrived with wrong content twice (its checksum differs). "
                    "Try again later, or over another network."
                ) from None
        part.become(blob)


def _is_whole(blob: Path, file: RemoteFile) -> bool:
    try:
        return blob.stat().st_size == file.size
    except OSError:
        return False


def _complete(
    connection: Connection, listing: Listing, file: RemoteFile, part: "PartFile", retry: Retry, watch: Watch
) -> None:
    """Bring the part file to full size and check its content. Raises WrongContent with the part emptied."""
    url, what = file_url(connection, listing, file), f"{listing.hub_id}: {file.path}"
    patience = Patience(retry, watch.pause, what, connection.hub.endpoint)
    with part.opened():
        furthest = part.length
        while part.length < file.size:
            try:
                with connection.stream(url, what, part.request_headers()) as response:
                    _receive(response, part)
            except TryAgain as error:
                if part.length == file.size:
                    break  # all is here; only the end of the answer was odd
                if part.length >= furthest + PROGRESS_THAT_COUNTS:
                    patience.progressed()
                    furthest = part.length
                patience.failed(error)
        part.verify()


def _receive(response: Any, part: "PartFile") -> None:
    """Append the body of a response. Raises TryAgain when it ends early or is not the range asked for."""
    if response.status_code == 416:
        part.restart()
        raise TryAgain("the hub has no such range (416)")
    if response.status_code == 200:
        part.restart()  # the whole file: the server ignores ranges, or its copy is not the one we began
    elif _range_start(response.headers.get("content-range", "")) != part.length:
        part.restart()
        raise TryAgain("the hub sends another range than asked for")
    part.note_etag(response.headers.get("etag"))
    for chunk in response.iter_raw():
        part.append(chunk)
    if part.length < part.file.size:
        raise TryAgain("the connection was cut")


def _range_start(content_range: str) -> int | None:
    """The first byte's offset in `bytes 7-41/42`."""
    unit, _, span = content_range.strip().partition(" ")
    first = span.partition("-")[0]
    return int(first) if unit == "bytes" and first.isdecimal() and len(first) < 20 else None


class PartFile:
    """What has arrived of a file so far, and its running checksum."""

    def __init__(self, path: Path, file: RemoteFile, watch: Watch) -> None:
        self.path, self.file, self.watch = path, file, watch
        self.length = 0
        self._etag_path = path.with_name(path.name + ".etag")
        self._hash = self._new_hash()
        self._output: BinaryIO

    def adopt(self, blob: Path) -> None:
        """A blob of the wrong size: what it has may be a good beginning, the checksum will tell."""
        if not os.path.lexists(blob):
            return
        kept = self.path.stat().st_size if self.path.exists() else 0
        if blob.is_file() and not blob.is_symlink() and kept < blob.stat().st_size < self.file.size:
            os.replace(blob, self.path)
        else:
            blob.unlink()

    @contextlib.contextmanager
    def opened(self) -> Iterator[None]:
        """Hash what is there, then hold the file open for appending."""
        self._hash, self.length = self._new_hash(), 0
        with self.path.open("a+b", buffering=0) as self._output:
            self._output.seek(0)
            while chunk := self._output.read(CHUNK):
                self._count(chunk, self.watch.found)
                if self.length > self.file.size:
                    self.restart()
                    break
            yield
            os.fsync(self._output.fileno())

    def request_headers(self) -> dict[str, str]:
        if self.length == 0:
            return {}
        headers = {"range": f"bytes={self.length}-"}
        with contextlib.suppress(OSError, ValueError):
            headers["if-range"] = self._etag_path.read_text(encoding="ascii")
        return headers

    def note_etag(self, etag: str | None) -> None:
        """Remember a strong validator, by which the next run proves it continues the same bytes."""
        if etag and etag.startswith('"') and etag.isascii() and etag.isprintable() and len(etag) < 300:
            write_atomically(self._etag_path, etag.encode())
        else:
            self._etag_path.unlink(missing_ok=True)

    def append(self, chunk: bytes) -> None:
        if self.length + len(chunk) > self.file.size:
            self.restart()
            raise WrongContent
        view = memoryview(chunk)
        while view:
            view = view[self._output.write(view) :]
        self._count(chunk, self.watch.advance)

    def restart(self) -> None:
        self._output.truncate(0)
        self.watch.advance(-self.length)
        self._hash, self.length = self._new_hash(), 0
        self._etag_path.unlink(missing_ok=True)

    def verify(self) -> None:
        if self._hash.hexdigest() != self.file.digest:
            self.restart()
            raise WrongContent

    def become(self, blob: Path) -> None:
        """Take the blob's name; after a crash the folder shows either the part or the whole blob."""
        os.replace(self.path, blob)
        self._etag_path.unlink(missing_ok=True)
        descriptor = os.open(blob.parent, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def _count(self, chunk: bytes, tell: Callable[[int], None]) -> None:
        self._hash.update(chunk)
        self.length += len(chunk)
        tell(len(chunk))
        self.watch.pause(0)

    def _new_hash(self) -> Any:
        if self.file.lfs:
            return hashlib.sha256()
        # Git's name for a blob. It guards against damage on the way, not against a forger of sha1 collisions.
        return hashlib.sha1(b"blob %d\0" % self.file.size, usedforsecurity=False)


def disk_error(error: OSError, cache: Path) -> DownloadError:
    """The line for a person when writing to the cache failed."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DownloadError(
            f"The disk of {cache} is full. Free some space and start again (what has arrived is kept), or set "
            "HF_HOME to a folder on another disk."
        )
    reason = (error.strerror or str(error)).lower()
    return DownloadError(f"The hub cache cannot be written: {error.filename or cache}: {reason}.")
