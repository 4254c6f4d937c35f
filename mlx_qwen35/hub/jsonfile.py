"""The door for JSON files that came with a download: bounded, checked, one clear line when they are not JSON.

Knows nothing of what the keys mean; whoever asked reads them into a dataclass of its own.
"""

import json
import os
import stat
from pathlib import Path
from typing import Any

from mlx_qwen35.errors import CheckpointError

MIB = 1 << 20
DEFAULT_LIMIT_BYTES = 64 * MIB  # the largest JSON of the family is a 28 MB index of an expert-wise FP8 repository

_LFS_POINTER = b"version https://git-lfs.github.com"


def fetch_again(path: Path) -> str:
    """What to do about a damaged file: the end of the error line."""
    if any(parent.name == "snapshots" for parent in path.parents):
        # In the hub cache the named file is a link; deleting only the link would bring the same bytes back.
        return f"Delete {os.path.realpath(path)} and start again: the next run fetches it anew."
    return "Download that file again."


def not_a_download(start: bytes) -> str | None:
    """What the first bytes of a file show it to be instead of weights or JSON, or None."""
    if start.startswith(_LFS_POINTER):
        return "is a git-lfs pointer, not the file itself"
    head = start.lstrip(b"\xef\xbb\xbf \t\r\n")[:16].lower()
    if head.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "is a web page (a login or error page?), not the file itself"
    return None


def file_size(path: Path) -> int:
    """Size in bytes of a regular file. CheckpointError for a missing one, a folder, pipe, symlink loop."""
    try:
        status = os.stat(path)
    except FileNotFoundError:
        what = "leads nowhere (a broken link)" if path.is_symlink() else "is missing"
        raise CheckpointError(f"{path} {what}. {fetch_again(path)}") from None
    except (OSError, ValueError) as error:  # a symlink loop, no permission, a NUL in the name
        raise CheckpointError(f"{path} cannot be read ({_reason(error)}). {fetch_again(path)}") from None
    # A pipe or a device would block the first read for ever.
    if not stat.S_ISREG(status.st_mode):
        raise CheckpointError(f"{path} is not a regular file. {fetch_again(path)}")
    return status.st_size


def read_json(path: Path | str, limit_bytes: int = DEFAULT_LIMIT_BYTES) -> dict[str, Any]:
    """The object in a JSON file of at most `limit_bytes`.

    Raises CheckpointError (one line, naming the file) when the file is missing, too large, not UTF-8, not
    JSON, not an object, says a key twice, or is a git-lfs pointer or a web page in the place of the file.
    """
    path = Path(path)
    size = file_size(path)
    if size > limit_bytes:
        raise CheckpointError(
            f"{path} has {size:,} bytes; no {path.name} of this family exceeds {limit_bytes:,}. {fetch_again(path)}"
        )
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({_reason(error)}). {fetch_again(path)}") from None
    if instead := not_a_download(raw[:512]):
        raise CheckpointError(f"{path} {instead}. {fetch_again(path)}")
    try:
        return parse_object(raw)
    except ValueError as error:
        raise CheckpointError(f"{path} {error}. {fetch_again(path)}") from None


def parse_object(raw: bytes) -> dict[str, Any]:
    """A JSON object without a repeated key at any depth. Raises ValueError; its text follows a file name."""
    try:
        value = json.loads(
            raw.decode("utf-8-sig"), object_pairs_hook=_unique, parse_constant=_no_constant, parse_int=_int
        )
    except UnicodeDecodeError:
        raise ValueError("is not UTF-8 text") from None
    except RecursionError:
        raise ValueError("nests too deeply to be JSON of a checkpoint") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"is not JSON (line {error.lineno}: {error.msg})") from None
    if not isinstance(value, dict):
        raise ValueError("is not a JSON object")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # Two readers may pick different ones of two equal keys, so what was checked may not be what is loaded.
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise ValueError(f"says {key[:80]!r} twice")
            seen.add(key)
    return found


def _int(digits: str) -> int:
    # Turning a million digits into an int takes quadratic time; no size or id has more than twenty.
    if len(digits) > 40:
        raise ValueError(f"holds a whole number of {len(digits):,} digits")
    return int(digits)


def _no_constant(name: str) -> Any:
    # json.dumps of Python writes NaN and Infinity, which are no JSON; a config has no use for them.
    raise ValueError(f"holds {name}, which is not JSON")


def _reason(error: OSError | ValueError) -> str:
    return (getattr(error, "strerror", None) or str(error)).lower()
