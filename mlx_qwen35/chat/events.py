"""What a running answer tells its front end: typed events, in order. Knows nothing of tokens or of the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

FinishReason = Literal["stop", "length", "tool_calls", "cancelled"]


@dataclass(frozen=True)
class TokenLogprob:
    """A token and its log-probability: natural, in the network's own distribution, before any option shaped it.

    text: with U+FFFD for what is no whole character by itself; the `raw` bytes of all tokens join to the whole text
    top: the likeliest tokens in its place, the likeliest first, as many as were asked for
    """

    token: int
    text: str
    raw: bytes
    logprob: float
    top: tuple[TokenLogprob, ...] = ()


Logprobs = tuple[TokenLogprob, ...]


@dataclass(frozen=True)
class Reasoning:
    """A piece of the think block, without its tags. tokens: of the think block so far, where they are counted.

    logprobs: of the tokens that end in this piece, where they were asked for
    """

    text: str
    tokens: int = field(default=0, compare=False)
    logprobs: Logprobs = field(default=(), compare=False)


@dataclass(frozen=True)
class Content:
    """A piece of the answer. logprobs: as in `Reasoning`"""

    text: str
    logprobs: Logprobs = field(default=(), compare=False)


@dataclass(frozen=True)
class ToolCallStart:
    """The name of call number `index` (0, 1, ... within one answer) is known."""

    index: int
    id: str
    name: str


@dataclass(frozen=True)
class ToolCallArguments:
    """The next piece of the call's arguments, as JSON text: the pieces of one call join to one JSON object."""

    index: int
    json: str


@dataclass(frozen=True)
class ToolCallEnd:
    """Call number `index` is complete."""

    index: int
    id: str
    name: str
    arguments: dict[str, Any]


@dataclass(frozen=True)
class Malformed:
    """A tool call that could not be read. All its text follows as `Content`; nothing is lost.

    `index` names the call when its `ToolCallStart` was already reported: no `ToolCallEnd` will follow, drop it.
    length: characters of the `Content` to come that are the call's text, for who cannot take back what was shown of it
    """

    reason: str
    index: int | None = None
    length: int = field(default=0, compare=False)


@dataclass(frozen=True)
class PrefillProgress:
    """`done` of `total` prompt tokens are computed, the `cached` ones among them at no cost.

    summary: of a conversation that is folded first: this is the prompt that asks for the summary, of which so many
    tokens are written; it comes again with each of them. None in the prompt that is answered
    """

    done: int
    total: int
    cached: int = 0
    summary: int | None = None


@dataclass(frozen=True)
class Usage:
    """Counts in tokens, times in seconds.

    cached_tokens: of the prompt, not computed again   rerendered_tokens: of earlier turns, computed again because the
    template or the client wrote them otherwise   cache_note: why not more was reused, in one line; "" if all was
    queue_seconds: before the prefill began
    decode_steps: that drew tokens of the answer   drafted_tokens: guessed ahead, accepted_tokens: those that stayed
    """

    prompt_tokens: int = 0
    completion_tokens: int = 0
    reasoning_tokens: int = 0
    cached_tokens: int = 0
    rerendered_tokens: int = 0
    cache_note: str = ""
    queue_seconds: float = 0.0
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0
    decode_steps: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0

    @property
    def tokens_per_step(self) -> float:
        """How much drafts saved: 1 without any."""
        return 1 + self.accepted_tokens / self.decode_steps if self.decode_steps else 1.0


@dataclass(frozen=True)
class Finished:
    """The last event of every answer. stop_string: the one that ended it, where one did"""

    reason: FinishReason
    usage: Usage = field(default_factory=Usage)
    stop_string: str | None = None


ParsedEvent = Reasoning | Content | ToolCallStart | ToolCallArguments | ToolCallEnd | Malformed
Event = ParsedEvent | PrefillProgress | Finished


def joined(events: Sequence[ParsedEvent]) -> list[ParsedEvent]:
    """The same events, with neighbours that continue each other made one."""
    result: list[ParsedEvent] = []
    texts: list[str] = []
    for i, event in enumerate(events):
        following = events[i + 1] if i + 1 < len(events) else None
        if isinstance(event, Content):
            texts.append(event.text)
            if not isinstance(following, Content):
                result.append(Content("".join(texts)))
                texts = []
        elif isinstance(event, ToolCallArguments):
            texts.append(event.json)
            if not (isinstance(following, ToolCallArguments) and following.index == event.index):
                result.append(ToolCallArguments(event.index, "".join(texts)))
                texts = []
        else:
            result.append(event)
    return result
