"""`mlx-qwen35 eval kl SRC QUANT`: how far a quantized checkpoint is from its source, for any pair of one network."""

from __future__ import annotations

import argparse
import contextlib
import json
import shlex
import sys
from dataclasses import asdict
from pathlib import Path

from mlx_qwen35.convert.decoding import decoder, opened
from mlx_qwen35.convert.evaluate import Contestant, eval_kl
from mlx_qwen35.convert.parameters import activation_dtype
from mlx_qwen35.convert.report import Card, packed_size, size_of, text_table, write_card
from mlx_qwen35.convert.rounded_model import RoundedModel, uniform
from mlx_qwen35.convert.source import open_source
from mlx_qwen35.convert.stream import MLX_DTYPES
from mlx_qwen35.convert.texts import bundled, limited, read_texts, tokenized
from mlx_qwen35.errors import ConfigError

TOKENS = 16_384
STOCK_POINTS = (4, 5, 6, 8)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `eval kl`."""
    parser.add_argument("source", help="the checkpoint to compare with: a folder, a hub id or a short name")
    parser.add_argument("quantized", nargs="+", help="one or more conversions of it, ours or anyone's")
    parser.add_argument("--texts", type=Path, help="texts to measure on, .jsonl or plain (default: a bundled corpus)")
    parser.add_argument("--tokens", type=int, default=TOKENS, help="of text to measure on (default: %(default)s)")
    parser.add_argument("--stock", action="store_true", help="also stock's uniform conversions at 4, 5, 6 and 8 bits")
    parser.add_argument("--json", action="store_true", help="print everything measured as JSON")
    parser.add_argument(
        "--card", action="store_true", help="write README.md, quality.json and quality.png into the quantized folder"
    )


def run(args: argparse.Namespace) -> int:
    """Print the table (or JSON) to stdout. Raises UserError, one line, for what cannot be compared."""
    if args.card and len(args.quantized) > 1:
        raise ConfigError(f"--card describes one conversion, but {len(args.quantized)} are given.")
    source = open_source(args.source, stream=False)
    quantized = {_label(name, args.quantized): open_source(name, stream=False) for name in args.quantized}
    texts = read_texts(args.texts) if args.texts else bundled("evaluation")
    tokens = limited(tokenized(source.folder, texts), args.tokens)
    if not tokens:
        raise ConfigError(f"{args.tokens} tokens of text is too little to measure on; give at least 2.")
    contestants: dict[str, Path | Contestant] = {name: opened(each) for name, each in quantized.items()}
    points = {bits: f"stock {bits} bits" for bits in STOCK_POINTS} if args.stock or args.card else {}
    if points and source.is_packed:
        raise ConfigError(f"{source.folder} is quantized itself; stock's points need the original as source.")
    dtype = MLX_DTYPES[activation_dtype(source.config)]
    for bits, label in points.items():
        packings = uniform(source.survey, bits)
        contestants[label] = RoundedModel(source.survey, packings, dtype=dtype, read=decoder(source))
    evaluation = eval_kl(opened(source), contestants, tokens, _progress)
    print(json.dumps(asdict(evaluation), indent=1) if args.json else text_table(evaluation))
    if args.card:
        name, conversion = next(iter(quantized.items()))
        sizes = {bits: packed_size(source.survey, uniform(source.survey, bits)) for bits in points}
        card = Card(
            name=name,
            source=args.source,
            size=size_of(conversion.survey),
            comparison=evaluation.comparisons[name],
            noise_floor=evaluation.noise_floor,
            points={bits: (sizes[bits], evaluation.comparisons[label]) for bits, label in points.items()},
            command=_command(args),
        )
        print(f"wrote {', '.join(write_card(conversion.folder, card))} in {conversion.folder}", file=sys.stderr)
    return 0


def card_of(source: str, out: Path) -> None:
    """Measure a conversion as `eval kl --card` does, and write its card; the table goes to stderr."""
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    with contextlib.redirect_stdout(sys.stderr):
        run(parser.parse_args([source, str(out), "--card"]))


def _command(args: argparse.Namespace) -> str:
    """That measures the same again."""
    words = ["mlx-qwen35", "eval", "kl", args.source, args.quantized[0], "--card"]
    words += ["--texts", str(args.texts)] if args.texts else []
    words += ["--tokens", str(args.tokens)] if args.tokens != TOKENS else []
    return shlex.join(words)


def _label(name: str, names: list[str]) -> str:
    """The last part of a path or hub id, unless two would be called the same."""
    short = Path(name).name
    return short if [Path(n).name for n in names].count(short) == 1 else name


def _progress(done: int, total: int) -> None:
    if sys.stderr.isatty():
        print(f"\rlayer {done} of {total}", end="" if done < total else "\n", file=sys.stderr, flush=True)
