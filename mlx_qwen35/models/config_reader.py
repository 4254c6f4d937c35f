"""One JSON object of a config.json, read value by value: every wrong one is named, and so is what nobody asked for."""

from __future__ import annotations

from collections.abc import Set
from typing import Any

from mlx_qwen35.errors import ConfigError


class Reader:
    """Typed look-ups in one JSON object that remember what was read and say where a value is wrong."""

    def __init__(self, values: dict[str, Any], where: str) -> None:
        self.values, self.where = values, where
        self.read: set[str] = set()

    def get(self, key: str, default: Any = None) -> Any:
        self.read.add(key)
        value = self.values.get(key)
        return default if value is None else value

    def integer(self, key: str, default: int | None = None, least: int = 1, most: int = 1 << 24) -> int:
        value = self.get(key, default)
        if value is None:
            raise ConfigError(f"{self.where}: {key} is missing; this is not a Qwen3.5 config.")
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise ConfigError(f"{self.where}: {key} is {show(value)}; it should be an integer from {least} to {most}.")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        value = self.get(key, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1e300:
            raise ConfigError(f"{self.where}: {key} is {show(value)}, which should be a positive number.")
        return float(value)

    def expect(self, key: str, allowed: tuple[Any, ...]) -> None:
        """Refuse every value but the ones the code implements; an absent key is fine."""
        self.read.add(key)
        value = self.values.get(key)
        if value is not None and value not in allowed:
            shown = " or ".join(show(a) for a in allowed)
            raise ConfigError(f"{self.where}: {key} is {show(value)}; this network is implemented for {shown} only.")

    def unread(self, silent: Set[str]) -> list[str]:
        """The keys that nobody asked for. silent: those that need no mention"""
        return sorted(set(self.values) - self.read - silent)


def show(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
