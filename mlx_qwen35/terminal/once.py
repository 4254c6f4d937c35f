"""One question, one answer: the answer to stdout, the rest to stderr. For `generate`, and `chat` without a terminal."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from typing import Any

from mlx_qwen35.chat.events import Event
from mlx_qwen35.runtime import ChatRequest, Runtime
from mlx_qwen35.terminal.answering import Answer
from mlx_qwen35.terminal.views import PlainView


def answer_plainly(runtime: Runtime, request: ChatRequest) -> None:
    """Write the answer to stdout as it comes, reasoning to stderr; tool calls are one JSON object a line."""
    answer, view = Answer(), PlainView()
    try:
        for event in runtime.chat(request):
            answer.take(event)
            view.show(event, answer)
    finally:
        view.finish(answer)
    if answer.reason == "length":
        print(answer.cut_off(), file=sys.stderr)


def answer_as_json(runtime: Runtime, request: ChatRequest) -> None:
    """Write one JSON object to stdout when the answer is complete."""
    print(json.dumps(_described(runtime, request, _collected(runtime.chat(request))), ensure_ascii=_ascii_only()))


def _collected(events: Iterable[Event]) -> Answer:
    answer = Answer()
    for event in events:
        answer.take(event)
    return answer


def _described(runtime: Runtime, request: ChatRequest, answer: Answer) -> dict[str, Any]:
    return {
        "content": "".join(answer.content).lstrip("\n"),
        "reasoning": "".join(answer.reasoning) or None,
        "tool_calls": [{"id": call["id"], **call["function"]} for call in answer.tool_calls],
        "finish_reason": answer.reason,
        "usage": vars(answer.usage),
        "model": runtime.name,
        "sampling": vars(runtime.sampling(request)),
    }


def _ascii_only() -> bool:
    # On a terminal the eight-bit control characters must stay escaped, too.
    return sys.stdout.isatty()
