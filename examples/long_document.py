"""An agent that reads a document longer than its context: page by page through a tool, older pages folded away.

python -m examples.long_document FILE "What does it say of whales?" [MODEL]

The model turns pages; when the conversation outgrows `fold_at` tokens, what it read before becomes a summary that it
writes itself. System message, tools, the question and the last pages stay word for word.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mlx_qwen35

PAGE = 4_000  # characters
NEXT = {"name": "next_page", "description": "Read the next page.", "parameters": {"type": "object", "properties": {}}}
TOOLS = [{"type": "function", "function": NEXT}]
SYSTEM = (
    "You answer a question about a document of {count} pages. Read it with next_page and note what bears on the "
    "question; answer after the last page, or as soon as you are sure."
)


def read(qwen: mlx_qwen35.Qwen, pages: Sequence[str], question: str, fold_at: int, **options: Any) -> str:
    """The answer. fold_at: tokens of prompt beyond which what was read becomes a summary   options: of each answer"""
    messages: list[dict[str, Any]] = [
        {"role": "system", "content": SYSTEM.format(count=len(pages))},
        {"role": "user", "content": question},
    ]
    unread = iter(pages)
    for _ in range(2 * len(pages)):
        reply = qwen.chat(messages, tools=TOOLS, fold_at=fold_at, **options)
        messages.append(reply.message)
        if not reply.tool_calls:
            return reply.content
        for call in reply.tool_calls:
            page = next(unread, "That was the last page.")
            messages.append({"role": "tool", "tool_call_id": call["id"], "content": page})
    raise RuntimeError("no answer although the last page was read long ago")


if __name__ == "__main__":
    text = Path(sys.argv[1]).read_text()
    with mlx_qwen35.load(*sys.argv[3:4]) as model:
        print(read(model, [text[i : i + PAGE] for i in range(0, len(text), PAGE)], sys.argv[2], fold_at=6_000))
