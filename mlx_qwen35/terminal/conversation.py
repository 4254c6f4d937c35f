"""A conversation: its messages, the settings it runs with, and the file it can be kept in. No terminal, no model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from mlx_qwen35.chat.json_text import parse_json
from mlx_qwen35.chat.messages import normalise_messages
from mlx_qwen35.chat.presets import choose
from mlx_qwen35.errors import RequestError, UserError
from mlx_qwen35.hub.cache import write_atomically
from mlx_qwen35.options import Sampling
from mlx_qwen35.terminal.form_arguments import check_form

FORMAT, VERSION = "mlx-qwen35 chat", 1
MAX_FILE_BYTES = 256 << 20
SAMPLING_NAMES = tuple(f.name for f in fields(Sampling))

Message = dict[str, Any]


@dataclass(frozen=True)
class Settings:
    """How answers are asked for. None, and an empty `sampling`, leave the choice to the checkpoint and its presets.

    sampling: what to change, by the names of `options.Sampling`   max_tokens: of one answer
    form: of answers, and how long to think, by the names of `form_arguments.NAMES`
    """

    system: str = ""
    thinking: bool | None = None
    preset: str | None = None
    sampling: Mapping[str, float] = field(default_factory=dict)
    max_tokens: int | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()
    form: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class Conversation:
    """Messages without the system prompt, which is a setting."""

    settings: Settings = field(default_factory=Settings)
    messages: list[Message] = field(default_factory=list)

    def change(self, **changes: Any) -> None:
        """Change settings by name."""
        self.settings = replace(self.settings, **changes)

    def asking(self, question: str) -> list[Message]:
        """The messages of a request that asks `question` next."""
        system = [{"role": "system", "content": self.settings.system}] if self.settings.system else []
        return [*system, *self.messages, {"role": "user", "content": question}]

    def add(self, question: str, answer: Message) -> None:
        """Keep a question with its answer, whole or stopped half-way."""
        self.messages += [{"role": "user", "content": question}, answer]

    def save(self, path: Path, model: str) -> None:
        """Write everything as JSON: all of it or nothing. Raises UserError."""
        if path.exists() and not _is_ours(path):
            raise UserError(f"{path} exists and is not a saved chat. Choose another name.")
        settings = {**asdict(self.settings), "sampling": dict(self.settings.sampling)}
        if not settings["form"]:
            del settings["form"]  # earlier releases read the file then
        content = {"format": FORMAT, "version": VERSION, "model": model, "settings": settings}
        text = json.dumps({**content, "messages": self.messages}, ensure_ascii=True, indent=1)
        if not path.parent.is_dir():
            raise UserError(f"There is no folder {path.parent}.")
        try:
            write_atomically(path, text.encode() + b"\n")
        except OSError as error:
            raise UserError(f"Cannot write {path}: {_reason(error)}.") from None

    @classmethod
    def load(cls, path: Path) -> Conversation:
        """Read what `save` wrote. Raises UserError, one line, for anything else."""
        saved = _read(path)
        if saved.get("format") != FORMAT:
            raise UserError(f"{path} is not a saved chat (its format is not {FORMAT!r}). /save writes one.")
        if saved.get("version") != VERSION:
            raise UserError(f"{path} has version {saved.get('version')!r:.40}; this program reads version {VERSION}.")
        try:
            return cls(_settings(saved.get("settings")), _messages(saved.get("messages")))
        except RequestError as error:
            raise UserError(f"{path} is a damaged chat: {error}") from None


def _messages(value: Any) -> list[Message]:
    if not isinstance(value, list):
        raise RequestError("messages is not a list.")
    if not value:
        return []
    normalise_messages(value)  # the check that every request goes through; what is kept is the file's own form
    if any(message.get("role") in ("system", "developer") for message in value):
        raise RequestError("messages holds a system message; it belongs into settings.system.")
    return value


def _settings(value: Any) -> Settings:
    if not isinstance(value, dict):
        raise RequestError("settings is not an object.")
    checks = {
        "system": lambda v: isinstance(v, str),
        "thinking": lambda v: v is None or isinstance(v, bool),
        "preset": lambda v: v is None or isinstance(v, str),
        "sampling": lambda v: isinstance(v, dict) and all(n in SAMPLING_NAMES and _is_number(x) for n, x in v.items()),
        "max_tokens": lambda v: v is None or (type(v) is int and v > 0),
        "seed": lambda v: v is None or type(v) is int,
        "stop": lambda v: isinstance(v, list) and all(isinstance(s, str) for s in v),
        "form": lambda v: isinstance(v, dict),
    }
    if unknown := sorted(set(value) - set(checks)):
        raise RequestError(f"settings has {unknown[0][:40]!r}, which this program does not know.")
    for name, sound in checks.items():
        if name in value and not sound(value[name]):
            raise RequestError(f"settings.{name} is {str(value[name])[:40]!r}, which cannot be used.")
    check_form(value.get("form", {}))
    if value.get("preset"):
        choose(value["preset"], thinking=False)
    return Settings(**{**value, "stop": tuple(value.get("stop", ()))})


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _read(path: Path) -> dict[str, Any]:
    try:
        # A pipe or a device would block, or never end.
        if not path.is_file():
            raise UserError(f"There is no file {path}." if not path.exists() else f"{path} is not a file.")
        size = path.stat().st_size
        if size > MAX_FILE_BYTES:
            raise UserError(f"{path} has {size:,} bytes; a saved chat has at most {MAX_FILE_BYTES:,}.")
        content = parse_json(path.read_bytes().decode())
    except UnicodeDecodeError:
        raise UserError(f"{path} is not UTF-8 text, so it is not a saved chat.") from None
    except ValueError as error:
        raise UserError(f"{path} is not a saved chat: not JSON ({error}).") from None
    except OSError as error:
        raise UserError(f"Cannot read {path}: {_reason(error)}.") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} is not a saved chat: a JSON {type(content).__name__}, not an object.")
    return content


def _is_ours(path: Path) -> bool:
    try:
        return _read(path).get("format") == FORMAT
    except UserError:
        return False


def _reason(error: OSError) -> str:
    return (error.strerror or str(error)).lower()
