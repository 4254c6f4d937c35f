"""Brings incoming messages (OpenAI's form, as real clients send it) into the one form the templates accept.

Messages of a request are untrusted and vary by client; a template raises on most of the variation. Nothing here
changes its input, and nothing here renders: that is template.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mlx_qwen35.chat.json_text import parse_json
from mlx_qwen35.errors import RequestError

ROLES = ("system", "developer", "user", "assistant", "tool")
REASONING_KEYS = ("reasoning_content", "reasoning", "thinking")
TEXT_PARTS = ("text", "input_text", "output_text")
# A part is recognised by its type, or, as the templates do it, by a key.
MEDIA_PARTS = {
    "images": ("image", "image_url", "input_image"),
    "video": ("video", "video_url", "input_video"),
}

Message = dict[str, Any]


def normalise_messages(messages: Sequence[Mapping[str, Any]]) -> list[Message]:
    """New messages of the roles system (at most one, first), user, assistant and tool, with text as content.

    - `developer` is system; system messages are joined, blank line between, into one at the front.
    - Text parts are joined without a separator; a content of None is "".
    - Content may be left out by assistants only: elsewhere a slip in its name would lose a text.
    - Assistant reasoning, under any of its names, is `reasoning_content`; tool-call arguments are mappings.
    - A conversation without a question (agents send those after trimming) gets an empty user message in front of
      its turns, since the templates refuse to render without one.

    Raises RequestError naming the place (`messages[3].content[1]`) for what is not a message, and for images and
    video, which come in a later release.
    """
    if isinstance(messages, (str, bytes, Mapping)) or not isinstance(messages, Sequence):
        raise RequestError(f"messages is a {type(messages).__name__}, but a list of messages is needed.")
    if not messages:
        raise RequestError("messages is empty; at least one message is needed.")
    turns = [_message(message, f"messages[{i}]") for i, message in enumerate(messages)]
    systems = [turn for turn in turns if turn["role"] == "system"]
    turns = [turn for turn in turns if turn["role"] != "system"]
    if not any(turn["role"] == "user" and not _is_tool_response(turn["content"]) for turn in turns):
        turns.insert(0, {"role": "user", "content": ""})
    return _joined_system(systems) + turns


def normalise_tools(tools: Sequence[Mapping[str, Any]] | None) -> list[dict[str, Any]] | None:
    """The tools as given, since the template prints them and the model was trained on that; None for none.

    Raises RequestError naming the place for a tool without a function name, or with parameters that are no object.
    """
    if tools is None:
        return None
    if isinstance(tools, (str, bytes, Mapping)) or not isinstance(tools, Sequence):
        raise RequestError(f"tools is a {type(tools).__name__}, but a list of tools is needed.")
    for i, tool in enumerate(tools):
        function = tool.get("function", tool) if isinstance(tool, Mapping) else None
        if not isinstance(function, Mapping):
            raise RequestError(f"tools[{i}] is not a function tool (type and function are needed).")
        name = function.get("name")
        if not isinstance(name, str) or not name:
            raise RequestError(f"tools[{i}].function.name is {_shown(name)}, but a name is needed.")
        if not isinstance(function.get("parameters") or {}, Mapping):
            raise RequestError(f"tools[{i}].function.parameters is not a JSON schema (an object is needed).")
    return [dict(tool) for tool in tools] or None


def _message(message: Any, place: str) -> Message:
    if not isinstance(message, Mapping):
        raise RequestError(f"{place} is a {type(message).__name__}, but a message with role and content is needed.")
    role = message.get("role")
    if not isinstance(role, str) or role not in ROLES:
        raise RequestError(f"{place}.role is {_shown(role)}, but one of {', '.join(ROLES)} is needed.")
    if role != "assistant" and "content" not in message:
        raise RequestError(f"{place}.content is missing, but text, which may be empty, is needed.")
    text, thought = _content(message.get("content"), f"{place}.content")
    if role == "assistant":
        return _assistant(message, text, thought, place)
    plain: Message = {"role": "system" if role == "developer" else role, "content": text + thought}
    plain |= {key: message[key] for key in ("name", "tool_call_id") if isinstance(message.get(key), str)}
    return plain


def _assistant(message: Mapping[str, Any], text: str, thought: str, place: str) -> Message:
    plain: Message = {"role": "assistant", "content": text}
    given = next((message[key] for key in REASONING_KEYS if isinstance(message.get(key), str)), None)
    if given is None and thought:
        given = thought
    if given is not None:
        plain["reasoning_content"] = given
    calls = message.get("tool_calls")
    if calls is None:
        return plain
    if not isinstance(calls, Sequence) or isinstance(calls, (str, bytes)):
        raise RequestError(f"{place}.tool_calls is a {type(calls).__name__}, but a list is needed.")
    if calls:
        plain["tool_calls"] = [_call(call, f"{place}.tool_calls[{i}]") for i, call in enumerate(calls)]
    return plain


def _call(call: Any, place: str) -> dict[str, Any]:
    function = call.get("function", call) if isinstance(call, Mapping) else None
    name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(name, str) or not name:
        raise RequestError(f"{place} has no function name; an object with function.name and arguments is needed.")
    plain: dict[str, Any] = {"function": {"name": name, "arguments": arguments_mapping(function.get("arguments"))}}
    if isinstance(call.get("id"), str):
        plain["id"] = call["id"]
    return {"type": "function", **plain}


def arguments_mapping(arguments: Any) -> dict[str, Any]:
    """Tool-call arguments as a mapping, whatever a client or an earlier answer made of them.

    One malformed call must not make every later request of the conversation fail, so what is not an object is kept
    under the single name `arguments`.
    """
    if isinstance(arguments, Mapping):
        return {str(key): value for key, value in arguments.items()}
    if arguments is None:
        return {}
    if isinstance(arguments, str):
        if not arguments.strip():
            return {}
        try:
            parsed = parse_json(arguments)
        except ValueError:
            return {"arguments": arguments}
        # Some clients encode twice.
        if isinstance(parsed, str) and parsed != arguments:
            return arguments_mapping(parsed) if parsed.lstrip().startswith("{") else {"arguments": parsed}
        return parsed if isinstance(parsed, dict) else {"arguments": parsed}
    return {"arguments": arguments}


def _content(content: Any, place: str) -> tuple[str, str]:
    """(text, reasoning) of a message's content: text, a list of parts, or nothing."""
    if content is None:
        return "", ""
    if isinstance(content, str):
        return content, ""
    if isinstance(content, Mapping) or not isinstance(content, Sequence):
        raise RequestError(f"{place} is a {type(content).__name__}, but text or a list of parts is needed.")
    parts = [_part(part, f"{place}[{i}]") for i, part in enumerate(content)]
    return "".join(text for text, _ in parts), "".join(thought for _, thought in parts)


