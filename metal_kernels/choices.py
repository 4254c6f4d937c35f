"""What was measured on this machine, in a small file of the user's cache folder. Knows nothing of operations.

A file that is damaged, foreign or of another version is as good as none: everything is measured anew.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import mlx.core as mx

from mlx_qwen35.hub.cache import locked, prefix_folder, write_atomically

VERSION = 1
MOST_BYTES = 4 << 20  # a file larger than this is not ours
MOST_MACHINES = 16  # MLX and macOS move on; the oldest go


@dataclass
class Known:
    """Of one machine.

    chosen: operation and shape class, as one key -> the candidate   rejected: "operation=candidate" -> why
    """

    chosen: dict[str, str] = field(default_factory=dict)
    rejected: dict[str, str] = field(default_factory=dict)


def choices_file() -> Path:
    """`kernels.json` beside the prefixes, in the user's cache folder."""
    return prefix_folder().parent / "kernels.json"


def this_machine() -> str:
    """What a measurement holds for: the chip, the system, MLX, and the text of our kernels."""
    chip = str(mx.device_info().get("device_name", "?")) if hasattr(mx, "device_info") else platform.machine()
    system = platform.mac_ver()[0] or platform.release()
    return f"{chip} | {system} | MLX {metadata.version('mlx')} | kernels {_digest()}"


@functools.cache
def _digest() -> str:
    """Of all sources in this folder: a kernel that was changed is a kernel that was never measured."""
    content = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*")):
        if path.suffix in (".metal", ".py"):
            content.update(path.name.encode() + b"\0" + path.read_bytes())
    return content.hexdigest()[:12]


class ChoiceFile:
    """One file, shared by processes: each write takes in what others wrote meanwhile."""

    def __init__(self, path: Path, machine: Callable[[], str]) -> None:
        """machine: asked when the file is first read, since the answer takes reading our own sources"""
        self.path, self._ask = path, machine

    @functools.cached_property
    def machine(self) -> str:
        return self._ask()

    def load(self) -> Known:
        """What is known of this machine; nothing where the file is none of ours."""
        return self._known(self._machines().get(self.machine))

    def save(self, known: Known) -> Known:
        """Write it beside what the file holds, and return the sum. Raises OSError."""
        with contextlib.ExitStack() as stack:
            with contextlib.suppress(OSError):  # a disk without locks: the rename is atomic all the same
                stack.enter_context(locked(self.path.with_suffix(".lock"), time.sleep, lambda: None))
            machines = self._machines()
            there = self._known(machines.pop(self.machine, None))
            both = Known(there.chosen | known.chosen, there.rejected | known.rejected)
            kept = list(machines.items())[1 - MOST_MACHINES :]
            content = {"version": VERSION, "machines": {**dict(kept), self.machine: both.__dict__}}
            write_atomically(self.path, json.dumps(content, indent=1).encode())
        return both

    def _machines(self) -> dict[str, Any]:
        try:
            if self.path.stat().st_size > MOST_BYTES:
                return {}
            content = json.loads(self.path.read_bytes())
        except (OSError, ValueError, RecursionError):
            return {}
        if not isinstance(content, dict) or content.get("version") != VERSION:
            return {}
        machines = content.get("machines")
        return machines if isinstance(machines, dict) else {}

    @staticmethod
    def _known(entry: Any) -> Known:
        def strings(name: str) -> dict[str, str]:
            found = entry.get(name) if isinstance(entry, dict) else None
            return {k: v for k, v in found.items() if isinstance(v, str)} if isinstance(found, dict) else {}

        return Known(strings("chosen"), strings("rejected"))
