"""Where a later prompt parts from an earlier one must be where a checkpoint stands: real templates, real tokenizer."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest

from mlx_qwen35.chat.transcript import Prompt
from tests.chat.conversations import PRESENT, TEMPLATES, WEATHER, WRITE, assistant, result, system, user
from tests.chat.prompts import Chat, Messages, common_length, sample

SYSTEM = system("You are terse. Today is Monday.")
TOOLS = [WEATHER, WRITE]


@pytest.fixture(params=list(TEMPLATES))
def chat(request: pytest.FixtureRequest) -> Chat:
    return Chat(request.param)


def answered(chat: Chat, messages: Messages, message: dict[str, Any], **options: Any) -> Prompt:
    """The prompt with an answer, sampled otherwise than it would be encoded; the next prompt may hold it."""
    prompt = chat.prompt(messages, **options)
    sampled = sample(chat.tokenizer, chat.answer(messages, message, **options), len(messages))
    chat.transcript.remember(prompt, sampled)
    return chat.transcript.read([*prompt.ids, *sampled])


def recomputed(earlier: Prompt, later: Prompt) -> int:
    """Common tokens that are computed again, with a state at each pivot of the earlier prompt."""
    common = common_length(earlier.ids, later.ids)
    kept = [0, *(position for position in earlier.pivots if position <= common)]
    every = [0, *(position for position in earlier.checkpoints if position <= common)]
    assert kept[-1] == every[-1], "the pivots are the checkpoints that matter here"
    # The later prompt names the same place, so a store that keeps states of either finds it.
    assert kept[-1] == max([0, *(position for position in later.checkpoints if position <= common)])
    return common - kept[-1]


def test_reasoning_is_stripped_once_a_new_question_comes(chat: Chat) -> None:
    """The common prefix ends at the answer's body, exactly."""
    cases: list[dict[str, Any]] = [{}, {"enable_thinking": True}, {"enable_thinking": False}]
    for options in cases:
        messages = [SYSTEM, user("the weather?")]
        thinks = chat.template.opens_thinking(chat.template.render(messages, **options))
        message = assistant("It is fine.", "look it up" if thinks else None)
        earlier = answered(chat, messages, message, **options)
        later = chat.prompt([*messages, message, user("And tomorrow?")], **options)
        assert common_length(earlier.ids, later.ids) == earlier.turns[-1].body
        assert recomputed(earlier, later) == 0


def test_thinking_switched_between_two_tries(chat: Chat) -> None:
    """`<think>` is common, what follows it is not: the body is one token before."""
    messages = [SYSTEM, user("the weather?")]
    on, off = (chat.prompt(messages, enable_thinking=thinks) for thinks in (True, False))
    assert common_length(on.ids, off.ids) == on.turns[-1].body + 1
    assert recomputed(on, off) == recomputed(off, on) == 1


def test_thinking_switched_after_a_question(chat: Chat) -> None:
    messages = [SYSTEM, user("the weather?")]
    message = assistant("It is fine.", "look it up")
    earlier = answered(chat, messages, message, enable_thinking=True)
    later = chat.prompt([*messages, message, user("And?")], enable_thinking=False)
    assert recomputed(earlier, later) == 0


def loop(steps: int) -> Messages:
    messages: Messages = [SYSTEM, user("the weather in all towns?")]
    for step in range(steps):
        messages += [
            assistant("", f"the next is {step}", ("get_weather", {"city": f"Town {step}", "days": step})),
            result(f'{{"t": {step}}}'),
        ]
    return messages


def test_a_tool_loop_continues_each_answer_as_sampled(chat: Chat) -> None:
    """Nothing of prompt and answer is lost, so the state at the end of the answer is the one to keep."""
    options = {"tools": TOOLS, "enable_thinking": True}
    messages = loop(6)
    prompts = [answered(chat, messages[:end], messages[end], **options) for end in range(2, len(messages), 2)]
    for earlier, later in pairwise(prompts):
        assert later.ids[: len(earlier.ids)] == earlier.ids


def test_a_client_that_drops_reasoning_in_a_tool_loop(chat: Chat) -> None:
    options = {"tools": TOOLS, "enable_thinking": True}
    messages = loop(1)
    earlier = answered(chat, messages[:2], messages[2], **options)
    without = {key: value for key, value in messages[2].items() if key != "reasoning_content"}
    later = chat.prompt([*messages[:2], without, messages[3]], **options)
    assert recomputed(earlier, later) <= 1


