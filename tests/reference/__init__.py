"""The outside reference: tiny checkpoints, and what transformers computes on them, recorded once.

`write_checkpoint(name, folder)` makes a checkpoint in the original form, `recorded(name)` gives what transformers
computed on it. Neither needs torch. README.md lists the arrays; record.py makes them.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np

from tests.reference.tiny import file_hashes, write_checkpoint, write_float32_copy
from tests.reference.tiny_cases import CASES, TinyCase, config, token_ids

__all__ = [
    "CASES",
    "TinyCase",
    "config",
    "file_hashes",
    "manifest",
    "recorded",
    "token_ids",
    "write_checkpoint",
    "write_float32_copy",
]

DATA = Path(__file__).parent / "data"


def recorded(name: str) -> dict[str, np.ndarray]:
    """What transformers computed on checkpoint `name`: arrays by the names that README.md lists."""
    with np.load(DATA / f"{name}.npz", allow_pickle=False) as file:
        return dict(file)


def manifest() -> dict[str, Any]:
    """Versions, file hashes, and per checkpoint how closely transformers agrees with itself."""
    return json.loads((DATA / "manifest.json").read_text())
