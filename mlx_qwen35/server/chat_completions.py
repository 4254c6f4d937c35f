"""OpenAI's `/v1/chat/completions`: its body as requests to the runtime, the runtime's events as its chunks."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterable, Sequence
from typing import Annotated, Any

from msgspec import Meta

from mlx_qwen35.chat.events import Event, Finished, FinishReason, Logprobs, Usage
from mlx_qwen35.chat.reply import Reply
from mlx_qwen35.runtime import ChatRequest
from mlx_qwen35.server.blocks import Block, Blocks, Grew, Opened, Step
from mlx_qwen35.server.body import typed
from mlx_qwen35.server.openai_errors import openai_error
from mlx_qwen35.server.openai_fields import Count, FoldAt, Shared, answer_options, refuse_unsupported, seeds, usage_json
from mlx_qwen35.server.openai_logprobs import token_logprobs
from mlx_qwen35.server.protocol import Asked, Call, Frame, Generation, Json, Refused, Served
from mlx_qwen35.server.sessions import session_name


class ChatBody(Shared, kw_only=True):
    """The body of `/v1/chat/completions`. Other fields are let through, unless they look like a slip."""

    messages: Annotated[list[dict[str, Any]], Meta(min_length=1)]
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    max_completion_tokens: Count | None = None
    reasoning_effort: str | None = None
    enable_thinking: bool | None = None
    thinking_budget: int | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    response_format: dict[str, Any] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    session_id: str | None = None
    fold_at: FoldAt | None = None
    modalities: list[str] | None = None
    functions: Any = None
    function_call: Any = None
    audio: Any = None
    web_search_options: Any = None
    # Known, and without effect on a local model.
    prediction: Any = None
    verbosity: Any = None


def endpoints(served: Served) -> list[Generation]:
    """`/v1/chat/completions`."""

    def read(call: Call) -> Asked:
        body = typed(call.body, ChatBody)
        author = ChatAuthor(served, body)
        requests = [served.canonical(request) for request in _requests(body)]
        return Asked(requests, author, bool(body.stream), session_name(body.session_id))

    return [Generation("/v1/chat/completions", read, openai_error, ChatBody, "Answer a conversation.")]


def _requests(body: ChatBody) -> list[ChatRequest]:
    _refuse_what_is_missing(body)
    options = answer_options(body)
    if body.max_completion_tokens is not None:
        options["max_tokens"] = body.max_completion_tokens
    return [
        ChatRequest(
            body.messages,
            body.tools or None,
            _thinking(body),
            seed=seed,
            thinking_budget=body.thinking_budget,
            reasoning_effort=body.reasoning_effort,
            tool_choice=body.tool_choice,
            parallel_tool_calls=body.parallel_tool_calls is not False,
            response_format=body.response_format,
            logprobs=_logprobs(body),
            fold_at=body.fold_at,
            **options,
        )
        for seed in seeds(body.seed, body.n or 1)
    ]


def _thinking(body: ChatBody) -> bool | None:
    """What the template's own option says, else the field of that name; None leaves it to the effort or the template.

    Raises Refused for other options of the template: a request does not choose how prompts are written.
    """
    for name, value in (body.chat_template_kwargs or {}).items():
        if name != "enable_thinking":
            raise refuse_unsupported(f"chat_template_kwargs.{name[:40]}", "cannot be set; only enable_thinking can")
        if value is not None and not isinstance(value, bool):
            place = "chat_template_kwargs.enable_thinking"
            raise Refused(400, f"{place} should be true or false.", param=place)
    asked = (body.chat_template_kwargs or {}).get("enable_thinking")
    return body.enable_thinking if asked is None else asked


def _logprobs(body: ChatBody) -> int | None:
    if body.logprobs:
        return body.top_logprobs or 0
    if body.top_logprobs:
        raise Refused(400, "top_logprobs is given without logprobs; set logprobs to true.", param="top_logprobs")
    return None


def _refuse_what_is_missing(body: ChatBody) -> None:
    """What this release cannot obey is refused by name, and never ignored."""
    for field in ("functions", "function_call", "audio", "web_search_options"):
        if getattr(body, field) is not None:
            raise refuse_unsupported(field, "is not supported; functions are given as tools")
    if body.modalities not in (None, ["text"]):
        raise refuse_unsupported("modalities", "other than text are not supported")


class ChatAuthor:
    """Writes one `chat.completion`, or its chunks."""

    def __init__(self, served: Served, body: ChatBody) -> None:
        self._served = served
        self._id, self._created = f"chatcmpl-{secrets.token_hex(12)}", int(time.time())
        self._model = served.check_model(body.model)
        self._choices = body.n or 1
        self._tells_logprobs = bool(body.logprobs)
        self._blocks = [Blocks() for _ in range(self._choices)]
        self._with_usage = bool(body.stream_options and body.stream_options.include_usage)
        self._usages: dict[int, Usage] = {}

    def whole(self, replies: Sequence[Reply]) -> Json:
        """The `chat.completion` object."""
        choices = []
        for i, reply in enumerate(replies):
            blocks = Blocks.of(reply.events)
            logprobs = self._logprobs(reply.logprobs, reply.reasoning_logprobs)
            reason = _reason(reply.reason, blocks)
            choices.append({"index": i, "message": _message(blocks), "logprobs": logprobs, "finish_reason": reason})
        return self._object("chat.completion", choices) | {"usage": self._usage([reply.usage for reply in replies])}

    def begin(self) -> Iterable[Frame]:
        for choice in range(self._choices):
            yield self._chunk(choice, {"role": "assistant", "content": ""})

    def event(self, choice: int, event: Event) -> Iterable[Frame]:
        blocks = self._blocks[choice]
        for step in blocks.take(event):
            if (delta := _delta(step, blocks)) is not None:
                yield self._chunk(choice, delta, logprobs=self._of_piece(step))
        if isinstance(event, Finished):
            self._usages[choice] = event.usage
            yield self._chunk(choice, {}, _reason(event.reason, blocks))

    def end(self) -> Iterable[Frame]:
        if self._with_usage:
            yield Frame(
                self._object("chat.completion.chunk", [])
                | {"usage": self._usage([usage for _, usage in sorted(self._usages.items())])}
            )
        yield Frame("[DONE]")

    def failed(self, refused: Refused) -> Iterable[Frame]:
        yield Frame(openai_error(refused))

    def _usage(self, usages: list[Usage]) -> Json:
        return usage_json(self._served, usages, self._choices)

    def _of_piece(self, step: Step) -> Json | None:
        if not isinstance(step, Grew) or step.block.kind == "call":
            return None
        return self._logprobs(step.logprobs, ()) if step.block.kind == "text" else self._logprobs((), step.logprobs)

    def _logprobs(self, content: Logprobs, reasoning: Logprobs) -> Json | None:
        """reasoning: an addition of ours, under the name that the text has"""
        if not self._tells_logprobs:
            return None
        told: dict[str, Any] = {"content": token_logprobs(content), "refusal": None}
        return told | {"reasoning_content": token_logprobs(reasoning)} if reasoning else told

    def _chunk(self, choice: int, delta: Json, reason: str | None = None, logprobs: Json | None = None) -> Frame:
        choices = [{"index": choice, "delta": delta, "logprobs": logprobs, "finish_reason": reason}]
        chunk = self._object("chat.completion.chunk", choices)
        return Frame(chunk | {"usage": None} if self._with_usage else chunk)

    def _object(self, kind: str, choices: list[Any]) -> dict[str, Any]:
        return {
            "id": self._id,
            "object": kind,
            "created": self._created,
            "model": self._model,
            "system_fingerprint": None,
            "choices": choices,
        }


def _reason(reason: FinishReason, blocks: Blocks) -> FinishReason:
    """A call that was cut is one too: its client learns so from arguments that are no whole JSON."""
    return "tool_calls" if reason == "stop" and blocks.called else reason


def _message(blocks: Blocks) -> Json:
    texts = {kind: "".join(b.text for b in blocks.done if b.kind == kind) for kind in ("text", "thinking")}
    message: dict[str, Any] = {"role": "assistant", "content": texts["text"], "refusal": None}
    if texts["thinking"]:
        message["reasoning_content"] = texts["thinking"]
    if blocks.called:
        message["content"] = texts["text"] or None
        message["tool_calls"] = [_call(block) for block in blocks.done if block.kind == "call"]
    return message


def _call(block: Block) -> Json:
    return {"id": block.id, "type": "function", "function": {"name": block.name, "arguments": block.text}}


def _delta(step: Step, blocks: Blocks) -> Json | None:
    """What a step adds to the message; None for what the protocol has no words for."""
    block = step.block
    if block.kind == "call":
        index = sum(before.kind == "call" for before in blocks.done[: block.index])
        if isinstance(step, Opened):
            function = {"name": block.name, "arguments": ""}
            return {"tool_calls": [{"index": index, "id": block.id, "type": "function", "function": function}]}
        if isinstance(step, Grew):
            return {"tool_calls": [{"index": index, "function": {"arguments": step.piece}}]}
    elif isinstance(step, Grew):
        return {"content" if block.kind == "text" else "reasoning_content": step.piece}
    return None
