"""What each rounding quality is worth on the demo checkpoint, beside mlx-lm's own conversion, GPTQ and DWQ.

    python -m examples.benchmarks.quantization_quality [--bits 3 4 6 8] [--seeds 3] [--peers] [--out results.json]
        [--qualities fast good] [--samples 100]

Calibration texts come from the generator's training worlds, test texts from its held-out worlds; the script refuses
to run when a test text is among the calibration texts. Every method has the same matrices at the same bits, so equal
bits per weight, protected matrices counted: what stock protects, routers at 8 bits; and where all is at 8 bits, what
the `balanced` recipe does, routers unpacked. Prints a markdown table; what is measured already in --out is not
measured again. The mean is given with its standard error over tokens: in a mixture of experts it hangs on the few
tokens where a router was near a tie, and the fewer bits differ the more.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import mlx.core as mx

from examples.benchmarks import quantization_peers
from examples.demo_model.encoding import encode
from examples.demo_model.mixture import EVALUATIONS, evaluation_set, long_sample, short_sample, stream
from examples.demo_model.samples import CHECKPOINT, Sample
from mlx_qwen35.convert.calibrate import Plan, calibrate
from mlx_qwen35.convert.evaluate import eval_kl
from mlx_qwen35.convert.rounded_model import RoundedModel, uniform
from mlx_qwen35.convert.rounding import CALIBRATED, QUALITIES, ROUTERS, Packing
from mlx_qwen35.convert.texts import Tokens
from mlx_qwen35.hub.headers import read_checkpoint
from mlx_qwen35.models.weights import Survey, survey

CALIBRATION_TOKENS = 16_384
SAMPLES = 20, 2  # of each skill to measure on; of those of hundreds of tokens fewer are enough
NAMES = {"stock": "mlx_lm.convert", "fast": "fast"}
AT_8_BITS = 60, 6  # where a handful of tokens carries the mean


def tokens_of(samples: Iterator[Sample], domain: str = "") -> list[Tokens]:
    encoded = ((sample, encode(sample)) for sample in samples)
    return [Tokens(domain or sample.skill, tuple(e.prompt + e.completion)) for sample, e in encoded]


def calibration_texts(seed: int) -> list[Tokens]:
    """More than are used: the seed decides which samples are drawn, and in which order."""
    short = islice(stream(f"calibration/{seed}", short_sample), 160)
    long = islice(stream(f"calibration-long/{seed}", lambda random: long_sample(random, 900)), 8)
    return tokens_of(iter([*short, *long]))


def test_texts(bits: int, samples: int | None) -> list[Tokens]:
    """Wordings and values that neither training nor calibration has."""
    short, long = AT_8_BITS if bits == 8 else SAMPLES
    if samples:
        short, long = samples, max(1, samples // 16)
    counts = {name: long if "recall" in name else short for name in EVALUATIONS}
    return [t for name, count in counts.items() for t in tokens_of(iter(evaluation_set(name, count)), name)]


def packings_of(found: Survey, bits: int) -> dict[str, Packing | None]:
    """Of every method: stock's, but for routers that the `balanced` recipe keeps."""
    stocks = uniform(found, bits)
    return stocks if bits < 8 else {target: p for target, p in stocks.items() if not target.endswith(ROUTERS)}


def bits_per_weight(found: Survey, packings: Mapping[str, Packing | None]) -> tuple[float, int]:
    """Of the trunk as converted: packed codes, scales and biases, and everything that is kept. -> bits, weights"""
    total = count = 0
    entries = found.files.tensors
    for target, recipe in found.plan.recipes.items():
        if target.startswith("mtp."):
            continue
        elements = sum(entries[s].elements for s in recipe.sources) // (2 if recipe.half else 1)
        packing = packings.get(target)
        kept = 32 if target.endswith(".A_log") else 16
        total += elements * (packing.bits + 32 / packing.group_size if packing else kept)
        count += elements
    return total / count, count


def bits_on_disk(folder: Path, weights: int) -> float:
    """The same, counted in the files of a conversion."""
    tensors = read_checkpoint(folder).tensors
    return 8 * sum(t.nbytes for n, t in tensors.items() if "mtp." not in n) / weights


