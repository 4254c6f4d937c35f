"""What an open session asks the prefix store to keep for it. Lives on the MLX thread."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from mlx_qwen35.caches.prefix_tree import Node


class Hold:
    """The nodes from which a session's next turn may go on.

    Held nodes give way to live sequences only, where memory itself runs out; a pin never does. Nodes that several
    sessions hold, such as forks, count once for each.

    root: of a tree apart, where the session's numbers came from somebody who need not be trusted: they are gone on from
    by this session only, and nothing of it is written to disk. None is the tree that all texts share.
    """

    def __init__(self, root: Node | None = None) -> None:
        self.root = root
        self.nodes: list[Node] = []
        self._closed = False

    def move(self, nodes: Sequence[Node]) -> None:
        """Hold these, and no longer those before. Not after the end: what still runs then leaves nothing held."""
        if self._closed:
            return
        for node in nodes:
            node.holds += 1
        for node in self.nodes:
            node.holds -= 1
        self.nodes = list(nodes)

    @property
    def tokens(self) -> int:
        """How much of the session is in memory, up to where its next turn may go on."""
        ends = [node.end for node in self.nodes if node.checkpoint is not None]
        return max(ends, default=0)

    @property
    def closed(self) -> bool:
        """Whether nobody goes on from there any more."""
        return self._closed

    def close(self) -> None:
        self.move([])
        self._closed = True


def held_bytes(holds: Iterable[Hold]) -> int:
    """What they keep in memory; what several hold counts once."""
    nodes = {id(step): step for hold in holds for node in hold.nodes for step in node.path()}
    return sum(node.nbytes for node in nodes.values())
