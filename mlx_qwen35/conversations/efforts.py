"""What thoughts and calls of tools cost: kept beside the messages, for people; no model reads it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mlx_qwen35.errors import RequestError

MOST_SECONDS = 1e9


@dataclass(frozen=True)
class Effort:
    """How long a thought or a call took. tokens: of the thought"""

    seconds: float
    tokens: int = 0


Efforts = dict[int | str, Effort]  # of thoughts by the index of their message, of calls by their id


def still_said(efforts: Efforts, messages: Sequence[Mapping[str, Any]]) -> Efforts:
    """Without those of messages that are there no more."""
    calls = [call.get("id") for message in messages for call in message.get("tool_calls") or ()]
    return {key: v for key, v in efforts.items() if (key < len(messages) if isinstance(key, int) else key in calls)}


def as_list(efforts: Efforts) -> list[dict[str, Any]]:
    """As a file holds them."""
    return [
        {"message" if isinstance(key, int) else "call": key, "seconds": e.seconds, "tokens": e.tokens}
        for key, e in efforts.items()
    ]


def checked_efforts(value: Any) -> Efforts:
    """Efforts as a file has them. Raises RequestError for what cannot be used."""
    if not isinstance(value, list):
        raise RequestError("efforts is not a list.")
    return dict(_checked(entry) for entry in value)


def _checked(entry: Any) -> tuple[int | str, Effort]:
    if isinstance(entry, dict) and sorted(entry) in (["message", "seconds", "tokens"], ["call", "seconds", "tokens"]):
        key, seconds, tokens = entry[sorted(entry)[0]], entry["seconds"], entry["tokens"]
        sound_key = type(key) is int and key >= 0 if "message" in entry else isinstance(key, str)
        sound_seconds = type(seconds) in (int, float) and 0 <= seconds < MOST_SECONDS
        if sound_key and sound_seconds and type(tokens) is int and tokens >= 0:
            return key, Effort(float(seconds), tokens)
    raise RequestError(f"efforts has {str(entry)[:60]!r}, which cannot be used.")
