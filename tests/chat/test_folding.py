"""Folding: what stays, what is summarised, that nothing is summarised twice, and that the result fits."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_qwen35.chat.folding import HEADING, SMALLEST_LIMIT, TASK, Folding, fold, summary_tokens
from mlx_qwen35.errors import RequestError

LIMIT = 600
Message = dict[str, Any]


def tokens(message: Message) -> int:
    return len(message["content"].split()) + 4


def total(messages: list[Message]) -> int:
    return sum(map(tokens, messages))


class Summariser:
    """Says how many messages it read. Its summaries are as long as they may become."""

    def __init__(self) -> None:
        self.asked: list[list[Message]] = []

    def __call__(self, messages: list[Message], most: int) -> str:
        self.asked.append(messages)
        return " ".join([f"summary-{len(self.asked)}"] * (most - 1))


def said(role: str, words: int, name: str = "") -> Message:
    return {"role": role, "content": " ".join([name or role] + ["word"] * (words - 1))}


SYSTEM = said("system", 20, "rules")
CHAT = [SYSTEM] + [said(role, 40, f"{role}{i}") for i in range(12) for role in ("user", "assistant")]
# One request, then nothing but calls and their results, as agents work.
AGENT = [SYSTEM, said("user", 30, "the-task")] + [
    said(role, 40, f"{role}{i}") for i in range(12) for role in ("assistant", "tool", "tool")
]


def apply(folding: Folding, messages: list[Message], summarise: Summariser, limit: int = LIMIT) -> list[Message]:
    while True:
        messages, made = folding.apply(messages, limit, total, tokens)
        if made is None:
            return messages
        folding.remember(made, summarise(made.question(), summary_tokens(limit)))


def test_what_fits_stays_as_it_is() -> None:
    asked = Summariser()
    assert apply(Folding(), CHAT[:5], asked) == CHAT[:5]
    assert asked.asked == []


@pytest.mark.parametrize("messages", [CHAT, AGENT], ids=["chat", "agent"])
def test_system_and_recent_turns_stay_and_the_rest_is_one_message(messages: list[Message]) -> None:
    asked = Summariser()
    folded = apply(Folding(), messages, asked)
    assert total(folded) <= LIMIT
    assert folded[0] == SYSTEM
    assert folded[1]["content"].startswith(HEADING)
    recent = folded[2:]
    assert recent == messages[-len(recent) :]
    assert len(recent) >= 2
    assert recent[0]["role"] != "tool"  # a result without its call is nothing to the template
    (question,) = asked.asked
    assert question[:-1] == messages[: len(messages) - len(recent)]  # all that was folded, and as it was


def test_the_task_of_an_agent_stays_word_for_word_through_many_folds() -> None:
    folding, asked, messages = Folding(), Summariser(), list(AGENT)
    for i in range(5):
        folded = apply(folding, messages, asked)
        assert folded[1]["content"].endswith(f"{TASK}\n\n{AGENT[1]['content']}")
        messages += [said(role, 60, f"more{i}{role}") for role in ("assistant", "tool") * 3]
    assert len(asked.asked) > 2


def test_a_growing_conversation_is_summarised_once_a_fold_and_keeps_its_beginning() -> None:
    """What the prompt begins with may change at a fold only: everything else would be computed again."""
    folding, asked, messages, last = Folding(), Summariser(), CHAT[:1], []
    changes = 0
    for message in CHAT[1:] * 3:
        messages = [*messages, message]
        folded = apply(folding, messages, asked)
        assert total(folded) <= LIMIT
        changes += folded[: len(last)] != last
        last = folded
    assert changes == len(asked.asked) > 2
    again = apply(folding, messages, asked)
    assert again == last
    assert changes == len(asked.asked)


def test_another_conversation_takes_no_ones_summary() -> None:
    folding, asked = Folding(), Summariser()
    apply(folding, CHAT, asked)
    other = [SYSTEM, said("user", 40, "other"), *CHAT[2:]]
    assert "summary-1" not in apply(folding, other, asked)[1]["content"]


def test_one_turn_that_is_too_long_is_refused() -> None:
    with pytest.raises(RequestError, match="nothing to summarise"):
        apply(Folding(), [SYSTEM, said("user", 2 * LIMIT)], Summariser())
    with pytest.raises(RequestError, match="nothing to summarise"):
        apply(Folding(), [*CHAT, said("user", int(0.9 * LIMIT))], Summariser())
    with pytest.raises(RequestError, match="at least 512"):
        apply(Folding(), CHAT, Summariser(), SMALLEST_LIMIT - 1)


turns = st.lists(
    st.builds(said, st.sampled_from(["user", "assistant", "tool"]), st.integers(1, 120)), min_size=1, max_size=40
)


@settings(max_examples=200)
@given(turns=turns, limit=st.integers(SMALLEST_LIMIT, 2000))
def test_any_conversation_fits_or_is_refused(turns: list[Message], limit: int) -> None:
    asked = Summariser()
    try:
        folded = apply(Folding(), [SYSTEM, *turns], asked, limit)
    except RequestError:
        return
    assert total(folded) <= limit
    assert folded[-1] == turns[-1]
    assert all(m["content"] in {t["content"] for t in [SYSTEM, *turns]} for m in folded if HEADING not in m["content"])


def test_a_fold_leaves_room_for_more() -> None:
    """Else the next turn would fold again, and every turn would cost a summary."""
    made = fold(CHAT, LIMIT, tokens)
    after = total(made.folded(" ".join(["x"] * summary_tokens(LIMIT)), made.recent))
    assert after < 0.6 * LIMIT
