"""A session as one file: the conversation in its header, and the prefix that need not be computed again behind it.

The conversation has a checksum of its own, so that it survives damage to the rest. Reading a file runs no code of it;
its numbers, though, are what the model will go on from: open sessions of people you trust.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlx_qwen35.caches import sealed
from mlx_qwen35.caches.carried import Carried
from mlx_qwen35.caches.disk_files import packed_ids, unpacked_ids
from mlx_qwen35.caches.sealed import Blob, Damaged
from mlx_qwen35.chat.json_text import parse_json
from mlx_qwen35.errors import SessionError
from mlx_qwen35.hub.jsonfile import parse_object

FORMAT = "mlx-qwen35 session 1"
IDS = "token_ids"
MAX_HEADER_BYTES = 96 << 20


@dataclass(frozen=True)
class SavedSession:
    """conversation: an object, not yet checked   carried: None where it cannot be used, and `trouble` says why"""

    conversation: dict[str, Any]
    carried: Carried | None
    trouble: str = ""


def write_session(path: Path, conversation: Mapping[str, Any], carried: Carried) -> None:
    """Write all of it or nothing; a session that is there already is replaced, and nothing else is.

    Raises SessionError.
    """
    if not path.parent.is_dir():
        raise SessionError(f"There is no folder {path.parent}. Make it, or choose another.")
    try:
        text = json.dumps(conversation, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise SessionError(f"The conversation cannot be written as JSON: {error}.") from None
    metadata = {
        "format": FORMAT,
        "conversation": text,
        "conversation_checksum": _checksum(text),
        "fingerprint": carried.fingerprint,
        "ends": json.dumps(carried.ends),
    }
    ids = {IDS: Blob("U32", (len(carried.ids),), packed_ids(carried.ids))}
    content = sealed.seal(metadata, {**carried.blobs, **ids})
    if len(content.header) > MAX_HEADER_BYTES:
        raise SessionError(f"The conversation has {len(text):,} characters, too many for a session file.")
    try:
        if path.exists() and not _is_ours(path):
            raise SessionError(f"{path} exists and is not a saved session. Choose another name.")
        sealed.write(path.resolve(), content)
    except OSError as error:
        raise SessionError(f"Cannot write {path}: {_reason(error)}. What was there before is unchanged.") from None


def read_session(path: Path, fingerprint: str, limit_bytes: int) -> SavedSession:
    """Read what `write_session` wrote; the prefix only where it is of this `fingerprint` and not larger than the limit.

    Raises SessionError, one line, for what is no session, or damaged in the conversation itself.
    """
    try:
        return _read(path, fingerprint, limit_bytes)
    except FileNotFoundError:
        raise SessionError(f"There is no file {path}.") from None
    except OSError as error:
        raise SessionError(f"Cannot read {path}: {_reason(error)}.") from None
    except Damaged as error:
        raise SessionError(f"{path} is not a saved session, or damaged: it {error}.") from None


def _read(path: Path, fingerprint: str, limit_bytes: int) -> SavedSession:
    with sealed.opened(path.resolve()) as (file, size):
        raw = sealed.raw_header(file, path, size, MAX_HEADER_BYTES)
        metadata = _metadata(raw)
        conversation = _conversation(metadata)
        if metadata.get("fingerprint") != fingerprint:
            return SavedSession(conversation, None, "it was saved with another model, KV format or version")
        if size - len(raw) > limit_bytes:
            return SavedSession(conversation, None, f"its {size / 1e9:.1f} GB do not fit the memory for caches")
        try:
            blobs = sealed.payload(file, size, raw, sealed.checked_header(raw, path, size))
            return SavedSession(conversation, _carried(metadata, blobs))
        except Damaged as error:
            return SavedSession(conversation, None, f"the file {error}")


def _metadata(raw: bytes) -> dict[str, Any]:
    """The strings in a header whose tensors may be damaged."""
    try:
        metadata = parse_object(raw).get("__metadata__")
    except ValueError as error:
        raise Damaged(f"has a header that {error}") from None
    if not isinstance(metadata, dict) or metadata.get("format") != FORMAT:
        raise Damaged(f"does not have the format {FORMAT!r}")
    return metadata


def _conversation(metadata: Mapping[str, Any]) -> dict[str, Any]:
    text = metadata.get("conversation")
    if not isinstance(text, str) or _checksum(text) != metadata.get("conversation_checksum"):
        raise Damaged("has a conversation that does not fit its checksum")
    try:
        conversation = parse_json(text)
    except ValueError as error:
        raise Damaged(f"has a conversation that is {error}") from None
    if not isinstance(conversation, dict):
        raise Damaged("has a conversation that is not an object")
    return conversation


def _carried(metadata: Mapping[str, Any], blobs: dict[str, Blob]) -> Carried:
    packed = blobs.pop(IDS, None)
    if packed is None or packed.dtype != "U32":
        raise Damaged("holds no token ids")
    ids = unpacked_ids(packed.data)
    try:
        ends = parse_json(str(metadata.get("ends")))
    except ValueError:
        ends = None
    if not isinstance(ends, list) or not all(type(end) is int for end in ends):
        raise Damaged("does not say where its spans end")
    if not all(start < end for start, end in zip([0, *ends], [*ends, len(ids) + 1])):
        raise Damaged("has spans that do not follow each other")
    return Carried(str(metadata["fingerprint"]), ids, tuple(ends), blobs)


def _is_ours(path: Path) -> bool:
    try:
        with sealed.opened(path.resolve()) as (file, size):
            _metadata(sealed.raw_header(file, path, size, MAX_HEADER_BYTES))
    except Damaged:
        return False
    return True


def _checksum(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _reason(error: OSError) -> str:
    return (error.strerror or str(error)).lower()
