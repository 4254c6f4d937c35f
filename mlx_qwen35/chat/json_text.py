"""JSON text to Python values that survive a second trip: every value read here can be written as JSON again.

Python's own reader turns 1e999 into infinity, accepts NaN, keeps half surrogate pairs, and raises on integers of more
than 4,300 digits. Knows nothing of messages or tools.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any, NoReturn

MAX_DEPTH = 128


def parse_integer(text: str) -> int | str:
    """The integer; or its digits as text, when it has more than Python converts (4,300 unless configured).

    Python could neither print such an integer nor write it as JSON, and the limit is there against slow conversions.
    """
    try:
        return int(text)
    except ValueError:
        return text


def parse_json(text: str, fast: Callable[[str], Any] | None = None) -> Any:
    """The value of a JSON text. Raises ValueError when it is none, or nested too deeply, or holds no finite number.

    Raw control characters inside strings are accepted: models write them.
    fast: a reader that gives the same values, or raises ValueError or RecursionError where it is not sure
    """
    try:
        value = _fast_or_own(text, fast)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    _require_shallow(text, value)
    return without_half_pairs(value) if "\\u" in text else value


def _fast_or_own(text: str, fast: Callable[[str], Any] | None) -> Any:
    if fast is not None:
        try:
            return fast(text)
        except (ValueError, RecursionError):  # ours says why, or reads it after all
            pass
    return _DECODER.decode(text)


def without_half_pairs(value: Any) -> Any:
    """The same value with half surrogate pairs, which UTF-8 cannot carry, replaced by U+FFFD."""
    text = json.dumps(value, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:
        return _DECODER.decode(text.encode("utf-16", "surrogatepass").decode("utf-16", "replace"))
    return value


def _require_shallow(text: str, value: Any) -> None:
    """Python reads deeper values than it can write from further down its stack; stay well clear of both."""
    if text.count("[") + text.count("{") <= MAX_DEPTH:
        return
    level = [value]
    for _ in range(MAX_DEPTH):
        inner = [item.values() if isinstance(item, dict) else item for item in level if isinstance(item, (dict, list))]
        level = [item for items in inner for item in items]
        if not level:
            return
    raise ValueError("nested too deeply")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is not finite")
    return value


def _no_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not JSON")


_DECODER = json.JSONDecoder(parse_int=parse_integer, parse_float=_finite, parse_constant=_no_constant, strict=False)
