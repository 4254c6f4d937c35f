"""One file of the prefix store on disk: how it is named, and how it is believed.

A node of the prefix tree is a segment file (the KV of its span) and perhaps a checkpoint file (the recurrent state
at the end of its span), both sealed files (sealed.py). What a file says of itself is untrusted: a segment's name is the
hash of its parent's name and its token ids, and a checksum covers every byte of header and payload. Knows nothing of
budgets, threads or MLX; tensors are bytes with a dtype and a shape.
"""

from __future__ import annotations

import hashlib
import re
import sys
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from mlx_qwen35.caches import sealed
from mlx_qwen35.caches.sealed import Blob, Damaged, Sealed, opened
from mlx_qwen35.hub.headers import Header

SEGMENT = "segment"
CHECKPOINT = "checkpoint"
IDS = "token_ids"  # the tensor of a segment that holds its span
FILE_NAME = re.compile(r"([0-9a-f]{40})\.(segment|checkpoint)\.safetensors")
FINGERPRINT = re.compile(r"[0-9a-f]{16,128}")
TEMPORARY_NAME = re.compile(r"\.[0-9a-f]{40}\.(?:segment|checkpoint)\.safetensors\.(\d{1,10})\.\d+\.tmp")

_FORMAT = "mlx-qwen35 prefix 1"
_MAX_HEADER_BYTES = 8 << 20  # 50 times that of the largest model: 92 layers, four tensors each
_CHECKSUM = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Label:
    """Whose file it is. `parent` (segments only) is the key of the node before it, or the fingerprint."""

    fingerprint: str
    key: str
    kind: str
    parent: str = ""

    @property
    def name(self) -> str:
        return f"{self.key}.{self.kind}.safetensors"


@dataclass(frozen=True)
class Draft(Sealed):
    """A file about to be written."""

    label: Label


def node_key(parent: str, ids: Sequence[int]) -> str:
    """The name of a node: 40 hex digits that stand for every token id from the root to its end."""
    return hashlib.blake2b(parent.encode() + packed_ids(ids), digest_size=20).hexdigest()


def draft(label: Label, blobs: Mapping[str, Blob], ids: Sequence[int] | None = None) -> Draft:
    """Lay out a file. Copies no payload: the buffers must stay unchanged until the file is written.

    Raises ValueError for what is a mistake of the caller: an unknown dtype, a size that does not fit the shape, a
    reserved name.
    """
    tensors = dict(blobs)
    if reserved := {IDS, "__metadata__"} & set(tensors):
        raise ValueError(f"tensor names {sorted(reserved)} are reserved")
    if ids is not None:
        tensors[IDS] = Blob("U32", (len(ids),), packed_ids(ids))
    content = sealed.seal({"format": _FORMAT} | vars(label), tensors)
    return Draft(content.header, content.payload, content.size, label)


def write(folder: Path, content: Draft) -> None:
    """Put a file into an existing folder so that a reader, or a crash, sees all of it or none. Raises OSError."""
    sealed.write(folder / content.label.name, content)


def read(path: Path, limit_bytes: int) -> dict[str, Blob]:
    """The tensors of a file, all of them views of one buffer; every byte checked against the checksum.

    Raises Damaged; FileNotFoundError or another OSError where there is nothing to judge.
    """
    with opened(path) as (file, size):
        if size > limit_bytes:
            raise Damaged(f"has {size:,} bytes, more than was ever written")
        raw, header = _header(file, path, size)
        blobs = sealed.payload(file, size, raw, header)
    blobs.pop(IDS, None)
    return blobs


def read_span(path: Path) -> tuple[str, array[int], int]:
    """Parent, token ids and file size of a segment, proven by its name; the KV itself is not read. Raises as `read`."""
    with opened(path) as (file, size):
        _, header = _header(file, path, size)
        entry = header.tensors.get(IDS)
        if entry is None or entry.dtype != "U32" or len(entry.shape) != 1 or not entry.nbytes:
            raise Damaged("holds no token ids")
        packed = memoryview(bytearray(entry.nbytes))
        file.seek(entry.begin)
        sealed.read_all(file, packed)
    ids = unpacked_ids(packed)
    parent = header.metadata["parent"]
    if node_key(parent, ids) != path.name.split(".")[0]:
        raise Damaged("holds other token ids than its name says")
    return parent, ids, size


def read_metadata(path: Path) -> tuple[dict[str, str], int]:
    """What the header says of the file (format, key, kind, fingerprint, parent), and the file's size."""
    with opened(path) as (file, size):
        return _header(file, path, size)[1].metadata, size


def packed_ids(ids: Sequence[int]) -> bytes:
    """Token ids as the bytes of a U32 tensor."""
    packed = array("I", ids)
    if sys.byteorder == "big":
        packed.byteswap()
    return packed.tobytes()


def unpacked_ids(data: bytes | memoryview) -> array[int]:
    """What `packed_ids` packed."""
    ids = array("I", bytes(data))
    if sys.byteorder == "big":
        ids.byteswap()
    return ids


def _header(file: BinaryIO, path: Path, size: int) -> tuple[bytes, Header]:
    """The header's bytes and content, checked to be that of a file with this name in this folder."""
    raw = sealed.raw_header(file, path, size, _MAX_HEADER_BYTES)
    header = sealed.checked_header(raw, path, size)
    key, kind, _ = path.name.split(".")
    stated = header.metadata
    if {"checksum", *vars(Label("", "", ""))} - set(stated) or stated.get("format") != _FORMAT:
        raise Damaged("is not a file of the prefix store")
    if not _CHECKSUM.fullmatch(stated["checksum"]) or not (
        kind == CHECKPOINT or FINGERPRINT.fullmatch(stated["parent"])
    ):
        raise Damaged("has a damaged label")
    if (stated["key"], stated["kind"], stated["fingerprint"]) != (key, kind, path.parent.name):
        raise Damaged("belongs under another name or to another model")
    return raw, header
