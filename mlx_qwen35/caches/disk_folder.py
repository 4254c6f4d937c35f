"""The folder of the prefix store: what lies in it, what has to go to make room, and what was written today.

The folder itself is the index: several processes share it, so every decision is taken from a fresh listing under
its lock. Only files with our names, in folders named like a fingerprint, are counted or removed. Knows nothing of
threads, queues and warnings.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections import deque
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from mlx_qwen35.caches import disk_files, sealed
from mlx_qwen35.caches.disk_files import FILE_NAME, FINGERPRINT, SEGMENT, TEMPORARY_NAME, Damaged

BLOCK = 4096  # a file takes whole blocks of the disk, so that is how it is counted
LOCK_NAME = ".lock"
COUNTER_NAME = "written-today.json"
_ABANDONED_SECONDS = 3600.0  # a process id may have been given to somebody else, who lives on

NodeId = tuple[str, str]  # fingerprint, key


@dataclass(frozen=True)
class StoredFile:
    """A file of the store as the listing shows it; `used_ns` is its last use (the modification time)."""

    path: Path
    node: NodeId
    kind: str
    size: int
    used_ns: int


def on_disk(size: int) -> int:
    """Bytes that a file of `size` bytes takes, in whole blocks."""
    return -(-size // BLOCK) * BLOCK


def listing(folder: Path) -> list[StoredFile]:
    """Every file of the store, of all fingerprints; removes temporaries that no living process is writing.

    A missing folder is an empty one. Temporaries being written are not listed: their writer holds the lock.
    """
    found: list[StoredFile] = []
    for part in _scan(folder):
        if FINGERPRINT.fullmatch(part.name) and part.is_dir(follow_symlinks=False):
            for entry in _scan(Path(part.path)):
                # A folder under a file's name is somebody's, and not ours to empty; a link is listed, and goes first.
                if (match := FILE_NAME.fullmatch(entry.name)) and not entry.is_dir(follow_symlinks=False):
                    with contextlib.suppress(FileNotFoundError):
                        status = entry.stat(follow_symlinks=False)
                        node, size = (part.name, match[1]), on_disk(status.st_size)
                        found.append(StoredFile(Path(entry.path), node, match[2], size, status.st_mtime_ns))
                elif match := TEMPORARY_NAME.fullmatch(entry.name):
                    _remove_if_abandoned(entry, int(match[1]))
    return found


def to_evict(
    files: list[StoredFile], excess: int, keep: Collection[NodeId], parents: dict[Path, str]
) -> list[StoredFile] | None:
    """Which files to remove to free `excess` bytes; None if even removing all that may go is too little.

    First what is of no use (no way to it from the root; a leaf without checkpoint), then by last use: checkpoints,
    and leaves with all they have. A node with children keeps its segment, and so do the nodes in `keep`; when the last
    checkpoint at the end of a chain goes, so do the segments that nobody can restore from any more.
    `parents` is a memory between calls: a key is the hash of its parent and ids, so what was read once stays true.
    Raises OSError where a header cannot be read, so that trouble with the disk is not taken for rubbish.
    """
    chosen: list[StoredFile] = []
    if excess <= 0:
        return chosen
    for path in parents.keys() - {file.path for file in files}:
        del parents[path]
    for group in _Tree(files, keep, parents).in_order():
        chosen += group
        excess -= sum(file.size for file in group)
        if excess <= 0:
            return chosen
    return None


def remove(files: list[StoredFile]) -> None:
    """Delete files; one that is already gone is no error, any other failure an OSError."""
    for file in files:
        file.path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            file.path.parent.rmdir()  # succeeds on the last file only


def written_today(folder: Path) -> int:
    """Bytes written since local midnight, by all processes. A counter that cannot be read starts at 0."""
    try:
        with sealed.opened(folder / COUNTER_NAME) as (file, _):
            counter = json.loads(file.read(1000))
        count = counter["bytes"] if counter["day"] == today() else 0
    except (Damaged, OSError, ValueError, KeyError, TypeError, RecursionError):
        return 0
    return count if type(count) is int and count >= 0 else 0


def count_written(folder: Path, size: int) -> None:
    """Add to today's counter; the caller holds the lock. Raises OSError."""
    content = json.dumps({"day": today(), "bytes": written_today(folder) + size}).encode()
    temporary = folder / f".{COUNTER_NAME}.tmp"  # one name: the lock keeps others away, a crash leaves one file
    temporary.write_bytes(content)
    os.replace(temporary, folder / COUNTER_NAME)


