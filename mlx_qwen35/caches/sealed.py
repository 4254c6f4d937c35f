"""One file of tensors that proves itself: safetensors, with a checksum over every byte of its header and payload.

Written so that a reader, or a crash, sees all of it or none. Knows nothing of what the tensors mean, of names and
folders, or of MLX; tensors are bytes with a dtype and a shape.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import re
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import BinaryIO

from mlx_qwen35.errors import CheckpointError
from mlx_qwen35.hub.headers import DTYPE_BITS, Header, header_length, parse_header
from mlx_qwen35.hub.jsonfile import fetch_again

_CHUNK = 8 << 20  # bytes hashed while they are still in the processor's cache; macOS writes at most 2 GiB at once
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
class Sealed:
    """A file about to be written. The header's checksum is still zeros; it becomes known while the payload passes."""

    header: bytes
    payload: tuple[memoryview, ...]
    size: int  # bytes of the whole file


def seal(metadata: Mapping[str, str], tensors: Mapping[str, Blob]) -> Sealed:
    """Lay out a file. Copies no payload: the buffers must stay unchanged until the file is written.

    Raises ValueError for what is a mistake of the caller: an unknown dtype, a size that does not fit the shape.
    """
    # Widest elements first keeps every tensor aligned, as the safetensors library does.
    order = sorted(tensors, key=lambda name: (-DTYPE_BITS.get(tensors[name].dtype, 0), name))
    header: dict[str, object] = {"__metadata__": {"checksum": _NO_CHECKSUM.decode(), **metadata}}
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
    return Sealed(len(text).to_bytes(8, "little") + text, tuple(payload), 8 + len(text) + at)


def write(path: Path, content: Sealed) -> None:
    """Put a file into an existing folder, in the place of one that may be there. Raises OSError."""
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
        _sync_folder(path.parent)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def opened(path: Path) -> Iterator[tuple[BinaryIO, int]]:
    """A regular file and its size. A link or a pipe has no business under these names, and could lead or hang us."""
    if path.is_symlink():
        raise Damaged("is a symbolic link")
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(descriptor, "rb", buffering=0) if _is_regular(descriptor) else _refused(descriptor) as file:
        yield file, os.fstat(descriptor).st_size


def raw_header(file: BinaryIO, path: Path, size: int, max_bytes: int) -> bytes:
    """The bytes of the JSON header of a file that was just opened. Raises Damaged."""
    try:
        length = header_length(_up_to(file, 8), size, path)
    except CheckpointError as error:
        raise Damaged(_fault(error, path)) from None
    if length > max_bytes:
        raise Damaged(f"announces a header of {length:,} bytes")
    return _up_to(file, length)


def checked_header(raw: bytes, path: Path, size: int) -> Header:
    """What `raw_header` says of the tensors, their layout checked against the file's size. Raises Damaged."""
    try:
        return parse_header(raw, path, size)
    except CheckpointError as error:
        raise Damaged(_fault(error, path)) from None


def payload(file: BinaryIO, size: int, raw: bytes, header: Header) -> dict[str, Blob]:
    """The tensors of a file whose header was just read, all of them views of one buffer; every byte is checked.

    Raises Damaged.
    """
    checksum = header.metadata.get("checksum", "")
    if not _CHECKSUM.fullmatch(checksum):
        raise Damaged("has no checksum")
    stated = checksum.encode()
    digest = hashlib.sha256(len(raw).to_bytes(8, "little"))
    digest.update(raw.replace(stated, _NO_CHECKSUM, 1))
    start = 8 + len(raw)
    buffer = memoryview(bytearray(size - start))
    for at in range(0, len(buffer), _CHUNK):
        read_all(file, buffer[at : at + _CHUNK])
        digest.update(buffer[at : at + _CHUNK])
    if digest.hexdigest().encode() != stated:
        raise Damaged("does not fit its checksum")
    view = buffer.toreadonly()
    return {
        name: Blob(entry.dtype, entry.shape, view[entry.begin - start : entry.end - start])
        for name, entry in header.tensors.items()
    }


def read_all(file: BinaryIO, into: memoryview) -> None:
    """Fill a buffer from where the file stands. Raises Damaged where it ends before."""
    while into:
        count = file.readinto(into)  # type: ignore[attr-defined]  # of a raw file; BinaryIO does not tell
        if not count:
            raise Damaged("is cut short")
        into = into[count:]


def _fault(error: CheckpointError, path: Path) -> str:
    return str(error).removeprefix(f"{path} ").removesuffix(f". {fetch_again(path)}")


def _is_regular(descriptor: int) -> bool:
    return stat.S_ISREG(os.fstat(descriptor).st_mode)


def _refused(descriptor: int) -> BinaryIO:
    os.close(descriptor)
    raise Damaged("is not a regular file")


def _check_size(name: str, blob: Blob, nbytes: int) -> None:
    if blob.dtype not in DTYPE_BITS or prod(blob.shape) * DTYPE_BITS[blob.dtype] != 8 * nbytes:
        raise ValueError(f"tensor {name!r}: {nbytes} bytes are not {blob.dtype} of shape {blob.shape}")


def _private(path: str, flags: int) -> int:
    # Token ids are the conversation: nobody else's business.
    return os.open(path, flags | os.O_CLOEXEC, 0o600)


def _write_all(file: BinaryIO, data: memoryview) -> None:
    while data:
        data = data[file.write(data) :]


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
