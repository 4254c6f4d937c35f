"""OpenAI's Responses bodies as requests to the runtime. Knows no HTTP; what is answered is responses_answer.py.

`input` becomes OpenAI's older form, which the runtime reads: neighbouring items of the model's side (reasoning, text,
calls) become one message. Fields that only a hosted service can obey (metadata, prompt_cache_key, service_tier, ...)
are let through; those without which the answer would be another one (background, conversation, prompt) are refused.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal

import msgspec

from mlx_qwen35.asking import chat_request
from mlx_qwen35.runtime import ChatRequest
from mlx_qwen35.server.openai_fields import Count, FoldAt, Hosted
from mlx_qwen35.server.parts import bad, kind_of, media, part
from mlx_qwen35.server.protocol import Refused
from mlx_qwen35.server.responses_tools import INPUT, Tools
from mlx_qwen35.server.thoughts import unseal

Message = dict[str, Any]
Parts = str | list[dict[str, Any]]
Find = Callable[[str], Mapping[str, Any] | None]
TEXTS = ("input_text", "output_text", "text", "summary_text", "reasoning_text")
MEDIA = ("input_image", "input_file", "input_audio", "image", "file")
LOGPROBS = "message.output_text.logprobs"  # in `include`
SILENT = ("web_search_call", "image_generation_call", "mcp_list_tools", "tool_search_call", "tool_search_output")


class Reasoning(msgspec.Struct):
    effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    summary: Literal["auto", "concise", "detailed"] | None = None
    generate_summary: Literal["auto", "concise", "detailed"] | None = None


class Format(msgspec.Struct):
    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    schema: dict[str, Any] | None = None
    strict: bool | None = None
    description: str | None = None


class TextConfig(msgspec.Struct):
    format: Format | None = None
    verbosity: Literal["low", "medium", "high"] | None = None


class InputTokensBody(Hosted, kw_only=True):
    """POST /v1/responses/input_tokens"""

    model: str | None = None
    input: Parts | None = None
    instructions: str | None = None
    previous_response_id: str | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    reasoning: Reasoning | None = None
    text: TextConfig | None = None
    truncation: Literal["auto", "disabled"] | None = None
    conversation: Any = None


class ResponsesBody(InputTokensBody, kw_only=True):
    """POST /v1/responses"""

    input: Parts  # pyright: ignore[reportGeneralTypeIssues]  # required here, and left out at most in a count
    stream: bool | None = None
    store: bool | None = None
    include: list[str] | None = None
    max_output_tokens: Count | None = None
    temperature: Annotated[float, msgspec.Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, msgspec.Meta(ge=0, le=1)] | None = None
    top_logprobs: Annotated[int, msgspec.Meta(ge=0, le=20)] | None = None
    metadata: dict[str, Any] | None = None
    background: bool | None = None
    session_id: str | None = None
    fold_at: FoldAt | None = None
    prompt: Any = None
    # Known, and without effect on a local model.
    max_tool_calls: Any = None
    stream_options: Any = None
    client_metadata: Any = None


class Said(msgspec.Struct):
    role: Literal["user", "assistant", "system", "developer"]
    content: Parts


class FunctionCall(msgspec.Struct):
    call_id: str
    name: str
    arguments: str
    namespace: str | None = None


class CustomCall(msgspec.Struct):
    call_id: str
    name: str
    input: str
    namespace: str | None = None


class CallOutput(msgspec.Struct):
    call_id: str
    output: Parts


class ReasoningItem(msgspec.Struct):
    summary: list[dict[str, Any]] | None = None
    content: list[dict[str, Any]] | None = None
    encrypted_content: str | None = None


def read_request(body: InputTokensBody, before: Sequence[Message], own: Sequence[Message], tools: Tools) -> ChatRequest:
    """The request to the runtime. before: the conversation gone on from   own: this request's `read_items`

    Raises Refused or RequestError, naming the field.
    """
    _refuse_what_is_hosted(body)
    asked = body if isinstance(body, ResponsesBody) else None
    instructions = [{"role": "system", "content": body.instructions}] if body.instructions else []
    effort = body.reasoning.effort if body.reasoning else None
    return chat_request(
        [*instructions, *before, *own],
        tools.shown or None,
        None if effort is None else effort != "none",
        max_tokens=asked and asked.max_output_tokens,
        temperature=asked and asked.temperature,
        top_p=asked and asked.top_p,
        reasoning_effort="xhigh" if effort == "max" else effort,
        tool_choice=_tool_choice(body.tool_choice, tools),
        parallel_tool_calls=False if body.parallel_tool_calls is False and tools.shown else None,
        response_format=_format(body.text),
        logprobs=asked and _logprobs(asked),
        fold_at=asked and asked.fold_at,
    )


def read_items(items: Parts | None, tools: Tools, find: Find) -> list[Message]:
    """The input as messages. find: an earlier output item by its id. Raises Refused, naming the item."""
    if isinstance(items, str):
        return [{"role": "user", "content": items}]
    reading = _Reading(tools, find)
    for i, item in enumerate(items or ()):
        reading.take(item, f"input[{i}]")
    return reading.messages


class _Reading:
    """Items one after the other; what the model said between two of the client's items is one message."""

    def __init__(self, tools: Tools, find: Find) -> None:
        self.messages: list[Message] = []
        self._tools, self._find = tools, find
        self._answer: Message | None = None

    def take(self, item: Any, place: str) -> None:
        kind = kind_of(item, place, "message")
        if kind == "message":
            self._say(part(item, Said, place), f"{place}.content")
        elif kind == "reasoning":
            self._think(part(item, ReasoningItem, place), place)
        elif kind == "function_call":
            call = part(item, FunctionCall, place)
            self._call(call.call_id, self._tools.name_of(call.name, call.namespace), call.arguments)
        elif kind == "custom_tool_call":
            call = part(item, CustomCall, place)
            arguments = json.dumps({INPUT: call.input}, ensure_ascii=False)
            self._call(call.call_id, self._tools.name_of(call.name, call.namespace), arguments)
        elif kind in ("function_call_output", "custom_tool_call_output"):
            result = part(item, CallOutput, place)
            self._add(
                {"role": "tool", "tool_call_id": result.call_id, "content": _text(result.output, f"{place}.output")}
            )
        elif kind == "item_reference":
            self._refer(item, place)
        elif kind not in SILENT:
            raise bad(f"{place}.type", f"{kind[:60]!r} is not read here", "unsupported_parameter")

    def _refer(self, item: Mapping[str, Any], place: str) -> None:
        name = item.get("id")
        found = self._find(name) if isinstance(name, str) else None
        if found is None or found.get("type") == "item_reference":
            raise Refused(404, f"{place}.id: no item {name!r:.80} is stored here.", param=f"{place}.id")
        self.take(found, place)

    def _add(self, message: Message) -> None:
        self._answer = None
        self.messages.append(message)

    def _mine(self, fresh: bool = False) -> Message:
        """The answer being read; a new one if there is none, or if it has gone on from `fresh`."""
        begun = self._answer is not None and (self._answer["content"] or "tool_calls" in self._answer)
        if self._answer is None or (fresh and begun):
            self._add({"role": "assistant", "content": ""})
            self._answer = self.messages[-1]
        return self._answer

    def _say(self, said: Said, place: str) -> None:
        text = _text(said.content, place)
        if said.role == "assistant":
            self._mine()["content"] += text
        else:
            self._add({"role": said.role, "content": text})

    def _think(self, item: ReasoningItem, place: str) -> None:
        text = unseal(item.encrypted_content or "")
        if text is None:
            text = _text(item.content or item.summary or "", f"{place}.content" if item.content else f"{place}.summary")
        if text:
            message = self._mine(fresh=True)
            message["reasoning_content"] = message.get("reasoning_content", "") + text

    def _call(self, name: str, function: str, arguments: str) -> None:
        call = {"id": name, "type": "function", "function": {"name": function, "arguments": arguments}}
        self._mine().setdefault("tool_calls", []).append(call)


