"""The patterns of wordings.toml, split into those that train and those that evaluate."""

from __future__ import annotations

import tomllib
from pathlib import Path

WORDINGS = tomllib.loads(Path(__file__).with_suffix(".toml").read_text())
FRAMES: dict[str, list[str]] = WORDINGS["frames"]
UNKNOWN: list[str] = WORDINGS["unknown"]["seen"]
OPENINGS: list[str] = WORDINGS["openings"]["seen"]
TOOLS: dict[str, dict] = WORDINGS["tools"]


def patterns(name: str, unseen: bool) -> list[str]:
    """The ways to word a task, `adding` or `asking_json`, say."""
    return WORDINGS[name]["unseen" if unseen else "seen"]
