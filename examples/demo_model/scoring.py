"""Exact-match scores from one forward pass per sample, for watching a run. `evaluate.py` is the real evaluation.

A greedy answer equals the wanted one exactly if, reading the wanted answer, every next token is the first choice.
"""

from __future__ import annotations

from functools import cache

import torch

from examples.demo_model.batches import pad
from examples.demo_model.encoding import Encoded, encode
from examples.demo_model.mixture import EVALUATIONS, evaluation_set
from examples.demo_model.network import DemoModel


@cache
def encoded_set(name: str, count: int) -> list[Encoded]:
    return sorted((encode(sample) for sample in evaluation_set(name, count)), key=len)


@torch.no_grad()
def score(model: DemoModel, samples: list[Encoded], rows: int = 8192) -> tuple[int, float]:
    """-> number of exact answers, share of MTP drafts that equal the trunk's next choice. `rows`: tokens at a time."""
    exact, drafts, accepted = 0, 0, 0
    while samples:
        size = max(1, rows // len(samples[-1]))
        group, samples = samples[-size:], samples[:-size]
        batch = pad(group)
        hidden, drafted, _ = model(batch.tokens, batch.position, 32)
        wanted, weight = batch.targets(1)
        choice = model.logits(hidden).argmax(-1)
        exact += int(((choice == wanted) | (weight == 0)).all(1).sum())
        _, weight = batch.targets(2)
        drafted_ids = model.logits(drafted).argmax(-1)
        drafts += int((weight > 0).sum())
        accepted += int(((drafted_ids == choice.roll(-1, 1)) & (weight > 0)).sum())
    return exact, accepted / max(1, drafts)


def score_all(model: DemoModel, count: int = 40) -> str:
    parts, drafts = [], []
    for name in EVALUATIONS:
        number = min(count, 16) if "recall" in name else count
        exact, accepted = score(model, encoded_set(name, number))
        parts.append(f"{name} {100 * exact / number:.0f}")
        drafts.append(accepted)
    return " | ".join(parts) + f" | mtp {100 * sum(drafts) / len(drafts):.0f}"
