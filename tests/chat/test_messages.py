"""What real clients send, and what would otherwise trip the template or poison the conversation."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_qwen35.chat.messages import arguments_mapping, normalise_messages, normalise_tools
from mlx_qwen35.chat.template import ChatTemplate
from mlx_qwen35.errors import RequestError
from tests.chat.conversations import PRESENT, WEATHER, assistant, result, system, user
from tests.chat.parsing import PATIENT

COMPILED = [ChatTemplate(source) for source in PRESENT.values()]


def call(arguments: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": arguments}}]}


def test_system_messages_anywhere_become_one_at_the_front() -> None:
    given_messages = [system("a"), user("q"), {"role": "developer", "content": "b"}, assistant("x"), system(" ")]
    expected = [system("a\n\nb"), user("q"), assistant("x")]
    assert normalise_messages(given_messages) == expected


def test_a_single_system_message_keeps_its_text() -> None:
    assert normalise_messages([user("q"), {"role": "developer", "content": " a "}]) == [system(" a "), user("q")]


@pytest.mark.parametrize(
    ("arguments", "mapping"),
    [
        ('{"a": 1, "b": [null, "ü"]}', {"a": 1, "b": [None, "ü"]}),
        ({"a": 1}, {"a": 1}),
        ("", {}),
        (None, {}),
        ('{"a": 12345678901234567890123}', {"a": 12345678901234567890123}),
        ('{"a": ' + "9" * 6000 + "}", {"a": "9" * 6000}),
        ('{"a": ', {"arguments": '{"a": '}),
        ('{"a": NaN}', {"arguments": '{"a": NaN}'}),
        ("[1, 2]", {"arguments": [1, 2]}),
        ([1, 2], {"arguments": [1, 2]}),
        ('"{\\"a\\": 1}"', {"a": 1}),
        ('{"a": "\\ud800"}', {"a": "\ufffd"}),
        ("[" * 100_000, {"arguments": "[" * 100_000}),
        (7, {"arguments": 7}),
    ],
)
def test_tool_arguments_become_a_mapping_that_renders(arguments: Any, mapping: dict[str, Any]) -> None:
    assert arguments_mapping(arguments) == mapping
    messages = normalise_messages([user("q"), call(arguments), result("r")])
    for template in COMPILED:
        assert "<function=f>" in template.render(messages, [WEATHER])


@pytest.mark.parametrize(
    "messages",
    [
        [system("only")],
        [result("orphan")],
        [assistant("first")],
        [user("<tool_response>x</tool_response>")],
        [user(None)],
        [user([])],
        [system(None), user("q")],
        [user("q"), assistant(None), assistant(None, "r"), user("q")],
        [user("q"), {"role": "assistant", "tool_calls": []}],
    ],
)
def test_odd_conversations_render(messages: list[dict[str, Any]]) -> None:
    before = copy.deepcopy(messages)
    for template in COMPILED:
        template.render(normalise_messages(messages))
    assert messages == before


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning", "thinking"])
def test_reasoning_has_one_name(key: str) -> None:
    assert normalise_messages([user("q"), {"role": "assistant", "content": "a", key: "r"}])[1] == assistant("a", "r")


def test_parts_are_joined_and_thinking_parts_are_reasoning() -> None:
    parts = [{"type": "thinking", "thinking": "r"}, {"type": "output_text", "text": "a"}, "b", {"text": "c"}]
    assert normalise_messages([user("q"), {"role": "assistant", "content": parts}])[1] == assistant("abc", "r")


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": "data:x"}},
        {"type": "image", "image": "x"},
        {"image": "x"},
        {"type": "input_image", "image_url": "x"},
        {"type": "video", "video": "x"},
        {"type": "video_url", "video_url": {"url": "x"}},
    ],
)
def test_images_and_video_are_refused_for_now(part: dict[str, Any]) -> None:
    with pytest.raises(RequestError, match=r"messages\[1\]\.content\[1\].*come in a later release"):
        normalise_messages([system("s"), user([{"type": "text", "text": "t"}, part])])


@pytest.mark.parametrize(
    ("messages", "place"),
    [
        ([], "messages"),
        ("hi", "messages"),
        ({"role": "user"}, "messages"),
        (["hi"], r"messages\[0\]"),
        ([user("q"), {"role": "robot", "content": "x"}], r"messages\[1\]\.role"),
        ([{"content": "x"}], r"messages\[0\]\.role"),
        ([{"role": ["user"], "content": "x"}], r"messages\[0\]\.role"),
        ([user(5)], r"messages\[0\]\.content"),
        ([{"role": "user", "contents": "x"}], r"messages\[0\]\.content is missing"),
        ([{"role": "system"}, user("q")], r"messages\[0\]\.content is missing"),
        ([user("q"), {"role": "tool", "tool_call_id": "a"}], r"messages\[1\]\.content is missing"),
        ([user({"text": "x"})], r"messages\[0\]\.content"),
        ([user("a"), user([{"type": "input_audio"}])], r"messages\[1\]\.content\[0\]"),
        ([user([{"type": "text", "text": 5}])], r"messages\[0\]\.content\[0\]"),
        ([{"role": "assistant", "tool_calls": "x"}], r"messages\[0\]\.tool_calls"),
        ([{"role": "assistant", "tool_calls": [{"function": {}}]}], r"messages\[0\]\.tool_calls\[0\]"),
        ([{"role": "assistant", "tool_calls": [None]}], r"messages\[0\]\.tool_calls\[0\]"),
    ],
)
def test_what_is_no_message_is_named_by_its_place(messages: Any, place: str) -> None:
    with pytest.raises(RequestError, match=place) as refusal:
        normalise_messages(messages)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("tools", ["x", {}, [1], [{}], [{"function": {"name": ""}}], [{"name": "f", "parameters": []}]])
def test_what_is_no_tool_is_refused(tools: Any) -> None:
    if tools == [{"name": "f", "parameters": []}]:  # some clients send an empty list for "no parameters"
        assert normalise_tools(tools) == tools
        return
    with pytest.raises(RequestError, match="tools"):
        normalise_tools(tools)


def test_tools_are_kept_as_given() -> None:
    assert normalise_tools([WEATHER]) == [WEATHER]
    assert normalise_tools([]) is None
    assert normalise_tools(None) is None


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
KEYS = st.sampled_from(["role", "content", "tool_calls", "reasoning", "type", "text", "function", "name", "arguments"])
WORDS = st.sampled_from(["user", "assistant", "tool", "text", "thinking", "f", "{}"])
MESSAGE = st.recursive(
    JSON | WORDS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4), max_leaves=12
)


@PATIENT
@given(st.lists(st.fixed_dictionaries({"role": WORDS | JSON, "content": MESSAGE}) | MESSAGE, max_size=4))
def test_any_json_is_rendered_or_refused_in_one_line(messages: list[Any]) -> None:
    before = copy.deepcopy(messages)
    try:
        normalised = normalise_messages(messages)
    except RequestError as error:
        normalised, refusal = [], str(error)
    else:
        refusal = ""
    assert "\n" not in refusal
    for template in COMPILED if normalised else ():
        template.render(normalised)
    assert repr(messages) == repr(before)
