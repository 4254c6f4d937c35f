"""What a tool is, and what came of one call of it. Knows nothing of models or of who asks."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from mlx_qwen35.errors import UserError

Verdict = Literal["yes", "no", "always"]
Approval = Literal["not needed", "approved", "refused"]
NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
# Where the text of one of these stands in a prompt, the tokenizer makes the token of it: a result could end its own
# turn and speak in another's name.
_TAGS = re.compile(r"<(?=\|[A-Za-z0-9_]{1,40}\|>|/?(?:think|tool_call|tool_response)>)")
MAX_ERROR = 400  # characters


class ToolError(UserError):
    """A call that cannot be done: one line, which the model reads."""


@dataclass(frozen=True)
class Tool:
    """A function that a model may call.

    parameters: a JSON schema of type object   run: from arguments that fit it to text; ToolError, one line, where it
    cannot   effect: whether it changes or sends anything, so that a person has to approve each call
    seconds: it may take
    """

    name: str
    description: str
    parameters: Mapping[str, Any]
    run: Callable[[Mapping[str, Any]], str]
    effect: bool = False
    seconds: float = 10.0

    def declaration(self) -> dict[str, Any]:
        """The tool in OpenAI's form."""
        function = {"name": self.name, "description": self.description, "parameters": dict(self.parameters)}
        return {"type": "function", "function": function}


@dataclass(frozen=True)
class Call:
    """A call that a model has made. id: ties the result to it"""

    id: str
    name: str
    arguments: Mapping[str, Any]

    def arguments_text(self) -> str:
        """The arguments as JSON on one line."""
        return json.dumps(dict(self.arguments), ensure_ascii=False)


@dataclass(frozen=True)
class Step:
    """What came of a call.

    text: what the model reads: the result, or one line saying why there is none (`failed`). Untrusted: it may come
    from anywhere, and only its tags are made harmless   seconds: that the tool ran, without waiting for an approval
    """

    call: Call
    text: str
    failed: bool = False
    seconds: float = 0.0
    approval: Approval = "not needed"

    def message(self) -> dict[str, Any]:
        """The step as a message of the conversation."""
        return {"role": "tool", "tool_call_id": self.call.id, "content": self.text}


def without_tags(text: str) -> str:
    """`text` with a space inside everything that a tokenizer of this family would take for a token of its own."""
    return _TAGS.sub("< ", text)


def error_line(text: object) -> str:
    """A reason on one line of bounded length."""
    line = " ".join(str(text).split())
    return line if len(line) <= MAX_ERROR else line[: MAX_ERROR - 1] + "…"
