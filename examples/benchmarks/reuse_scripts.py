"""Conversations whose history grows, and what the puppet says in them. Texts only; runs nothing.

A: one question, then a long loop of tool calls and tool results. B: many questions with thinking on, where the
template strips the reasoning of earlier turns. C: questions with a tool loop each, thinking switched in between.
D: A again, where one answer in four is sampled in other tokens than the tokenizer would choose. Each incoming message
carries one voice word (see tests/support/puppet.py) and one topic; nothing else does.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from tests.support.puppet import Voice

_WORDS = """
turtle salmon lizard rabbit dolphin spider beetle lobster pigeon monkey camel goat sheep wolf bear tiger lion whale
shark eagle snake frog mouse horse
"""
TOPICS: tuple[str, ...] = tuple(_WORDS.split())
NAMES = ("Ada", "Grace", "Alan", "Maria")  # the last has the lowest id: it is said where a name is forgotten
CALL = (
    "<tool_call>\n<function=search_notes>\n<parameter=query>\nwhat is known of the {topic}\n</parameter>\n"
    "</function>\n</tool_call>"
)
READ = (
    "<tool_call>\n<function=read_note>\n<parameter=title>\nfield report, {topic}\n</parameter>\n"
    "</function>\n</tool_call>"
)
INSPECT = Voice(
    "inspect",
    "That result names a report on the {topic}. {name} prefers evidence over guesses, hence reading it is worth "
    "the time.",
    "I will open the report about the {topic}.\n\n" + READ,
)
VOICES = (
    Voice(
        "briefly",
        "A question of {name} about the {topic}, and few words are wanted, so I name the essential facts and stop.",
        "The {topic} lives near water, feeds at dusk and sleeps through the colder weeks, dear {name}.",
    ),
    Voice(
        "thoroughly",
        "A long answer is wanted here. First I recall where the {topic} lives, then what it eats, and last how it "
        "raises its young. I should also mention what {name} said about sources, and keep the order clear.\n\n"
        "Habitat comes first because everything else depends on it.",
        "Here is a fuller picture of the {topic}.\n\n1. Habitat: quiet valleys, mostly below the tree line.\n"
        "2. Food: seeds, roots and whatever the season offers.\n3. Family: two adults share all duties.\n\n"
        "Should any of this surprise you, {name}, compare it against older books.",
    ),
    Voice("proceed", "My notes may cover the {topic}; one search will tell.", CALL),
    INSPECT,
    replace(INSPECT, word="examine", respelled=(" ev", "idence")),
    Voice(
        "conclude",
        "Enough was collected. The {topic} was the last open point, so {name} can get a summary now.",
        "Summing up for {name}: all notes agree, and for the {topic} they add that its numbers are rising again.",
    ),
)
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "search_notes",
            "description": "Search all notes and list what fits best.",
            "parameters": {"type": "object", "properties": {"query": {"type": "string"}}, "required": ["query"]},
        },
    },
    {
        "type": "function",
        "function": {
            "name": "read_note",
            "description": "Read a note from its first line to its last.",
            "parameters": {"type": "object", "properties": {"title": {"type": "string"}}, "required": ["title"]},
        },
    },
]
_FILLER = (
    "observed at dawn, three adults and one young",
    "weather dry, wind from the north, sight good to the far bank",
    "page 12 is torn; the table of weights continues on page 14",
    "compare entry 0447, written by the same hand in an earlier year",
    "no tracks were found along the eastern fence",
    "the second camera failed at 03:15 and was replaced",
    "count corrected from 31 to 29 after a check of the tape",
    "see also: maps/valley-2.png, tables/weights.csv",
)


@dataclass(frozen=True)
class Turn:
    """What comes in before one answer, and which answer it calls for."""

    role: str  # user or tool
    text: str
    voice: str
    topic: str
    thinking: bool = True


@dataclass(frozen=True)
class Script:
    """A conversation from the outside: what others say in it, turn by turn."""

    key: str
    title: str
    name: str
    tools: Sequence[dict[str, Any]] | None
    turns: Sequence[Turn]

    @property
    def system(self) -> str:
        return (
            f"This is conversation {self.key}. You help {self.name}, who keeps a record of animals, with questions and "
            "searches.\nAnswer in plain sentences. When a search gives nothing new, say so instead of guessing."
        )


def tool_loop(rounds: int = 20, respelled: bool = False) -> Script:
    """A: one user question, `rounds` tool calls and an answer at the end. D, where some are respelled."""
    topics = itertools.cycle(TOPICS)
    voices = ("inspect", "proceed", "examine", "proceed") if respelled else ("inspect", "proceed")
    key, title = ("D", ", some answers respelled") if respelled else ("A", "")
    turns = [_question(key, "proceed", next(topics), 0), *_results(rounds, topics, voices=voices)]
    return Script(key, f"one tool loop of {rounds} rounds{title}", NAMES[0], TOOLS, turns)


def questions(count: int = 20) -> Script:
    """B: `count` user turns, thinking on, long and short answers."""
    asked = ("briefly", "briefly", "thoroughly")
    turns = [_question("B", asked[i % len(asked)], TOPICS[i % len(TOPICS)], i) for i in range(count)]
    return Script("B", f"{count} user turns, thinking on", NAMES[1], None, turns)


def mixed(count: int = 6, rounds: int = 3) -> Script:
    """C: `count` user turns, two of three with a tool loop of up to `rounds`; every third thinks not."""
    topics, turns = itertools.cycle(TOPICS), []
    for i in range(count):
        thinking, loop = i % 3 != 2, i % 3 != 1
        turns.append(_question("C", "proceed" if loop else "thoroughly", next(topics), i, thinking))
        if loop:
            turns += _results(rounds - i % 2, topics, thinking)
    return Script("C", f"{count} user turns, tool loops, thinking switched", NAMES[2], TOOLS, turns)


def warm_up() -> Script:
    """A conversation that no other begins like: for what is slow only once."""
    turns = [_question("W", "briefly", topic, i) for i, topic in enumerate(TOPICS[:2])]
    return Script("W", "warm-up", NAMES[0], None, turns)


def _question(key: str, voice: str, topic: str, i: int, thinking: bool = True) -> Turn:
    details = f"My entry {200 + 7 * i} says: {_FILLER[i % len(_FILLER)]}."
    return Turn(
        "user", f"Question {key}{i + 1}. {details} Please {voice}, and keep to the {topic}.", voice, topic, thinking
    )


def _results(
    rounds: int,
    topics: itertools.cycle[str],
    thinking: bool = True,
    voices: Sequence[str] = ("inspect", "proceed"),
) -> list[Turn]:
    """Tool results; all but the last call for one more call."""
    turns = []
    for i in range(rounds):
        voice = "conclude" if i == rounds - 1 else voices[i % len(voices)]
        topic = next(topics)
        lines = [f"{n + 1}. {_FILLER[(i + n) % len(_FILLER)]}" for n in range(3 + 2 * (i % 3))]
        text = "\n".join([f"{len(lines)} lines found:", *lines, f"Hint: {voice} with the {topic}."])
        turns.append(Turn("tool", text, voice, topic, thinking))
    return turns
