"""What one examination found, and how findings are made into lines. Knows nothing of what is examined."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

GOOD, BAD, NOT_RUN = "ok", "WRONG", "not run"


class Wrong(Exception):
    """A property does not hold; the text says how, in one line."""


class NotHere(Exception):
    """There is nothing to examine; the text says why."""


@dataclass(frozen=True)
class Finding:
    """name: of the property   verdict: GOOD, BAD or NOT_RUN   note: one line, without content of any user's"""

    name: str
    verdict: str
    note: str
    seconds: float = 0.0

    @property
    def is_bad(self) -> bool:
        return self.verdict == BAD


def examine(name: str, look: Callable[[], str]) -> Finding:
    """Run one examination: what it returns is the note. Whatever it raises is a finding, never an end."""
    start = time.perf_counter()
    try:
        verdict, note = GOOD, look()
    except NotHere as error:
        verdict, note = NOT_RUN, str(error)
    except Wrong as error:
        verdict, note = BAD, str(error)
    except Exception as error:  # a defect, a refusal, a broken file: each is what the doctor is for
        verdict, note = BAD, f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    return Finding(name, verdict, note, time.perf_counter() - start)
