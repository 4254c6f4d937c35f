"""What a request says of its answer's form and thinking, in OpenAI's words, checked and made into plain values.

Compiles nothing: whether a schema or an expression is sound, its compiler says.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from mlx_qwen35.errors import RequestError

# Tokens of thinking. The family's cards advise answers of 32,768 tokens, thinking included.
EFFORTS = {"none": 0, "minimal": 256, "low": 1_024, "medium": 4_096, "high": 16_384, "xhigh": None}
ANY_OBJECT = '{"type": "object"}'
MAX_CHOICES = 10_000


@dataclass(frozen=True)
class AnswerForm:
    """What the whole answer has to be.

    kind: of `text`   lenient: what a schema says that cannot be enforced is ignored
    """

    kind: Literal["json schema", "regex", "grammar"]
    text: str
    lenient: bool = False


@dataclass(frozen=True)
class ToolChoice:
    """Whether tools are called: "none", "auto" (as the model likes), or "required"; of the tool `name` if it is set."""

    mode: Literal["none", "auto", "required"] = "auto"
    name: str | None = None


def answer_form(
    response_format: Any = None, regex: Any = None, choices: Any = None, grammar: Any = None
) -> AnswerForm | None:
    """The one form that was asked for, or None. Raises RequestError for several, and for what is none.

    response_format: {"type": "json_schema", "json_schema": {"schema": ..., "strict": ...}}, {"type": "json_object"} or
    {"type": "text"}; a schema's keywords are enforced or refused unless `strict` is false
    """
    forms = {"response_format": response_format, "regex": regex, "choices": choices, "grammar": grammar}
    given = [name for name, value in forms.items() if value is not None]
    if len(given) > 1:
        raise RequestError(f"{given[0]} and {given[1]} are both given; an answer has one form.")
    if response_format is not None:
        return _response_format(response_format)
    if choices is not None:
        return AnswerForm("grammar", f"start: {' | '.join(map(json.dumps, _choices(choices)))}\n")
    for name, value in (("regex", regex), ("grammar", grammar)):
        if value is not None:
            if not isinstance(value, str) or not value:
                raise RequestError(f"{name} is {value!r:.60}; it should be a text.")
            return AnswerForm("regex" if name == "regex" else "grammar", value)
    return None


def tool_choice(value: Any, tools: Sequence[Mapping[str, Any]] | None) -> ToolChoice:
    """None, "none", "auto", "required", or {"type": "function", "function": {"name": ...}}. Raises RequestError."""
    if value is None:
        return ToolChoice()
    if isinstance(value, str):
        if value in ("none", "auto"):
            return ToolChoice("none" if value == "none" else "auto")
        if value == "required":
            if not tools:
                raise RequestError("tool_choice is 'required', but there are no tools.")
            return ToolChoice("required")
    function = value.get("function", value) if isinstance(value, Mapping) else None
    name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(name, str):
        raise RequestError(
            f"tool_choice is {value!r:.60}; it should be 'none', 'auto', 'required', or "
            '{"type": "function", "function": {"name": ...}}.'
        )
    known = [tool.get("function", tool).get("name") for tool in tools or ()]
    if name not in known:
        raise RequestError(f"tool_choice names {name!r:.60}; the tools are {', '.join(known) or 'none'}.")
    return ToolChoice("required", name)


def thinking(enable: bool | None, budget: Any, effort: Any) -> tuple[bool | None, int | None]:
    """(whether to think, None for the template's own choice; tokens of it at most, None without a limit).

    A budget of 0 and the effort "none" switch thinking off; any other effort switches it on. The smaller of a budget
    and an effort's counts. Raises RequestError.
    """
    if budget is not None and (type(budget) is not int or budget < 0):
        raise RequestError(f"thinking_budget is {budget!r:.60}; it should be a number of tokens, 0 or more.")
    if effort is not None:
        if not isinstance(effort, str) or effort not in EFFORTS:
            raise RequestError(f"reasoning_effort is {effort!r:.60}; it should be one of {', '.join(EFFORTS)}.")
        limits = [limit for limit in (budget, EFFORTS[effort]) if limit is not None]
        budget = min(limits, default=None)
        enable = True if enable is None and budget != 0 else enable
    if budget == 0:
        if enable:
            raise RequestError("Thinking is on, but with a budget of 0 tokens; leave one of the two out.")
        return False, None
    return enable, budget


def _response_format(value: Any) -> AnswerForm | None:
    kind = value.get("type") if isinstance(value, Mapping) else None
    if kind == "text":
        return None
    if kind == "json_object":
        return AnswerForm("json schema", ANY_OBJECT)
    if kind != "json_schema":
        raise RequestError(
            f"response_format is {value!r:.60}; its type should be 'json_schema', 'json_object' or 'text'."
        )
    inner = value.get("json_schema")
    if not isinstance(inner, Mapping) or not isinstance(inner.get("schema"), Mapping):
        raise RequestError("response_format.json_schema.schema is missing; it should be a JSON schema (an object).")
    return AnswerForm("json schema", _schema_text(inner["schema"]), lenient=inner.get("strict") is False)


def _schema_text(schema: Mapping[str, Any]) -> str:
    try:
        return json.dumps(schema, ensure_ascii=False, allow_nan=False)
    except RecursionError:
        raise RequestError("The schema is nested too deeply.") from None
    except (TypeError, ValueError) as error:
        raise RequestError(f"The schema is not JSON: {error}.") from None


def _choices(value: Any) -> list[str]:
    sound = isinstance(value, Sequence) and not isinstance(value, (str, bytes)) and 0 < len(value) <= MAX_CHOICES
    if not sound or not all(isinstance(choice, str) and choice for choice in value):
        raise RequestError(f"choices is {value!r:.60}; it should be a list of texts, 1 to {MAX_CHOICES:,} of them.")
    return list(value)
