"""One file of the prefix store on disk: how it is written, and how it is believed.

A node of the prefix tree is a segment file (the KV of its span) and perhaps a checkpoint file (the recurrent state
at the end of its span), both plain safetensors. What a file says of itself is untrusted: a segment's name is the
hash of its parent's name and its token ids, and a checksum covers every byte of header and payload. Knows nothing of
budgets, threads or MLX; tensors are bytes with a dtype and a shape.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import re
import stat
import sys
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import BinaryIO

from mlx_qwen35.errors import CheckpointError
from mlx_qwen35.hub.headers import DTYPE_BITS, Header, header_length, parse_header
from mlx_qwen35.hub.jsonfile import fetch_again

SEGMENT = "segment"
CHECKPOINT = "checkpoint"
IDS = "token_ids"  # the tensor of a segment that holds its span
FILE_NAME = re.compile(r"([0-9a-f]{40})\.(segment|checkpoint)\.safetensors")
FINGERPRINT = re.compile(r"[0-9a-f]{16,128}")
TEMPORARY_NAME = re.compile(r"\.[0-9a-f]{40}\.(?:segment|checkpoint)\.safetensors\.(\d{1,10})\.\d+\.tmp")

_FORMAT = "mlx-qwen35 prefix 1"
_CHUNK = 8 << 20  # bytes hashed while they are still in the processor's cache; macOS writes at most 2 GiB at once
_MAX_HEADER_BYTES = 8 << 20  # 50 times that of the largest model: 92 layers, four tensors each
_NO_CHECKSUM = b"0" * 64
_CHECKSUM = re.compile(r"[0-9a-f]{64}")
_serial = itertools.count()


class Damaged(Exception):
    """The file is not what was once written under this name; the text follows the file's name."""


@dataclass(frozen=True)
class Blob:
    """One tensor as bytes: `dtype` is a safetensors code ("BF16"), `data` is row-major and little-endian."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes | memoryview


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
class Draft:
    """A file about to be written. The header's checksum is still zeros; it becomes known while the payload passes."""

    label: Label
    header: bytes
    payload: tuple[memoryview, ...]
    size: int  # bytes of the whole file


def node_key(parent: str, ids: Sequence[int]) -> str:
    """The name of a node: 40 hex digits that stand for every token id from the root to its end."""
    return hashlib.blake2b(parent.encode() + _packed(ids), digest_size=20).hexdigest()


def draft(label: Label, blobs: Mapping[str, Blob], ids: Sequence[int] | None = None) -> Draft:
    """Lay out a file. Copies no payload: the buffers must stay unchanged until the file is written.

    Raises ValueError for what is a mistake of the caller: an unknown dtype, a size that does not fit the shape, a
    reserved name.
    """
    tensors = dict(blobs)
    if reserved := {IDS, "__metadata__"} & set(tensors):
        raise ValueError(f"tensor names {sorted(reserved)} are reserved")
    if ids is not None:
        tensors[IDS] = Blob("U32", (len(ids),), _packed(ids))
    # Widest elements first keeps every tensor aligned, as the safetensors library does.
    order = sorted(tensors, key=lambda name: (-DTYPE_BITS.get(tensors[name].dtype, 0), name))
    metadata = {"checksum": _NO_CHECKSUM.decode(), "format": _FORMAT} | vars(label)
    header: dict[str, object] = {"__metadata__": metadata}
    payload: list[memoryview] = []
    at = 0
    for name in order:
        data = memoryview(tensors[name].data).cast("B")
        _check_size(name, tensors[name], len(data))
        header[name] = {
            "dtype": tensors[name].dtype,
            "shape": list(tensors[name].shape),
            "data_offsets": [at, at + len(data)],
        }
        at += len(data)
        payload.append(data)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return Draft(label, len(text).to_bytes(8, "little") + text, tuple(payload), 8 + len(text) + at)


