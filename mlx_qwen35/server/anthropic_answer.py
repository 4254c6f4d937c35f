"""Answers in Anthropic's form: a message as one object, or as the events of a stream; and its error objects."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from mlx_qwen35.chat.events import Event, Finished, PrefillProgress, Usage
from mlx_qwen35.chat.reply import Reply
from mlx_qwen35.server.blocks import Block, Blocks, Grew, Opened, Step
from mlx_qwen35.server.parts import told_as
from mlx_qwen35.server.protocol import Frame, Json, Refused
from mlx_qwen35.server.thoughts import seal, sign

ERRORS = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}


# Fields by the names that the runtime has for them.
FIELDS = {
    "response_format": "output_config.format.schema",
    "thinking_budget": "thinking.budget_tokens",
    "stop": "stop_sequences",
}


def anthropic_error(refused: Refused) -> Json:
    """`{"type": "error", "error": {"type", "message"}}`; the message names the field."""
    refused = told_as(refused, FIELDS)
    default = "invalid_request_error" if refused.status < 500 else "api_error"
    message = str(refused)
    if refused.param and refused.param not in message:
        message = f"{refused.param}: {message}"
    error = {"type": ERRORS.get(refused.status, default), "message": message}
    return {"type": "error", "error": error, "request_id": f"req_{uuid.uuid4().hex[:24]}"}


class MessageAuthor:
    """Writes one message.

    hides_thinking: thinking blocks are empty, and their signature carries what was thought
    context: tokens, to tell an answer that filled it from one that reached its limit   cache: see `Served.cache`
    """

    def __init__(
        self, model: str, hides_thinking: bool, context: int, cache: Callable[[Sequence[Usage]], Json]
    ) -> None:
        self._model, self._hides, self._context, self._cache = model, hides_thinking, context, cache
        self._id = f"msg_{uuid.uuid4().hex[:24]}"
        self._blocks = Blocks()
        self._started = False

    def whole(self, replies: Sequence[Reply]) -> Json:
        reply = replies[0]
        blocks = Blocks.of(reply.events)
        finished = next(event for event in reply.events if isinstance(event, Finished))
        content = [self._written(block) for block in blocks.done]
        return self._message(content, self._usage(finished)) | self._stop(finished, blocks)

    def begin(self) -> Iterable[Frame]:
        return ()  # the first event knows how much was cached

    def event(self, choice: int, event: Event) -> Iterator[Frame]:
        if not self._started:
            yield from self._start(event)
        elif isinstance(event, PrefillProgress):
            yield _frame("ping")
        for step in self._blocks.take(event):
            yield from self._step(step)
        if isinstance(event, Finished):
            delta = self._stop(event, self._blocks)
            yield _frame("message_delta", delta=delta, usage=self._usage(event))

    def end(self) -> Iterable[Frame]:
        return (_frame("message_stop"),)

    def failed(self, refused: Refused) -> Iterable[Frame]:
        return (Frame(anthropic_error(refused), "error"),)

    def _usage(self, finished: Finished) -> Json:
        return usage_of(finished.usage) | {"cache": self._cache([finished.usage])}

    def _start(self, event: Event) -> Iterator[Frame]:
        self._started = True
        known = Usage()
        if isinstance(event, PrefillProgress):
            known = Usage(prompt_tokens=event.total, cached_tokens=event.cached)
        elif isinstance(event, Finished):
            known = event.usage
        message = self._message([], usage_of(known) | {"output_tokens": 0})
        yield _frame("message_start", message=message | {"stop_reason": None, "stop_sequence": None})
        yield _frame("ping")

    def _step(self, step: Step) -> Iterator[Frame]:
        block = step.block
        if isinstance(step, Opened):
            yield _frame("content_block_start", index=block.index, content_block=_empty(block))
        elif isinstance(step, Grew):
            if block.kind != "thinking" or not self._hides:
                yield _delta(block, step.piece)
        else:
            if block.kind == "thinking":
                signature = {"type": "signature_delta", "signature": self._signature(block)}
                yield _frame("content_block_delta", index=block.index, delta=signature)
            yield _frame("content_block_stop", index=block.index)

    def _written(self, block: Block) -> dict[str, Any]:
        if block.kind == "thinking":
            shown = "" if self._hides else block.text
            return {"type": "thinking", "thinking": shown, "signature": self._signature(block)}
        if block.kind == "text":
            return {"type": "text", "text": block.text}
        return _empty(block) | {"input": block.arguments}

    def _signature(self, block: Block) -> str:
        return seal(block.text) if self._hides else sign(block.text)

    def _message(self, content: list[dict[str, Any]], usage: Json) -> dict[str, Any]:
        message = {"id": self._id, "type": "message", "role": "assistant", "model": self._model}
        return {**message, "content": content, "usage": dict(usage)}

    def _stop(self, finished: Finished, blocks: Blocks) -> dict[str, Any]:
        if finished.reason == "length":
            used = finished.usage.prompt_tokens + finished.usage.completion_tokens
            reason = "model_context_window_exceeded" if used >= self._context else "max_tokens"
        elif finished.stop_string is not None:
            reason = "stop_sequence"
        else:
            reason = "tool_use" if blocks.called else "end_turn"
        return {"stop_reason": reason, "stop_sequence": finished.stop_string}


def usage_of(usage: Usage) -> dict[str, Any]:
    """Anthropic's counts: what was cached is no part of `input_tokens`. All that is new is remembered, at no price, so
    none of it is counted as written to a cache."""
    return {
        "input_tokens": usage.prompt_tokens - usage.cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached_tokens,
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"thinking_tokens": usage.reasoning_tokens},
    }


def _empty(block: Block) -> dict[str, Any]:
    if block.kind == "thinking":
        return {"type": "thinking", "thinking": "", "signature": ""}
    if block.kind == "text":
        return {"type": "text", "text": ""}
    return {"type": "tool_use", "id": block.id, "name": block.name, "input": {}}


def _delta(block: Block, piece: str) -> Frame:
    delta = {
        "thinking": {"type": "thinking_delta", "thinking": piece},
        "text": {"type": "text_delta", "text": piece},
        "call": {"type": "input_json_delta", "partial_json": piece},
    }[block.kind]
    return _frame("content_block_delta", index=block.index, delta=delta)


def _frame(kind: str, **data: Any) -> Frame:
    return Frame({"type": kind, **data}, kind)
