"""Text files inside one folder, to read and nothing else.

The folder is opened once, and every name below it one step at a time from what was opened before, never through a
link: what is checked is what is read, whoever renames things meanwhile. Hidden names, links, devices and pipes are
not there.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mlx_qwen35.errors import UserError
from mlx_qwen35.tools.tool import Tool, ToolError

MAX_FILE = 8 << 20  # bytes
MAX_SHOWN = 16_000  # characters of one call's result
MAX_ENTRIES, MAX_SEEN = 500, 20_000
MAX_STEPS = 40
_NO_LINK = os.O_NOFOLLOW | os.O_CLOEXEC
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | _NO_LINK


class Folder:
    """A folder that may be read. Raises UserError where it cannot be opened."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).expanduser()
        try:
            # The person may name it through a link.
            self._root = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except (OSError, ValueError) as error:
            reason = (getattr(error, "strerror", None) or str(error)).lower()
            raise UserError(f"Cannot open the folder {self.path}: {reason}.") from None

    def close(self) -> None:
        if self._root >= 0:
            os.close(self._root)
            self._root = -1

    def tools(self) -> list[Tool]:
        """list_files and read_file."""
        path = {"type": "string", "description": "inside the folder, such as notes/today.txt"}
        start = {"type": "integer", "minimum": 1, "description": "the first line to show (1)"}
        listing = {"type": "object", "properties": {"path": path}, "additionalProperties": False}
        reading = {"type": "object", "properties": {"path": path, "start": start}, "required": ["path"]}
        name = f"the folder {self.path.name}" if self.path.name.isprintable() else "a folder"
        return [
            Tool("list_files", f"List files of {name}; path names a folder in it.", listing, self._list),
            Tool("read_file", f"Read a text file of {name}.", reading | {"additionalProperties": False}, self._read),
        ]

    def entries(self, path: str = "") -> list[str]:
        """Names in a folder, sorted; folders end with a slash, files have their size. Raises ToolError."""
        with self._opened(_steps(path), folder=True) as descriptor, os.scandir(descriptor) as found:
            seen = list(itertools.islice(found, MAX_SEEN + 1))
            lines = sorted(line for entry in seen[:MAX_SEEN] if (line := _entry_line(entry)))
        if len(seen) > MAX_SEEN or len(lines) > MAX_ENTRIES:
            lines = [*lines[:MAX_ENTRIES], f"[cut: {MAX_ENTRIES} of more entries]"]
        return lines

    def text(self, path: str) -> str:
        """A file's text. Raises ToolError for what is no text file of bounded size."""
        with self._opened(_steps(path), folder=False) as descriptor:
            about = os.fstat(descriptor)
            if not stat.S_ISREG(about.st_mode):
                raise ToolError(f"{path!r:.200} is a folder" if stat.S_ISDIR(about.st_mode) else _absent(path))
            data = b""
            with os.fdopen(os.dup(descriptor), "rb") as file:
                data = file.read(MAX_FILE + 1)  # a file may grow meanwhile
        if len(data) > MAX_FILE:
            raise ToolError(f"{path!r:.200} has more than {MAX_FILE:,} bytes")
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError:
            text = "\0"
        if "\0" in text:
            raise ToolError(f"{path!r:.200} is not UTF-8 text")
        return text

    def _list(self, arguments: Mapping[str, Any]) -> str:
        return "\n".join(self.entries(arguments.get("path", ""))) or "(empty)"

    def _read(self, arguments: Mapping[str, Any]) -> str:
        return _from_line(self.text(arguments["path"]), int(arguments.get("start", 1)))

    @contextlib.contextmanager
    def _opened(self, steps: list[str], folder: bool) -> Iterator[int]:
        """A descriptor of what the steps lead to."""
        descriptor = os.dup(self._root)
        try:
            for i, name in enumerate(steps):
                last = i == len(steps) - 1
                # Without O_NONBLOCK a pipe would be waited for.
                flags = os.O_RDONLY | os.O_NONBLOCK | _NO_LINK if last and not folder else _FOLDER
                inner = os.open(name, flags, dir_fd=descriptor)
                os.close(descriptor)
                descriptor = inner
            yield descriptor
        except PermissionError:
            raise ToolError(f"{'/'.join(steps)!r:.200} may not be read") from None
        except (OSError, ValueError):  # links among them
            raise ToolError(_absent("/".join(steps))) from None
        finally:
            os.close(descriptor)


def _steps(path: str) -> list[str]:
    """The names that a path leads along. Raises ToolError for one that could lead out, or to what is hidden."""
    if path.startswith(("/", "~")) or "\0" in path or "\\" in path:
        raise ToolError(f"{path!r:.200} is no path inside the folder; give one such as notes/today.txt")
    steps = [step for step in path.split("/") if step not in ("", ".")]
    if ".." in steps:
        raise ToolError(f"{path!r:.200} leads out of the folder")
    if any(step.startswith(".") for step in steps):
        raise ToolError(f"{path!r:.200} is hidden; hidden files are not shown")
    if len(steps) > MAX_STEPS or not all(step.isprintable() for step in steps):
        raise ToolError(_absent(path))
    return steps


def _absent(path: str) -> str:
    return f"there is no file or folder {path!r:.200}; links and devices are not shown, list_files says what is there"


def _entry_line(entry: os.DirEntry[str]) -> str | None:
    """How an entry is listed; None for what cannot be read anyway."""
    # A name with a newline in it would look like two.
    if entry.name.startswith(".") or not entry.name.isprintable():
        return None
    try:
        about = entry.stat(follow_symlinks=False)
    except OSError:  # gone meanwhile
        return None
    if stat.S_ISDIR(about.st_mode):
        return f"{entry.name}/"
    return f"{entry.name} ({about.st_size:,} bytes)" if stat.S_ISREG(about.st_mode) else None


def _from_line(text: str, start: int) -> str:
    """As many whole lines from number `start` on as may be shown, and where to go on."""
    lines = text.splitlines(keepends=True)
    if start > max(1, len(lines)):
        raise ToolError(f"the file has {len(lines):,} lines; start is {start:,}")
    shown, size = 0, 0
    for line in lines[start - 1 :]:
        if shown and size + len(line) > MAX_SHOWN:
            break
        shown, size = shown + 1, size + len(line)
    end = start - 1 + shown
    body = "".join(lines[start - 1 : end])
    if len(body) > MAX_SHOWN:  # one endless line
        body = f"{body[:MAX_SHOWN]}\n[cut: {MAX_SHOWN:,} of line {start}'s {size:,} characters]"
    return (
        body if end >= len(lines) else f"{body}\n[lines {start} to {end} of {len(lines):,}; go on with start={end + 1}]"
    )