def write(folder: Path, content: Draft) -> None:
    """Put a file into an existing folder so that a reader, or a crash, sees all of it or none. Raises OSError."""
    path = folder / content.label.name
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{next(_serial)}.tmp")
    try:
        with open(temporary, "xb", buffering=0, opener=_private) as file:
            digest = hashlib.sha256(content.header)
            _write_all(file, memoryview(content.header))
            for data in content.payload:
                for at in range(0, len(data), _CHUNK):
                    digest.update(data[at : at + _CHUNK])
                    _write_all(file, data[at : at + _CHUNK])
            file.seek(0)
            _write_all(file, memoryview(content.header.replace(_NO_CHECKSUM, digest.hexdigest().encode(), 1)))
            # Whatever the drive's own cache loses in a power cut, the checksum finds.
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(folder)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def read(path: Path, limit_bytes: int) -> dict[str, Blob]:
    """The tensors of a file, all of them views of one buffer; every byte checked against the checksum.

    Raises Damaged; FileNotFoundError or another OSError where there is nothing to judge.
    """
    with opened(path) as (file, size):
        if size > limit_bytes:
            raise Damaged(f"has {size:,} bytes, more than was ever written")
        raw, header = _header(file, path, size)
        digest = hashlib.sha256(len(raw).to_bytes(8, "little"))
        stated = header.metadata["checksum"].encode()
        digest.update(raw.replace(stated, _NO_CHECKSUM, 1))
        start = 8 + len(raw)
        buffer = memoryview(bytearray(size - start))
        for at in range(0, len(buffer), _CHUNK):
            _read_all(file, buffer[at : at + _CHUNK])
            digest.update(buffer[at : at + _CHUNK])
    if digest.hexdigest().encode() != stated:
        raise Damaged("does not fit its checksum")
    view = buffer.toreadonly()
    return {
        name: Blob(entry.dtype, entry.shape, view[entry.begin - start : entry.end - start])
        for name, entry in header.tensors.items()
        if name != IDS
    }


def read_span(path: Path) -> tuple[str, array[int], int]:
    """Parent, token ids and file size of a segment, proven by its name; the KV itself is not read. Raises as `read`."""
    with opened(path) as (file, size):
        _, header = _header(file, path, size)
        entry = header.tensors.get(IDS)
        if entry is None or entry.dtype != "U32" or len(entry.shape) != 1 or not entry.nbytes:
            raise Damaged("holds no token ids")
        packed = memoryview(bytearray(entry.nbytes))
        file.seek(entry.begin)
        _read_all(file, packed)
    ids = array("I", packed.tobytes())
    if sys.byteorder == "big":
        ids.byteswap()
    parent = header.metadata["parent"]
    if node_key(parent, ids) != path.name.split(".")[0]:
        raise Damaged("holds other token ids than its name says")
    return parent, ids, size


def read_metadata(path: Path) -> tuple[dict[str, str], int]:
    """What the header says of the file (format, key, kind, fingerprint, parent), and the file's size."""
    with opened(path) as (file, size):
        return _header(file, path, size)[1].metadata, size


@contextlib.contextmanager
def opened(path: Path) -> Iterator[tuple[BinaryIO, int]]:
    """A regular file and its size. A link or a pipe has no business under these names, and could lead or hang us."""
    if path.is_symlink():
        raise Damaged("is a symbolic link")
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(descriptor, "rb", buffering=0) if _is_regular(descriptor) else _refused(descriptor) as file:
        yield file, os.fstat(descriptor).st_size


def _is_regular(descriptor: int) -> bool:
    return stat.S_ISREG(os.fstat(descriptor).st_mode)


def _refused(descriptor: int) -> BinaryIO:
    os.close(descriptor)
    raise Damaged("is not a regular file")


def _header(file: BinaryIO, path: Path, size: int) -> tuple[bytes, Header]:
    """The header's bytes and content, checked to be that of a file with this name in this folder."""
    try:
        length = header_length(_up_to(file, 8), size, path)
        if length > _MAX_HEADER_BYTES:
            raise Damaged(f"announces a header of {length:,} bytes")
        raw = _up_to(file, length)
        header = parse_header(raw, path, size)
    except CheckpointError as error:
        raise Damaged(str(error).removeprefix(f"{path} ").removesuffix(f". {fetch_again(path)}")) from None
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


def _check_size(name: str, blob: Blob, nbytes: int) -> None:
    if blob.dtype not in DTYPE_BITS or prod(blob.shape) * DTYPE_BITS[blob.dtype] != 8 * nbytes:
        raise ValueError(f"tensor {name!r}: {nbytes} bytes are not {blob.dtype} of shape {blob.shape}")


def _packed(ids: Sequence[int]) -> bytes:
    packed = array("I", ids)
    if sys.byteorder == "big":
        packed.byteswap()
    return packed.tobytes()


def _private(path: str, flags: int) -> int:
    # Token ids are the conversation: nobody else's business.
    return os.open(path, flags | os.O_CLOEXEC, 0o600)


def _write_all(file: BinaryIO, data: memoryview) -> None:
    while data:
        data = data[file.write(data) :]


def _read_all(file: BinaryIO, into: memoryview) -> None:
    while into:
        count = file.readinto(into)  # type: ignore[attr-defined]  # of a raw file; BinaryIO does not tell
        if not count:
            raise Damaged("is cut short")
        into = into[count:]


def _up_to(file: BinaryIO, count: int) -> bytes:
    found = b""
    while len(found) < count and (more := file.read(count - len(found))):
        found += more
    return found


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
