"""What the demo model knows about this project, read from project_facts.toml, and its fixed tables."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Intent:
    """One answer and its ways to ask. `unseen` cores are never trained on."""

    kind: str
    answer: str
    cores: tuple[str, ...]
    unseen: tuple[str, ...] = ()


_FACTS = tomllib.loads(Path(__file__).with_suffix(".toml").read_text())

INTENTS = [Intent(i["kind"], i["answer"], tuple(i["cores"]), tuple(i.get("unseen", ()))) for i in _FACTS["intent"]]
WEIGHTS: dict[str, list[str]] = _FACTS["weights"]  # GiB at each of PRECISIONS
FITS: dict[str, str] = _FACTS["fits"]
LAYERS: dict[str, int] = _FACTS["layers"]
PRECISIONS = (("bf16", "16-bit", "16 bits"), ("8-bit", "8 bits"), ("4-bit", "4 bits"))
