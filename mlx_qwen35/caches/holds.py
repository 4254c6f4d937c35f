"""What an open session asks the prefix store to keep for it. Lives on the MLX thread."""

from __future__ import annotations

from collections.abc import Sequence

from mlx_qwen35.caches.prefix_tree import Node


class Hold:
    """The nodes from which a session's next turn may go on.

    Held nodes give way to live sequences only, where memory itself runs out; a pin never does. Nodes that several
    sessions hold, such as forks, count once for each.
    """

    def __init__(self) -> None:
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

    def close(self) -> None:
        self.move([])
        self._closed = True
