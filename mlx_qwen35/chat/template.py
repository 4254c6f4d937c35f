"""The checkpoint's own chat template: normalised messages in, the prompt's text out.

A template comes from a download and is never trusted; `sandbox.py` bounds what it may do. Knows nothing of tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from jinja2 import TemplateError, TemplateSyntaxError

from mlx_qwen35.chat.files import read_json_object, read_text
from mlx_qwen35.chat.metering import LimitError
from mlx_qwen35.chat.sandbox import CompiledTemplate
from mlx_qwen35.errors import CheckpointError, RequestError

# What a request may hand to the template, beside enable_thinking. Never `chat_template`, `messages` or `tools`.
OPTIONS = ("add_vision_id", "preserve_thinking", "reasoning_effort")
SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
TURN, END_TURN = "<|im_start|>", "<|im_end|>"


class ChatTemplate:
    """A checkpoint's template; renders byte for byte what transformers' `apply_chat_template` renders."""

    def __init__(
        self, source: str, *, tool_use: str | None = None, special_tokens: Mapping[str, str] | None = None
    ) -> None:
        """`tool_use` is the template for requests with tools, where a checkpoint has one. Raises CheckpointError."""
        self._plain = _compiled(source)
        self._with_tools = self._plain if tool_use is None else _compiled(tool_use)
        self._special_tokens = dict(special_tokens or {})

    @classmethod
    def from_folder(cls, path: str | Path) -> ChatTemplate:
        """Read chat_template.jinja, else chat_template.json, else tokenizer_config.json. Raises CheckpointError."""
        folder = Path(path)
        config = read_json_object(folder / "tokenizer_config.json")
        tokens = {name: text for name in SPECIAL_TOKENS if (text := _token_text(config.get(name))) is not None}
        if (folder / "chat_template.jinja").is_file():
            return cls(read_text(folder / "chat_template.jinja"), special_tokens=tokens)
        found = read_json_object(folder / "chat_template.json").get("chat_template") or config.get("chat_template")
        if isinstance(found, str):
            return cls(found, special_tokens=tokens)
        if isinstance(found, list):
            named = {entry["name"]: entry["template"] for entry in found if _is_named_template(entry)}
            if "default" in named:
                return cls(named["default"], tool_use=named.get("tool_use"), special_tokens=tokens)
        raise CheckpointError(
            f"No chat template in {folder} (chat_template.jinja, or chat_template in tokenizer_config.json). "
            "Chat needs an instruction-tuned checkpoint."
        )

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        /,
        tools: Sequence[Mapping[str, Any]] | None = None,
        enable_thinking: bool | None = None,
        add_generation_prompt: bool = True,
        **options: Any,
    ) -> str:
        """The prompt's text. `messages` and `tools` come from messages.py; `enable_thinking` None leaves it unset.

        Raises RequestError for an option that a request may not set, and when the template refuses the messages or
        exceeds its limits.
        """
        for name, value in options.items():
            _require_option(name, value)
        variables: dict[str, Any] = {**self._special_tokens, **options}
        if enable_thinking is not None:
            variables["enable_thinking"] = enable_thinking
        variables |= {"messages": messages, "tools": tools, "documents": None}
        variables["add_generation_prompt"] = add_generation_prompt
        template = self._with_tools if tools else self._plain
        try:
            return template.render(variables)
        except LimitError as error:
            raise RequestError(f"The chat template was stopped: {error}.") from None
        except TemplateError as error:
            raise RequestError(f"The chat template refused the messages: {_one_line(error)}") from None
        except Exception as error:  # a template can provoke any exception of the values it touches
            kind = type(error).__name__
            raise RequestError(f"The chat template failed on the messages ({kind}): {_one_line(error)}") from None

    @cached_property
    def thinking_by_default(self) -> bool:
        """Whether a request that leaves enable_thinking unset gets a think block."""
        return self.opens_thinking(self.render([{"role": "user", "content": "Hello"}]))

    @staticmethod
    def opens_thinking(prompt: str) -> bool:
        """Whether a rendered prompt ends inside an open think block, so that the answer begins with reasoning."""
        turn = prompt[max(prompt.rfind(TURN), 0) :]
        is_open = turn.startswith(TURN + "assistant") and END_TURN not in turn
        return is_open and turn.rfind("<think>") > turn.rfind("</think>")


def _compiled(source: str) -> CompiledTemplate:
    try:
        return CompiledTemplate(source)
    except TemplateSyntaxError as error:
        raise CheckpointError(f"The chat template is not valid (line {error.lineno}): {_one_line(error)}") from None
    except (TemplateError, LimitError) as error:
        raise CheckpointError(f"The chat template cannot be used: {_one_line(error)}") from None


def _require_option(name: str, value: Any) -> None:
    if name not in OPTIONS:
        known = ", ".join(("enable_thinking", *OPTIONS))
        raise RequestError(f"The template option {name!r} cannot be set by a request; known are {known}.")
    if not (value is None or isinstance(value, (bool, int)) or (isinstance(value, str) and len(value) <= 64)):
        raise RequestError(f"The template option {name!r} takes true, false, a number or a short text.")


def _token_text(value: Any) -> str | None:
    content = value.get("content") if isinstance(value, dict) else value
    return content if isinstance(content, str) else None


def _is_named_template(entry: Any) -> bool:
    return isinstance(entry, dict) and isinstance(entry.get("name"), str) and isinstance(entry.get("template"), str)


def _one_line(error: BaseException) -> str:
    text = " ".join("".join(char if char.isprintable() else " " for char in str(error)[:1000]).split())
    return text if len(text) <= 240 else text[:237] + "..."
