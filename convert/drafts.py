"""How often the MTP layer's first draft is what the model itself says next, before and after conversion.

Teacher-forced on a few texts: the layer sees the true next token, and its guess of the one after it is compared with
the trunk's own. Conversions that lost or damaged the layer show here, and only here: the trunk does not use it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
import numpy as np

from mlx_qwen35.caches.kv import KVCache
from mlx_qwen35.convert.decoding import loaded
from mlx_qwen35.convert.source import Source
from mlx_qwen35.hub.machine import this_machine
from mlx_qwen35.models.model import Model
from mlx_qwen35.models.weights import load_model

TEXTS = (
    "The river rises in the mountains, runs through three lakes and reaches the sea after four hundred kilometres.",
    "def mean(values: list[float]) -> float:\n    return sum(values) / len(values) if values else 0.0\n",
    "User: How long do eggs take to boil?\nAssistant: Six minutes for a soft yolk, ten for a hard one.",
    "Das Paket kommt am Dienstag, und die Rechnung liegt bei. 下周二到货。",
)
LONGEST = 128  # tokens of one text


@dataclass(frozen=True)
class DraftAgreement:
    """Shares of first drafts that equal the model's own next token, over `drafts` positions."""

    source: float
    converted: float
    drafts: int


def draft_agreement(source: Source, converted: Path) -> DraftAgreement | None:
    """None where it cannot be had: no MTP layer in one of them, no tokenizer, or the source does not fit in memory."""
    folder = source.folder
    size = sum(file.stat().st_size for file in folder.rglob("*.safetensors"))
    # Off Metal the network computes in float32: twice what is stored, or four times what FP8 is.
    larger = 4.5 if source.scales.by_weight else 2.5
    if larger * size > this_machine().budget or not (folder / "tokenizer.json").is_file():
        return None
    first, drafts = _agreement(folder, loaded(source))
    if not drafts:
        return None
    second, _ = _agreement(folder, load_model(converted).model)
    return DraftAgreement(first, second, drafts)


def agreement(model: Model, texts: Iterable[list[int]]) -> tuple[float, int]:
    """The share of first drafts that equal the model's own next token, and how many drafts there were."""
    hits = drafts = 0
    for ids in texts:
        if len(ids) < 3:
            continue
        window = mx.array(ids)[None]
        hidden = model.hidden_states(window)
        own = mx.argmax(model.logits(hidden), axis=-1)[:, 1:]  # at t + 1, the token at t + 2
        drafted = model.mtp(hidden[:, :-1], model.embed(window[:, 1:]), KVCache())
        hits += int(np.array(mx.argmax(model.logits(drafted), axis=-1) == own).sum())
        drafts += len(ids) - 1
    return (hits / drafts if drafts else 0.0), drafts


def _agreement(folder: Path, model: Model) -> tuple[float, int]:
    if not hasattr(model, "mtp"):
        return 0.0, 0
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    last = model.config.vocab_size - 1
    return agreement(model, [[min(i, last) for i in tokenizer.encode(text).ids[:LONGEST]] for text in TEXTS])
