"""The hub cache on disk: where it lies, its layout, and locks. No network and no import of huggingface_hub.

The layout is huggingface_hub's (blobs named by digest, snapshots of links to them, refs), so that every other
tool sees the files. What we add lies beside it and is ignored by others: `<blob>.part` while a file is
fetched, and `mlx-qwen35/<commit>.json`, the listing that lets a later run check sizes without the network.
"""

import contextlib
import fcntl
import json
import os
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlx_qwen35.errors import CheckpointError, DownloadError
from mlx_qwen35.hub.headers import is_inside
from mlx_qwen35.hub.jsonfile import read_json

_NAME = r"[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9_])?"
_HUB_ID = re.compile(rf"{_NAME}/{_NAME}")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class RemoteFile:
    """A file of a repository. digest: sha256 of its bytes if `lfs`, else its git blob id (sha1); hexadecimal."""

    path: str
    size: int
    digest: str
    lfs: bool


@dataclass(frozen=True)
class Listing:
    """All files of a repository at one commit."""

    hub_id: str
    commit: str
    files: tuple[RemoteFile, ...]

    def find(self, path: str) -> RemoteFile | None:
        return next((file for file in self.files if file.path == path), None)


@dataclass(frozen=True)
class RepoCache:
    """The folder of one repository in the cache."""

    hub_id: str
    cache: Path

    @property
    def folder(self) -> Path:
        return self.cache / ("models--" + self.hub_id.replace("/", "--"))

    def snapshot(self, commit: str) -> Path:
        return self.folder / "snapshots" / commit

    def blob(self, file: RemoteFile) -> Path:
        return self.folder / "blobs" / file.digest

    def lock(self, file: RemoteFile) -> Path:
        # The path huggingface_hub locks too, so that the two never fetch the same file at once.
        return self.cache / ".locks" / self.folder.name / f"{file.digest}.lock"

    def commit(self, revision: str) -> str | None:
        """The commit that a branch, tag or commit stood for when it was last fetched."""
        if is_commit(revision):
            return revision if self.snapshot(revision).is_dir() else None
        try:
            commit = (self.folder / "refs" / revision).read_text(encoding="ascii").strip()
        except (OSError, ValueError):
            return None
        return commit if is_commit(commit) and self.snapshot(commit).is_dir() else None

    def remember(self, revision: str, commit: str) -> None:
        """Record which commit a branch or tag stands for."""
        if revision != commit:
            write_atomically(self.folder / "refs" / revision, commit.encode())

    def save_listing(self, listing: Listing) -> None:
        files = {file.path: [file.size, file.digest, file.lfs] for file in listing.files}
        path = self.folder / "mlx-qwen35" / f"{listing.commit}.json"
        write_atomically(path, json.dumps({"version": 1, "files": files}, indent=0).encode())

    def load_listing(self, commit: str) -> Listing | None:
        """The listing saved here, or the one huggingface_hub keeps; None when neither is there and sound."""
        for path, parse in (
            (self.folder / "mlx-qwen35" / f"{commit}.json", _our_files),
            (self.folder / "trees" / f"{commit}.json", _their_files),
        ):
            with contextlib.suppress(CheckpointError, DownloadError, KeyError, TypeError, ValueError):
                return Listing(self.hub_id, commit, tuple(parse(read_json(path)["files"])))
        return None

    def holds(self, commit: str, file: RemoteFile) -> bool:
        """Whether the snapshot has the file in its full size."""
        try:
            return (self.snapshot(commit) / file.path).stat().st_size == file.size
        except OSError:
            return False

    def link(self, commit: str, file: RemoteFile) -> None:
        """Make the snapshot show the blob under its name."""
        pointer, blob = self.snapshot(commit) / file.path, self.blob(file)
        pointer.parent.mkdir(parents=True, exist_ok=True)
        temporary = pointer.with_name(f".{pointer.name}.{os.getpid()}.{time.monotonic_ns()}")
        try:
            os.symlink(os.path.relpath(blob, pointer.parent), temporary)
        except OSError:
            # A disk without symbolic links: the snapshot holds the file itself, as huggingface_hub does it.
            os.replace(blob, pointer)
        else:
            os.replace(temporary, pointer)


