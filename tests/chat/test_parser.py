"""Where the text is cut must not matter, nothing may be lost, nothing may raise, and the work must stay linear."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_qwen35.chat.parser import OutputParser
from tests.chat.conversations import tool
from tests.chat.parsing import PATIENT, TOOLS, Counted, calls, content, parse, plain, reasoning, rebuilt, skeleton

CALL = (
    "<tool_call>\n<function=get_weather>\n<parameter=city>\nOs\n\n</parameter>\nlo\n</parameter>\n"
    "<parameter=days>\n2\n</parameter>\n<parameter=where>\n{'x': [True, None]}\n</parameter>\n"
    "<parameter=any>\ntru\n</parameter>\n</function>\n</tool_call>"
)
INLINE = "<tool_call><function=write_file><parameter=path>a<b</parameter><parameter=content></parameter></function>"
INLINE += "</tool_call>"
OUTPUTS = {
    "reasoning and answer": "\nbecause\n\nof this\n</think>\n\nAnswer\n\nwith < and </thin and <tool_cal.\n",
    "call": f"think\n</think>\n\nSure.\n\n{CALL}",
    "two calls": f"think\n</think>\n\n{CALL}\n{INLINE}\n\nDone.",
    "call in the block": f"I will call\n\n{CALL}",
    "tag in the block": "the <tool_call> tag and <tool_call>\n <functio </think>x",
    "never closed": "thinking <think> and </thin\n\n",
    "opened again": "\n <think>\nonce more\n</think>\n\nA",
    "cut in a value": "x\n</think>\n\nT\n\n<tool_call>\n<function=write_file>\n<parameter=path>\nab\n</para",
    "cut in a name": "</think><tool_call>\n<function=wri",
    "no function": '</think>A <tool_call>\n{"name": "f"}\n</tool_call> B',
    "text in a call": "</think><tool_call>\n<function=write_file>\noops\n</function>\n</tool_call>\n",
    "text after a function": "</think><tool_call>\n<function=write_file>\n</function>\noops </tool_call>",
    "two functions in one call": "</think><tool_call><function=a>\n</function><function=b>\n</function></tool_call>",
}


@pytest.mark.parametrize("in_reasoning", [True, False])
@pytest.mark.parametrize("output", OUTPUTS.values(), ids=OUTPUTS)
def test_every_split_gives_the_same_events(output: str, in_reasoning: bool) -> None:
    whole = plain(parse([output], in_reasoning))
    assert plain(parse(output, in_reasoning)) == whole  # character by character
    for i in range(len(output)):
        assert plain(parse([output[:i], output[i:]], in_reasoning)) == whole
        assert plain(parse([output[:i], output[i : i + 3], output[i + 3 :]], in_reasoning)) == whole


def test_reasoning_then_answer() -> None:
    events = parse(OUTPUTS["reasoning and answer"], in_reasoning=True)
    assert reasoning(events) == "because\n\nof this"
    assert content(events) == "Answer\n\nwith < and </thin and <tool_cal.\n"


def test_a_block_opens_at_the_start_only() -> None:
    for in_reasoning in (True, False):
        events = parse(OUTPUTS["opened again"], in_reasoning)
        assert (reasoning(events), content(events)) == ("once more", "A")
    events = parse("A <think>x</think>")
    assert (reasoning(events), content(events)) == ("", "A <think>x</think>")


def test_a_call_closes_the_block() -> None:
    events = parse(OUTPUTS["call in the block"], in_reasoning=True)
    assert reasoning(events) == "I will call"
    assert [name for name, _ in calls(events)] == ["get_weather"]
    assert content(events) == ""


def test_reasoning_about_calls_stays_reasoning() -> None:
    events = parse(OUTPUTS["tag in the block"], in_reasoning=True)
    assert reasoning(events) == "the <tool_call> tag and <tool_call>\n <functio "
    assert content(events) == "x"


def test_without_tools_tags_are_text() -> None:
    for tools in (None, []):
        events = parse(f"I will\n{CALL}\n</think>\n\n{CALL}", in_reasoning=True, tools=tools)
        assert (reasoning(events), content(events)) == (f"I will\n{CALL}", CALL)


def test_what_is_certain_is_told_at_once() -> None:
    parser = OutputParser(TOOLS, in_reasoning=True)
    told = [parser.feed(piece) for piece in ("Hm", "m <", "b", "\n</th", "ink>\n", "\nA", " <tool", "s", ">")]
    assert [reasoning(events) for events in told] == ["Hm", "m ", "<b", "", "", "", "", "", ""]
    assert [content(events) for events in told] == ["", "", "", "", "", "A", " ", "<tools", ">"]
    assert not parser.in_reasoning


TAGS = (
    "<think> </think> <tool_call> </tool_call> <function= <function=f> <function=write_file> </function> > < "
    '<parameter= <parameter=path> <parameter=content> </parameter> a b> </ { } null \\ " ü 🙂'
)
BREAKS = ["\n", "\n\n", " ", "</parameter>\n", "\n</parameter>\n", "\n</parameter>\n</function>\n"]
BREAKS += ["<tool_call>\n<function=write_file>\n<parameter=path>\n", "\n</parameter>\n<parameter=content>\n"]
TEXT_TOOLS = [tool("write_file", path={"type": "string"}, content={"type": "string"}), tool("f")]
SOUP = st.lists(st.sampled_from([*BREAKS, *filter(None, TAGS.split(" "))]) | st.text(max_size=3), max_size=40)
CUTS = st.lists(st.integers(0, 400), max_size=12)


def cut(text: str, cuts: list[int]) -> list[str]:
    places = [0, *sorted(min(place, len(text)) for place in cuts), len(text)]
    return [text[a:b] for a, b in itertools.pairwise(places)]


@settings(PATIENT, max_examples=300)
@given(soup=SOUP, cuts=CUTS, in_reasoning=st.booleans())
def test_tag_soup_is_never_lost_and_never_raises(soup: list[str], cuts: list[int], in_reasoning: bool) -> None:
    output = "".join(soup)
    events = parse(cut(output, cuts), in_reasoning, TEXT_TOOLS)
    assert plain(events) == plain(parse([output], in_reasoning, TEXT_TOOLS))
    values = [value for _, arguments in calls(events) for value in arguments.values()]
    if all(isinstance(value, str) for value in values):  # an unknown parameter may have become another type
        told, whole = skeleton(rebuilt(events)), skeleton(output)
        # Of a call that was read, half an end tag may be cut off.
        rest = whole.removeprefix(told) if whole.startswith(told) else None
        assert rest is not None
        assert "</tool_call>".startswith(rest) or "<function=".startswith(rest)


HOSTILE = {
    "functions": "<function=",
    "calls": "<tool_call>",
    "calls and functions": "<tool_call><function=",
    "named functions": "<tool_call><function=f>",
    "open values": "<tool_call>\n<function=f>\n<parameter=a>\n",
    "ends of values": "\n</parameter>",
    "almost ends of values": "\n</parameter>\n<parameter",
    "ends of think": "</think",
    "newlines": "\n",
    "spaces": " ",
    "angles": "<",
    "braces": "{",
    "digits": "9",
    "whole calls": CALL,
    "text": "word ",
}
STARTS = {
    "block": "",
    "text": "</think>\n\n",
    "value": "</think><tool_call>\n<function=write_file>\n<parameter=path>\n",
}
STARTS["number"] = STARTS["value"].replace("write_file", "get_weather").replace("path", "days")
STARTS["unknown"] = STARTS["value"].replace("path", "other")


def work(pieces: list[str]) -> int:
    Counted.looked_at = 0
    parse([Counted(piece) for piece in pieces], in_reasoning=True)
    return Counted.looked_at


@pytest.mark.parametrize("start", STARTS.values(), ids=STARTS)
@pytest.mark.parametrize("unit", HOSTILE.values(), ids=HOSTILE)
def test_work_grows_with_the_text_and_not_with_its_square(unit: str, start: str) -> None:
    size = max(1, 1500 // len(unit))
    small, large = start + unit * size, start + unit * (10 * size)
    # Ten times the text may cost ten times the work; the square would cost a hundred times.
    assert work([large]) < 15 * work([small])
    assert work(list(large)) < 15 * work(list(small))


def test_the_count_sees_quadratic_work() -> None:
    def quadratic(text: str) -> int:
        Counted.looked_at = 0
        kept = Counted("")
        for char in text:
            kept = kept + char
            kept.find("x")
        return Counted.looked_at

    assert quadratic("a" * 2000) > 50 * quadratic("a" * 200)