class Results:
    """Measured rows by name, kept in a file after each one."""

    def __init__(self, path: Path | None, samples: int | None) -> None:
        self.path, self.samples = path, samples
        self.rows: dict[str, dict] = json.loads(path.read_text()) if path and path.is_file() else {}

    def measure(self, bits: int, contestants: Mapping[str, Callable[[], Path | RoundedModel]]) -> None:
        """All that are not measured yet side by side, so that the source is computed once."""
        found = survey(CHECKPOINT)
        planned, weights = bits_per_weight(found, packings_of(found, bits))
        ready: dict[str, Path | RoundedModel] = {}
        for name, make in contestants.items():
            if name in self.rows:
                continue
            try:
                ready[name] = make()
            except Exception as error:  # a peer's failure is a result; it is printed verbatim
                self._keep(name, {"error": f"{type(error).__name__}: {error}", "bits": planned})
        if not ready:
            return
        measured = eval_kl(CHECKPOINT, ready, test_texts(bits, self.samples))
        for name, comparison in measured.comparisons.items():
            made = ready[name]
            a_weight = bits_on_disk(made, weights) if isinstance(made, Path) else planned
            self._keep(name, asdict(comparison.overall) | {"floor": measured.noise_floor.mean, "bits": a_weight})

    def _keep(self, name: str, row: dict) -> None:
        self.rows[name] = row
        if self.path:
            self.path.write_text(json.dumps(self.rows, indent=1))
        print(name, json.dumps(row), flush=True)

    def table(self) -> str:
        columns = ("method", "bits a weight", "mean KL", "error", "median", "p95", "p99", "top-1")
        lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
        for name, row in self.rows.items():
            if "error" in row:
                lines.append(f"| {name} | | {row['error']} | | | | | |")
                continue
            numbers = " | ".join(f"{row[key]:.3g}" for key in ("mean", "mean_error", "median", "p95", "p99"))
            lines.append(f"| {name} | {row['bits']:.2f} | {numbers} | {100 * row['top1']:.1f} % |")
        return "\n".join(lines)


def rounded(bits: int, quality: str, seed: int = 0) -> RoundedModel:
    found = survey(CHECKPOINT)
    packings, store = packings_of(found, bits), None
    if quality in CALIBRATED:
        scratch = Path(tempfile.mkdtemp(prefix="calibration-"))
        texts = calibration_texts(seed)
        store = calibrate(CHECKPOINT, Plan(packings, quality), texts, scratch, CALIBRATION_TOKENS, seed)
    return RoundedModel(found, packings, quality, store)


def peer(make: Callable[..., Path], *arguments: Any, **options: Any) -> Path:
    return make(Path(tempfile.mkdtemp(prefix="peers-")), *arguments, **options)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bits", type=int, nargs="+", default=[4, 3, 6, 8])
    parser.add_argument("--seeds", type=int, default=3, help="orders and draws of calibration text")
    parser.add_argument("--qualities", nargs="+", default=list(QUALITIES), choices=QUALITIES, help="these only")
    parser.add_argument("--samples", type=int, help="test samples per skill, instead of 20 (60 at 8 bits)")
    parser.add_argument("--peers", action="store_true", help="mlx-lm's gptq and dwq as well")
    parser.add_argument("--out", type=Path, help="JSON file with the results so far")
    arguments = parser.parse_args()
    mx.set_default_device(mx.cpu)
    used = {t.ids for seed in range(arguments.seeds) for t in calibration_texts(seed)}
    tests = {bits: test_texts(bits, arguments.samples) for bits in arguments.bits}
    if any(t.ids in used for test in tests.values() for t in test):
        raise SystemExit("a test text is among the calibration texts")
    counts = ", ".join(f"{sum(len(t.ids) for t in test):,} at {bits} bits" for bits, test in tests.items())
    print(f"test tokens: {counts}; {CALIBRATION_TOKENS:,} calibration tokens", flush=True)
    results = Results(arguments.out, arguments.samples)
    for bits in arguments.bits:
        contestants: dict[str, Callable[[], Path | RoundedModel]] = {
            "stock": partial(peer, quantization_peers.converted, bits, keep_routers=bits == 8),
            "fast": partial(rounded, bits, "fast"),
        }
        contestants = {f"{NAMES[q]}, {bits} bits": contestants[q] for q in arguments.qualities if q in contestants}
        for quality in [q for q in arguments.qualities if q in CALIBRATED]:
            for seed in range(arguments.seeds):
                contestants[f"{quality}, {bits} bits, seed {seed}"] = partial(rounded, bits, quality, seed)
        results.measure(bits, contestants)
    if arguments.peers:
        texts = calibration_texts(0)
        peers = {f"{name}, 4 bits": partial(peer, make, 4, texts) for name, make in quantization_peers.PEERS.items()}
        results.measure(4, peers)
    print(results.table())


if __name__ == "__main__":
    main()
