"""What a puppet says: replies with slots, and the table that says which token follows which context. No weights.

The checkpoint that says it is written by puppet_weights.py.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from mlx_qwen35.chat.tokenizer import Tokenizer

LAGS = 3  # tokens before the last one that a context holds; a convolution of width 4 sees as many
LAST_TOKEN = "<|im_end|>"
OPENINGS = {True: "<|im_start|>assistant\n<think>\n", False: "<|im_start|>assistant\n<think>\n\n</think>\n\n"}


Context = tuple[str, tuple[int, ...]]  # voice word; last token, the ones before it


@dataclass(frozen=True)
class Voice:
    """One reply. `word` in the text chooses it; `{topic}` and `{name}` stand for words, a space before each.

    word: a word with a space before it, or an added token such as <tool_response>

    respelled: pieces of text that are sampled one by one where the tokenizer would make one token of them all, as
    models now and then do: such a reply comes back in other ids when its text is tokenised again.
    """

    word: str
    reasoning: str
    content: str
    respelled: tuple[str, ...] = ()


class Script:
    """All that a puppet can say. Topics, names and voice words are single tokens, words with a space before them.

    ValueError where they are not, or where one context would have to be followed by two different tokens.
    """

    def __init__(
        self, tokenizer: Tokenizer, voices: Sequence[Voice], topics: Sequence[str], names: Sequence[str]
    ) -> None:
        self.tokenizer = tokenizer
        self.voices = {voice.word: voice for voice in voices}
        self.topics = {word: self._single(word) for word in topics}
        self.names = {word: self._single(word) for word in names}
        self.voice_ids = {word: self._single(word) for word in self.voices}
        # In contexts and in the table all topics count as the first, all names as the first.
        self.classes = dict.fromkeys(self.topics.values(), self.topics[topics[0]])
        self.classes |= dict.fromkeys(self.names.values(), self.names[names[0]])
        self.table = self._table(topics[0], names[0])
        self._check_slots()

    def reply(self, word: str, topic: str, name: str, thinking: bool) -> list[int]:
        """The ids that the puppet generates, the last token included."""
        voice, opening = self.voices[word], OPENINGS[thinking]
        text = (f"{voice.reasoning}\n</think>\n\n" if thinking else "") + voice.content
        text = text.replace("{topic}", topic).replace("{name}", name)
        ids, start = self.tokenizer.encode(opening + text + LAST_TOKEN), self.tokenizer.encode(opening)
        if ids[: len(start)] != start:
            raise ValueError(f"the reply of {word!r} melts into the prompt's last token")
        return self._respelled(ids[len(start) :], voice.respelled)

    def coded(self) -> list[int]:
        """Every token that stands in a context or is said, by class."""
        found = {token for (_, context), token in self.table.items() for token in (*context, token)}
        return sorted(found | {self.classes.get(token, token) for token in self._openings()})

    def _respelled(self, ids: list[int], pieces: tuple[str, ...]) -> list[int]:
        if not pieces:
            return ids
        whole = self.tokenizer.encode("".join(pieces))
        if len(whole) != 1:
            raise ValueError(f"{''.join(pieces)!r} is {len(whole)} tokens; only a single one can be respelled")
        apart = [token for piece in pieces for token in self.tokenizer.encode(piece)]
        return [part for token in ids for part in (apart if token == whole[0] else [token])]

    def _single(self, word: str) -> int:
        ids = self.tokenizer.encode(word if word.startswith("<") else f" {word}")
        if len(ids) != 1:
            raise ValueError(f"{word!r} is {len(ids)} tokens; a puppet's words are single ones")
        return ids[0]

    def _check_slots(self) -> None:
        """Every word in a slot must give the same tokens around it, or the table would say the first word's."""
        for word in self.voices:
            replies = [self.reply(word, topic, name, True) for topic in self.topics for name in self.names]
            if len({tuple(self.classes.get(token, token) for token in ids) for ids in replies}) > 1:
                raise ValueError(f"the reply of {word!r} has a slot without a space before it")

    def _openings(self) -> Iterator[int]:
        for opening in OPENINGS.values():
            yield from self.tokenizer.encode(LAST_TOKEN + "\n" + opening)

    def _table(self, topic: str, name: str) -> dict[Context, int]:
        table: dict[Context, int] = {}
        for word, thinking in itertools.product(self.voices, (True, False)):
            start = self.tokenizer.encode(LAST_TOKEN + "\n" + OPENINGS[thinking])
            ids = [self.classes.get(token, token) for token in start + self.reply(word, topic, name, thinking)]
            for at in range(len(start), len(ids)):
                context = word, tuple(reversed(ids[at - LAGS - 1 : at]))
                if table.setdefault(context, ids[at]) != ids[at]:
                    shown = self.tokenizer.decode(ids[at - LAGS - 1 : at])
                    raise ValueError(f"the reply of {word!r} goes on after {shown!r} in two ways")
        return table
