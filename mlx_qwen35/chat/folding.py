"""A conversation that outgrows its context: which messages make room for a summary, and what stands in their place.

The system message, the tools and the recent turns stay as they are; so does the task, the last thing the user asked,
however long ago that was. What lies between becomes one message. Search agents depend on something like it from 256k
tokens on, as the family's makers report. Knows nothing of models: who makes the summary is the caller's affair.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from mlx_qwen35.errors import RequestError

Message = dict[str, Any]

KEPT = 3  # one part in so many of the limit stays verbatim: the recent turns
SUMMARY = 8  # and one in so many may become the summary
MOST_SUMMARY = 2_048  # tokens
SMALLEST_LIMIT = 512  # tokens; below that there is no room for what stays
REMEMBERED = 256  # folds; each is one summary
INSTRUCTION = (
    "This conversation is about to be shortened. Write the summary that takes the place of everything before this "
    "message, for yourself: what the user wants, what was decided and why, facts, names, numbers, paths and results "
    "that still matter, what was tried and failed, and what is left to do. No greeting, no comment on this request."
)
HEADING = "Summary of the conversation so far, which was shortened:"
NOTHING = "(nothing was noted)"
TASK = "The request that is being worked on, in full:"


@dataclass(frozen=True)
class Fold:
    """Of normalised messages: `head` and `recent` stay, `old` is to be summarised, `task` stays inside the summary."""

    head: list[Message]
    old: list[Message]
    recent: list[Message]
    task: str | None

    def question(self) -> list[Message]:
        """What the model is asked for the summary. It begins as the conversation does, so that little is read anew."""
        return [*self.head, *self.old, {"role": "user", "content": INSTRUCTION}]

    def folded(self, summary: str, recent: Sequence[Message]) -> list[Message]:
        """The conversation with a summary in the place of what is old."""
        parts = [HEADING, summary.strip() or NOTHING] + ([TASK, self.task] if self.task is not None else [])
        return [*self.head, {"role": "user", "content": "\n\n".join(parts)}, *recent]


def fold(messages: Sequence[Message], limit: int, tokens: Callable[[Message], int]) -> Fold:
    """Where to fold, for a conversation that has outgrown `limit` tokens.

    messages: normalised   tokens: of one message
    Raises RequestError where nothing can be folded: what has to stay is too long by itself.
    """
    head = [m for m in messages if m["role"] == "system"]
    units = _units([m for m in messages if m["role"] != "system"])
    room, recent = limit // KEPT, 1
    used = sum(map(tokens, units[-1]))
    while recent < len(units) - 1 and used + sum(map(tokens, units[-recent - 1])) <= room:
        recent += 1
        used += sum(map(tokens, units[-recent]))
    old = [m for unit in units[:-recent] for m in unit]
    if all(_is_summary(m) for m in old):
        raise RequestError(
            f"The conversation is longer than {limit:,} tokens, and its last turn alone fills them: there is nothing "
            "to summarise. Raise the limit, or shorten that turn."
        )
    kept = [m for unit in units[-recent:] for m in unit]
    asked = [m for m in old if m["role"] == "user"]
    task = asked[-1]["content"] if asked and not any(m["role"] == "user" for m in kept) else None
    if task is not None and _is_summary(asked[-1]):
        task = task.partition(f"{TASK}\n\n")[2] or None  # folded before: the task is in there
    return Fold(head, old, kept, task)


def _is_summary(message: Message) -> bool:
    return message["role"] == "user" and message["content"].startswith(HEADING)


def summary_tokens(limit: int) -> int:
    """How long a summary may become."""
    return min(limit // SUMMARY, MOST_SUMMARY)


def _units(turns: Sequence[Message]) -> list[list[Message]]:
    """Messages that cannot be parted: an answer and the results of its tool calls; everything else is by itself."""
    units: list[list[Message]] = []
    for message in turns:
        if message["role"] == "tool" and units:
            units[-1].append(message)
        else:
            units.append([message])
    return units


class Folding:
    """Folds conversations, and remembers how: the next request that begins with the same messages takes the same
    summary, so that nothing is summarised twice, and what was computed for it is reused. The least recent go."""

    def __init__(self) -> None:
        self._made: OrderedDict[str, tuple[Fold, str]] = OrderedDict()
        self._lock = threading.Lock()

    def apply(
        self,
        messages: list[Message],
        limit: int,
        prompt_tokens: Callable[[list[Message]], int],
        message_tokens: Callable[[Message], int],
    ) -> tuple[list[Message], Fold | None]:
        """The conversation in at most `limit` tokens, itself where it fits; or as short as known summaries make it, and
        the fold that needs another one, which goes to `remember`.

        messages: normalised   prompt_tokens: of a conversation   message_tokens: of one message, about
        Raises RequestError where what has to stay is too long by itself.
        """
        if limit < SMALLEST_LIMIT:
            raise RequestError(f"fold_at is {limit}; at least {SMALLEST_LIMIT} tokens are needed for what stays.")
        while prompt_tokens(messages) > limit:
            known = self._known(messages)
            if known is None:
                return messages, fold(messages, limit, message_tokens)
            messages = known
        return messages, None

    def remember(self, made: Fold, summary: str) -> None:
        """What the model wrote when it was asked `made.question()`."""
        with self._lock:
            self._made[_keys([*made.head, *made.old])[-1]] = (made, summary)
            while len(self._made) > REMEMBERED:
                self._made.popitem(last=False)

    def _known(self, messages: Sequence[Message]) -> list[Message] | None:
        """With the longest beginning folded that was folded before; None if none was."""
        keys = _keys(messages)
        with self._lock:
            for end in range(len(messages), 0, -1):
                if made := self._made.get(keys[end - 1]):
                    self._made.move_to_end(keys[end - 1])
                    return made[0].folded(made[1], messages[end:])
        return None


def _keys(messages: Sequence[Message]) -> list[str]:
    """Of each beginning of the conversation, one that no other has."""
    keys, digest = [], hashlib.blake2b(digest_size=16)
    for message in messages:
        text = json.dumps(message, sort_keys=True, default=str).encode()
        digest.update(len(text).to_bytes(8, "little") + text)
        keys.append(digest.hexdigest())
    return keys
