"""The file that names MCP servers, in the form that chat programs share: {"mcpServers": {NAME: {"command": ...}}}."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlx_qwen35.chat.json_text import parse_json
from mlx_qwen35.errors import UserError

MAX_BYTES = 1 << 20
ALLOWED = ("alwaysAllow", "autoApprove")  # as programs call the list of tools that need no approval
KNOWN = ("command", "args", "env", "cwd", "type", "transport", "disabled", *ALLOWED)


@dataclass(frozen=True)
class ServerEntry:
    """A server to start.

    env: set beside a few plain variables of ours, such as PATH   allowed: its tools that run unasked
    """

    name: str
    command: str
    args: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    cwd: str | None = None
    allowed: frozenset[str] = frozenset()


def read_config(path: Path) -> tuple[list[ServerEntry], list[str]]:
    """The servers that are switched on, and lines about what was not understood. Raises UserError."""
    servers, notes = [], []
    for name, entry in _entries(path).items():
        place = f"{path}: server {name!r:.60}"
        if not isinstance(entry, Mapping):
            raise UserError(f"{place} is no object.")
        if entry.get("disabled") is True:
            continue
        if "command" not in entry and "url" in entry:
            raise UserError(f"{place} is reached by url; only servers that are started by a command are supported.")
        if unknown := sorted(set(entry) - set(KNOWN)):
            notes.append(f"{place}: {', '.join(unknown)[:200]} has no effect here")
        servers.append(_server(name, entry, place))
    return servers, notes


def _entries(path: Path) -> Mapping[str, Any]:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise UserError(f"{path} has more than {MAX_BYTES:,} bytes; too many for a list of MCP servers.")
        content = parse_json(data.decode("utf-8-sig"))
    except OSError as error:
        raise UserError(f"Cannot read {path}: {(error.strerror or str(error)).lower()}.") from None
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error!s:.80}); a list of MCP servers is needed.") from None
    entries = content.get("mcpServers") if isinstance(content, Mapping) else None
    if not isinstance(entries, Mapping):
        raise UserError(f'{path} has no "mcpServers"; the form is {{"mcpServers": {{NAME: {{"command": ...}}}}}}.')
    return entries


def _server(name: str, entry: Mapping[str, Any], place: str) -> ServerEntry:
    command, cwd = entry.get("command"), entry.get("cwd")
    if not isinstance(command, str) or not command:
        raise UserError(f"{place} needs a command, a text.")
    if not isinstance(cwd, str | None):
        raise UserError(f"{place}: cwd is no text.")
    env = entry.get("env") or {}
    if not isinstance(env, Mapping) or not all(isinstance(value, str) for value in env.values()):
        raise UserError(f"{place}: env should be an object of texts.")
    allowed = [tool for word in ALLOWED for tool in _texts(entry, word, place)]
    return ServerEntry(name, command, tuple(_texts(entry, "args", place)), dict(env), cwd, frozenset(allowed))


def _texts(entry: Mapping[str, Any], word: str, place: str) -> list[str]:
    value = entry.get(word) or []
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise UserError(f"{place}: {word} should be a list of texts.")
    return value
