"""`mlx-qwen35 plan`: its options, and from a model's name to the question that planning answers."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING

from mlx_qwen35.hub.family import FAMILY
from mlx_qwen35.hub.memory import DEFAULT_CONTEXT
from mlx_qwen35.options import PLAIN
from mlx_qwen35.terminal.arguments import Parser, between, kv_bits

if TYPE_CHECKING:
    from mlx_qwen35.planning.report import Question


def add_plan_options(parser: Parser) -> None:
    parser.add_argument("model", nargs="?", metavar="MODEL", help="size, folder or hub name (every size of the family)")
    parser.add_argument(
        "--context", type=between(int, 1, 1 << 20), default=DEFAULT_CONTEXT, metavar="TOKENS", help="(32768)"
    )
    parser.add_argument("--batch", type=between(int, 1, 256), default=1, metavar="N", help="sequences at a time (1)")
    parser.add_argument("--kv-bits", type=kv_bits, default=PLAIN, metavar="N", help="KV cache in 16, 8 or 4 bits (16)")
    parser.add_argument("--roofline", action="store_true", help="limits of speed on every chip, with what they assume")
    parser.add_argument("--offline", action="store_true", help="look at nothing that is not downloaded already")
    parser.add_argument("--json", action="store_true", help="for machines")


def run_plan(args: argparse.Namespace) -> None:
    from mlx_qwen35.planning.report import data_of, lines_of, roofline_of

    names = [args.model] if args.model else list(FAMILY)
    questions = [_question(name, args) for name in names]
    if args.json:
        print(json.dumps([data_of(q) for q in questions] if args.model is None else data_of(questions[0]), indent=1))
        return
    for place, question in enumerate(questions):
        told = lines_of(question) if not args.roofline else [question.title, *roofline_of(question)]
        print(*([""] if place else []), *told, sep="\n", flush=True)


def _question(name: str, args: argparse.Namespace) -> Question:
    import mlx.core as mx

    from mlx_qwen35.hub.names import resolve
    from mlx_qwen35.models.fit import headers_of, machine
    from mlx_qwen35.planning.chips import this_chip
    from mlx_qwen35.planning.report import Question
    from mlx_qwen35.planning.subject import BITS, of_checkpoint, of_family

    located = resolve(name)
    if located.entry is not None:
        title, subjects = located.entry.name, [of_family(located.entry, bits) for bits in BITS]
    else:
        title, subjects = name, [of_checkpoint(*headers_of(name, args.offline))]
    return Question(
        title,
        subjects,
        located.entry,
        machine(),
        this_chip(),
        args.context,
        args.batch,
        args.kv_bits,
        mx.metal.is_available(),
    )
