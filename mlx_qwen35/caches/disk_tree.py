"""Between the prefix tree and the files it is kept in: MLX arrays to bytes and back, nodes to entries and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import mlx.core as mx
import numpy as np

from mlx_qwen35.caches.disk_files import Blob
from mlx_qwen35.caches.disk_store import DiskStore
from mlx_qwen35.caches.prefix_tree import Node, as_ids

DTYPES = {"F32": mx.float32, "BF16": mx.bfloat16, "F16": mx.float16, "U32": mx.uint32, "U8": mx.uint8}
CODES = {dtype: code for code, dtype in DTYPES.items()}

Arrays = Sequence[Sequence[mx.array]]  # of each layer


class DiskTree:
    """A disk store that speaks of nodes. `layout` says, for each layer of a part, the shapes a file must have."""

    def __init__(self, store: DiskStore, segment_layout: Arrays, checkpoint_layout: Arrays) -> None:
        """The layouts are those of one token's segment and of a checkpoint; files that differ are misses."""
        self.store = store
        self._layouts = {"segment": _shapes(segment_layout), "checkpoint": _shapes(checkpoint_layout)}

    def grow(self, root: Node) -> None:
        """Give the tree the nodes that are on disk; nothing is read yet but names and ids."""
        known = {root.key: root}
        for entry in self.store.entries():
            parent = known.get(entry.parent)
            if parent is None or not entry.ids:
                continue
            node = known[entry.key] = parent.adopt(as_ids(entry.ids))
            node.segment_on_disk, node.checkpoint_on_disk = True, entry.checkpoint_bytes > 0

    def save(self, node: Node) -> None:
        """Queue what the disk does not have of a node."""
        assert node.parent is not None
        if not node.segment_on_disk and node.segment is not None:
            checkpoint = None if node.checkpoint is None else _blobs(node.checkpoint)
            self.store.put(node.key, node.parent.key, node.ids, _blobs(node.segment), checkpoint)
            node.segment_on_disk, node.checkpoint_on_disk = True, node.checkpoint is not None
        elif node.segment_on_disk and not node.checkpoint_on_disk and node.checkpoint is not None:
            self.store.put_checkpoint(node.key, _blobs(node.checkpoint))
            node.checkpoint_on_disk = True

    def load(self, node: Node, part: str) -> bool:
        """Read a node's "segment" or "checkpoint" into memory; False, and not on disk any more, where that fails."""
        on_disk = node.segment_on_disk if part == "segment" else node.checkpoint_on_disk
        read = self.store.read_segment if part == "segment" else self.store.read_checkpoint
        blobs = read(node.key) if on_disk else None
        tokens = len(node.ids) if part == "segment" else None
        arrays = None if blobs is None else self._arrays(blobs, part, tokens)
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

    def _arrays(self, blobs: Mapping[str, Blob], part: str, tokens: int | None) -> list[tuple[mx.array, ...]] | None:
        layers = []
        for i, layout in enumerate(self._layouts[part]):
            arrays = []
            for j, (code, shape) in enumerate(layout):
                blob = blobs.get(f"{i}.{j}")
                wanted = shape if tokens is None else (*shape[:2], tokens, *shape[3:])
                if blob is None or (blob.dtype, tuple(blob.shape)) != (code, wanted):
                    return None
                arrays.append(_array(blob))
            layers.append(tuple(arrays))
        return layers


def _shapes(layers: Arrays) -> list[list[tuple[str, tuple[int, ...]]]]:
    return [[(CODES[a.dtype], tuple(a.shape)) for a in layer] for layer in layers]


def _blobs(layers: Arrays) -> dict[str, Blob]:
    """Copies of the bytes: the writer runs on a thread of its own, and MLX's arrays stay with theirs."""
    return {f"{i}.{j}": _blob(array) for i, layer in enumerate(layers) for j, array in enumerate(layer)}


def _blob(array: mx.array) -> Blob:
    # numpy has no bfloat16.
    raw = array.view(mx.uint16) if array.dtype == mx.bfloat16 else array
    return Blob(CODES[array.dtype], tuple(array.shape), np.array(raw).tobytes())


def _array(blob: Blob) -> mx.array:
    dtype = DTYPES[blob.dtype]
    numpy_dtype = {"F32": np.float32, "BF16": np.uint16, "F16": np.float16, "U32": np.uint32, "U8": np.uint8}
    array = mx.array(np.frombuffer(blob.data, numpy_dtype[blob.dtype]).reshape(blob.shape))
    return array.view(dtype) if dtype == mx.bfloat16 else array
