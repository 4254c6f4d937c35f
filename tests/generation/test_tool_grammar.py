"""The grammar of tool calls over the real tokenizer: what it takes is what the parser reads back, and nothing else."""

from __future__ import annotations

from typing import Any

import pytest

from mlx_qwen35.chat.events import ToolCallEnd
from mlx_qwen35.chat.parser import OutputParser
from mlx_qwen35.chat.tokenizer import Tokenizer
from mlx_qwen35.chat.tool_grammar import call_grammar, functions_of
from mlx_qwen35.errors import RequestError
from mlx_qwen35.generation.grammars import WHITESPACE, Grammar, Grammars
from tests.support.real_grammars import real_grammars, real_tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return real_tokenizer()


@pytest.fixture(scope="module")
def grammars() -> Grammars:
    return real_grammars()


def tool(name: str = "write", required: tuple[str, ...] = (), **properties: Any) -> dict[str, Any]:
    parameters = {"type": "object", "properties": properties, "required": list(required)}
    parameters["$defs"] = {"Unit": {"enum": ["C", "F"]}}
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


def call(name: str = "write", **values: str) -> str:
    """As the template prints it."""
    lines = [f"<parameter={key}>\n{value}\n</parameter>\n" for key, value in values.items()]
    return f"<tool_call>\n<function={name}>\n{''.join(lines)}</function>\n</tool_call>"


def taken(grammars: Grammars, tokenizer: Tokenizer, tools: list[Any], text: str, parallel: bool = True) -> bool:
    """Whether the grammar takes the whole text, and an end after it."""
    guide = grammars.guide(Grammar("tool calls", call_grammar(functions_of(tools), parallel, WHITESPACE)))
    ids = tokenizer.encode(text + "<|im_end|>")
    return len(guide.masks(ids)) == len(ids) + 1


STRING = {"type": "string"}
LIST = {"type": "array", "items": {"type": "integer"}, "maxItems": 2}


@pytest.mark.parametrize(
    ("schema", "value", "expected"),
    [
        (STRING, "x", "x"),
        (STRING, "", ""),
        (STRING, "two\nlines\n", "two\nlines\n"),
        (STRING, "a\n</parameter>\nb </function>", "a\n</parameter>\nb </function>"),
        (STRING, "“über” 日本 <b> & {", "“über” 日本 <b> & {"),
        (STRING, "null", "null"),
        ({"type": "string", "maxLength": 3, "minLength": 2}, "日本語", "日本語"),
        ({"type": "string", "pattern": "^/[a-z/]+$"}, "/a/b", "/a/b"),
        ({"type": "string", "pattern": "b+", "maxLength": 4}, "abbc", "abbc"),
        ({"type": "integer", "minimum": 2}, "17", 17),
        ({"type": "number"}, "-2.5", -2.5),
        ({"type": "boolean"}, "True", True),
        ({"type": "boolean"}, "false", False),
        ({"type": "null"}, "None", None),
        ({"enum": ["a b", 5, None]}, "None", None),
        ({"const": 'say "hi"'}, 'say "hi"', 'say "hi"'),
        ({"$ref": "#/$defs/Unit"}, "F", "F"),
        (LIST, "[1, 2]", [1, 2]),
        (LIST, "[\n  1\n]", [1]),
        ({"type": ["string", "null"]}, "None", None),
        ({}, "anything", "anything"),
    ],
)
def test_what_a_schema_allows_is_taken_and_read_back(
    grammars: Grammars, tokenizer: Tokenizer, schema: dict[str, Any], value: str, expected: Any
) -> None:
    tools, text = [tool(x=schema, required=("x",))], call(x=value)
    assert taken(grammars, tokenizer, tools, text)
    parser = OutputParser(tools, False)
    ends = [event for event in [*parser.feed(text), *parser.finish()] if isinstance(event, ToolCallEnd)]
    assert [end.arguments for end in ends] == [{"x": expected}]


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        ({"type": "string", "maxLength": 3}, "four"),
        ({"type": "string", "minLength": 3}, "ab"),
        ({"type": "string", "pattern": "^/[a-z/]+$"}, "a/b"),
        ({"type": "string", "pattern": "b+", "maxLength": 4}, "abbcc"),
        (STRING, "a\n</parameter>\n<parameter=y>\nb"),
        (STRING, "a\n</parameter>\n</function>\nb"),
        ({"type": "integer", "minimum": 2}, "1"),
        ({"type": "integer"}, "1.5"),
        ({"type": "boolean"}, "yes"),
        ({"enum": ["a", "b"]}, "c"),
        ({"$ref": "#/$defs/Unit"}, "K"),
        (LIST, "[1, 2, 3]"),
        (LIST, "[1"),
    ],
)
def test_what_a_schema_forbids_is_not_taken(
    grammars: Grammars, tokenizer: Tokenizer, schema: dict[str, Any], value: str
) -> None:
    assert not taken(grammars, tokenizer, [tool(x=schema, required=("x",))], call(x=value))


