"""Where two request bodies first differ as prompts, and what the rules of chat/canonical.py make of it.

For whoever asks why an agent's second turn was slow: save the two bodies and compare them. Needs a checkpoint's
template and tokenizer, not its weights.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlx_qwen35.asking import chat_request
from mlx_qwen35.chat.canonical import canonical
from mlx_qwen35.chat.constraints import thinking
from mlx_qwen35.chat.divergence import explain
from mlx_qwen35.chat.messages import normalise_messages, normalise_tools
from mlx_qwen35.chat.template import ChatTemplate
from mlx_qwen35.chat.tokenizer import Tokenizer
from mlx_qwen35.chat.transcript import Prompt, Transcript
from mlx_qwen35.errors import RequestError, UserError
from mlx_qwen35.hub.download import cached_snapshot
from mlx_qwen35.hub.names import resolve
from mlx_qwen35.runtime import ChatRequest
from mlx_qwen35.server import anthropic_request, responses_request
from mlx_qwen35.server.body import parse_object, typed
from mlx_qwen35.server.chat_completions import ChatBody
from mlx_qwen35.server.protocol import Refused
from mlx_qwen35.server.responses_tools import read_tools

ANTHROPIC_BLOCKS = ("tool_use", "tool_result", "thinking", "redacted_thinking")


@dataclass(frozen=True)
class Comparison:
    """Counts in tokens.

    common: equal from the start   spared: by the rules, of what the second costs after the first   note: for people
    """

    first: int
    second: int
    common: int
    spared: int
    note: str


class Comparing:
    """With one checkpoint's template and tokenizer."""

    def __init__(self, folder: Path) -> None:
        self._template, self._tokenizer = ChatTemplate.from_folder(folder), Tokenizer.from_folder(folder)
        self._transcript = Transcript(self._tokenizer, self._template)

    def compare(self, first: Mapping[str, Any], second: Mapping[str, Any], rules: Collection[str]) -> Comparison:
        """Two bodies of any of the protocols. Raises RequestError for what is no request."""
        requests = [read_any(dict(body)) for body in (first, second)]
        plain = [self._prompt(request, ()) for request in requests]
        one, other = [self._prompt(request, rules) for request in requests]
        common = _common(one, other)
        note = explain(other, one.ids, common, self._tokenizer)
        spared = (len(plain[1].ids) - _common(*plain)) - (len(other.ids) - common)
        return Comparison(len(one.ids), len(other.ids), common, spared, note)

    def _prompt(self, request: ChatRequest, rules: Collection[str]) -> Prompt:
        messages, tools = canonical(request.messages, request.tools, rules)
        enable, _ = thinking(request.enable_thinking, request.thinking_budget, request.reasoning_effort)
        text = self._template.render(normalise_messages(messages), tools=normalise_tools(tools), enable_thinking=enable)
        return self._transcript.prompt(text)


def report(first: Path, second: Path, model: str, rules: Collection[str]) -> list[str]:
    """Lines for people on two saved bodies. Raises UserError for what cannot be read."""
    bodies = [_read_body(path) for path in (first, second)]
    found = Comparing(_folder(model)).compare(bodies[0], bodies[1], rules)
    share = found.common / found.second if found.second else 1
    lines = [
        f"{first}: {found.first:,} tokens",
        f"{second}: {found.second:,} tokens, the first {found.common:,} of them ({share:.0%}) as in {first}",
        f"{second} {found.note.replace('an earlier prompt', str(first))}",
    ]
    if found.spared > 0:
        lines.append(f"As sent, {found.spared:,} more tokens would be computed.")
    return lines


def read_any(body: dict[str, Any]) -> ChatRequest:
    """A body of `/v1/chat/completions`, `/v1/responses` or `/v1/messages`, told apart by its fields."""
    try:
        if "input" in body:
            asked = typed(body, responses_request.ResponsesBody)
            tools = read_tools(asked.tools)
            own = responses_request.read_items(asked.input, tools, lambda _: None)
            return responses_request.read_request(asked, [], own, tools)
        if is_anthropic(body):
            return anthropic_request.read_request(typed(body, anthropic_request.CountBody))
        chat = typed(body, ChatBody)
        given = ((chat.chat_template_kwargs or {}).get("enable_thinking"), chat.enable_thinking)
        think = next((value for value in given if value is not None), None)
        effort = "xhigh" if chat.reasoning_effort == "max" else chat.reasoning_effort
        return chat_request(chat.messages, chat.tools, think, reasoning_effort=effort if think is None else None)
    except Refused as refused:
        raise RequestError(str(refused)) from None


def is_anthropic(body: Mapping[str, Any]) -> bool:
    """Whether a body has what only Anthropic's have."""
    tools, messages = (found if isinstance(found := body.get(name), list) else [] for name in ("tools", "messages"))
    contents = [message.get("content") for message in messages if isinstance(message, Mapping)]
    blocks = [block for content in contents if isinstance(content, list) for block in content]
    return (
        "system" in body
        or any(isinstance(tool, Mapping) and "input_schema" in tool for tool in tools)
        or any(isinstance(block, Mapping) and block.get("type") in ANTHROPIC_BLOCKS for block in blocks)
    )


def _common(one: Prompt, other: Prompt) -> int:
    pairs = zip(one.ids, other.ids)
    return next((at for at, (a, b) in enumerate(pairs) if a != b), min(len(one.ids), len(other.ids)))


def _read_body(path: Path) -> dict[str, Any]:
    try:
        return parse_object(path.read_bytes())
    except OSError as error:
        raise UserError(f"Cannot read {path}: {(error.strerror or str(error)).lower()}.") from None
    except Refused as refused:
        raise UserError(f"{path}: {refused}") from None


def _folder(model: str) -> Path:
    """Of a checkpoint that is here; nothing is downloaded for a comparison."""
    located = resolve(model)
    folder = located.path or cached_snapshot(located.hub_id)
    if folder is None:
        raise UserError(f"{model} is not downloaded; a comparison needs its template and tokenizer. Try --model demo.")
    return folder