def today() -> str:
    return time.strftime("%Y-%m-%d")


@dataclass
class _Node:
    segment: StoredFile | None = None
    checkpoint: StoredFile | None = None
    parent: NodeId | None = None  # None: the root, or unknown
    children: int = 0
    reachable: bool = False

    @property
    def files(self) -> list[StoredFile]:
        return [file for file in (self.checkpoint, self.segment) if file is not None]


class _Tree:
    """The nodes on disk and the order in which they may go."""

    def __init__(self, files: list[StoredFile], keep: Collection[NodeId], parents: dict[Path, str]) -> None:
        self._keep = keep
        self._nodes: dict[NodeId, _Node] = {}
        for file in files:
            node = self._nodes.setdefault(file.node, _Node())
            if file.kind == SEGMENT:
                node.segment = file
            else:
                node.checkpoint = file
        self._link(parents)

    def _link(self, parents: dict[Path, str]) -> None:
        children: dict[NodeId, list[NodeId]] = {}
        reached: deque[NodeId] = deque()
        for name, node in self._nodes.items():
            parent = _parent_of(node.segment.path, parents) if node.segment else None
            if parent == name[0]:
                reached.append(name)
            elif parent is not None:
                node.parent = (name[0], parent)
                children.setdefault(node.parent, []).append(name)
        while reached:
            name = reached.popleft()
            node = self._nodes[name]
            node.reachable = True
            node.children = len(children.get(name, ()))
            reached.extend(children.get(name, ()))

    def in_order(self) -> Iterator[list[StoredFile]]:
        lost = [node for node in self._nodes.values() if not node.reachable]
        # What is damaged goes before a whole subtree, which is of use again once the node above it is written anew.
        for node in sorted(lost, key=lambda node: (node.parent is not None, _last_use(node))):
            yield node.files
        found = [name for name, node in self._nodes.items() if node.reachable]
        found.sort(key=lambda name: _last_use(self._nodes[name]))
        for name in found:
            if freed := self._useless_from(name):
                yield freed
        for name in found:
            node = self._nodes[name]
            if node.checkpoint is not None:
                freed, node.checkpoint = [node.checkpoint], None
                yield freed + self._useless_from(name)

    def _useless_from(self, name: NodeId | None) -> list[StoredFile]:
        """Segments of `name` and then its ancestors, as far up as nothing hangs on them any more."""
        freed: list[StoredFile] = []
        while name is not None and name not in self._keep:
            node = self._nodes[name]
            if node.children or node.checkpoint or node.segment is None:
                break
            freed.append(node.segment)
            node.segment = None
            name = node.parent
            if name is not None:
                self._nodes[name].children -= 1
        return freed


def _last_use(node: _Node) -> int:
    """The checkpoint's if there is one: a restore starts there, and renews both files of a node."""
    return node.files[0].used_ns


def _parent_of(segment: Path, parents: dict[Path, str]) -> str | None:
    """Parent key from the segment's header; None if it is damaged or gone."""
    if segment not in parents:
        try:
            parents[segment] = disk_files.read_metadata(segment)[0]["parent"]
        except (Damaged, FileNotFoundError):
            return None
    return parents[segment]


def _scan(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except (FileNotFoundError, NotADirectoryError):
        return []


def _remove_if_abandoned(entry: os.DirEntry[str], process: int) -> None:
    with contextlib.suppress(OSError):
        age = time.time() - entry.stat(follow_symlinks=False).st_mtime
        if age > _ABANDONED_SECONDS or not _is_alive(process):
            os.unlink(entry.path)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True
