"""What the prefix store on disk tells people: one line for each trouble, once. Knows no files."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path


class Notices:
    """`warn` takes one line; it is called from the engine's and the writer's thread."""

    def __init__(self, folder: Path, warn: Callable[[str], None]) -> None:
        self._folder, self._warn = folder, warn
        self._told: set[Hashable] = set()
        self._lock = threading.Lock()

    def damaged(self, files: Sequence[tuple[Path, str]]) -> None:
        """Files that were not what their names say, and are dropped: one line for all that were found together."""
        new = [(path, reason) for path, reason in files if self._first(path)]
        if new:
            path, reason = new[0]
            others = f", and so were {len(new) - 1} others" if len(new) > 1 else ""
            self._warn(f"Prefix cache: {path} {reason}. It was dropped{others}; what it held is computed again.")

    def forget(self, path: Path) -> None:
        """A sound file was written here; if this one is damaged later, that is news."""
        with self._lock:
            self._told.discard(path)

    def unreadable(self, error: OSError) -> None:
        self._once(("read", error.errno), f"cannot be read ({_reason(error)}); prefixes are computed again.")

    def unwritable(self, error: OSError, retry_seconds: float) -> None:
        self._once(
            ("write", error.errno),
            f"cannot be written ({_reason(error)}); prefixes stay in memory only. "
            f"The disk is tried again every {retry_seconds:.0f} s.",
        )

    def daily_budget(self, day: str, budget: int) -> None:
        self._once(
            ("daily", day),
            f"has had its {budget / 1e9:.1f} GB of writes for {day}; until tomorrow new prefixes stay in memory only.",
        )

    def defect(self, error: Exception) -> None:
        self._once(("defect", type(error)), f"failed to store a prefix ({error!r}). Please report this.")

    def _once(self, what: Hashable, text: str) -> None:
        if self._first(what):
            self._warn(f"Prefix cache: {self._folder} {text}")

    def _first(self, what: Hashable) -> bool:
        with self._lock:
            if what in self._told:
                return False
            self._told.add(what)
            return True


def _reason(error: OSError) -> str:
    return (error.strerror or str(error)).lower()
