"""Between the prefix tree and the files it is kept in: nodes to entries and back."""

from __future__ import annotations

from weakref import WeakValueDictionary

from mlx_qwen35.caches.blobs import Layouts, arrays_of, blobs_of
from mlx_qwen35.caches.disk_store import DiskStore
from mlx_qwen35.caches.prefix_tree import Node, as_ids

DRAIN_SECONDS = 10


class DiskTree:
    """A disk store that speaks of nodes. A file whose arrays are not those of `layouts` is a miss."""

    def __init__(self, store: DiskStore, layouts: Layouts) -> None:
        self.store, self._layouts = store, layouts
        self._written: WeakValueDictionary[str, Node] = WeakValueDictionary()

    def grow(self, root: Node) -> None:
        """Give the tree the nodes that are on disk; nothing is read yet but names and ids."""
        known = {root.key: root}
        for entry in self.store.entries():
            parent = known.get(entry.parent)
            if parent is None or not entry.ids:
                continue
            node = known[entry.key] = parent.adopt(as_ids(entry.ids))
            node.segment_on_disk, node.checkpoint_on_disk = True, entry.checkpoint_bytes > 0
            self._written[node.key] = node

    @property
    def is_full(self) -> bool:
        """Whether new nodes should wait."""
        return self.store.is_full

    def drain(self) -> bool:
        """Wait until new nodes need not wait; False if the disk is too slow for that."""
        return not self.is_full or self.store.flush(DRAIN_SECONDS)

    def save(self, node: Node) -> None:
        """Queue what the disk does not have of a node."""
        self._settle()
        assert node.parent is not None
        self._written[node.key] = node
        if not node.segment_on_disk and node.segment is not None:
            checkpoint = None if node.checkpoint is None else blobs_of(node.checkpoint)
            queued = self.store.put(node.key, node.parent.key, node.ids, blobs_of(node.segment), checkpoint)
            node.segment_on_disk, node.checkpoint_on_disk = queued, queued and node.checkpoint is not None
        elif node.segment_on_disk and not node.checkpoint_on_disk and node.checkpoint is not None:
            node.checkpoint_on_disk = self.store.put_checkpoint(node.key, blobs_of(node.checkpoint))

    def _settle(self) -> None:
        """Learn which files are not there after all. A node that lost one is as if it had lost both."""
        for key in self.store.lost():
            if (node := self._written.get(key)) is not None:
                node.segment_on_disk = node.checkpoint_on_disk = False

    def load(self, node: Node, part: str) -> bool:
        """Read a node's "segment" or "checkpoint" into memory; False, and not on disk any more, where that fails."""
        on_disk = node.segment_on_disk if part == "segment" else node.checkpoint_on_disk
        read = self.store.read_segment if part == "segment" else self.store.read_checkpoint
        blobs = read(node.key) if on_disk else None
        shapes = self._layouts.segment if part == "segment" else self._layouts.checkpoint
        tokens = len(node.ids) if part == "segment" else None
        arrays = None if blobs is None else arrays_of(blobs, shapes, tokens)
        if arrays is None:
            if part == "segment":
                node.segment_on_disk = False
            node.checkpoint_on_disk = False
            return False
        setattr(node, part, arrays)
        return True

    def touch(self, node: Node) -> None:
        if node.segment_on_disk:
            self.store.touch([node.key])

    def close(self) -> None:
        self.store.close()
