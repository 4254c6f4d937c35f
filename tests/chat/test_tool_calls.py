"""Arguments must arrive as the model wrote them: exact, of the schema's types, and as soon as they are certain."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_qwen35.chat.events import Malformed, ToolCallArguments, ToolCallEnd, ToolCallStart
from mlx_qwen35.chat.messages import normalise_messages
from mlx_qwen35.chat.parser import OutputParser
from mlx_qwen35.chat.template import ChatTemplate
from tests.chat.conversations import PRESENT, assistant, tool, user
from tests.chat.parsing import PATIENT, TOOLS, calls, content, parse, reasoning

HEAD = "<tool_call>\n<function=get_weather>\n<parameter=city>\n"


def test_pieces_come_as_they_are_written() -> None:
    parser = OutputParser(TOOLS, in_reasoning=False)
    start, first = parser.feed(HEAD.removesuffix("\n"))
    assert isinstance(start, ToolCallStart)
    assert start.id.startswith("call_")
    assert len(start.id) == 29
    assert first == ToolCallArguments(0, '{"city": ')
    assert parser.feed("\nOs") == [ToolCallArguments(0, '"Os')]
    assert parser.feed('l"o\n') == [ToolCallArguments(0, 'l\\"o')]
    assert parser.feed("</parameter>\n<para") == []
    assert parser.feed("meter=days>\n1") == [ToolCallArguments(0, '", "days": ')]
    assert parser.feed("2") == []
    end = parser.feed("\n</parameter>\n</function>")
    assert end == [
        ToolCallArguments(0, "12}"),
        ToolCallEnd(0, start.id, "get_weather", {"city": 'Osl"o', "days": 12}),
    ]
    assert parser.ended_calls == 1
    assert parser.feed("\n</tool_call>") == parser.finish() == []


def test_ids_differ() -> None:
    one = "<tool_call>\n<function=f>\n</function>\n</tool_call>\n"
    ids = [event.id for event in parse([one * 50]) if isinstance(event, ToolCallEnd)]
    assert len(set(ids)) == 50


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (f"{HEAD}Oslo", f"{HEAD}Oslo"),
        (f"{HEAD}Oslo\n</parameter>\n</func", f"{HEAD}Oslo\n</parameter>\n</func"),
        (f"{HEAD}Oslo\n</parameter>\n</tool_call>", f"{HEAD}Oslo\n</parameter>\n</tool_call>"),
        (
            "<tool_call>\n<function=f>\nx\n</function>\n</tool_call>",
            "<tool_call>\n<function=f>\nx\n</function>\n</tool_call>",
        ),
        ("<tool_call>\n<function=f>\n<parameter=>\n", "<tool_call>\n<function=f>\n<parameter=>\n"),
    ],
)
def test_a_started_call_that_breaks_off_is_told_as_content(text: str, told: str) -> None:
    events = parse(["A\n\n", text])
    # The blank line went when the call began.
    assert content(events) == "A" + told
    assert [event.index for event in events if isinstance(event, Malformed)] == [0]
    assert not [event for event in events if isinstance(event, ToolCallEnd)]


@pytest.mark.parametrize(
    "text",
    ["<tool_call>", "<tool_call>\n{}", "<tool_call><function=", "<tool_call>\n<function=a\nb>", "<tool_call>\n<fun"],
)
def test_what_never_became_a_call_is_told_as_content(text: str) -> None:
    events = parse([f"A\n\n{text}"])
    assert content(events) == f"A\n\n{text}"
    assert [event.index for event in events if isinstance(event, Malformed)] == [None]


def test_a_malformed_call_says_how_much_of_the_content_was_its_own() -> None:
    """Who showed the call and cannot take it back leaves so much of the content out."""
    call = "<tool_call>\n<function=get_weather>\n"
    events = parse(["Look. ", call, "oops ", "and on"])
    malformed = next(e for e in events if isinstance(e, Malformed))
    assert content(events)[: len("Look. ") + malformed.length] == "Look. " + call
    assert content(events)[len("Look. ") + malformed.length :] == "oops and on"


def test_after_a_malformed_call_the_next_one_is_read() -> None:
    events = parse([f"<tool_call>no\n<tool_call>{HEAD}Oslo\n</parameter>\n</function>\n</tool_call>\nBye"])
    assert calls(events) == [("get_weather", {"city": "Oslo"})]
    assert content(events) == "<tool_call>no\n<tool_call>Bye"


def value_of(schema: Any, text: str) -> Any:
    output = f"<tool_call>\n<function=f>\n<parameter=v>\n{text}\n</parameter>\n</function>\n</tool_call>"
    ((_, arguments),) = calls(parse([output], tools=[tool("f", v=schema)]))
    assert calls(parse(output, tools=[tool("f", v=schema)])) == [("f", arguments)]
    return arguments["v"]


DIGITS = "9" * 6000
REFERENCE = {"$ref": "#/$defs/Unit"}
OPTIONAL_TEXT = {"anyOf": [{"type": "string"}, {"type": "null"}]}


@pytest.mark.parametrize(
    ("schema", "text", "value"),
    [
        ({"type": "string"}, "null", "null"),
        ({"type": "string"}, "5", "5"),
        ({"type": "string"}, '"a"', '"a"'),
        ({"type": "string"}, "", ""),
        ({"type": "string"}, "\n a \n", "\n a \n"),
        ({"type": "integer"}, "12345678901234567890", 12345678901234567890),
        ({"type": "integer"}, "-7", -7),
        ({"type": "integer"}, " 7 ", 7),
        ({"type": "integer"}, "3.0", 3),
        ({"type": "integer"}, "3.5", "3.5"),
        ({"type": "integer"}, "1e999", "1e999"),
        ({"type": "integer"}, DIGITS, DIGITS),
        ({"type": "integer"}, "seven", "seven"),
        ({"type": "integer"}, "٣", "٣"),
        ({"type": "number"}, "3.0", 3.0),
        ({"type": "number"}, "1e-07", 1e-07),
        ({"type": "number"}, "nan", "nan"),
        ({"type": "number"}, "Infinity", "Infinity"),
        ({"type": "number"}, "True", "True"),
        ({"type": "boolean"}, "True", True),
        ({"type": "boolean"}, "false", False),
        ({"type": "boolean"}, "yes", "yes"),
        ({"type": "null"}, "None", None),
        ({"type": "object"}, '{"a": [1, null]}', {"a": [1, None]}),
        ({"type": "object"}, "{'a': True, 'b': (None,)}", {"a": True, "b": [None]}),
        ({"type": "object"}, '{"a": ' + DIGITS + "}", {"a": DIGITS}),
        ({"type": "object"}, '{"a": 1e999}', '{"a": 1e999}'),
        ({"type": "object"}, '{"a": "\\ud800"}', {"a": "\ufffd"}),
        ({"type": "object"}, "[1]", "[1]"),
        ({"type": "object"}, "{'a': {1, 2}}", "{'a': {1, 2}}"),
        ({"type": "array"}, "[" * 50_000, "[" * 50_000),
        ({"type": "array"}, "[" * 500 + "]" * 500, "[" * 500 + "]" * 500),
        ({"type": ["integer", "null"]}, "null", None),
        ({"type": ["integer", "string"]}, "5", 5),
        ({"type": ["integer", "string"]}, "5 apples", "5 apples"),
        ({"type": "integer", "nullable": True}, "None", None),
        (OPTIONAL_TEXT, "None", None),
        (OPTIONAL_TEXT, "Nonesuch", "Nonesuch"),
        (OPTIONAL_TEXT, "12", "12"),
        ({"oneOf": [{"type": "number"}, {"type": "boolean"}]}, "false", False),
        ({"allOf": [{"type": "integer"}]}, "5", 5),
        ({"enum": ["1", 1, True]}, "1", "1"),
        ({"enum": ["a", 2, None]}, "2", 2),
        ({"enum": ["a", None]}, "None", None),
        ({"const": 4}, "4", 4),
        ({"type": "string", "enum": ["a"]}, "b", "b"),
        ({"properties": {}}, '{"a": 1}', {"a": 1}),
        ({"type": "int"}, "5", 5),
        ({"type": "whatever"}, "5", 5),
        ({"$ref": "#/nowhere"}, "x", "x"),
        ({}, "5", 5),
        ({}, "true", True),
        ({}, "null", "null"),
        ({}, "[1, 2]", [1, 2]),
        ({}, "[1, 2", "[1, 2"),
        ({}, "-", "-"),
        ({}, "truest", "truest"),
        ({}, "  ", "  "),
        (True, "x", "x"),
    ],
)
def test_the_schema_decides_what_a_text_is(schema: Any, text: str, value: Any) -> None:
    found = value_of(schema, text)
    assert found == value
    assert type(found) is type(value)


def test_references_are_followed_within_the_schema() -> None:
    unit = tool("f", v=REFERENCE, w={"$ref": "#/$defs/Loop"})
    unit["function"]["parameters"]["$defs"] = {
        "Unit": {"enum": ["C", 1], "title": "Unit"},
        "Loop": {"$ref": "#/$defs/Loop"},
    }
    text = "<tool_call>\n<function=f>\n<parameter=v>\n1\n</parameter>\n<parameter=w>\nx\n</parameter>\n</function>"
    assert calls(parse([text], tools=[unit])) == [("f", {"v": 1, "w": "x"})]


def test_a_function_and_parameters_nobody_declared() -> None:
    text = "<tool_call>\n<function=other>\n<parameter=a>\n1\n</parameter>\n<parameter=b>\nx\n</parameter>\n</function>"
    assert calls(parse([text])) == [("other", {"a": 1, "b": "x"})]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
ENDS = ("\n</parameter>\n<parameter=", "\n</parameter>\n</function>")
PIECES = st.sampled_from(
    ["\n", "</parameter>", "\n</parameter>\n", "<parameter=a>", "</function>", "null", "5", " ", "<"]
)
TEXT = st.lists(PIECES | st.text(max_size=4), max_size=6).map("".join)
# The one thing that cannot be told apart: the two lines that end a value.
TEXT = TEXT.filter(lambda text: not any(end in f"\n{text}" for end in ENDS))
CHOICES = ["a", "null", 1, 2.5, None, True, {"x": [1]}]
TYPED: dict[str, tuple[Any, st.SearchStrategy[Any]]] = {
    "string": ({"type": "string"}, TEXT),
    "integer": ({"type": "integer"}, st.integers(-(10**40), 10**40)),
    "number": ({"type": "number"}, st.floats(allow_nan=False, allow_infinity=False) | st.integers()),
    "boolean": ({"type": "boolean"}, st.booleans()),
    "null": ({"type": "null"}, st.none()),
    "object": ({"type": "object"}, st.dictionaries(st.text(max_size=5), JSON, max_size=3)),
    "array": ({"type": "array"}, st.lists(JSON, max_size=4)),
    "optional": ({"anyOf": [{"type": "integer"}, {"type": "null"}]}, st.integers() | st.none()),
    "optional text": (OPTIONAL_TEXT, st.none() | TEXT.filter(lambda text: text.strip() not in ("null", "None"))),
    "union": ({"type": ["boolean", "array", "number"]}, st.booleans() | st.lists(JSON, max_size=2) | st.integers()),
    "enum": ({"enum": CHOICES}, st.sampled_from(CHOICES)),
}
TYPED_TOOLS = [tool("f", **{name: schema for name, (schema, _) in TYPED.items()}), tool("g")]
ARGUMENTS = st.fixed_dictionaries({}, optional={name: values for name, (_, values) in TYPED.items()})
PROSE = st.text(max_size=10).map(str.strip).filter(lambda text: "<" not in text)
COMPILED = {name: ChatTemplate(source) for name, source in PRESENT.items()}


@pytest.mark.parametrize("name", list(PRESENT))
@settings(PATIENT, max_examples=150)
@given(
    told=st.lists(st.tuples(st.just("f"), ARGUMENTS) | st.just(("g", {})), min_size=1, max_size=3),
    text=PROSE,
    thought=PROSE,
    step=st.integers(1, 40),
)
def test_what_the_template_prints_is_read_back_exactly(
    name: str, told: list[tuple[str, dict[str, Any]]], text: str, thought: str, step: int
) -> None:
    messages = normalise_messages([user("q"), assistant(text, thought, *told)])
    rendered = COMPILED[name].render(messages, TYPED_TOOLS, add_generation_prompt=False)
    output = rendered.rpartition("<|im_start|>assistant\n<think>\n")[2].removesuffix("<|im_end|>\n")
    events = parse([output[i : i + step] for i in range(0, len(output), step)], True, TYPED_TOOLS)
    found = calls(events)
    assert found == told
    # 1 == True == 1.0 in Python, but not in JSON.
    assert json.dumps(found) == json.dumps([list(call) for call in told])
    assert (reasoning(events), content(events)) == (thought, text)
    assert not any(isinstance(event, Malformed) for event in events)
