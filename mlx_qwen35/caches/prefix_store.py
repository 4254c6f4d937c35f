"""What earlier texts left behind: KV segments stored once, and checkpoints to go on from. Keyed by token ids.

Lives on the MLX thread. Within a byte budget in memory; a disk store, if given, holds the same tree across restarts.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Sequence

import mlx.core as mx

from mlx_qwen35.caches.delta_state import Snapshot
from mlx_qwen35.caches.disk_tree import DiskTree
from mlx_qwen35.caches.kv import Segment
from mlx_qwen35.caches.prefix_tree import Ids, Match, Node, as_ids, match
from mlx_qwen35.caches.rows import SequenceCache, attention_layers, recurrent_layers

REMEMBERED = 2_000  # evicted nodes whose ids are kept, to tell "evicted" from "never seen"


class PrefixStore:
    """The longest known prefix of a prompt can be lent to a fresh sequence; what sequences compute can be added.

    Each format of caches has a tree of its own, since one cannot go on from another's.
    """

    def __init__(self, byte_budget: int) -> None:
        self.byte_budget, self.nbytes, self.evictions = byte_budget, 0, 0
        self._roots: dict[str, Node] = {}
        self._disks: dict[str, DiskTree] = {}
        self._held: OrderedDict[str, Node] = OrderedDict()  # in memory, least recently used first
        self._forgotten: OrderedDict[str, Node] = OrderedDict()  # in the tree by their ids only
        self._unsaved: deque[Node] = deque()

    def root(self, fingerprint: str, open_disk: Callable[[], DiskTree | None] = lambda: None) -> Node:
        """Where the texts of one model and cache format begin. Asked for the first time, it reads what is on disk."""
        if fingerprint not in self._roots:
            self._roots[fingerprint] = Node(fingerprint, None, as_ids([]), 0)
            if (disk := open_disk()) is not None:
                self._disks[fingerprint] = disk
                disk.grow(self._roots[fingerprint])
        return self._roots[fingerprint]

    def match(self, root: Node, ids: Sequence[int]) -> Match:
        """What is known of a prompt. Its last token is left to compute, since its logits are wanted."""
        return match(root, as_ids(ids), len(ids) - 1)

    def restore(self, found: Match, cache: SequenceCache) -> Node:
        """Make an empty sequence's caches those after the match; returns the node, pinned for the sequence.

        What cannot be read from disk any more is as if it had never been known: the next best node serves.
        """
        node = found.node
        while node.parent is not None and not self.fetch(node):
            node = self._next_best(node)
        if node.parent is not None:
            path = node.path()
            for i, layer in enumerate(attention_layers(cache)):
                layer.load([n.segment[i] for n in path if n.segment is not None])
            for layer, snapshot in zip(recurrent_layers(cache), node.checkpoint or ()):
                layer.restore(snapshot, node.end)
            self._touch(node)
        self.pin(node)
        return node

    def add(self, parent: Node, ids: Sequence[int], cache: SequenceCache) -> Node:
        """Keep what a sequence computed after `parent`: the span `ids`, at whose end its caches stand now.

        The sequence's pin moves from `parent` to the new node.
        """
        if not ids:
            return parent
        layers, states = attention_layers(cache), recurrent_layers(cache)
        node = parent.adopt(as_ids(ids))
        segment = node.segment or [layer.segment(parent.end, node.end) for layer in layers]
        checkpoint = node.checkpoint or [layer.snapshot() for layer in states]
        self.place(parent, node.ids, segment, checkpoint)
        self.pin(node)
        self.unpin(parent)
        self.shrink(self.byte_budget)
        return node

    def place(self, parent: Node, ids: Ids, segment: list[Segment], checkpoint: list[Snapshot]) -> Node:
        """Keep a span of at least one id with what is known of it. Evicts nothing yet, so that it can be pinned."""
        node = parent.adopt(ids)
        self._forgotten.pop(node.key, None)
        before = node.nbytes
        node.segment, node.checkpoint = node.segment or segment, node.checkpoint or checkpoint
        self._evaluate(node)
        self.nbytes += node.nbytes - before
        self._touch(node)
        if self._disk(node) is not None and not (node.segment_on_disk and node.checkpoint_on_disk):
            self._unsaved.append(node)
        return node

    def pin(self, node: Node) -> None:
        """Keep a node, and so all before it, in memory."""
        node.pins += 1

    def unpin(self, node: Node) -> None:
        node.pins -= 1
        assert node.pins >= 0

    def shrink(self, nbytes: int) -> bool:
        """Evict, least recently used first, until at most `nbytes` are held; False if pins and sessions hold more."""
        return self._evict_down_to(nbytes, lambda node: not node.holds)

    def squeeze(self, nbytes: int) -> bool:
        """The same where memory runs out: sessions give way too, after all others. False if pins hold more."""
        return self.shrink(nbytes) or self._evict_down_to(nbytes, lambda _: True)

    @property
    def unsaved(self) -> int:
        """New nodes that the disk store was not given yet."""
        return len(self._unsaved)

    def save_one(self) -> bool:
        """Hand one new node to the disk store; whether there was one."""
        while self._unsaved:
            disk = self._disk(self._unsaved[0])
            if disk is not None and disk.is_full:
                return False
            node = self._unsaved.popleft()
            if disk is not None and node.segment is not None:
                disk.save(node)
                return True
        return False

    def close(self) -> None:
        """Save what is not saved yet, and let go of everything."""
        patient = True
        while self.save_one() or (self._unsaved and patient):
            patient = all(disk.drain() for disk in self._disks.values())
        for disk in self._disks.values():
            disk.close()
        for kept in (self._held, self._forgotten, self._roots, self._disks):
            kept.clear()
        self.nbytes = 0

    def _disk(self, node: Node) -> DiskTree | None:
        return self._disks.get((node.root or node).key)

    def fetch(self, node: Node) -> bool:
        """Have a node's checkpoint and all segments before it in memory."""
        for step in node.path():
            if step.segment is None and not self._load(step, "segment"):
                return False
        return node.checkpoint is not None or self._load(node, "checkpoint")

    def _load(self, node: Node, part: str) -> bool:
        before, disk = node.nbytes, self._disk(node)
        if disk is None or not disk.load(node, part):
            return False  # what follows a lost segment is out of reach until the segment is computed again
        self.nbytes += node.nbytes - before
        self._touch(node)
        return True

    def _next_best(self, node: Node) -> Node:
        """The nearest node before one that turned out to be damaged."""
        while node.parent is not None:
            node = node.parent
            if all(step.reachable for step in node.path()) and node.restorable:
                break
        return node

    def _touch(self, node: Node) -> None:
        self._held[node.key] = node
        self._held.move_to_end(node.key)
        if (disk := self._disk(node)) is not None:
            disk.touch(node)

    def _evict_down_to(self, nbytes: int, may_go: Callable[[Node], bool]) -> bool:
        evicted = True
        while self.nbytes > nbytes and evicted:
            evicted = False
            for node in list(self._held.values()):
                if self.nbytes <= nbytes:
                    break
                if node.key in self._held and may_go(node) and self._evictable(node):
                    self._evict(node)
                    evicted = True
        return self.nbytes <= nbytes

    def _evictable(self, node: Node) -> bool:
        """A node with others after it keeps its segment as long as they need it, and may lose its checkpoint."""
        return node.pins == 0 and (node.checkpoint is not None or not self._needed(node))

    def _needed(self, node: Node) -> bool:
        # What is in memory is there with all before it, so the next spans tell.
        return any(child.segment is not None or child.pins for child in node.each_child())

    def _evict(self, node: Node) -> None:
        self.evictions += 1
        if self._needed(node):
            self.nbytes -= node.nbytes
            node.checkpoint = None
            self.nbytes += node.nbytes
            return
        while node.parent is not None:
            self._forget(node)
            node = node.parent
            # What led to it only, and is nothing to go on from, is of no use any more.
            if node.segment is None or node.restorable or node.pins or node.holds or self._needed(node):
                break

    def _forget(self, node: Node) -> None:
        self.nbytes -= node.nbytes
        node.segment = node.checkpoint = None
        self._held.pop(node.key, None)
        self._forgotten[node.key] = node
        while len(self._forgotten) > REMEMBERED:
            _, oldest = self._forgotten.popitem(last=False)
            if not (oldest.children or oldest.segment_on_disk or oldest.pins or oldest.holds):
                oldest.leave()

    @staticmethod
    def _evaluate(node: Node) -> None:
        mx.async_eval([a for part in (node.segment, node.checkpoint) for layer in part or () for a in layer])
