"""Anthropic's request bodies as requests to the runtime. Knows no HTTP; what is answered is anthropic_answer.py.

The conversation becomes OpenAI's form, which the runtime reads: a message with tool results becomes one message for
each of them and one for the text beside them, in their order. `cache_control` is accepted and has no effect, since
everything is remembered anyway; so are the fields that only a hosted service can obey (metadata, service_tier, betas).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import msgspec

from mlx_qwen35.asking import chat_request
from mlx_qwen35.runtime import ChatRequest
from mlx_qwen35.server.openai_fields import Count, FoldAt, StopText
from mlx_qwen35.server.parts import bad, kind_of, media, part
from mlx_qwen35.server.thoughts import unseal

Parts = str | list[dict[str, Any]]
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
Message = dict[str, Any]
EFFORTS = {"max": "xhigh"}  # names that the runtime has under another one
IMAGES = ("image", "document", "container_upload")


class InMessage(msgspec.Struct):
    role: Literal["user", "assistant", "system"]
    content: Parts


class Thinking(msgspec.Struct):
    type: Literal["enabled", "disabled", "adaptive"]
    budget_tokens: Count | None = None
    display: Literal["summarized", "omitted"] | None = None


class ToolChoice(msgspec.Struct):
    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class Format(msgspec.Struct):
    type: Literal["json_schema"]
    schema: dict[str, Any]


class OutputConfig(msgspec.Struct):
    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None
    format: Format | None = None


class CountBody(msgspec.Struct, kw_only=True):
    """POST /v1/messages/count_tokens"""

    model: str
    messages: list[InMessage]
    system: Parts | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: ToolChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    mcp_servers: list[Any] | None = None
    container: Any = None


class MessagesBody(CountBody, kw_only=True):
    """POST /v1/messages"""

    max_tokens: Count
    stream: bool | None = None
    stop_sequences: Annotated[list[StopText], msgspec.Meta(max_length=16)] | None = None
    temperature: Annotated[float, msgspec.Meta(ge=0, le=2)] | None = None
    top_p: Share | None = None
    top_k: Annotated[int, msgspec.Meta(ge=0)] | None = None
    metadata: dict[str, Any] | None = None
    session_id: str | None = None
    fold_at: FoldAt | None = None


class Tool(msgspec.Struct):
    name: str
    input_schema: dict[str, Any]
    description: str | None = None
    strict: bool | None = None


class Text(msgspec.Struct):
    text: str


class Thought(msgspec.Struct):
    thinking: str
    signature: str | None = None


class ToolUse(msgspec.Struct):
    id: str
    name: str
    input: dict[str, Any]


class ToolResult(msgspec.Struct):
    tool_use_id: str
    content: Parts | None = None
    is_error: bool | None = None


def read_request(body: CountBody) -> ChatRequest:
    """The request to the runtime. Raises Refused or RequestError, naming the field."""
    for name, value in (("mcp_servers", body.mcp_servers), ("container", body.container)):
        if value:
            raise bad(name, "only Anthropic's own service can run it; leave it out", "unsupported_parameter")
    tools = [_tool(tool, f"tools[{i}]") for i, tool in enumerate(body.tools or ())]
    asked = body if isinstance(body, MessagesBody) else None
    return chat_request(
        read_messages(body.system, body.messages),
        tools or None,
        body.thinking is not None and body.thinking.type != "disabled",
        max_tokens=asked and asked.max_tokens,
        stop=asked and asked.stop_sequences,
        temperature=asked and asked.temperature,
        top_p=asked and asked.top_p,
        top_k=asked and asked.top_k,
        fold_at=asked and asked.fold_at,
        **_thinking(body),
        **_tool_choice(body.tool_choice, [tool["function"]["name"] for tool in tools]),
        **_format(body.output_config),
    )


def read_messages(system: Parts | None, messages: Sequence[InMessage]) -> list[Message]:
    """The conversation in OpenAI's form. Raises Refused."""
    if not messages:
        raise bad("messages", "empty; at least one message is needed")
    found: list[Message] = []
    if system:
        found.append({"role": "system", "content": _text(system, "system", "\n\n")})
    for i, message in enumerate(messages):
        place = f"messages[{i}].content"
        if message.role == "system":
            found.append({"role": "system", "content": _text(message.content, place, "\n\n")})
        elif message.role == "assistant":
            found.append(_assistant(message.content, place))
        else:
            found += _user(message.content, place)
    return found