def cache_folder() -> Path:
    """The folder huggingface_hub would use, from the same environment variables in the same order."""
    base = os.environ.get("XDG_CACHE_HOME", os.path.join("~", ".cache"))
    home = _expanded(os.environ.get("HF_HOME", os.path.join(base, "huggingface")))
    legacy = os.environ.get("HUGGINGFACE_HUB_CACHE", os.path.join(home, "hub"))
    return Path(_expanded(os.environ.get("HF_HUB_CACHE", legacy)))


def prefix_folder() -> Path:
    """Where what was computed of texts outlives the process, unless the user names another folder."""
    base = os.environ.get("XDG_CACHE_HOME", os.path.join("~", ".cache"))
    return Path(_expanded(base)) / "mlx-qwen35" / "prefixes"


def is_hub_id(text: str) -> bool:
    """Whether text has the form org/name of a repository on the hub."""
    return _HUB_ID.fullmatch(text) is not None and "--" not in text and ".." not in text


def is_commit(text: str) -> bool:
    return _COMMIT.fullmatch(text) is not None


def remote_file(path: Any, size: Any, digest: Any, lfs: Any) -> RemoteFile:
    """Check what a server said about a file. Raises DownloadError.

    The path and the digest become names on disk, so a bad one is refused, never repaired.
    """
    if not isinstance(path, str) or not is_inside(path):
        raise DownloadError(
            f"The hub lists a file named {str(path)[:80]!r}, which could leave the cache folder. Nothing was fetched."
        )
    if type(size) is not int or not 0 <= size < 1 << 50:
        raise DownloadError(f"The hub gives no sound size for {path!r}: {str(size)[:40]!r}. Try again later.")
    pattern = _SHA256 if lfs is True else _COMMIT
    if not isinstance(digest, str) or not pattern.fullmatch(digest):
        raise DownloadError(f"The hub gives no sound checksum for {path!r}. Try again later.")
    return RemoteFile(path, size, digest, lfs is True)


def write_atomically(path: Path, content: bytes, mode: int = 0o666) -> None:
    """Write a small file so that a reader, or a crash, sees the old content or the new. mode: of a file made anew"""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{time.monotonic_ns()}")
    try:
        with open(temporary, "wb", opener=lambda name, flags: os.open(name, flags, mode)) as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def locked(path: Path, pause: Callable[[float], None], waiting: Callable[[], None]) -> Iterator[None]:
    """Hold an exclusive lock on `path`, between threads and processes; the system frees it if we die.

    While another holds it, calls waiting() once and then pause(seconds) between tries; what pause raises ends
    the wait.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o664)
    try:
        told = False
        while not _try_lock(descriptor):
            if not told:
                waiting()
                told = True
            pause(0.2)
        yield
    finally:
        os.close(descriptor)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        # A network disk without locks. Content is checked before it is renamed into place, so two writers can
        # waste work but not leave a wrong file.
        return True
    return True


def _our_files(files: dict[str, Any]) -> Iterator[RemoteFile]:
    for path, (size, digest, lfs) in files.items():
        yield remote_file(path, size, digest, lfs)


def _their_files(files: dict[str, Any]) -> Iterator[RemoteFile]:
    for path, entry in files.items():
        sha256 = entry.get("lfs_sha256")
        lfs = sha256 is not None
        size = entry["lfs_size"] if lfs else entry["size"]
        yield remote_file(path, size, sha256 if lfs else entry["blob_id"], lfs)


def _expanded(path: str) -> str:
    return os.path.expandvars(os.path.expanduser(path))
