"""The text of a rendered prompt to token ids, such that earlier work can be reused; and where conversations branch.

Two things a tokenizer alone cannot do:

- What the model sampled comes back as the ids it sampled. Sampling may spell a text otherwise than the tokenizer
  does, and then the re-tokenised history would miss everything remembered of the answer.
- A prompt is cut into turns, with the positions at which later prompts will differ from this one.

    transcript = Transcript(tokenizer, template)
    prompt = transcript.prompt(template.render(messages))  # prompt.ids, .turns, .checkpoints, .pivots
    sampled = [...]                                        # generate from prompt.ids; the stop id last, if there is one
    transcript.remember(prompt, sampled)                   # now the next prompt of the conversation has these ids in it
    whole = transcript.read([*prompt.ids, *sampled])       # turns of what is remembered, for divergence.py

Why it is right: the text of a special token always becomes that token, whatever stands beside it. So the text between
two of them (a *piece*) is tokenised for itself, and one way to spell a piece may be put for another without a change
to the rest. `Transcript` checks this of each special token it relies on.

Knows nothing of messages, caches or the model. Which turns count as new, and what to tell people, is divergence.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlx_qwen35.chat.id_memory import IdMemory, RunningDigest, text_digest
from mlx_qwen35.chat.template import END_TURN, TURN, ChatTemplate
from mlx_qwen35.errors import RequestError

if TYPE_CHECKING:
    from mlx_qwen35.chat.tokenizer import Tokenizer

TOOL_RESPONSE = "<tool_response>"
# Where pieces begin and end. Any subset is right; more of them save more of an answer that is re-rendered in part.
MARKS = (TURN, END_TURN, "<|endoftext|>", "<think>", "</think>", "<tool_call>", "</tool_call>")
DEFAULT_BYTES = 16 << 20  # of each of the two memories
CACHED_CHARACTERS = 200  # shorter pieces are encoded faster than looked up
HEADER_TOKENS = 16  # a turn's first line is its role; a longer line is somebody's text


@dataclass(frozen=True)
class Turn:
    """Token positions of one turn: `start` is its `<|im_start|>`, `body` follows the header line, `end` is past it.

    role: what the header line says; "" for text before the first turn, and where the line is no role.
    """

    role: str
    start: int
    body: int
    end: int


@dataclass(frozen=True)
class Prompt:
    """Token ids with the places that matter for reuse.

    turns: cover all of `ids`, in order; a text without `<|im_start|>` is one turn of role "".
    checkpoints: ascending positions, each > 0, at which the recurrent state is worth keeping. They are
        the end of the tool definitions, where text of the system message follows (the client's date or name changes),
        the end of the system turn (another conversation with the same system and tools),
        and the body of each assistant turn, the open one too: there a rendering with the reasoning and one without it
        part, and one with thinking on from one with thinking off one token later.
    pivots: those of `checkpoints` that the next prompt most likely needs, where not all can be kept: tools, system,
        the open answer, and the first answer after the last question (the template strips reasoning from there on once
        the next question comes).
    tools_end: where the tool definitions end; 0 without tools, the system turn's end if nothing follows them there.
    is_open: whether the last turn has no end yet: the answer goes there.
    """

    ids: tuple[int, ...]
    turns: tuple[Turn, ...]
    checkpoints: tuple[int, ...] = ()
    pivots: tuple[int, ...] = ()
    tools_end: int = 0
    is_open: bool = False


class Transcript:
    """Turns prompts of one checkpoint into ids, and remembers how answers were sampled. Any thread may call it."""

    def __init__(
        self, tokenizer: Tokenizer, template: ChatTemplate | None = None, max_bytes: int = DEFAULT_BYTES
    ) -> None:
        """template: tells where tool definitions end; without one `tools_end` is 0.

        max_bytes: of sampled ids, and as much again of ids of long texts seen before, least recently used dropped.
        """
        self._tokenizer = tokenizer
        self._marks = _isolated(tokenizer, MARKS)
        if TURN not in self._marks or END_TURN not in self._marks:
            self._marks = {}
        self._split = re.compile("(" + "|".join(map(re.escape, self._marks)) + ")") if self._marks else None
        self._tools_tail = b"" if template is None else _tools_tail(template)
        self._sampled = IdMemory(max_bytes)  # (ids before a piece, the piece) -> its ids, only where sampled otherwise
        self._encoded = IdMemory(max_bytes)  # a long text -> its ids

    def prompt(self, text: str) -> Prompt:
        """Ids of a rendered prompt, those of remembered answers as sampled, and its turns.

        The ids are `tokenizer.encode(text)` but for answers as sampled, and those decode to their text byte for byte.
        The open turn at the end is never taken from memory: it is what the template writes, not what was sampled.
        """
        closed = self._closed_length(text)
        ids: list[int] = []
        before = RunningDigest()
        for piece in self._pieces(text[:closed]):
            mark = self._marks.get(piece)
            if mark is not None:
                found: Sequence[int] = (mark,)
            else:
                found = self._sampled.get(before.key(piece)) or self._encode(piece)
            ids.extend(found)
            before.add(found)
        for piece in self._pieces(text[closed:]):
            ids.extend(self._encode(piece))
        return self.read(ids)

    def remember(self, prompt: Prompt, sampled: Sequence[int]) -> None:
        """Keep how the answer to `prompt` was sampled: all its ids, the stop id last if one was sampled.

        An answer that was cut or cancelled is kept likewise. Its last piece is used only where a later text goes on
        with a special token, so where the tokenisation of the piece is complete.
        """
        self._learn([*prompt.ids, *sampled], len(prompt.ids))

    def relearn(self, ids: Sequence[int]) -> None:
        """Remember a whole conversation from its ids alone, as of a session that was loaded from disk."""
        self._learn(ids, 0)

    def read(self, ids: Iterable[int]) -> Prompt:
        """The turns and checkpoints of token ids, such as a prompt with its answer."""
        ids = tuple(ids)
        turn_id = self._marks.get(TURN)
        starts = [at for at, token in enumerate(ids) if token == turn_id] if self._marks else []
        if not starts:
            return Prompt(ids, (Turn("", 0, 0, len(ids)),))
        turns = [Turn("", 0, 0, starts[0])] if starts[0] else []
        for start, end in zip(starts, [*starts[1:], len(ids)], strict=True):
            role, body = self._header(ids, start, end)
            turns.append(Turn(role, start, body, end))
        is_open = self._marks[END_TURN] not in ids[turns[-1].start :]
        tools_end = self._tools_end(ids, turns[0]) if turns[0].role == "system" else 0
        checkpoints, pivots = self._branches(ids, turns, tools_end)
        return Prompt(ids, tuple(turns), checkpoints, pivots, tools_end, is_open)

    def _learn(self, ids: Sequence[int], start: int) -> None:
        marks = frozenset(self._marks.values())
        if not marks or self._marks[TURN] not in ids:
            return
        # The piece in which the answer begins is the end of the prompt and the beginning of the answer.
        while start > 0 and ids[start - 1] not in marks:
            start -= 1
        before = RunningDigest()
        before.add(ids[:start])
        at = start
        while at < len(ids):
            end = next((i for i in range(at, len(ids)) if ids[i] in marks), len(ids))
            self._learn_piece(before, ids[at:end])
            before.add(ids[at : end + 1])
            at = end + 1

    def _learn_piece(self, before: RunningDigest, ids: Sequence[int]) -> None:
        try:
            text = b"".join(map(self._tokenizer.token_bytes, ids)).decode("utf-8")
        except UnicodeDecodeError:
            return  # half a character is shown as U+FFFD, so no later prompt holds this text
        if not text:
            return
        if list(ids) == self._tokenizer.encode(text):
            # An older way to spell it would now miss what was computed last.
            self._sampled.drop(before.key(text))
        else:
            self._sampled.put(before.key(text), ids)

    def _pieces(self, text: str) -> list[str]:
        """Special tokens and the texts between them; they join to `text`."""
        pieces = self._split.split(text) if self._split else [text]
        return [piece for piece in pieces if piece]

    def _closed_length(self, text: str) -> int:
        """How many characters stand before the open turn; 0 for a text without turns."""
        if not self._marks or TURN not in text:
            return 0
        last = text.rfind(TURN)
        return len(text) if END_TURN in text[last:] else last

    def _encode(self, text: str) -> Sequence[int]:
        if len(text) < CACHED_CHARACTERS:
            return self._tokenizer.encode(text)
        key = text_digest(text)
        ids = self._encoded.get(key)
        if ids is None:
            ids = self._tokenizer.encode(text)
            self._encoded.put(key, ids)
        return ids

    def _header(self, ids: tuple[int, ...], start: int, end: int) -> tuple[str, int]:
        """(role, body) of the turn at `start`."""
        line = b""
        for at in range(start + 1, min(end, start + 1 + HEADER_TOKENS)):
            piece = self._tokenizer.token_bytes(ids[at])
            head, newline, rest = piece.partition(b"\n")
            line += head
            if newline:
                role = line.decode("utf-8", "replace")
                # A token that reaches past the line is part of the body: what other renderings share ends before it.
                return role if role.isidentifier() else "", at if rest else at + 1
        return "", start + 1

    def _tools_end(self, ids: tuple[int, ...], system: Turn) -> int:
        """The last token boundary within the tool definitions; 0 without them, the turn's end if only they are there.

        The token over the boundary may hold the line breaks before the system message's text, or not.
        """
        pieces = [self._tokenizer.token_bytes(token) for token in ids[system.start : system.end]]
        data = b"".join(pieces)
        found = data.find(self._tools_tail) if self._tools_tail else -1
        if found < 0:
            return 0
        stop = found + len(self._tools_tail)
        if data.startswith(END_TURN.encode(), stop):
            return system.end
        at, length = system.start, 0
        for piece in pieces:
            length += len(piece)
            if length > stop:
                break
            at += 1
        return at

    def _branches(
        self, ids: tuple[int, ...], turns: list[Turn], tools_end: int
    ) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """(checkpoints, pivots), as `Prompt` describes them."""
        opening = [tools_end] if tools_end else []
        if turns[0].role == "system" and len(turns) > 1:
            opening.append(turns[0].end)
        answers = [turn.body for turn in turns if turn.role == "assistant"]
        response = self._tokenizer.token_id(TOOL_RESPONSE)
        questions = [turn for turn in turns if turn.role == "user" and response not in ids[turn.body : turn.body + 1]]
        asked = questions[-1].end if questions else 0
        after_question = [body for body in answers if body > asked]
        pivots = {*opening, *after_question[:1], *answers[-1:]}
        return tuple(sorted({*opening, *answers})), tuple(sorted(pivots))


def _isolated(tokenizer: Tokenizer, names: Sequence[str]) -> dict[str, int]:
    """Those of `names` that are single tokens and leave what stands beside them alone, with their ids.

    An added token may be told to swallow blanks or to match whole words only; such a token marks no boundary.
    """
    found = {}
    for name in names:
        token = tokenizer.token_id(name)
        sides = [("a \n", " \nb"), ("a", "b"), (".", "."), ("\n", "\n")]
        if token is not None and all(
            tokenizer.encode(left + name + right) == [*tokenizer.encode(left), token, *tokenizer.encode(right)]
            for left, right in sides
        ):
            found[name] = token
    return found


def _tools_tail(template: ChatTemplate) -> bytes:
    """What the template writes from `</tools>` to the text of a system message; b"" if it writes them otherwise."""
    system = "4d1f5e0c"  # any text that no template writes by itself
    messages = [{"role": "system", "content": system}, {"role": "user", "content": "a"}]
    tool = {"type": "function", "function": {"name": "f", "description": "", "parameters": {}}}
    try:
        text = template.render(messages, tools=[tool])
    except RequestError:
        return b""
    _, tag, rest = text.partition("</tools>")
    tail, marker, _ = rest.partition(system)
    return (tag + tail).rstrip().encode() if tag and marker else b""
