"""A conversation as Markdown, for people to read elsewhere. What a model wrote cannot close a block it stands in."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from mlx_qwen35.chat.messages import normalise_messages
from mlx_qwen35.conversations.conversation import Conversation, write_new
from mlx_qwen35.conversations.store import title_of
from mlx_qwen35.errors import UserError


def export(conversation: Conversation, path: Path, model: str) -> None:
    """Write a file, as Markdown or as JSON, as the end of its name says. Raises UserError."""
    kind = path.suffix.lower()
    if kind == ".json":
        conversation.save(path, model)
    elif kind in (".md", ".markdown"):
        if path.exists():
            raise UserError(f"{path} exists. Choose another name.")
        write_new(path, as_markdown(conversation, model).encode("utf-8", "replace"))
    else:
        raise UserError(f"{path} ends in neither .md (Markdown) nor .json.")


def as_markdown(conversation: Conversation, model: str) -> str:
    """The whole conversation; thinking and the system prompt as quotations, tool calls as code."""
    blocks = [f"# {_plain(conversation.title or title_of(conversation))}"]
    if model:
        blocks.append(f"*{_plain(model)}*")
    if system := conversation.settings.system:
        blocks += ["## System", quoted(system)]
    for message in normalise_messages(conversation.messages) if conversation.messages else []:
        blocks += _blocks(message)
    return "\n\n".join(blocks) + "\n"


def fenced(text: str, language: str = "json") -> str:
    """A code block that nothing in `text` can close."""
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return f"{fence}{language}\n{text}\n{fence}"


def quoted(text: str) -> str:
    """A quotation that nothing in `text` can end."""
    return "\n".join(f"> {line}".rstrip() for line in text.strip().splitlines()) or ">"


def _blocks(message: dict[str, Any]) -> list[str]:
    heading = {"user": "You", "assistant": "Assistant", "tool": "Tool result"}.get(message["role"], "Message")
    blocks = [f"## {heading}"]
    if thought := message.get("reasoning_content", "").strip():
        blocks.append("> **Thinking**\n>\n" + quoted(thought))
    if text := message["content"].strip():
        blocks.append(fenced(text, "") if message["role"] == "tool" else text)
    for call in message.get("tool_calls", []):
        function = call["function"]
        arguments = json.dumps(function["arguments"], ensure_ascii=False, indent=2)
        blocks += [f"Calls {_plain(function['name'])}:", fenced(arguments)]
    return blocks if len(blocks) > 1 else []


def _plain(text: str) -> str:
    """Text on one line that Markdown shows as it is."""
    return re.sub(r"([\\`*_\[\]<>$|~#!])", r"\\\1", " ".join(text.split()))
