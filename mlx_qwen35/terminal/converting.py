"""`convert` at a terminal: what will be written, a bar while it is, and a summary. The work is mlx_qwen35.convert's."""

from __future__ import annotations

import sys
from pathlib import Path

from mlx_qwen35.convert import ConversionPlan, convert
from mlx_qwen35.hub.progress import gigabytes
from mlx_qwen35.terminal.loading import LoadingBar
from mlx_qwen35.terminal.safe_text import one_line


def convert_visibly(source: str, out: Path | None, bits: int, group_size: int) -> None:
    """Convert; the folder's name to stdout, everything else to stderr. Raises UserError."""
    bar = LoadingBar("Converting")

    def announce(plan: ConversionPlan, folder: Path) -> None:
        _tell(f"Writing {gigabytes(plan.nbytes)} to {folder} ({plan.bits_per_weight:.2f} bits a weight).")

    try:
        report = convert(
            source,
            out,
            bits,
            group_size,
            progress=bar,
            announce=announce,
        )
    finally:
        bar.close()
    for note in report.notes:
        _tell(note)
    _tell(f"Done in {report.seconds:.0f} s. Chat with it: mlx-qwen35 chat {report.out}")
    print(report.out)


def _tell(line: str) -> None:
    print(one_line(line), file=sys.stderr, flush=True)