def _text(content: Parts, place: str) -> str:
    if isinstance(content, str):
        return content
    return "".join(_shown(piece, f"{place}[{i}]") for i, piece in enumerate(content))


def _shown(piece: Any, place: str) -> str:
    kind = kind_of(piece, place)
    if kind in MEDIA:
        raise media(place)
    name = "refusal" if kind == "refusal" else "text"
    if kind not in (*TEXTS, "refusal"):
        raise bad(f"{place}.type", f"{kind[:60]!r} is not read here; input_text and output_text are")
    text = piece.get(name)
    if not isinstance(text, str):
        raise bad(f"{place}.{name}", "a text is needed")
    return text


def _tool_choice(choice: str | dict[str, Any] | None, tools: Tools) -> Any:
    if choice is None or choice == "auto":
        return None
    if choice == "none":
        return "none"
    if choice == "required":
        if not tools.shown:
            raise bad("tool_choice", "a tool has to be called, but there are no function tools")
        return "required"
    if not isinstance(choice, Mapping):
        raise bad("tool_choice", f"{choice!r:.60} is none of none, auto, required, or one tool")
    if choice.get("type") == "allowed_tools":
        # The tools that are not allowed would have to leave the prompt; it is for the client to leave them out.
        raise bad("tool_choice.type", "allowed_tools is not supported; send these tools only", "unsupported_parameter")
    name = choice.get("name")
    shown = tools.name_of(name, choice.get("namespace")) if isinstance(name, str) else None
    if shown not in tools.known:
        raise bad("tool_choice.name", f"{name!r:.60} is none of the function tools")
    return {"type": "function", "function": {"name": shown}}


def _logprobs(body: ResponsesBody) -> int | None:
    if LOGPROBS in (body.include or ()):
        return body.top_logprobs or 0
    if body.top_logprobs:
        raise bad("top_logprobs", f"given without {LOGPROBS} in include, which asks for them")
    return None


def _format(text: TextConfig | None) -> dict[str, Any] | None:
    asked = text.format if text else None
    if asked is None or asked.type == "text":
        return None
    if asked.type == "json_object":
        return {"type": "json_object"}
    if asked.schema is None:
        raise bad("text.format.schema", "missing; a JSON schema is needed")
    schema: dict[str, Any] = {"name": asked.name or "answer", "schema": asked.schema}
    if asked.strict is not None:
        schema["strict"] = asked.strict
    return {"type": "json_schema", "json_schema": schema}


def _refuse_what_is_hosted(body: InputTokensBody) -> None:
    for name in ("background", "conversation", "prompt"):
        if getattr(body, name, None):
            raise bad(name, "only OpenAI's own service can do that; leave it out", "unsupported_parameter")
