"""What requests say of the answer's form, of tools and of thinking, as OpenAI's clients write it; what is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest

from mlx_qwen35.chat.constraints import EFFORTS, AnswerForm, ToolChoice, answer_form, thinking, tool_choice
from mlx_qwen35.errors import RequestError

SCHEMA = {"type": "object", "properties": {"größe": {"type": "integer"}}}
TOOLS = [{"type": "function", "function": {"name": "look"}}, {"name": "go"}]


def test_openai_response_formats_become_forms() -> None:
    inner = {"name": "size", "schema": SCHEMA}
    form = answer_form({"type": "json_schema", "json_schema": inner})
    assert form is not None
    assert json.loads(form.text) == SCHEMA
    assert not form.lenient
    lenient = answer_form({"type": "json_schema", "json_schema": {**inner, "strict": False}})
    assert lenient is not None
    assert lenient.lenient
    assert answer_form({"type": "json_object"}) == AnswerForm("json schema", '{"type": "object"}')
    assert answer_form({"type": "text"}) is None
    assert answer_form() is None


@pytest.mark.parametrize(
    ("given", "word"),
    [
        ({"response_format": {"type": "xml"}}, "xml"),
        ({"response_format": "json"}, "json_schema"),
        ({"response_format": {"type": "json_schema"}}, "schema is missing"),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": []}}}, "schema is missing"),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": {"enum": [{1}]}}}}, "not JSON"),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": {"enum": [float("nan")]}}}}, "JSON"),
        ({"regex": ""}, "regex"),
        ({"grammar": 5}, "grammar"),
        ({"choices": []}, "choices"),
        ({"choices": "yes"}, "choices"),
        ({"choices": ["yes", ""]}, "choices"),
        ({"regex": "a", "choices": ["a"]}, "regex and choices"),
    ],
)
def test_what_is_no_form_is_refused_by_name(given: dict[str, Any], word: str) -> None:
    with pytest.raises(RequestError, match=word):
        answer_form(**given)


def test_a_schema_nested_without_end_is_refused_in_one_line() -> None:
    schema: dict[str, Any] = {}
    for _ in range(100_000):
        schema = {"items": schema}
    with pytest.raises(RequestError, match="deep"):
        answer_form({"type": "json_schema", "json_schema": {"schema": schema}})


def test_tool_choices_in_both_forms() -> None:
    assert tool_choice(None, None) == tool_choice("auto", TOOLS) == ToolChoice("auto")
    assert tool_choice("none", TOOLS) == ToolChoice("none")
    assert tool_choice("required", TOOLS) == ToolChoice("required")
    assert tool_choice({"type": "function", "function": {"name": "look"}}, TOOLS) == ToolChoice("required", "look")
    assert tool_choice({"type": "function", "name": "go"}, TOOLS) == ToolChoice("required", "go")


@pytest.mark.parametrize("value", ["any", "required", 5, {}, {"function": {"name": "look"}}])
def test_a_choice_of_what_there_is_not_is_refused(value: Any) -> None:
    with pytest.raises(RequestError, match="tool"):
        tool_choice(value, None)


def test_budgets_and_efforts_become_one_number() -> None:
    assert thinking(None, None, None) == (None, None)
    assert thinking(None, 50, None) == (None, 50)
    assert thinking(None, None, "low") == (True, EFFORTS["low"])
    assert thinking(None, 50, "high") == (True, 50)
    assert thinking(None, 5_000, "low") == (True, EFFORTS["low"])
    assert thinking(None, None, "xhigh") == (True, None)
    assert thinking(False, 50, None) == (False, 50)
    assert thinking(None, 0, None) == thinking(False, None, "none") == (False, None)


@pytest.mark.parametrize(
    ("enable", "budget", "effort", "word"),
    [
        (None, -1, None, "-1"),
        (None, True, None, "True"),
        (None, 1.5, None, "1.5"),
        (None, None, "extreme", "extreme"),
        (True, 0, None, "budget of 0"),
        (True, None, "none", "budget of 0"),
    ],
)
def test_thinking_that_contradicts_itself_is_refused(enable: Any, budget: Any, effort: Any, word: str) -> None:
    with pytest.raises(RequestError, match=word):
        thinking(enable, budget, effort)