def _user(content: Parts, place: str) -> list[Message]:
    if isinstance(content, str):
        return [{"role": "user", "content": content}]
    found: list[Message] = []
    texts: list[str] = []

    def say() -> None:
        if texts:
            found.append({"role": "user", "content": "\n".join(texts)})
            texts.clear()

    for i, block in enumerate(content):
        here = f"{place}[{i}]"
        if kind_of(block, here) == "tool_result":
            say()
            found.append(_tool_result(part(block, ToolResult, here), here))
        else:
            texts.append(_shown(block, here))
    say()
    return found or [{"role": "user", "content": ""}]


def _tool_result(result: ToolResult, place: str) -> Message:
    text = _text(result.content or "", f"{place}.content", "\n")
    if result.is_error and "error" not in text[:40].lower():
        text = f"Error: {text}"
    return {"role": "tool", "tool_call_id": result.tool_use_id, "content": text}


def _assistant(content: Parts, place: str) -> Message:
    if isinstance(content, str):
        return {"role": "assistant", "content": content}
    texts: list[str] = []
    thoughts: list[str] = []
    calls: list[dict[str, Any]] = []
    for i, block in enumerate(content):
        here = f"{place}[{i}]"
        kind = kind_of(block, here)
        if kind == "thinking":
            thought = part(block, Thought, here)
            thoughts.append(thought.thinking or unseal(thought.signature or "") or "")
        elif kind == "redacted_thinking":  # another service's, which nobody here can read
            continue
        elif kind == "tool_use":
            call = part(block, ToolUse, here)
            function = {"name": call.name, "arguments": call.input}
            calls.append({"id": call.id, "type": "function", "function": function})
        else:
            texts.append(_shown(block, here))
    message: Message = {"role": "assistant", "content": "".join(texts)}
    if thoughts:
        message["reasoning_content"] = "".join(thoughts)
    if calls:
        message["tool_calls"] = calls
    return message


def _text(content: Parts, place: str, between: str) -> str:
    if isinstance(content, str):
        return content
    return between.join(_shown(block, f"{place}[{i}]") for i, block in enumerate(content))


def _shown(block: Any, place: str) -> str:
    """What the model reads of a block."""
    kind = kind_of(block, place)
    if kind == "text":
        return part(block, Text, place).text
    if kind == "document" and isinstance(source := block.get("source"), Mapping) and source.get("type") == "text":
        title = f"{block['title']}\n" if isinstance(block.get("title"), str) else ""
        return title + part({"text": source.get("data")}, Text, f"{place}.source").text
    if kind == "search_result":
        texts = block.get("content")
        return _text(texts if isinstance(texts, list) else "", f"{place}.content", "\n")
    if kind in IMAGES:
        raise media(place)
    raise bad(f"{place}.type", f"{kind[:60]!r} is not read here; text, thinking, tool_use and tool_result are")


def _tool(tool: Mapping[str, Any], place: str) -> Message:
    kind = tool.get("type")
    if kind not in (None, "custom"):
        raise bad(
            f"{place}.type",
            f"{kind!r:.60} is a tool of Anthropic's own; give function tools with a name and an input_schema",
            "unsupported_parameter",
        )
    read = part(tool, Tool, place)
    if not read.name:
        raise bad(f"{place}.name", "empty; a name is needed")
    function: dict[str, Any] = {"name": read.name}
    if read.description is not None:
        function["description"] = read.description
    function["parameters"] = read.input_schema
    if read.strict is not None:
        function["strict"] = read.strict
    return {"type": "function", "function": function}


def _thinking(body: CountBody) -> dict[str, Any]:
    if body.thinking is None or body.thinking.type == "disabled":
        return {}
    if body.thinking.type == "enabled" and body.thinking.budget_tokens is None:
        raise bad("thinking.budget_tokens", "missing; a number of tokens is needed where thinking is enabled")
    effort = body.output_config.effort if body.output_config else None
    return {
        "thinking_budget": body.thinking.budget_tokens,
        "reasoning_effort": EFFORTS.get(effort, effort) if effort else None,
    }


def _tool_choice(choice: ToolChoice | None, names: Sequence[str]) -> dict[str, Any]:
    if choice is None:
        return {}
    if choice.type == "tool" and choice.name not in names:
        found = "missing" if choice.name is None else f"{choice.name[:60]!r} is none of the tools"
        raise bad("tool_choice.name", found)
    if choice.type == "any" and not names:
        raise bad("tool_choice", "a tool has to be called, but there are no tools")
    one = {"type": "function", "function": {"name": choice.name}}
    wanted = {"auto": None, "any": "required", "none": "none", "tool": one}[choice.type]
    return {"tool_choice": wanted, "parallel_tool_calls": False if choice.disable_parallel_tool_use else None}


def _format(config: OutputConfig | None) -> dict[str, Any]:
    if config is None or config.format is None:
        return {}
    schema = {"name": "answer", "schema": config.format.schema}
    return {"response_format": {"type": "json_schema", "json_schema": schema}}
