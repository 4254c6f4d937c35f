"""A text's prefix taken out of the store, as bytes for a session file, and put back in another process.

Lives on the MLX thread. Knows nothing of files.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import mlx.core as mx

from mlx_qwen35.caches.blobs import Layouts, arrays_of, blob_of
from mlx_qwen35.caches.holds import Hold
from mlx_qwen35.caches.prefix_store import PrefixStore
from mlx_qwen35.caches.prefix_tree import Node, as_ids, match
from mlx_qwen35.caches.sealed import Blob


@dataclass(frozen=True)
class Carried:
    """fingerprint: of model and cache format   ends: ascending, where the spans of `ids` end, each with a checkpoint

    blobs: `{span}.segment.{layer}.{array}` and `{span}.checkpoint.{layer}.{array}`
    """

    fingerprint: str
    ids: Sequence[int]
    ends: tuple[int, ...]
    blobs: Mapping[str, Blob]

    @property
    def nbytes(self) -> int:
        return sum(len(memoryview(blob.data).cast("B")) for blob in self.blobs.values())


class Packer:
    """The longest known prefix of `ids`, array by array, so that running streams go on in between.

    Spans reach from one held checkpoint to the next; checkpoints that nobody holds are left out.
    """

    def __init__(self, store: PrefixStore, root: Node, ids: Sequence[int], hold: Hold) -> None:
        node = match(root, as_ids(ids), len(ids)).node
        while node.parent is not None and not store.fetch(node):
            node = match(root, as_ids(ids), len(ids)).node
        spans = _spans(node.path(), [*hold.nodes, node])
        self.ends = tuple(span[-1].end for span in spans)
        # References, which stay what they are if the store evicts meanwhile.
        self._arrays = [item for i, span in enumerate(spans) for item in _arrays(i, span)][::-1]

    def pack_one(self) -> tuple[str, Blob] | None:
        """The next array's name and bytes; None after the last."""
        if not self._arrays:
            return None
        name, parts = self._arrays.pop()
        return name, blob_of(parts[0] if len(parts) == 1 else mx.concatenate(parts, axis=2))

    def close(self) -> None:
        self._arrays.clear()


def put_back(store: PrefixStore, root: Node, layouts: Layouts, carried: Carried, hold: Hold, spare_bytes: int) -> bool:
    """Make a carried prefix known again, and held; False where its arrays are not those of this model's caches.

    spare_bytes: what all sessions together may hold; those that were used longest ago give way
    """
    ids = as_ids(carried.ids)
    nodes = [match(root, ids, end).node for end in carried.ends]
    if [node.end for node in nodes] != list(carried.ends):
        spans = []
        for i, (start, end) in enumerate(zip((0, *carried.ends), carried.ends)):
            segment = arrays_of(carried.blobs, layouts.segment, end - start, f"{i}.segment.")
            checkpoint = arrays_of(carried.blobs, layouts.checkpoint, None, f"{i}.checkpoint.")
            if segment is None or checkpoint is None:
                return False
            spans.append((ids[start:end], segment, checkpoint))
        nodes = []
        for span in spans:
            nodes.append(store.place(nodes[-1] if nodes else root, *span))
    hold.move(nodes)
    store.shrink(store.byte_budget)
    store.squeeze(spare_bytes)
    return True


def _spans(path: Sequence[Node], wanted: Iterable[Node]) -> list[list[Node]]:
    """The path cut after each node that is wanted and has its checkpoint in memory."""
    keys = {id(node) for node in wanted}
    spans: list[list[Node]] = [[]]
    for node in path:
        spans[-1].append(node)
        if id(node) in keys and node.checkpoint is not None:
            spans.append([])
    return spans[:-1]


def _arrays(number: int, span: Sequence[Node]) -> list[tuple[str, list[mx.array]]]:
    segments = [node.segment or [] for node in span]
    found = [
        (f"{number}.segment.{i}.{j}", list(parts))
        for i, layers in enumerate(zip(*segments))
        for j, parts in enumerate(zip(*layers))
    ]
    checkpoint = span[-1].checkpoint or []
    return found + [
        (f"{number}.checkpoint.{i}.{j}", [a]) for i, layer in enumerate(checkpoint) for j, a in enumerate(layer)
    ]
