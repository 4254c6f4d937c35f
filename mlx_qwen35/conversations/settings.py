"""How the answers of a conversation are asked for, and the check of settings that come from a file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from mlx_qwen35.chat.constraints import answer_form, thinking
from mlx_qwen35.chat.presets import choose
from mlx_qwen35.errors import RequestError
from mlx_qwen35.options import Sampling

SAMPLING_NAMES = tuple(f.name for f in fields(Sampling))
FORM_NAMES = ("thinking_budget", "reasoning_effort", "response_format", "regex", "choices", "grammar", "fold_at")


@dataclass(frozen=True)
class Settings:
    """How answers are asked for. None, and an empty `sampling`, leave the choice to the checkpoint and its presets.

    sampling: what to change, by the names of `options.Sampling`   max_tokens: of one answer
    form: of answers, and how long to think, by `FORM_NAMES`
    """

    system: str = ""
    thinking: bool | None = None
    preset: str | None = None
    sampling: Mapping[str, float] = field(default_factory=dict)
    max_tokens: int | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()
    form: Mapping[str, Any] = field(default_factory=dict)


def check_form(form: Mapping[str, Any]) -> None:
    """Raises RequestError for what is none."""
    if unknown := sorted(set(form) - set(FORM_NAMES)):
        raise RequestError(f"{unknown[0][:40]!r} is nothing that this program knows of an answer's form.")
    answer_form(*(form.get(name) for name in ("response_format", "regex", "choices", "grammar")))
    thinking(None, form.get("thinking_budget"), form.get("reasoning_effort"))


def checked_settings(value: Any) -> Settings:
    """Settings as a file has them. Raises RequestError naming what cannot be used."""
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