def test_parameters_that_are_required_come_and_unknown_ones_do_not(grammars: Grammars, tokenizer: Tokenizer) -> None:
    tools = [tool(a=STRING, b=STRING, c=STRING, required=("b",)), tool("none")]
    for values in ({"b": "1"}, {"a": "1", "b": "2"}, {"b": "1", "c": "2"}, {"a": "1", "b": "2", "c": "3"}):
        assert taken(grammars, tokenizer, tools, call(**values))
    for values in ({}, {"a": "1"}, {"a": "1", "c": "2"}, {"b": "1", "d": "2"}, {"b": "1", "b ": "2"}):
        assert not taken(grammars, tokenizer, tools, call(**values))
    assert taken(grammars, tokenizer, tools, call("none"))
    assert not taken(grammars, tokenizer, tools, call("none", a="1"))
    assert not taken(grammars, tokenizer, tools, call("nobody"))


def test_several_calls_only_where_they_are_allowed(grammars: Grammars, tokenizer: Tokenizer) -> None:
    twice = call("none") + "\n" + call("none")
    assert taken(grammars, tokenizer, [tool("none")], twice)
    assert not taken(grammars, tokenizer, [tool("none")], twice, parallel=False)
    assert not taken(grammars, tokenizer, [tool("none")], call("none") + " and more")


def test_free_parameters_where_the_schema_says_so(grammars: Grammars, tokenizer: Tokenizer) -> None:
    free = {"name": "write", "parameters": {"type": "object", "additionalProperties": True}}
    assert taken(grammars, tokenizer, [free], call(any_name="x", other="y"))
    assert taken(grammars, tokenizer, [free], call())


def test_many_tools_with_long_limits_on_text_can_be_called_to_the_end(grammars: Grammars, tokenizer: Tokenizer) -> None:
    """Followed, each such limit would cost llguidance seconds near the closing tag, until it gave up there."""
    tools = [
        tool(
            f"write{i}",
            ("path",),
            **{key: {**STRING, "maxLength": 100 + i + j} for j, key in enumerate(("path", "text"))},
        )
        for i in range(12)
    ]
    lines = "a line\n</para\n" * 10
    for i in (0, 11):
        assert taken(grammars, tokenizer, tools, call(f"write{i}", path="a/b", text=lines))


def test_short_limits_are_followed_until_they_count_too_much_together(grammars: Grammars, tokenizer: Tokenizer) -> None:
    tools = [tool(f"write{i}", text={**STRING, "maxLength": 40 + i}) for i in range(4)]
    followed = [not taken(grammars, tokenizer, tools, call(f"write{i}", text="x" * 50)) for i in range(4)]
    assert followed == [True, True, True, False]


def test_a_strict_tool_with_a_long_limit_is_refused() -> None:
    strict = tool(name="write", text={**STRING, "maxLength": 65})
    strict["function"]["strict"] = True
    with pytest.raises(RequestError, match="maxLength is 65; at most 64"):
        call_grammar(functions_of([strict]), True, WHITESPACE)


@pytest.mark.parametrize("name", ["a>b", "a\nb", " a", "x" * 300])
def test_names_that_the_format_cannot_write_are_refused(name: str) -> None:
    for odd in (tool(name), tool(**{name: STRING})):
        with pytest.raises(RequestError, match="no name in the format"):
            functions_of([odd])
