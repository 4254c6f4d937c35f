"""The report card of a quantized checkpoint: README.md for people, quality.json for programs, quality.png to look at.

Numbers come from evaluate.py and from the headers of the checkpoint; this module measures nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from mlx_qwen35 import __version__
from mlx_qwen35.convert.evaluate import Comparison, Evaluation, Measure
from mlx_qwen35.convert.plot import Point, quality_plot
from mlx_qwen35.hub.progress import gigabytes
from mlx_qwen35.models.weights import Survey, survey

JSON, PNG, README = "quality.json", "quality.png", "README.md"


@dataclass(frozen=True)
class Size:
    """Of the trunk, without MTP and vision. token_bytes: weights read for one token of decoding."""

    nbytes: int
    bits_per_weight: float
    token_bytes: int


@dataclass(frozen=True)
class Card:
    """Everything that stands on a card. `points` are stock conversions of the same source, by bits."""

    name: str
    source: str
    size: Size
    comparison: Comparison
    noise_floor: Measure
    points: Mapping[int, tuple[Size, Comparison]]
    command: str
    how: str = ""  # a line on how it was made, such as the quality and the recipe
    licence: str = "apache-2.0"


def size_of(checkpoint: Path | Survey) -> Size:
    """From headers alone."""
    found = checkpoint if isinstance(checkpoint, Survey) else survey(checkpoint)
    return packed_size(found, {}) if not found.config.quantization else _size(found, _stored_bytes(found))


def packed_size(source: Survey, packings: Mapping[str, object]) -> Size:
    """What `source` will take with these packings."""
    sizes: dict[str, float] = {}
    for target, recipe in source.plan.recipes.items():
        weights = sum(source.files.tensors[s].elements for s in recipe.sources) // (2 if recipe.half else 1)
        packing = packings.get(target)
        kept = 32 if target.endswith(".A_log") else 16
        sizes[target] = weights * (getattr(packing, "bits_per_weight", kept) if packing else kept) / 8
    return _size(source, sizes)


def _stored_bytes(found: Survey) -> dict[str, float]:
    entries = found.files.tensors
    return {t: sum(entries[s].nbytes for s in r.sources) / (2 if r.half else 1) for t, r in found.plan.recipes.items()}


def _size(found: Survey, sizes: Mapping[str, float]) -> Size:
    experts, tied = found.config.experts, found.config.tie_embeddings
    nbytes = token_bytes = 0.0
    for target, size in sizes.items():
        if target.startswith("mtp."):
            continue
        nbytes += size
        if ".switch_mlp." in target and experts:
            size *= experts.chosen / experts.count
        if ".embed_tokens." in target and not tied:
            size = 0
        token_bytes += size
    return Size(int(nbytes), 8 * nbytes / _weights(found), int(token_bytes))


def _weights(found: Survey) -> int:
    """Weights of the trunk, packed or not; scales and biases are no weights."""
    total = 0
    for path, module in found.model.named_modules():
        if path.startswith("mtp"):
            continue
        for name, value in module.items():
            if name in ("scales", "biases") or not hasattr(value, "nbytes"):
                continue
            packed = name == "weight" and "scales" in module
            total += value.size * 32 // int(module.bits) if packed else value.size  # pyright: ignore
    return total


def write_card(out: Path, card: Card) -> list[str]:
    """Write the three files into `out`; -> their names. The plot needs pillow, and is left out without it."""
    (out / JSON).write_text(json.dumps(as_json(card), indent=1) + "\n", encoding="utf-8")
    points = [Point(f"stock {b} bits", s.nbytes, c.overall.mean, False) for b, (s, c) in sorted(card.points.items())]
    points.append(Point(card.name, card.size.nbytes, card.comparison.overall.mean, True))
    picture = quality_plot(points, card.comparison.layer_errors, card.noise_floor.mean)
    written = [JSON, README]
    if picture is not None:
        (out / PNG).write_bytes(picture)
        written.append(PNG)
    (out / README).write_text(readme(card, picture is not None), encoding="utf-8")
    return written


def as_json(card: Card) -> dict[str, object]:
    return asdict(card) | {"program": f"mlx_qwen35 {__version__}", "points": _points_json(card)}


def _points_json(card: Card) -> dict[str, object]:
    return {str(b): {"size": asdict(s), "overall": asdict(c.overall)} for b, (s, c) in card.points.items()}


def readme(card: Card, plot: bool) -> str:
    """The model card, markdown with the hub's metadata in front."""
    size, overall = card.size, card.comparison.overall
    lines = [
        "---",
        f"license: {card.licence}",
        f"base_model: {card.source}",
        "base_model_relation: quantized",
        "library_name: mlx",
        "pipeline_tag: text-generation",
        "tags: [mlx, qwen3_5]",
        "---",
        "",
        f"# {card.name}",
        "",
        f"{card.source} in MLX's format: {size.bits_per_weight:.2f} bits a weight, {gigabytes(size.nbytes)}, "
        f"{gigabytes(size.token_bytes)} read for a token. It loads in stock mlx-lm and in mlx-qwen35.",
        *([card.how] if card.how else []),
        "",
        "## How far it is from its source",
        "",
        f"KL(source || this) in nats over the whole vocabulary, at {overall.tokens:,} tokens of held-out text: "
        "float32 log-probabilities, float64 sums. "
        f"The source against itself, its texts cut into other windows, measures {card.noise_floor.mean:.1e}.",
        "",
        f"    {card.command}",
        "",
    ]
    if plot:
        lines += [f"![size against divergence, and error by layer]({PNG})", ""]
    lines += _table("", {card.name: overall} | _stock_rows(card))
    lines += ["", "### By domain", "", *_table("domain", card.comparison.by_domain)]
    lines += ["", "### By position in the text", "", *_table("tokens", card.comparison.by_position)]
    return "\n".join([*lines, ""])


def _stock_rows(card: Card) -> dict[str, Measure]:
    return {
        f"stock {bits} bits ({size.bits_per_weight:.2f} bits a weight, {gigabytes(size.nbytes)})": found.overall
        for bits, (size, found) in sorted(card.points.items())
    }


def _table(first: str, rows: Mapping[str, Measure]) -> list[str]:
    lines = [f"| {first} | mean KL | median | p95 | p99 | same first choice |", "|---|---|---|---|---|---|"]
    for name, m in rows.items():
        numbers = " | ".join(f"{value:.2g}" for value in (m.median, m.p95, m.p99))
        lines.append(f"| {name} | {m.mean:.2g} ± {m.mean_error:.1g} | {numbers} | {100 * m.top1:.1f} % |")
    return lines


def text_table(evaluation: Evaluation) -> str:
    """For the terminal: one line a contestant, then the floor."""
    rows = {name: c.overall for name, c in evaluation.comparisons.items()}
    rows["noise floor"] = evaluation.noise_floor
    width = max(map(len, rows))
    lines = [f"{'':<{width}}  {'mean KL':>9}  {'±':>8}  {'median':>9}  {'p95':>9}  {'p99':>9}  top-1"]
    for name, m in rows.items():
        numbers = "  ".join(f"{value:9.3g}" for value in (m.median, m.p95, m.p99))
        numbers = f"{m.mean:9.3g}  {m.mean_error:8.1g}  {numbers}"
        lines.append(f"{name:<{width}}  {numbers}  {100 * m.top1:.1f} %")
    return "\n".join(lines)


__all__ = ["Card", "Size", "packed_size", "size_of", "text_table", "write_card"]
