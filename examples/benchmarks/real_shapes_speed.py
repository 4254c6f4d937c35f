"""Prefill and decode of a random-weight model with real layer shapes, against stock mlx-lm in float32, in turn.

    python -m examples.benchmarks.real_shapes_speed [--size 35b-a3b] [--tokens 512] [--folder DIR]

Four layers (three DeltaNet, one attention) at 4 bits with a small vocabulary, so that the head does not distort. Both
compute in float32 from the same packed weights: off Metal, bfloat16 would cost stock another nine times.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.utils import load_model as load_stock_model

from examples import real_shapes
from examples.benchmarks.measure import Timing, in_turn, print_conditions, print_table
from mlx_qwen35.benching.contenders import widen
from mlx_qwen35.hub.family import FAMILY
from mlx_qwen35.models.weights import load_model

VOCAB = 1024


def load_stock(folder: Path) -> nn.Module:
    """Stock's network, activations, scales and biases in float32."""
    model, _ = load_stock_model(folder, strict=True)
    widen(model, mx.float32)
    return model


class Run:
    """One network's windows; the last prefill's cache is the one that decode continues."""

    def __init__(self, model: Any, ids: mx.array) -> None:
        self.model, self.ids = model, ids
        self.cache: Any = None

    def prefill(self) -> mx.array:
        self.cache = self.model.make_cache()
        logits = self.model(self.ids, cache=self.cache)
        mx.eval(logits)
        return logits

    def decode(self) -> mx.array:
        return self.model(self.ids[:, :1], cache=self.cache)


def compare(folder: Path, tokens: int, prefills: int, decodes: int) -> list[tuple[str, ...]]:
    """Lines of the table."""
    ids = mx.random.randint(0, VOCAB, (1, tokens), key=mx.random.key(1))
    ours, stock = Run(load_model(folder).model, ids), Run(load_stock(folder), ids)
    short = [Run(run.model, ids[:, :8]).prefill() for run in (ours, stock)]  # warms both up
    print(f"logits of 8 tokens differ by {mx.abs(short[0] - short[1]).max().item():.1e}\n", flush=True)
    prefill = in_turn({"ours": ours.prefill, "stock": stock.prefill}, prefills)
    decode = in_turn({"ours": ours.decode, "stock": stock.decode}, decodes)
    return [_line(f"prefill of {tokens}", prefill, tokens), _line("decode, a token", decode, 1)]


def _line(what: str, times: dict[str, Timing], tokens: int) -> tuple[str, ...]:
    ours, stock = times["ours"], times["stock"]
    return (
        what,
        f"{stock.cpu_seconds:.2f}",
        f"{ours.cpu_seconds:.2f}",
        f"{stock.cpu_seconds / ours.cpu_seconds:.1f}x",
        f"{stock.wall_seconds / ours.wall_seconds:.1f}x",
        f"{tokens / ours.cpu_seconds:.1f}",
        f"{stock.peak_bytes / 1e6:,.0f}",
        f"{ours.peak_bytes / 1e6:,.0f}",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=FAMILY, default="35b-a3b", help="which size's shapes (default 35b-a3b)")
    parser.add_argument("--tokens", type=int, default=512, help="of the prompt (default 512)")
    parser.add_argument("--prefills", type=int, default=1, help="runs of each; stock's takes minutes (default 1)")
    parser.add_argument("--decodes", type=int, default=7, help="tokens of each (default 7)")
    parser.add_argument("--folder", type=Path, help="keep the checkpoint here and use it again (about 2 GB)")
    args = parser.parse_args()
    print_conditions("examples.benchmarks.real_shapes_speed")
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary) / args.size
        if not (folder / "config.json").exists():
            real_shapes.write(args.size, folder, 4, VOCAB, real_shapes.FOUR_BIT)
        rows = compare(folder, args.tokens, args.prefills, args.decodes)
    head = (
        f"{args.size}, 4 layers",
        "stock CPU s",
        "ours",
        "faster",
        "by wall",
        "ours tok/CPU s",
        "stock peak MB",
        "ours",
    )
    print_table(head, rows)


if __name__ == "__main__":
    main()
