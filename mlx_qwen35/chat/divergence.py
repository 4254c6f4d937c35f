"""Where and why a prompt differs from an earlier one: a line for people, and a count of re-rendered history.

Knows prompts as `transcript.Prompt` describes them. Which earlier sequence to compare with is for others to choose.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from itertools import takewhile
from typing import TYPE_CHECKING

from mlx_qwen35.chat.transcript import TOOL_RESPONSE, Prompt, Turn

if TYPE_CHECKING:
    from mlx_qwen35.chat.tokenizer import Tokenizer

# Characters shown of what is common and of what differs, and the tokens they are taken from.
COMMON_CHARACTERS, COMMON_TOKENS = 24, 48
OTHER_CHARACTERS, OTHER_TOKENS = 36, 64


def explain(prompt: Prompt, earlier_ids: Sequence[int], common: int, tokenizer: Tokenizer) -> str:
    """One line for people on where `prompt` departs from an earlier prompt with its answer.

    common: tokens known to be equal at the start; it may be less than all that are.
    `differs from an earlier prompt at token 812, in message 3 (user): “…billing id |93 …” was “…billing id |52 …”`
    The bar stands before the first differing token; messages are counted from 1 as the template was given them.
    """
    ids = prompt.ids
    while common < min(len(ids), len(earlier_ids)) and ids[common] == earlier_ids[common]:
        common += 1
    if common == len(earlier_ids):
        return f"continues an earlier prompt of {common:,} tokens"
    if common == len(ids):
        return f"is the beginning of an earlier prompt of {len(earlier_ids):,} tokens"
    shared, pending = _before(ids, common, tokenizer)
    new, old = _after(ids, common, pending, tokenizer), _after(earlier_ids, common, pending, tokenizer)
    place = _place(prompt, common, tokenizer)
    reason = _reason(prompt, earlier_ids, common, new, old, tokenizer)
    new, old = _shortened(new), _shortened(old)
    return f"differs from an earlier prompt at token {common:,}{place}: “{shared}|{new}” was “{shared}|{old}”{reason}"


def rerendered(prompt: Prompt, earlier: Prompt, common: int) -> int:
    """Tokens of `prompt` past the common prefix that belong to turns of the earlier conversation.

    They are computed again only because the history was rendered otherwise: reasoning stripped, a call's arguments
    written anew, a system text that changed. `earlier` is the earlier prompt with its answer (`Transcript.read`),
    `common` the number of equal tokens at the start of both.

    The history ends at the first turn that is new: one the earlier conversation does not have or has in another role,
    a user's turn with other tokens (an edited question is new text), or the open turn at the end. Two conversations
    that share no turn but the system's are not the same one: 0.
    """
    if common >= len(earlier.ids):
        return 0
    closed = prompt.turns[:-1] if prompt.is_open else prompt.turns
    pairs = takewhile(lambda pair: _is_history(prompt, pair[0], earlier, pair[1]), zip(closed, earlier.turns))
    history = [turn for turn, _ in pairs]
    if all(turn.role == "system" for turn in history):
        return 0
    return max(0, history[-1].end - common)


def _is_history(prompt: Prompt, turn: Turn, earlier: Prompt, other: Turn) -> bool:
    if turn.role != other.role:
        return False
    # Templates rewrite answers, and clients their system text; what users and tools said is rendered as it was.
    rewritten = turn.role in ("assistant", "system")
    return rewritten or prompt.ids[turn.start : turn.end] == earlier.ids[other.start : other.end]


def _place(prompt: Prompt, at: int, tokenizer: Tokenizer) -> str:
    """Which message the token at `at` stands in, as `, in message 3 (user)`; "" in a text without turns."""
    index = next(i for i, turn in enumerate(prompt.turns) if at < turn.end)
    turn = prompt.turns[index]
    if at < prompt.tools_end:
        return ", in the tool definitions"
    if turn.start == turn.body:
        return ""
    if prompt.is_open and index == len(prompt.turns) - 1:
        return ", in the opening of the answer"
    response = tokenizer.token_id(TOOL_RESPONSE)
    number = sum(_messages(prompt, earlier, earlier.end, response) for earlier in prompt.turns[:index])
    number += max(1, _messages(prompt, turn, at + 1, response))
    is_tool = turn.role == "user" and response in prompt.ids[turn.body : turn.body + 1]
    role = "tool" if is_tool else turn.role
    return f", in message {number}" + (f" ({role})" if role else "")


def _messages(prompt: Prompt, turn: Turn, end: int, response: int | None) -> int:
    """How many messages the turn was rendered from, as far as `end`: consecutive tool responses share a user's turn."""
    if turn.start == turn.body or (turn.role == "system" and prompt.tools_end == turn.end):
        return 0  # no message: text before the first turn, or a system turn that holds the tools alone
    if turn.role != "user" or response not in prompt.ids[turn.body : turn.body + 1]:
        return 1
    return prompt.ids[turn.body : end].count(response) if response is not None else 1


def _reason(prompt: Prompt, earlier_ids: Sequence[int], at: int, new: str, old: str, tokenizer: Tokenizer) -> str:
    """What is known of the cause, as ` (…)`."""
    think = tokenizer.token_id("<think>")
    is_body = any(turn.role == "assistant" and turn.body == at for turn in prompt.turns)
    if is_body and think is not None and think == earlier_ids[at] and think != prompt.ids[at]:
        return " (the template leaves out the reasoning of earlier answers)"
    # Where a text ends there is less to compare, and less can be claimed.
    has_more = min(len(prompt.ids), len(earlier_ids)) - at >= OTHER_TOKENS
    shorter = min(len(new), len(old))
    if new == old or (has_more and shorter and new[:shorter] == old[:shorter]):
        return " (the same text in other tokens)"
    return ""


def _before(ids: Sequence[int], at: int, tokenizer: Tokenizer) -> tuple[str, bytes]:
    """The text before `at`, shortened; and the bytes of a character that goes on after `at`."""
    first = max(0, at - COMMON_TOKENS)
    # "ignore": the first token shown may begin within a character.
    decoder = codecs.getincrementaldecoder("utf-8")("ignore")
    text = decoder.decode(b"".join(tokenizer.token_bytes(token) for token in ids[first:at]))
    is_cut = first > 0 or len(text) > COMMON_CHARACTERS
    return ("…" if is_cut else "") + _printable(text[-COMMON_CHARACTERS:]), decoder.getstate()[0]


def _after(ids: Sequence[int], at: int, pending: bytes, tokenizer: Tokenizer) -> str:
    """The text from `at` on, as far as it can matter."""
    data = b"".join(tokenizer.token_bytes(token) for token in ids[at : at + OTHER_TOKENS])
    return codecs.getincrementaldecoder("utf-8")("replace").decode(pending + data)


def _shortened(text: str) -> str:
    return _printable(text[:OTHER_CHARACTERS]) + ("…" if len(text) > OTHER_CHARACTERS else "")


def _printable(text: str) -> str:
    """Prompts are foreign text: nothing of them may move a terminal's cursor or turn its writing around."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
