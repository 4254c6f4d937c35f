"""Requests that mean the same, brought to the same text, so that the prefix of one serves the next.

Agent programs write what changes at every turn to the front of the prompt, and then nothing after it can be reused.
Each rule here has a name, and can be switched off by it:

    billing       lines of the system message that begin with `x-anthropic-billing-header:` are left out: they are
                  for a hosted service's accounts.
    times         in lines of the system message that speak of date or time, a time of day beside a date is left out,
                  and the date kept; a time alone becomes `--:--`. So a prompt changes once a day. The model no longer
                  knows the time: switch the rule off for a program that needs it.
    tool-order    tools are sorted by name: programs that collect them from several places send them in any order.
    late-system   a system message after the first answer stays where it is, as a `<system-reminder>` of the user's
                  side, where the template would have it at the very front. Text of the user that is such a reminder
                  and nothing else, and follows a tool's result, becomes part of that result: it is no new question,
                  after which the template would leave out what the model thought so far.

Knows messages in OpenAI's form. Nothing given is changed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

RULES = ("billing", "times", "tool-order", "late-system")
BILLING = "x-anthropic-billing-header:"
OPEN, CLOSE = "<system-reminder>", "</system-reminder>"

_DAYS = r"(?:Mon|Tues?|Wed(?:nes)?|Thu(?:rs)?|Fri|Sat(?:ur)?|Sun)(?:day)?"
_MONTHS = (
    r"(?:Jan(?:uary)?|Feb(?:ruary)?|Mar(?:ch)?|Apr(?:il)?|May|June?|July?|Aug(?:ust)?|Sep(?:t(?:ember)?)?"
    r"|Oct(?:ober)?|Nov(?:ember)?|Dec(?:ember)?)"
)
_DATE = (
    r"(?:[0-9]{4}[-/][0-9]{1,2}[-/][0-9]{1,2}|[0-9]{1,2}[./][0-9]{1,2}[./][0-9]{4}"
    rf"|(?:{_DAYS},? )?{_MONTHS} [0-9]{{1,2}},? [0-9]{{4}}|(?:{_DAYS},? )?[0-9]{{1,2}} {_MONTHS} [0-9]{{4}})"
)
_TIME = (
    r"[0-9]{1,2}:[0-9]{2}(?::[0-9]{2}(?:[.,][0-9]{1,9})?)?(?: ?[AaPp][Mm])?"
    r"(?: ?(?:Z|UTC|GMT))?(?: ?[+-][0-9]{2}:?[0-9]{2})?(?: \([A-Za-z ]{1,40}\))?"
)
_MOMENT = re.compile(rf"(?<![0-9])({_DATE})(?:T|,? at |,? ){_TIME}")
_TIME_ALONE = re.compile(rf"(?<![0-9:.T]){_TIME}(?![0-9:])")
_OF_TIME = re.compile(r"date|time|now|today", re.IGNORECASE)
_THE_TIME = re.compile(r"^\W{0,8}(?:the )?(?:current |local |system )*time\b", re.IGNORECASE)
LONGEST_LINE = 400  # characters: a longer line is prose, and no place for a clock

Message = dict[str, Any]


def canonical(
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Mapping[str, Any]] | None,
    rules: Collection[str] = RULES,
) -> tuple[list[Message], list[dict[str, Any]] | None]:
    """(messages, tools) by the rules named."""
    found = [dict(message) for message in messages]
    if "late-system" in rules:
        found = _in_place(found)
    for message in found:
        if message.get("role") in ("system", "developer"):
            message["content"] = _rewritten(message.get("content"), lambda text: _steady(text, rules))
    ordered = None if tools is None else [dict(tool) for tool in tools]
    if ordered and "tool-order" in rules:
        ordered.sort(key=_name)
    return found, ordered


def _steady(text: str, rules: Collection[str]) -> str:
    lines = text.split("\n")
    if "billing" in rules and BILLING in text:
        lines = "\n".join(line for line in lines if not line.startswith(BILLING)).lstrip("\n").split("\n")
    if "times" in rules:
        lines = [_without_time(line) for line in lines]
    return "\n".join(lines)


def _without_time(line: str) -> str:
    if len(line) > LONGEST_LINE or not _OF_TIME.search(line):
        return line
    line = _MOMENT.sub(r"\1", line)
    return _TIME_ALONE.sub("--:--", line) if _THE_TIME.search(line) else line


def _in_place(messages: list[Message]) -> list[Message]:
    """Late system messages as reminders, and reminders beside a tool's result inside it."""
    found: list[Message] = []
    answered = False
    for message in messages:
        role, content = message.get("role"), message.get("content")
        answered = answered or role == "assistant"
        if answered and role in ("system", "developer"):
            content = _rewritten(content, lambda text: f"{OPEN}\n{text}\n{CLOSE}")
            message = {"role": "user", "content": content}
        before = found[-1] if found else {}
        result = before.get("content")
        reminds = message.get("role") == "user" and isinstance(content, str) and _is_reminder(content)
        if reminds and before.get("role") == "tool" and isinstance(result, str):
            found[-1] = {**before, "content": f"{result}\n\n{content}"}
        else:
            found.append(message)
    return found


def _is_reminder(text: str) -> bool:
    """Whether all of it is reminders."""
    rest = text.strip()
    while rest.startswith(OPEN):
        _, found, rest = rest.partition(CLOSE)
        if not found:
            return False
        rest = rest.lstrip()
        if not rest:
            return True
    return False


def _rewritten(content: Any, rewrite: Callable[[str], str]) -> Any:
    """The content with every text in it rewritten, be it a text or a list of parts."""
    if isinstance(content, str):
        return rewrite(content)
    if not isinstance(content, list):
        return content
    texts = [part.get("text") if isinstance(part, dict) else None for part in content]
    return [{**part, "text": rewrite(text)} if isinstance(text, str) else part for part, text in zip(content, texts)]


def _name(tool: Mapping[str, Any]) -> str:
    function = tool.get("function", tool)
    name = function.get("name") if isinstance(function, Mapping) else None
    return name if isinstance(name, str) else ""
