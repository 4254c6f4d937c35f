"""Requests that differ in what changes at every turn come out the same; others come out as they were."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_qwen35.chat.canonical import RULES, canonical
from mlx_qwen35.chat.messages import normalise_messages
from tests.chat.conversations import assistant, tool, user

REMINDER = "<system-reminder>\nThe file changed.\n</system-reminder>"


def system(text: Any) -> dict[str, Any]:
    return {"role": "system", "content": text}


def written(text: str, *rules: str) -> str:
    return canonical([system(text)], None, rules or RULES)[0][0]["content"]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (
            "x-anthropic-billing-header: cc_version=2.1; cch=1a;\n\nYou help.",
            "x-anthropic-billing-header: b\n\nYou help.",
        ),
        ("Current date: 2026-11-22T10:32:05.123Z", "Current date: 2026-11-22 23:59"),
        ("Today is Sunday, November 22, 2026 at 10:32 AM.", "Today is Sunday, November 22, 2026 at 9:01 PM."),
        (
            "now: Sun Nov 22 2026 10:32:05 GMT+0100 (Central European Time)",
            "now: Sun Nov 22 2026 11:00:00 GMT+0100 (CET)",
        ),
        ("Date and time: 11/22/2026, 10:32:05 AM", "Date and time: 11/22/2026, 1:00:00 PM"),
        ("The current time is 10:32.", "The current time is 7:05."),
    ],
)
def test_what_changes_by_the_minute_is_the_same_text(one: str, other: str) -> None:
    assert one != other
    assert written(one) == written(other)


def test_the_date_stays() -> None:
    assert written("Current time: 2026-11-22 10:32:05") == "Current time: 2026-11-22"
    assert written("Today is 22 Nov 2026, 10:32") == "Today is 22 Nov 2026"


@pytest.mark.parametrize(
    "text",
    ["The shop opens at 9:30 on 2026-11-22 10:00.", "Ratio 16:9 today", "Released 2026-11-22.", "a time of 3:1 odds"],
)
def test_a_time_that_is_no_clock_stays(text: str) -> None:
    assert written(text) == text


@pytest.mark.parametrize("rule", RULES)
def test_each_rule_can_be_switched_off(rule: str) -> None:
    messages = [
        system("x-anthropic-billing-header: 1\nTime: 2026-11-22 10:32"),
        user("Hello"),
        assistant("Hi"),
        system("Be brief."),
    ]
    tools = [tool("b"), tool("a")]
    everything, nothing = canonical(messages, tools), canonical(messages, tools, ())
    assert nothing == (messages, tools)
    without = canonical(messages, tools, [other for other in RULES if other != rule])
    assert without != everything


def test_tools_come_in_one_order() -> None:
    tools = [tool("b"), tool("a"), tool("c")]
    assert canonical([user("a")], tools)[1] == canonical([user("a")], tools[::-1])[1]


def test_a_late_system_message_leaves_the_front_alone() -> None:
    start = [system("You help."), user("Hello"), assistant("Hi")]
    late, _ = canonical([*start, system("Be brief."), user("So?")], None)
    assert normalise_messages(late)[:3] == normalise_messages(start)
    assert late[3]["role"] == "user"
    assert "Be brief." in late[3]["content"]


def test_early_system_messages_stay_what_they_are() -> None:
    messages = [system("You help."), user("Hello"), system("Agents: a, b")]
    assert canonical(messages, None)[0] == messages


def test_a_reminder_beside_a_result_is_no_new_question() -> None:
    call = {"role": "tool", "tool_call_id": "1", "content": "done"}
    found, _ = canonical([user("Go"), assistant("So"), call, user(REMINDER), system("Hm")], None)
    assert [message["role"] for message in found] == ["user", "assistant", "tool"]
    assert found[2]["content"].startswith(f"done\n\n{REMINDER}\n\n")
    spoken, _ = canonical([user("Go"), assistant("So"), call, user(REMINDER + " And stop.")], None)
    assert [message["role"] for message in spoken] == ["user", "assistant", "tool", "user"]


MESSAGES = st.lists(
    st.builds(
        lambda role, text: {"role": role, "content": text},
        st.sampled_from(["system", "developer", "user", "assistant", "tool"]),
        st.text("now: 2026-11-2 T10:32\n<>x/", max_size=60)
        | st.just(REMINDER)
        | st.just([{"type": "text", "text": "a"}]),
    ),
    max_size=6,
)


@given(MESSAGES, st.sets(st.sampled_from(RULES)))
def test_nothing_given_is_changed_and_twice_is_as_good_as_once(messages: list[Any], rules: set[str]) -> None:
    before = copy.deepcopy(messages)
    once, _ = canonical(messages, None, rules)
    assert messages == before
    assert canonical(once, None, rules)[0] == once
