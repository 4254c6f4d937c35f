"""What one rendering of an untrusted template may cost, counted as it goes.

The rule that makes the bound hold: every value a template makes is charged its whole size, nested values included,
when it is made (or before, where one operation could make something huge). So no operation on a value can cost more
than what was already paid for, and no loop runs without being counted. Knows nothing of jinja.
"""

from __future__ import annotations

import time
from collections.abc import ItemsView, Iterable, KeysView, Mapping, ValuesView
from typing import Any

from markupsafe import Markup

# Per object on top of a text's characters: about what Python needs for one.
OBJECT_COST = 16
# Rendering a long chat costs about twenty times its size; the fixed part allows for small chats and long templates.
BASE_COST = 32 * 1024 * 1024
COST_PER_INPUT = 64
# A message needs about a hundred steps, and costs more than that.
BASE_STEPS = 1_000_000
MAX_SECONDS = 5.0
# Python refuses to print integers of more than 4,300 digits (14,300 bits) anyway.
MAX_INTEGER_BITS = 16_384


# A dictionary's views count too: they print what they show.
CONTAINERS = (list, tuple, set, frozenset, KeysView, ValuesView, ItemsView)


class LimitError(Exception):
    """The template asked for more memory or time than a rendering may have."""


class Meter:
    """The budget of one rendering. The limits hold on any thread: they are counted, not interrupted."""

    def __init__(self, input_cost: int) -> None:
        self._cost_left = BASE_COST + COST_PER_INPUT * input_cost
        self._steps_left = BASE_STEPS + input_cost
        self._deadline = time.monotonic() + MAX_SECONDS

    def step(self) -> None:
        """Count one turn of a loop, call, filter or operation."""
        self._steps_left -= 1
        if self._steps_left < 0:
            raise LimitError("it runs too long")
        # Reading the clock costs more than the rest of a step.
        if self._steps_left % 64 == 0:
            self.check_time()

    def check_time(self) -> None:
        if time.monotonic() > self._deadline:
            raise LimitError(f"it takes longer than {MAX_SECONDS:.0f} seconds")

    def pay(self, cost: int) -> None:
        """Charge `cost` before something of that size is made."""
        self._cost_left -= cost
        if self._cost_left < 0:
            raise LimitError("it makes too much text")
        if cost > 65_536:
            self.check_time()

    def made(self, value: Any) -> Any:
        """Charge for a value that now exists, and return it."""
        self.step()
        self.pay(size(value, self._cost_left))
        return value


def size(value: Any, limit: int) -> int:
    """The cost of a value with everything inside it; anything above `limit` once that is passed.

    Shared parts count each time they are reached, since printing or comparing visits them each time.
    """
    if isinstance(value, (str, bytes)):
        return OBJECT_COST + len(value)
    if isinstance(value, int):
        if value.bit_length() > MAX_INTEGER_BITS:
            raise LimitError("it makes an integer of too many digits")
        return OBJECT_COST
    total = 0
    waiting: list[Iterable[Any]] = [(value,)]
    while waiting and total <= limit:
        for item in waiting.pop():
            total += OBJECT_COST
            if isinstance(item, str):
                total += len(item)
            elif isinstance(item, Mapping):
                total += 2 * OBJECT_COST * len(item)
                waiting.extend((item.keys(), item.values()))
            elif isinstance(item, CONTAINERS):
                total += OBJECT_COST * len(item)
                waiting.append(item)
            if total > limit:
                break
    return total


def plain_data(value: Any) -> Any:
    """A copy of JSON-like data made of exact built-in types, the only kind of object a template may hold.

    Objects of other classes have methods that a sandbox cannot judge; they become their class name in angle brackets.
    Raises LimitError for data nested deeper than Python can walk.
    """
    try:
        return _plain(value)
    except RecursionError:
        raise LimitError("the messages are nested too deeply") from None


def _plain(value: Any) -> Any:
    if value is None or type(value) in (str, int, float, bool):
        return value
    if isinstance(value, Mapping):
        return {_plain(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, Markup | str):
        return str.__str__(value)
    if isinstance(value, int):
        return int.__int__(value)
    if isinstance(value, float):
        return float.__float__(value)
    return f"<{type(value).__name__}>"