def test_a_question_after_a_tool_loop_strips_the_whole_loop(chat: Chat, request: pytest.FixtureRequest) -> None:
    """So the state to go back to is at the first answer after the last question: a pivot of every prompt since."""
    if request.node.callspec.params["chat"] == "tests":
        pytest.skip("the tests' own template has each tool response as a turn")
    options = {"tools": TOOLS, "enable_thinking": True}
    messages = [*loop(4), assistant("All is fine.", "done")]
    earlier = answered(chat, messages[:-1], messages[-1], **options)
    later = chat.prompt([*messages, user("Thanks. And?")], **options)
    assert common_length(earlier.ids, later.ids) == earlier.turns[2].body
    assert recomputed(earlier, later) == 0
    assert earlier.pivots[-2:] == (earlier.turns[2].body, earlier.turns[-1].body)
    assert len(earlier.checkpoints) == 2 + 5


def test_a_system_text_that_changes_behind_the_tools(chat: Chat) -> None:
    """The tools stay. The line breaks behind them may be a token with their last character."""
    first = chat.prompt([SYSTEM, user("the weather?")], tools=TOOLS)
    for text in ("It is Tuesday.", "你好", "- a list"):
        changed = chat.prompt([system(text), user("the weather?")], tools=TOOLS)
        assert recomputed(first, changed) <= 2
    none = chat.prompt([user("the weather?")], tools=TOOLS)
    assert common_length(first.ids, none.ids) - first.tools_end <= 2
    assert none.tools_end == none.turns[0].end
    assert none.tools_end in none.checkpoints


def test_the_tools_end_at_the_last_token_that_is_all_theirs(chat: Chat) -> None:
    text = chat.template.render([SYSTEM, user("the weather?")], tools=TOOLS)
    prompt = chat.transcript.prompt(text)
    theirs = text.partition("\n\n" + SYSTEM["content"])[0]
    lengths = [len(chat.tokenizer.decode(prompt.ids[: prompt.tools_end + more])) for more in (0, 1)]
    assert lengths[0] <= len(theirs) < lengths[1]


def test_a_header_that_shares_a_token_with_blank_lines_ends_before_it(chat: Chat) -> None:
    """The line break alone is another token, so a body past it would be past what renderings share."""
    plain, blank = (chat.transcript.prompt(f"<|im_start|>assistant\n{text}") for text in ("the", "\n\nthe"))
    assert [turn.role for turn in plain.turns + blank.turns] == ["assistant", "assistant"]
    assert blank.turns[0].body == common_length(plain.ids, blank.ids) == plain.turns[0].body - 1


def test_a_system_text_that_changes_without_tools_shares_nothing_worth_a_state(chat: Chat) -> None:
    first = chat.prompt([SYSTEM, user("the weather?")])
    changed = chat.prompt([system("Be kind."), user("the weather?")])
    assert common_length(first.ids, changed.ids) == first.turns[0].body == 3
    assert first.tools_end == 0


def test_another_conversation_with_the_same_system_text(chat: Chat) -> None:
    """The header of the first question is common too: three tokens, whatever is asked."""
    for tools in (None, TOOLS):
        first = chat.prompt([SYSTEM, user("the weather?")], tools=tools)
        other = chat.prompt([SYSTEM, user("A poem.")], tools=tools)
        assert first.turns[0].end in first.pivots
        assert recomputed(first, other) == 3


def test_without_system_and_tools_only_answers_have_checkpoints(chat: Chat) -> None:
    prompt = chat.prompt([user("a"), assistant("b"), user("c")])
    assert prompt.checkpoints == (prompt.turns[1].body, prompt.turns[3].body)


def test_twenty_questions_with_reasoning_lose_one_answer_a_turn(chat: Chat) -> None:
    """Each prompt shares with the one before all but its last answer, which is stripped; older ones stay stripped."""
    messages: Messages = [SYSTEM]
    earlier: Prompt | None = None
    for turn in range(20):
        messages.append(user(f"the question {turn}"))
        message = assistant(f"the answer {turn}", f"thinking of {turn}")
        now = answered(chat, messages, message, enable_thinking=True)
        if earlier is not None:
            assert common_length(earlier.ids, now.ids) == earlier.turns[-1].body
            assert recomputed(earlier, now) == 0
        earlier = now
        messages.append(message)


def test_real_templates_are_here() -> None:
    if missing := sorted(set(TEMPLATES) - set(PRESENT)):
        pytest.skip(f"REAL TEMPLATES NOT TESTED: {', '.join(missing)} absent")