def _part(part: Any, place: str) -> tuple[str, str]:
    if isinstance(part, str):
        return part, ""
    if not isinstance(part, Mapping):
        raise RequestError(f"{place} is a {type(part).__name__}, but a text part is needed.")
    kind = part.get("type")
    for medium, names in MEDIA_PARTS.items():
        if kind in names or (kind not in TEXT_PARTS and any(name in part for name in names)):
            raise RequestError(
                f"{place} holds {medium}: images and video come in a later release; send text only for now."
            )
    if isinstance(part.get("text"), str) and (kind is None or kind in TEXT_PARTS):
        return part["text"], ""
    if kind == "refusal" and isinstance(part.get("refusal"), str):
        return part["refusal"], ""
    if kind in ("thinking", "reasoning"):
        thought = part.get("thinking", part.get("text"))
        if isinstance(thought, str):
            return "", thought
    raise RequestError(f"{place} has the type {_shown(kind)}, but only text parts are read.")


def _joined_system(systems: list[Message]) -> list[Message]:
    if len(systems) <= 1:
        return systems
    texts = [system["content"] for system in systems if system["content"].strip()]
    return [{**systems[0], "content": "\n\n".join(texts)}]


def _is_tool_response(content: str) -> bool:
    """Whether the templates take a user message for a tool's result and not for a question."""
    text = content.strip()
    return text.startswith("<tool_response>") and text.endswith("</tool_response>")


def _shown(value: Any) -> str:
    """A value of a request inside an error message: short, on one line."""
    if value is None:
        return "missing"
    text = repr(value) if isinstance(value, (str, int, float, bool)) else f"a {type(value).__name__}"
    return text if len(text) <= 60 else text[:57] + "..."
