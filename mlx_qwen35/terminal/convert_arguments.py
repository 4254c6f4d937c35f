"""The options of `convert`: their grammar, and the conversion they ask for."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from mlx_qwen35.terminal.arguments import Parser

if TYPE_CHECKING:
    from mlx_qwen35.convert import Options

_SIZE = re.compile(r"(\d{1,6}(?:\.\d{1,6})?)\s*([kmgt])(i?)b?", re.IGNORECASE)
_POWERS = {"k": 1, "m": 2, "g": 3, "t": 4}


def size(always_binary: bool = False) -> Callable[[str], int]:
    """An argparse type: 62GB or 58GiB as bytes. always_binary: as memory is counted, 64GB is 64 GiB."""

    def convert(text: str) -> int:
        found = _SIZE.fullmatch(text.strip())
        if not found or float(found[1]) == 0:
            raise argparse.ArgumentTypeError(f"{text[:40]!r} is not a size such as 62GB")
        unit = 1024 if found[3] or always_binary else 1000
        return int(float(found[1]) * unit ** _POWERS[found[2].lower()])

    return convert


def add_convert_options(parser: Parser) -> None:
    parser.add_argument("source", metavar="SRC", help="folder, hub name or short name")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where to (./NAME-4bit)")
    how = parser.add_argument_group("how large")
    how.add_argument("--bits", type=int, metavar="N", help="bits of most weights (4)")
    how.add_argument("--size", type=size(), metavar="SIZE", help="of the weight files, such as 62GB: picks the bits")
    how.add_argument("--fit", type=size(True), metavar="MEMORY", help="of a Mac, such as 64GB: picks the bits")
    how.add_argument("--token-size", type=size(), metavar="SIZE", help="read for one token at most, beside either")
    how.add_argument("--group-size", type=int, metavar="N", help="weights that share a scale (64)")
    how.add_argument("--mode", default="affine", metavar="MODE", help="affine, mxfp4, nvfp4 or mxfp8 (affine)")
    how.add_argument("--recipe", metavar="FILE", help="formats by role: uniform, balanced, or a JSON file")
    well = parser.add_argument_group("how well")
    well.add_argument(
        "--quality",
        default="fast",
        metavar="Q",
        help="stock (bit for bit mlx_lm.convert), fast, or calibrated: good, best (fast)",
    )
    well.add_argument("--calibration", type=Path, metavar="FILE", help="texts to calibrate with, instead of our own")
    well.add_argument("--calibration-tokens", type=int, metavar="N", help="of them at most (131072)")
    parts = parser.add_argument_group("which parts")
    parts.add_argument(
        "--mtp", default="subdir", metavar="PLACE", help="the MTP layer: subdir, inline or drop (subdir)"
    )
    parts.add_argument("--mtp-source", metavar="MODEL", help="take the MTP layer from this one, the original")
    parts.add_argument("--vision", default="keep", metavar="WHAT", help="the vision tower: keep or drop (keep)")
    parser.add_argument("--dry-run", action="store_true", help="show the plan; download headers only, write nothing")
    parser.add_argument("--card", action="store_true", help="measure it when done, and write a model card with a plot")
    parser.add_argument("--upload", metavar="ORG/NAME", help="to the hub, when done")
    parser.add_argument("--block", type=size(True), metavar="SIZE", help="working memory of the conversion (256MB)")
    parser.add_argument(
        "--delete-source-shards",
        action="store_true",
        help="delete each downloaded file once it is used up, to save disk; a folder of yours is never touched",
    )


def conversion_options(args: argparse.Namespace) -> Options:
    """Raises ConfigError for options that contradict each other."""
    from mlx_qwen35.convert.options import BLOCK_BYTES, Options

    return Options(
        bits=args.bits,
        group_size=args.group_size,
        mode=args.mode,
        size=args.size,
        fit=args.fit,
        token_bytes=args.token_size,
        quality=args.quality,
        recipe=args.recipe,
        mtp=args.mtp,
        mtp_source=args.mtp_source,
        vision=args.vision,
        block_bytes=args.block or BLOCK_BYTES,
        delete_source_shards=args.delete_source_shards,
        calibration=args.calibration,
        calibration_tokens=args.calibration_tokens,
    )
