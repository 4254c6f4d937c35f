"""Every piece of an answer stands with the tokens that made it, wherever the output is cut into tokens."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_qwen35.chat.answer import Answer
from mlx_qwen35.chat.credits import Credits
from mlx_qwen35.chat.events import Content, Event, Reasoning, TokenLogprob
from mlx_qwen35.chat.parser import OutputParser
from mlx_qwen35.chat.stop import StopStrings

TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"properties": {"a": {"type": "string"}}}}}]
CALL = "<tool_call>\n<function=f>\n<parameter=a>\nx</tool_call>y\n</parameter>\n</function>\n</tool_call>"
OUTPUTS = {
    "content": "Hello, wörld <b> 🙂🙂.",
    "thought": "<think>\nI </thin> see\n\n</think>\n\nth<e> answer",
    "calls": f"<think>\nhm\n</think>\n\nFirst.\n\n{CALL}\n{CALL}\nth<en>",
    "no call": "a\n\n<tool_call>\n<function=f>\n<parameter=a>\nnever ends",
    "a call ends the thought": f"<think>\nhm {CALL}\nafter",
}


def pieces(tokens: list[bytes], in_reasoning: bool, stops: tuple[str, ...] = ()) -> list[Event]:
    """The events of an answer that came in these tokens, each told by its number."""
    import codecs

    answer = Answer(OutputParser(TOOLS, in_reasoning), StopStrings(stops))
    credits, utf8, events = Credits(in_reasoning), codecs.getincrementaldecoder("utf-8")("replace"), []
    for i, raw in enumerate(tokens):
        text = utf8.decode(raw)
        credits.add(TokenLogprob(i, raw.decode("utf-8", "replace"), raw, -1.0), text)
        events += map(credits.credit, answer.feed(text))
        if answer.stopped:
            return events
    credits.end(rest := utf8.decode(b"", final=True))
    return events + list(map(credits.credit, answer.finish(rest)))


def shown(events: list[Event], kind: type[Content] | type[Reasoning]) -> tuple[str, list[TokenLogprob]]:
    mine = [event for event in events if isinstance(event, kind)]
    return "".join(event.text for event in mine), [token for event in mine for token in event.logprobs]


@pytest.mark.parametrize("output", OUTPUTS.values(), ids=OUTPUTS)
@pytest.mark.parametrize("kind", [Content, Reasoning])
def test_tokens_of_a_byte_each_join_to_what_is_shown(output: str, kind: type[Content] | type[Reasoning]) -> None:
    text, tokens = shown(pieces([bytes([byte]) for byte in output.encode()], False), kind)
    assert b"".join(token.raw for token in tokens).decode() == text


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from(list(OUTPUTS.values())),
    st.lists(st.integers(1, 9), min_size=1),
    st.sampled_from([(), ("e",), ("th", "y\n")]),
)
def test_what_is_shown_lies_within_its_tokens_in_their_order(output: str, cuts: list[int], stops: tuple) -> None:
    raw, tokens, i = output.encode(), [], 0
    while raw:
        cut = cuts[i % len(cuts)]
        tokens.append(raw[:cut])
        raw, i = raw[cut:], i + 1
    events = pieces(tokens, False, stops)
    numbers = [token.token for event in events if isinstance(event, (Content, Reasoning)) for token in event.logprobs]
    assert numbers == sorted(set(numbers))
    for event in events:
        if isinstance(event, (Content, Reasoning)) and event.logprobs and len(event.text) > 9:
            assert event.text[9:-9] in b"".join(token.raw for token in event.logprobs).decode("utf-8", "replace")


def test_half_a_character_at_the_end_is_told_by_its_token() -> None:
    text, tokens = shown(pieces([b"a", b"\xf0\x9f", b"\x99"], False), Content)
    assert text == "a\ufffd"
    assert [token.raw for token in tokens] == [b"a", b"\xf0\x9f", b"\x99"]


def test_a_stop_string_takes_its_tokens_with_it() -> None:
    text, tokens = shown(pieces([b"one", b" S", b"TO", b"P two"], False, ("STOP",)), Content)
    assert text == "one "
    assert [token.token for token in tokens] == [0, 1]  # the second one's space is shown
