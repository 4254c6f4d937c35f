"""Answers in the form of OpenAI's Responses: one object, or the events of a stream. See responses_request.py."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from mlx_qwen35.chat.events import Event, Finished, Usage
from mlx_qwen35.chat.reply import Reply
from mlx_qwen35.server.blocks import Block, Blocks, Grew, Opened, Step
from mlx_qwen35.server.openai_logprobs import token_logprobs
from mlx_qwen35.server.protocol import Frame, Json, Refused
from mlx_qwen35.server.responses_request import ResponsesBody
from mlx_qwen35.server.responses_tools import INPUT, Tools
from mlx_qwen35.server.thoughts import seal

ENCRYPTED = "reasoning.encrypted_content"
# Fields of the request that the response repeats, with what stands there when they were left out.
REPEATED: dict[str, Any] = {
    "instructions": None,
    "max_output_tokens": None,
    "metadata": {},
    "parallel_tool_calls": True,
    "previous_response_id": None,
    "temperature": None,
    "text": {"format": {"type": "text"}},
    "tool_choice": "auto",
    "tools": [],
    "top_p": None,
    "truncation": "disabled",
}
Cache = Callable[[Sequence[Usage]], Json]
Keep = Callable[[Json, dict[str, Any]], None]
FAILURES = {429: "rate_limit_exceeded"}


class ResponseAuthor:
    """Writes one response.

    raw: the body as it came   cache: see `Served.cache`
    keep: takes the finished response, and the answer as a message of the conversation
    """

    def __init__(
        self, model: str, body: ResponsesBody, raw: Mapping[str, Any], tools: Tools, cache: Cache, keep: Keep
    ) -> None:
        self._tools, self._cache, self._keep = tools, cache, keep
        # Whoever asks for a summary shows it. The whole of the reasoning is the best one there is.
        reasoning = body.reasoning
        self._summarises = reasoning is not None and bool(reasoning.summary or reasoning.generate_summary)
        self._seals = ENCRYPTED in (body.include or ())
        self._frame: dict[str, Any] = {
            "id": _name("resp"),
            "object": "response",
            "created_at": int(time.time()),
            "model": model,
            **{name: default if raw.get(name) is None else raw[name] for name, default in REPEATED.items()},
            "reasoning": {"effort": None, "summary": None} | dict(raw.get("reasoning") or {}),
            "store": body.store is not False,
            "background": False,
        }
        self._blocks = Blocks()
        self._names: list[str] = []  # of the items, by their block
        self._sent = 0
        self._finished: Finished | None = None

    def whole(self, replies: Sequence[Reply]) -> Json:
        for event in replies[0].events:
            for step in self._blocks.take(event):
                self._note(step)
            if isinstance(event, Finished):
                self._finished = event
        return self._concluded()

    def begin(self) -> Iterator[Frame]:
        for kind in ("created", "in_progress"):
            yield self._event(f"response.{kind}", response=self._response("in_progress"))

    def event(self, choice: int, event: Event) -> Iterator[Frame]:
        for step in self._blocks.take(event):
            self._note(step)
            yield from self._step(step)
        if isinstance(event, Finished):
            self._finished = event

    def end(self) -> Iterator[Frame]:
        response = self._concluded()
        yield self._event(f"response.{response['status']}", response=response)

    def failed(self, refused: Refused) -> Iterator[Frame]:
        error = {"code": FAILURES.get(refused.status, "server_error"), "message": str(refused)}
        yield self._event("response.failed", response=self._response("failed", error=error))

    # The object

    def _concluded(self) -> dict[str, Any]:
        finished = self._finished
        assert finished is not None
        cut = finished.reason == "length"
        response = self._response("incomplete" if cut else "completed", finished.usage)
        if cut:
            response["incomplete_details"] = {"reason": "max_output_tokens"}
        else:
            response["completed_at"] = int(time.time())
        self._keep(response, said(self._blocks))
        return response

    def _response(self, status: str, usage: Usage | None = None, error: dict[str, Any] | None = None) -> dict[str, Any]:
        return {
            **self._frame,
            "status": status,
            "output": [self._item(block) for block in self._blocks.done],
            "usage": None if usage is None else usage_of(usage) | {"cache": self._cache([usage])},
            "error": error,
            "incomplete_details": None,
        }

    def _item(self, block: Block, fresh: bool = False) -> dict[str, Any]:
        """fresh: the item as it is added, empty"""
        name, text = self._names[block.index], "" if fresh else block.text
        status = "in_progress" if fresh else "completed" if block.complete else "incomplete"
        if block.kind == "thinking":
            parts = [] if fresh else [_part(block, self._summarises, text)]
            held = {"summary": parts, "content": []} if self._summarises else {"summary": [], "content": parts}
            sealed = {"encrypted_content": seal(text) if not fresh else ""} if self._seals else {}
            return {"type": "reasoning", "id": name, **held, **sealed, "status": status}
        if block.kind == "text":
            content = [] if fresh else [_part(block, False, text)]
            return {"type": "message", "id": name, "role": "assistant", "content": content, "status": status}
        known = self._tools.of(block.name)
        call: dict[str, Any] = {"id": name, "call_id": block.id, "name": known.name}
        if known.namespace is not None:
            call["namespace"] = known.namespace
        if known.kind == "custom":
            return {"type": "custom_tool_call", **call, "input": "" if fresh else _input(block), "status": status}
        return {"type": "function_call", **call, "arguments": text, "status": status}

    # The stream

    def _note(self, step: Step) -> None:
        if isinstance(step, Opened):
            prefix = {"thinking": "rs", "text": "msg", "call": "fc"}[step.block.kind]
            self._names.append(_name(prefix))

    def _step(self, step: Step) -> Iterator[Frame]:
        block = step.block
        place = {"item_id": self._names[block.index], "output_index": block.index}
        if isinstance(step, Opened):
            item = self._item(block, fresh=True)
            yield self._event("response.output_item.added", output_index=block.index, item=item)
        if block.kind == "call":
            yield from self._call_step(step, place)
        else:
            yield from self._text_step(step, place)
        if not isinstance(step, (Opened, Grew)):
            yield self._event("response.output_item.done", output_index=block.index, item=self._item(block))

    def _text_step(self, step: Step, place: dict[str, Any]) -> Iterator[Frame]:
        block = step.block
        summary = block.kind == "thinking" and self._summarises
        place |= {"summary_index" if summary else "content_index": 0}
        part = "reasoning_summary_part" if summary else "content_part"
        text = {"thinking": "reasoning_summary_text" if summary else "reasoning_text"}.get(block.kind, "output_text")
        told = step.logprobs if isinstance(step, Grew) else block.logprobs
        extra = {"logprobs": token_logprobs(told)} if block.kind == "text" else {}
        if isinstance(step, Opened):
            yield self._event(f"response.{part}.added", **place, part=_part(block, summary, ""))
        elif isinstance(step, Grew):
            yield self._event(f"response.{text}.delta", **place, delta=step.piece, **extra)
        else:
            yield self._event(f"response.{text}.done", **place, text=block.text, **extra)
            yield self._event(f"response.{part}.done", **place, part=_part(block, summary, block.text))

    def _call_step(self, step: Step, place: dict[str, Any]) -> Iterator[Frame]:
        block = step.block
        custom = self._tools.of(block.name).kind == "custom"
        if isinstance(step, Grew) and not custom:
            yield self._event("response.function_call_arguments.delta", **place, delta=step.piece)
        elif not isinstance(step, (Opened, Grew)):
            if custom:  # what its free text is, is known when its JSON is whole
                yield self._event("response.custom_tool_call_input.delta", **place, delta=_input(block))
                yield self._event("response.custom_tool_call_input.done", **place, input=_input(block))
            else:
                done = {"name": self._tools.of(block.name).name, "arguments": block.text}
                yield self._event("response.function_call_arguments.done", **place, **done)

    def _event(self, kind: str, **data: Any) -> Frame:
        frame = Frame({"type": kind, "sequence_number": self._sent, **data}, kind)
        self._sent += 1
        return frame


def said(blocks: Blocks) -> dict[str, Any]:
    """The answer as a message of the conversation, in the runtime's form."""
    texts = {kind: "".join(b.text for b in blocks.done if b.kind == kind) for kind in ("thinking", "text")}
    message: dict[str, Any] = {"role": "assistant", "content": texts["text"]}
    if texts["thinking"]:
        message["reasoning_content"] = texts["thinking"]
    if blocks.called:
        message["tool_calls"] = [
            {"id": b.id, "type": "function", "function": {"name": b.name, "arguments": b.text}}
            for b in blocks.done
            if b.kind == "call"
        ]
    return message


def usage_of(usage: Usage) -> dict[str, Any]:
    """OpenAI's counts: `input_tokens` holds those that were cached."""
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }


def _part(block: Block, summary: bool, text: str) -> dict[str, Any]:
    if block.kind == "text":
        logprobs = token_logprobs(block.logprobs) if text else []
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs}
    return {"type": "summary_text" if summary else "reasoning_text", "text": text}


def _input(block: Block) -> str:
    """The free text of a custom tool's call."""
    text = block.arguments.get(INPUT)
    return text if isinstance(text, str) else block.text


def _name(prefix: str) -> str:
    return f"{prefix}_{uuid.uuid4().hex}"
