"""Reads the small JSON files of a checkpoint folder that the chat format needs. Everything in them is untrusted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mlx_qwen35.errors import CheckpointError

# The family's largest is tokenizer.json, 12.8 MB. A gigabyte of JSON is damage or an attack, not a tokenizer.
MAX_JSON_BYTES = 256 * 1024 * 1024


def read_text(path: Path) -> str:
    """The file's text. Raises CheckpointError when it is unreadable, not UTF-8, or absurdly large."""
    try:
        size = path.stat().st_size
        if size > MAX_JSON_BYTES:
            raise CheckpointError(f"{path} has {size:,} bytes, more than {MAX_JSON_BYTES:,}: not a chat file.")
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise CheckpointError(f"{path} is not UTF-8 text. Download the checkpoint again.") from None
    except OSError as error:
        raise CheckpointError(f"Cannot read {path}: {error.strerror or error}.") from None


def read_json_object(path: Path) -> dict[str, Any]:
    """The file's JSON object; {} when there is no such file. Raises CheckpointError when it holds anything else."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(read_text(path))
    except (ValueError, RecursionError):
        raise CheckpointError(f"{path} is not valid JSON. Download the checkpoint again.") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds a JSON {type(value).__name__}, but an object is needed.")
    return value
