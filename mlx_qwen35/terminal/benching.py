"""`mlx-qwen35 bench`: its options, what is loaded for it, and where the results go."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections.abc import Mapping
from contextlib import closing
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlx_qwen35 import __version__
from mlx_qwen35.terminal.arguments import Parser, between

if TYPE_CHECKING:
    import mlx.core as mx

    from mlx_qwen35.benching.contenders import Contender
    from mlx_qwen35.benching.report import Bench
    from mlx_qwen35.hub.headers import TensorEntry
    from mlx_qwen35.hub.memory import MemoryPlan

MLX_LM = "mlx-lm"
CACHED_PREFIX = 1 << 30  # bytes, for the prompt that is asked again


def add_bench_options(parser: Parser) -> None:
    whole = between(int, 1, 1 << 20)
    parser.add_argument("model", nargs="?", default="demo", metavar="MODEL", help="folder, hub or short name (demo)")
    parser.add_argument(
        "--prompts", type=_list_of(whole), default=None, metavar="N,N", help="lengths (128,512,2048,8192,32768)"
    )
    parser.add_argument("--long", action="store_true", help="a prompt of 131,072 tokens as well")
    parser.add_argument("--batch", type=_list_of(between(int, 1, 64)), default=None, metavar="N,N", help="(1,4,8)")
    parser.add_argument("--tokens", type=between(int, 2, 4096), default=64, metavar="N", help="of each answer (64)")
    parser.add_argument("--rounds", type=between(int, 1, 99), default=3, metavar="N", help="of each, in turn (3)")
    parser.add_argument("--drafts", action="store_true", help="the same with the MTP layer's drafts as well")
    parser.add_argument(
        "--vs", action="append", default=[], metavar="PEER", help="mlx-lm, or an OpenAI-compatible URL (repeatable)"
    )
    parser.add_argument("--float32", action="store_true", help="mlx-lm with activations in float32")
    parser.add_argument("--force", action="store_true", help="even if the plan says that it does not fit")
    parser.add_argument("--offline", action="store_true", help="use only what is downloaded already")
    parser.add_argument("--json", action="store_true", help="for machines")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="write a PNG as well")


def _list_of(kind: Any) -> Any:
    def convert(text: str) -> list[int]:
        return [kind(part) for part in text.split(",")]

    return convert


def run_bench(args: argparse.Namespace) -> None:
    """Raises UserError for a peer that does not answer."""
    from mlx_qwen35.benching.report import data_of, lines_of, plot

    bench = _bench(args)
    print(json.dumps(data_of(bench), indent=1) if args.json else "\n".join(lines_of(bench)))
    if args.plot:
        args.plot.write_bytes(plot(bench))
        print(f"written: {args.plot}", file=sys.stderr)


def _bench(args: argparse.Namespace) -> Bench:
    import mlx.core as mx

    from mlx_qwen35.benching.contenders import Ours, our_network
    from mlx_qwen35.benching.energy import Meter
    from mlx_qwen35.benching.measuring import BATCHES, cached_first, cases, measure
    from mlx_qwen35.benching.report import Bench
    from mlx_qwen35.models.fit import fetch_if_it_fits, headers_of
    from mlx_qwen35.planning.chips import this_chip
    from mlx_qwen35.planning.subject import of_checkpoint

    prompts, left_out = _lengths(args)
    folder, plan = fetch_if_it_fits(args.model, max(prompts) + args.tokens, args.force, offline=args.offline)
    config, tensors = headers_of(str(folder), args.offline)
    _check_peer(args, plan, tensors)
    length = min(prompts, key=lambda n: abs(n - 2048))
    with our_network(folder) as network, closing(Meter()) as meter:
        with network.engine(CACHED_PREFIX) as engine:
            cold, cached = cached_first(Ours(engine, network.known, remembers=True), length, network.known)
        with network.engine() as engine:
            contenders: list[Contender] = [Ours(engine, network.known)]
            if args.drafts:
                contenders.append(Ours(engine, network.known, "mlx_qwen35 + drafts", "auto"))
            contenders += _peers(args, folder)
            mx.reset_peak_memory()
            subject, on_cpu = of_checkpoint(config, tensors), not mx.metal.is_available()
            conditions = [*_conditions(), *left_out]
            energy = f"not available ({meter.why})" if meter.why else "watts of the whole chip, by its own counters"
            bench = Bench(
                args.model, conditions, subject, this_chip(), on_cpu, network.seconds, 0, cold, cached, length, energy
            )
            for case in cases(prompts, args.batch or BATCHES, args.tokens):
                bench.measures += measure(contenders, case, network.known, args.rounds, _tell, meter)
            bench.peak = mx.get_peak_memory()
    return bench


def _lengths(args: argparse.Namespace) -> tuple[list[int], list[str]]:
    """Of prompts: those asked for, or the usual ones within its native context; and what to say of the others."""
    from mlx_qwen35.benching.measuring import LONG, PROMPTS
    from mlx_qwen35.models.config import parse_config
    from mlx_qwen35.models.fit import headers_of

    longer = [LONG] if args.long else []
    if args.prompts:
        return [*args.prompts, *longer], []
    most = parse_config(headers_of(args.model, args.offline)[0]).max_context
    usual = [*PROMPTS, *longer]
    fitting = [n for n in usual if n + args.tokens <= most] or [min(usual)]
    left = ", ".join(f"{n:,}" for n in usual if n not in fitting)
    return fitting, [f"Left out: prompts of {left} tokens, since its context holds {most:,}."] if left else []


def _check_peer(args: argparse.Namespace, plan: MemoryPlan, tensors: Mapping[str, TensorEntry]) -> None:
    """Stock mlx-lm holds a copy of its own beside ours. Raises MemoryPlanError where both do not fit."""
    from mlx_qwen35.benching.contenders import stock_bytes
    from mlx_qwen35.hub.memory import PlanRow, check

    if MLX_LM in args.vs:
        row = PlanRow("mlx-lm's copy", stock_bytes(tensors, _dtype(args)), "of the weights")
        both = replace(plan, rows=(*plan.rows, row), suggestion="Without --vs mlx-lm it fits.")
        check(both, args.force)


def _dtype(args: argparse.Namespace) -> mx.Dtype | None:
    import mlx.core as mx

    return mx.float32 if args.float32 else None


def _peers(args: argparse.Namespace, folder: Path) -> list[Contender]:
    from mlx_qwen35.benching.contenders import Stock
    from mlx_qwen35.benching.url import Server

    return [Stock(folder, _dtype(args)) if name == MLX_LM else Server(name) for name in args.vs]


def _conditions() -> list[str]:
    from mlx_qwen35.doctor.environment import backend, hardware

    names = ", ".join(f"{name} {version(name)}" for name in ("mlx", "mlx-lm"))
    load = ", ".join(f"{n:.1f}" for n in os.getloadavg())
    return [
        f"{hardware()}; {backend()}; load {load}",
        f"mlx_qwen35 {__version__}, {names}, Python {platform.python_version()}. Medians, rounds in turn.",
    ]


def _tell(line: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\x1b[K{line}", end="", file=sys.stderr, flush=True)
