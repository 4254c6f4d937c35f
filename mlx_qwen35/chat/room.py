"""Texts far too long for a context, told before all of them is tokenised. Knows no template."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mlx_qwen35.errors import TooLongError

USUAL = 4  # characters a token: up to here a text is simply tokenised
PIECE = 1 << 16  # characters
LEAST_OF_MESSAGE = 4  # tokens: its opening, its role and its end
LEAST_OF_ARGUMENT = 4  # tokens: its tag, its name, and the tag that ends it


def require_room(text: str, context: int, encode: Callable[[str], Sequence[int]]) -> None:
    """Raises TooLongError, in time that the context bounds and not the text, where the text cannot fit."""
    if len(text) <= USUAL * context:
        return
    tokens = 0
    for start in range(0, len(text), PIECE):
        # A word that is cut in two may have one token more than the whole one.
        tokens += len(encode(text[start : start + PIECE])) - 1
        if tokens >= context:
            raise too_long(context)


def require_few(messages: object, context: int) -> None:
    """The same for a number of messages, before any of them is rendered."""
    if isinstance(messages, Sequence) and len(messages) * LEAST_OF_MESSAGE >= context:
        raise too_long(context)


def require_room_for_tools(
    tools: Sequence[Mapping[str, Any]] | None, context: int, encode: Callable[[str], Sequence[int]]
) -> None:
    """The same for tools, whose JSON stands in the prompt, before any of it is rendered."""
    if tools:
        require_room(json.dumps(tools, ensure_ascii=False, default=str), context, encode)


def require_few_arguments(messages: Sequence[Mapping[str, Any]], context: int) -> None:
    """The same for the arguments of earlier calls. messages: normalised"""
    calls = (call for message in messages for call in message.get("tool_calls") or ())
    if sum(len(call["function"]["arguments"]) for call in calls) * LEAST_OF_ARGUMENT >= context:
        raise too_long(context)


def too_long(context: int) -> TooLongError:
    return TooLongError(f"The prompt has more than {context:,} tokens, which this model's context holds.")
