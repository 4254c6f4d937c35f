"""Random raw material: made-up words, names, codes and filler sentences. Knows nothing of skills or tokens.

Every random value belongs to one of two worlds, training or evaluation, decided by a checksum of its text. So a value
seen in evaluation was never seen in training, whatever the seed.
"""

from __future__ import annotations

import tomllib
import zlib
from collections.abc import Callable
from pathlib import Path
from random import Random

WORDS: dict[str, list[str]] = tomllib.loads(Path(__file__).with_suffix(".toml").read_text())


def is_unseen(text: str) -> bool:
    """True for the tenth of all values that only the evaluation may use."""
    return zlib.crc32(text.encode()) % 10 == 0


class Words:
    """A source of random values of one world: `unseen=True` draws what training never draws."""

    def __init__(self, random: Random, unseen: bool = False):
        self.random, self.unseen = random, unseen

    def _of_this_world(self, make: Callable[[], str]) -> str:
        while is_unseen(value := make()) != self.unseen:
            pass
        return value

    def _made_up(self) -> str:
        pick = self.random.choice
        return "".join(
            pick(WORDS["onsets"]) + pick(WORDS["vowels"]) + pick(WORDS["codas"])
            for _ in range(self.random.choice((1, 2, 2, 2, 3)))
        )

    def word(self) -> str:
        return self._of_this_world(self._made_up)

    def name(self) -> str:
        """A first name: half of them common ones in training, always made up in evaluation."""
        if not self.unseen and self.random.random() < 0.4:
            return self.random.choice(WORDS["first"])
        return self.word().capitalize()

    def city(self) -> str:
        if not self.unseen and self.random.random() < 0.4:
            return self.random.choice(WORDS["cities"])
        return self.word().capitalize()

    def digits(self, low: int = 2, high: int = 5) -> str:
        length = self.random.randint(low, high)
        return self._of_this_world(lambda: str(self.random.randint(10 ** (length - 1), 10**length - 1)))

    def code(self) -> str:
        """A mixed string such as k7-4f2 or ZB41."""
        letters, pick = "abcdefghijklmnopqrstuvwxyz", self.random.choice

        def make() -> str:
            text = "".join(
                pick(letters) if self.random.random() < 0.5 else pick("0123456789") for _ in range(pick((3, 4, 5)))
            )
            if self.random.random() < 0.3:
                text = text[:2] + "-" + text[2:]
            return text.upper() if self.random.random() < 0.3 else text

        return self._of_this_world(make)

    def value(self) -> str:
        """Anything a tool argument or a remembered fact may hold."""
        kind = self.random.random()
        if kind < 0.3:
            return self.word()
        if kind < 0.55:
            return self.digits(1, 5) if not self.unseen else self.digits(3, 5)
        if kind < 0.75:
            return self.code()
        return f"{self.word()} {self.word()}"

    def sentence(self) -> str:
        """A filler sentence that states nothing anybody asks about."""
        return self.random.choice(WORDS["sentences"]).format_map(_Draw(self))


class _Draw(dict):
    """Fills {jobs} with one of the jobs, {name} and {city} with one of this world."""

    def __init__(self, words: Words):
        super().__init__()
        self.words = words

    def __missing__(self, kind: str) -> str:
        if kind in ("name", "city"):
            return self.words.name() if kind == "name" else self.words.city()
        text = self.words.random.choice(WORDS[kind.lower()])
        return text.capitalize() if kind[0].isupper() else text
