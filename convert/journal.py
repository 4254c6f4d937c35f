"""What of a conversion is finished, on disk, so that a killed one continues: one line of JSON for each job.

The order of things makes it true: a line is written only after the bytes it speaks of are on the disk, and the line
itself is synced before anything that cannot be undone. A line cut short by a crash is cut off and its job is done
again. While the journal exists, the folder has no config.json and nothing takes it for a model.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from mlx_qwen35 import __version__
from mlx_qwen35.convert.plan import ConversionPlan
from mlx_qwen35.errors import CheckpointError

JOURNAL = "conversion-in-progress.jsonl"
PART = ".part"
LONGEST_LINE = 1 << 16


class Journal:
    """Finished jobs of one conversion by their parameter's name, each with what was measured of it.

    Held open and locked: a second conversion into the same folder is refused.
    """

    def __init__(self, plan: ConversionPlan, out: Path) -> None:
        self.path = out / JOURNAL
        identity = {"plan": _digest(plan), "program": f"mlx_qwen35 {__version__}"}
        self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            self._lock(out)
            lines = self._sound_lines()
            self.is_new = not lines
            if self.is_new:
                self._append([identity])
            elif lines[0] != identity:
                raise CheckpointError(
                    f"{out} holds an interrupted conversion of another source or format. "
                    "Remove it, or give another folder with --out."
                )
            self.done: dict[str, Any] = {line["job"]: line.get("error") for line in lines[1:]}
        except BaseException:
            self.close()
            raise

    def finished(self, jobs: Iterable[tuple[str, Any]]) -> None:
        """Record jobs whose bytes are on the disk. jobs: parameter's name, and what was measured."""
        jobs = list(jobs)
        self._append({"job": target, "error": error} for target, error in jobs)
        self.done |= dict(jobs)

    def forget(self, targets: Iterable[str]) -> None:
        """Files of these jobs are gone: they are to be done again."""
        gone = set(targets) & set(self.done)
        if gone:
            kept = [(target, error) for target, error in self.done.items() if target not in gone]
            first = self._sound_lines()[0]
            os.ftruncate(self._descriptor, 0)
            self._append([first])
            self.done = {}
            self.finished(kept)

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)
        self.close()

    def close(self) -> None:
        with suppress(OSError):  # closed before: remove() closes, and so does whoever opened it
            os.close(self._descriptor)

    def _lock(self, out: Path) -> None:
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CheckpointError(f"Another process is converting into {out}. Wait for it, or stop it.") from None
        except OSError:
            pass  # A network disk may have no locks; they guard against a slip only, so conversion goes on without.

    def _sound_lines(self) -> list[dict[str, Any]]:
        """The lines that are whole; what follows them is cut off."""
        with open(self._descriptor, "rb", closefd=False) as file:
            file.seek(0)
            raw = file.read()
        lines, end = [], 0
        for line in raw.splitlines(keepends=True):
            if not line.endswith(b"\n") or len(line) > LONGEST_LINE:
                break
            try:
                value = json.loads(line)
            except (ValueError, RecursionError):
                break
            if not isinstance(value, dict) or (lines and not isinstance(value.get("job"), str)):
                break
            lines.append(value)
            end += len(line)
        if end < len(raw):
            os.ftruncate(self._descriptor, end)
        return lines

    def _append(self, lines: Iterable[dict[str, Any]]) -> None:
        raw = "".join(json.dumps(line) + "\n" for line in lines).encode()
        end = os.lseek(self._descriptor, 0, os.SEEK_END)
        while raw:
            raw = raw[os.write(self._descriptor, raw) :]
        os.fsync(self._descriptor)
        assert end >= 0


def is_interrupted(out: Path) -> bool:
    """Whether a folder holds a conversion that was begun and not finished."""
    try:
        with (out / JOURNAL).open("rb") as file:
            first = json.loads(file.readline(LONGEST_LINE) or b"null")
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(first, dict) and set(first) == {"plan", "program"}


def _digest(plan: ConversionPlan) -> str:
    """Changes with the source's content, the formats, the layout and the way of rounding."""
    digest = hashlib.sha256()
    for source in (plan.source, plan.mtp):
        if source is not None:
            digest.update(source.identity.encode() + b"\0")
    options = plan.options
    digest.update(f"{options.quality} {options.calibration} {options.calibration_tokens} {options.seed}\n".encode())
    for job in plan.jobs:
        digest.update(f"{job.target} {job.parameter.add} {job.packing}\n".encode())
    for file in plan.files:
        digest.update(file.name.encode() + file.header())
    return digest.hexdigest()
