"""The tree of token spans behind the prefix store: who follows whom, what each span holds, what a prompt has in common.

A node is a span of ids after its parent. Its segment is the span's KV, stored once; its checkpoint is the recurrent
state at its end. Knows nothing of budgets, files or live sequences.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from mlx_qwen35.caches.delta_state import Snapshot
from mlx_qwen35.caches.disk_files import node_key
from mlx_qwen35.caches.kv import Segment

Ids = array  # of unsigned 32-bit numbers


def as_ids(ids: Sequence[int]) -> Ids:
    return array("I", ids)


def common_prefix(a: Ids, a_from: int, b: Ids) -> int:
    """How many ids of `a` from `a_from` on equal those of `b` from its start."""
    low, high = 0, min(len(a) - a_from, len(b))
    if a[a_from : a_from + high] == b[:high]:
        return high
    while high - low > 1:  # equal up to low, not up to high
        middle = (low + high) // 2
        if a[a_from + low : a_from + middle] == b[low:middle]:
            low = middle
        else:
            high = middle
    return low


@dataclass(eq=False)
class Node:
    """A span of ids and what is held of it; None where it is not in memory."""

    key: str
    parent: Node | None
    ids: Ids
    end: int  # tokens from the start of the text
    segment: list[Segment] | None = None  # one for each attention layer
    checkpoint: list[Snapshot] | None = None  # one for each DeltaNet layer
    segment_on_disk: bool = False
    checkpoint_on_disk: bool = False
    root: Node | None = None  # None in a root, which stands for one format of caches
    pins: int = 0  # live sequences that stand here
    holds: int = 0  # open sessions that want to go on from here
    ahead: int = 0  # tokens up to here that were read ahead, and not used by anybody yet
    children: dict[int, list[Node]] = field(default_factory=dict)  # by their first id

    @property
    def reachable(self) -> bool:
        """Whether the span's KV can be had."""
        return self.parent is None or self.segment is not None or self.segment_on_disk

    @property
    def restorable(self) -> bool:
        return self.checkpoint is not None or self.checkpoint_on_disk

    @property
    def nbytes(self) -> int:
        """In memory."""
        arrays = [a for part in (self.segment or [], self.checkpoint or []) for layer in part for a in layer]
        return sum(a.nbytes for a in arrays)

    def apart(self, name: str) -> Node:
        """The root of another tree of this format, which no disk knows."""
        assert self.parent is None
        return Node(f"{self.key} {name}", None, as_ids([]), 0)

    def path(self) -> list[Node]:
        """From the first span of the text to this one."""
        nodes, node = [], self
        while node.parent is not None:
            nodes.append(node)
            node = node.parent
        return nodes[::-1]

    def all_ids(self) -> list[int]:
        return [token for node in self.path() for token in node.ids]

    def child(self, ids: Ids) -> Node | None:
        """The child with exactly these ids."""
        return next((node for node in self.children.get(ids[0], ()) if node.ids == ids), None)

    def adopt(self, ids: Ids) -> Node:
        """The child with these ids, made if need be."""
        node = self.child(ids)
        if node is None:
            node = Node(node_key(self.key, ids), self, ids, self.end + len(ids), root=self.root or self)
            self.children.setdefault(ids[0], []).append(node)
        return node

    def leave(self) -> None:
        """Out of the tree."""
        assert self.parent is not None
        siblings = self.parent.children[self.ids[0]]
        siblings.remove(self)
        if not siblings:
            del self.parent.children[self.ids[0]]

    def latest(self) -> Node:
        """The end of a text that goes through this node, one of the last that came."""
        node = self
        while node.children:
            node = list(node.children.values())[-1][-1]
        return node

    def each_child(self) -> Iterator[Node]:
        return (child for siblings in self.children.values() for child in siblings)

    def descendants(self) -> Iterator[Node]:
        # No recursion: a long agent's run is a chain of thousands of nodes.
        waiting: list[Node] = [self]
        while waiting:
            children = list(waiting.pop().each_child())
            yield from children
            waiting.extend(children)


@dataclass(frozen=True)
class Match:
    """How much of a prompt is known.

    node: where to restore from; the root where nothing can be   length: its end
    common: ids the prompt shares with some earlier text   nearest: that text's last node
    lost: a deeper node would have served, but was evicted
    """

    node: Node
    length: int
    common: int
    nearest: Node
    lost: bool


def match(root: Node, ids: Ids, limit: int) -> Match:
    """The deepest restorable node whose text begins `ids`, at most `limit` tokens long."""
    best, common, nearest, lost_at = root, 0, root, 0
    waiting = [(root, True)]
    while waiting:
        node, reachable = waiting.pop()
        for child in node.children.get(ids[node.end], ()) if node.end < len(ids) else ():
            shared = common_prefix(ids, node.end, child.ids)
            if node.end + shared > common:
                common, nearest = node.end + shared, child
            if shared < len(child.ids):
                continue
            usable = reachable and child.reachable
            if child.end <= limit and usable and child.restorable and child.end > best.end:
                best = child
            if child.end <= limit and not (usable and child.restorable):
                lost_at = max(lost_at, child.end)
            waiting.append((child, usable))
    return Match(best, best.end, common, nearest.latest(), lost_at > best.end)
