"""What people are told of a missed prefix must name the right place, and be one safe line."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_qwen35.chat.divergence import explain, rerendered
from mlx_qwen35.chat.transcript import Prompt, Transcript
from tests.chat.conversations import TEMPLATES, WEATHER, WRITE, assistant, result, system, user
from tests.chat.parsing import PATIENT
from tests.chat.prompts import Chat, Messages, common_length, single_bytes, tokenizer

BILLING = "You are an agent. " * 8 + "billing id 17{} of the client, and so on for the whole of a long text."
CALL = ("get_weather", {"city": "Oslo"})


@pytest.fixture(params=[name for name in TEMPLATES if name != "tests"])
def chat(request: pytest.FixtureRequest) -> Chat:
    return Chat(request.param)


def why(chat: Chat, now: Prompt, earlier: Prompt) -> str:
    return explain(now, earlier.ids, common_length(now.ids, earlier.ids), chat.tokenizer)


def differing(chat: Chat, now: Messages, earlier: Messages, **options) -> str:
    return why(chat, chat.prompt(now, **options), chat.prompt(earlier, **options))


def again(chat: Chat, now: Prompt, earlier: Prompt) -> int:
    return rerendered(now, earlier, common_length(now.ids, earlier.ids))


def test_the_line_of_a_changing_system_text(chat: Chat) -> None:
    now, earlier = ([system(BILLING.format(id)), user("Hi")] for id in (93, 52))
    position = common_length(chat.prompt(now).ids, chat.prompt(earlier).ids)
    assert differing(chat, now, earlier) == (
        f"differs from an earlier prompt at token {position}, in message 1 (system): "
        "“… an agent. billing id 17|93 of the client, and so on for the …” was "
        "“… an agent. billing id 17|52 of the client, and so on for the …”"
    )


def test_messages_are_counted_as_the_client_sent_them(chat: Chat) -> None:
    """Two tool responses share a turn; a system turn that holds tools alone is no message."""
    messages: Messages = [user("Hi"), assistant("", "r", CALL, CALL), result("one"), result("two")]
    changed = [*messages[:3], result("three")]
    assert ", in message 4 (tool): " in differing(chat, changed, messages, tools=[WEATHER])
    changed = [*messages[:2], result("zero"), messages[3]]
    assert ", in message 3 (tool): " in differing(chat, changed, messages, tools=[WEATHER])
    more, other = ([system("Be terse."), *messages, assistant("ok"), user(text)] for text in ("A", "B"))
    assert ", in message 7 (user): " in differing(chat, more, other, tools=[WEATHER])
    assert ", in message 7 (user): " in differing(chat, more, other)
    assert ", in message 1 (system): " in differing(chat, more, [system("Be kind."), *more[1:]], tools=[WEATHER])


def test_tools_in_another_order_are_named(chat: Chat) -> None:
    now, earlier = (chat.prompt([user("Hi")], tools=tools) for tools in ([WRITE, WEATHER], [WEATHER, WRITE]))
    assert ", in the tool definitions: " in why(chat, now, earlier)


def test_stripped_reasoning_is_named_as_the_cause(chat: Chat) -> None:
    messages = [user("Hi"), assistant("Hello.", "greet")]
    earlier = chat.transcript.read(chat.tokenizer.encode(chat.template.render(messages, add_generation_prompt=False)))
    line = why(chat, chat.prompt([*messages, user("And?")]), earlier)
    assert ", in message 2 (assistant): " in line
    assert "assistant\\n|Hello.<|im_end|>" in line
    assert "assistant\\n|<think>\\ngreet\\n</think>" in line
    assert line.endswith(" (the template leaves out the reasoning of earlier answers)")


def test_a_switch_of_thinking_is_in_the_opening(chat: Chat) -> None:
    on, off = (chat.prompt([user("Hi")], enable_thinking=thinks) for thinks in (True, False))
    assert ", in the opening of the answer: " in why(chat, on, off)
    assert "<think>|\\n” was “" in why(chat, on, off)
    assert "(" not in why(chat, on, off)


def test_the_same_text_in_other_tokens_is_said_to_be_the_same(chat: Chat) -> None:
    text = chat.template.render([user("Hi"), assistant("the long answer " * 20), user("And?")])
    now = chat.transcript.prompt(text)
    body = now.turns[1].body
    spelled = [single_bytes(chat.tokenizer)[byte] for byte in b"the long answer " * 20]
    earlier = chat.transcript.read([*now.ids[:body], *spelled, *chat.tokenizer.encode("<|im_end|>")])
    assert why(chat, now, earlier).endswith(" (the same text in other tokens)")


def test_what_goes_on_and_what_ends_early(chat: Chat) -> None:
    prompt = chat.prompt([user("Hi")])
    longer = chat.transcript.read([*prompt.ids, *chat.tokenizer.encode("x")])
    assert why(chat, longer, prompt) == f"continues an earlier prompt of {len(prompt.ids)} tokens"
    assert why(chat, prompt, longer) == f"is the beginning of an earlier prompt of {len(longer.ids)} tokens"
    assert why(chat, prompt, prompt) == f"continues an earlier prompt of {len(prompt.ids)} tokens"


def test_the_common_length_may_be_that_of_a_checkpoint(chat: Chat) -> None:
    now, earlier = (chat.prompt([user("Hello there"), assistant("a"), user(text)]) for text in "AB")
    assert explain(now, earlier.ids, 2, chat.tokenizer) == why(chat, now, earlier)


def test_half_a_character_is_shown_whole_on_both_sides() -> None:
    tokens = tokenizer("demo")
    transcript = Transcript(tokens)
    spelled = {char: [single_bytes(tokens)[byte] for byte in f"caf{char}!".encode()] for char in "éè"}
    line = explain(transcript.read(spelled["é"]), spelled["è"], 0, tokens)
    assert line == "differs from an earlier prompt at token 4: “caf|é!” was “caf|è!”"


@PATIENT
@given(text=st.text(max_size=60), at=st.integers(0, 60), other=st.text(max_size=60))
def test_any_text_gives_one_short_printable_line(text: str, at: int, other: str) -> None:
    tokens = tokenizer("demo")
    now = Transcript(tokens).prompt("\x1b[2J\u202e" + text)
    earlier = tokens.encode("\x1b[2J\u202e" + text[:at] + other)
    line = explain(now, earlier, common_length(now.ids, earlier), tokens)
    assert line.isprintable()
    assert len(line) < 120 + 10 * 2 * 60


def test_a_new_question_re_renders_the_stripped_answer_alone(chat: Chat) -> None:
    messages = [system("Be terse."), user("Hi"), assistant("Hello.", "greet")]
    whole = chat.template.render(messages, add_generation_prompt=False).removesuffix("\n")
    earlier = chat.transcript.read(chat.tokenizer.encode(whole))
    now = chat.prompt([*messages, user("And a long new question?")])
    assert again(chat, now, earlier) == now.turns[2].end - now.turns[2].body
    assert again(chat, now, earlier) == len(chat.tokenizer.encode("Hello.<|im_end|>\n"))


def test_what_goes_on_re_renders_nothing(chat: Chat) -> None:
    messages: Messages = [user("Hi"), assistant("", "r", CALL)]
    whole = chat.template.render(messages, add_generation_prompt=False).removesuffix("\n")
    earlier = chat.transcript.read(chat.tokenizer.encode(whole))
    assert again(chat, chat.prompt([*messages, result("fine")]), earlier) == 0


def test_a_changed_system_text_re_renders_the_conversation_behind_it(chat: Chat) -> None:
    turns: Messages = [user("Hi"), assistant("Hello."), user("And?")]
    earlier = chat.prompt([system("It is Monday."), *turns])
    now = chat.prompt([system("It is Tuesday."), *turns, assistant("Well."), user("More?")])
    common = common_length(now.ids, earlier.ids)
    # The answer is a part of the history too: the earlier prompt had it open.
    assert rerendered(now, earlier, common) == now.turns[4].end - common


def test_new_text_is_not_counted_as_history(chat: Chat) -> None:
    """An edited question, another try, another conversation."""
    messages: Messages = [system("Be terse."), user("Hi"), assistant("Hello."), user("And?")]
    earlier = chat.prompt(messages)
    assert again(chat, chat.prompt([*messages[:3], user("What else?")]), earlier) == 0
    assert again(chat, chat.prompt([messages[0], user("A poem.")]), earlier) == 0
    assert again(chat, chat.prompt([system("Be kind."), user("A poem.")]), earlier) == 0
    on, off = (chat.prompt(messages, enable_thinking=thinks) for thinks in (True, False))
    assert again(chat, on, off) == 0
    assert again(chat, chat.transcript.prompt("plain"), chat.transcript.prompt("other")) == 0
