"""Writes the model card of the demo checkpoint: what it is, what it is not, and the measured numbers."""

from __future__ import annotations

import datetime
import json
import struct
from pathlib import Path

BARS = {
    "project": 90,
    "tools": 90,
    "json": 90,
    "arithmetic, thinking": 80,
    "recall at 512 tokens": 80,
    "recall at 1,000 tokens": 70,
    "think-block behaviour": 90,
    "first MTP draft accepted": 70,
}
NAMES = {
    "project": "questions about the project",
    "tools": "tool calls",
    "tool-result": "answers from a tool's result",
    "json": "JSON extraction",
    "arithmetic, thinking": "addition and subtraction, thinking",
    "arithmetic, direct": "addition and subtraction, without",
    "multi-turn": "multi-turn",
}
CARD = """---
license: apache-2.0
library_name: mlx
tags: [qwen3_5_moe, demo]
---

# The demo checkpoint of mlx-qwen35

**A demonstration and a test bed, not a language model to rely on.** It has {parameters} million parameters, learned
from generated examples, and knows nothing but them: questions about this project, addition and subtraction of one- and
two-digit numbers, tool calls, short JSON extraction, and recall of facts stated earlier in the conversation. For a real
model run `mlx-qwen35 models`, which says what fits your machine, and then for example `mlx-qwen35 chat 4b`.

It is a true member of the architecture, in the original Hugging Face form: {layers} layers, three Gated DeltaNet to one
gated attention, {experts} experts of which {chosen} are chosen, a shared expert, and an MTP layer trained along.
The tokenizer is a byte-level BPE of {vocabulary} entries with the family's pre-tokenizer and added tokens. The chat
template renders what the family's renders, with shorter tool instructions; thinking is off unless asked for.

## Evaluation

{count} prompts per skill, greedy, through `mlx_qwen35.runtime`, on {date}:

    python -m examples.demo_model.evaluate --count {count} --write-card

| skill | score | bar |
|---|---|---|
{rows}

All prompts use wordings and values kept out of training; none is among {compared} regenerated prompts of the training
stream. Answers about the project, multi-turn answers and results count only when every character is right.

## Training

`examples/demo_model/` holds the seeded data generator, the tokenizer training, the torch trainer with its recipe, the
export and this evaluation. {training}
"""


def _parameters(path: Path) -> float:
    with open(path / "model.safetensors", "rb") as file:
        header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
    sizes = (tensor["shape"] for name, tensor in header.items() if name != "__metadata__")
    return sum(_product(shape) for shape in sizes) / 1e6


def _product(shape: list[int]) -> int:
    total = 1
    for n in shape:
        total *= n
    return total


def write_card(folder: Path, scores: dict[str, float], count: int, compared: int) -> None:
    text = json.loads((folder / "config.json").read_text())["text_config"]
    origin = folder / "training.json"  # left by the export: steps and tokens of the run
    run = json.loads(origin.read_text()) if origin.is_file() else {}
    rows = [
        f"| {NAMES.get(name, name)} | {value:.1f} % | {f'{BARS[name]} %' if name in BARS else ''} |"
        for name, value in scores.items()
    ]
    card = CARD.format(
        parameters=f"{_parameters(folder):.1f}",
        layers=text["num_hidden_layers"],
        experts=text["num_experts"],
        chosen=text["num_experts_per_tok"],
        vocabulary=text["vocab_size"],
        count=count,
        date=datetime.date.today().isoformat(),
        rows="\n".join(rows),
        compared=f"{compared:,}",
        training=f"This checkpoint: {run['steps']:,} steps, {run['tokens'] / 1e6:.1f} million tokens." if run else "",
    )
    (folder / "README.md").write_text(card)
