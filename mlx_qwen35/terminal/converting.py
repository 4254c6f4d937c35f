"""`convert` at a terminal: what will be written, a bar while it is, and a summary. The work is mlx_qwen35.convert's."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from mlx_qwen35.convert import ConversionPlan, ConversionReport, Options, convert, plan_conversion
from mlx_qwen35.convert.eval_command import card_of
from mlx_qwen35.convert.table import memory_line, table_of
from mlx_qwen35.convert.upload import check_upload, upload
from mlx_qwen35.convert.verify import outliers
from mlx_qwen35.hub.progress import Meter, Progress, gigabytes
from mlx_qwen35.terminal.safe_text import one_line

SHOWN_OUTLIERS = 5


def convert_visibly(
    source: str, out: Path | None, options: Options, upload_to: str | None = None, card: bool = False
) -> None:
    """Convert; the folder's name to stdout, everything else to stderr. Raises UserError."""
    if upload_to:
        check_upload(upload_to)  # hours of work should not end at a missing login
    bars = ConversionBars()

    def announce(plan: ConversionPlan, folder: Path) -> None:
        _tell(f"Writing {gigabytes(plan.nbytes)} to {folder} ({plan.bits_per_weight:.2f} bits a weight).")
        for note in plan.source.notes:
            _tell(note)

    try:
        report = convert(
            source,
            out,
            options,
            progress=bars.converted,
            fetching=bars.fetched,
            calibrating=bars.calibrated,
            announce=announce,
        )
    finally:
        bars.close()
    _summarise(report)
    if card:
        card_of(source, report.out)
    if upload_to:
        _tell(f"Uploading to {upload_to} ...")
        _tell(f"Uploaded: {upload(report.out, upload_to)}")
    print(report.out)


def show_plan(source: str, options: Options) -> None:
    """What a conversion would write, to stdout; nothing is downloaded but headers, and nothing is written."""
    plan = plan_conversion(source, options)
    for note in plan.source.notes:
        _tell(note)
    print(table_of(plan))
    print(memory_line(plan))


def _summarise(report: ConversionReport) -> None:
    fate = ", ".join(f"{count} {what}" for what, count in report.fate.items() if count)
    _tell(f"Source tensors: {fate}.")
    if seen := report.calibration:
        experts = sum(map(len, seen["tokens_per_expert"].values()))
        rare = f"; {seen['experts_uncovered']} of {experts} experts saw too few" if experts else ""
        _tell(f"Calibrated on {seen['tokens']:,} tokens{rare}. Counts by expert are in quant_plan.json.")
    odd = outliers(list(report.errors))
    for error in odd[:SHOWN_OUTLIERS]:
        _tell(f"{error.name} lost more than others of its format: {error.relative:.1%} ({error.packing}).")
    if len(odd) > SHOWN_OUTLIERS:
        _tell(f"{len(odd) - SHOWN_OUTLIERS} more such are in quant_plan.json.")
    if drafts := report.drafts:
        _tell(f"MTP: first drafts agree with the model {drafts.converted:.0%}, in the source {drafts.source:.0%}.")
    _tell(f"Done in {report.seconds:.0f} s. Chat with it: mlx-qwen35 chat {report.out}")


def _tell(line: str) -> None:
    print(one_line(line), file=sys.stderr, flush=True)


class ConversionBars:
    """Bytes, rate and remaining time: bars on a terminal, else a line for every tenth. Called from two threads."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._tasks: dict[str, Any] = {}
        self._tenths: dict[str, int] = {}
        self._meter: Meter | None = None
        self._done = 0
        self._calibrating: tuple[float, int] | None = None

    def converted(self, done: int, total: int) -> None:
        """Bytes written, of all; the first call tells what was there before."""
        if self._meter is None:
            self._meter = Meter("Converting", total, self.fetched)
            self._meter.found(done)
        else:
            self._meter.advance(done - self._done)
        self._done = done

    def calibrated(self, done: int, total: int) -> None:
        """Layers done, of all. They take about the same time, but say nothing of bytes."""
        if self._calibrating is None:
            self._calibrating = time.monotonic(), done
        began, first = self._calibrating
        a_layer = (time.monotonic() - began) / max(1, done - first)
        rest = f", {a_layer * (total - done) / 60:.0f} min left" if done > first else ""
        _tell(f"Calibrating: layer {done} of {total}{rest}")

    def fetched(self, progress: Progress) -> None:
        if sys.stderr.isatty():
            self._paint(progress)
        elif progress.total and (tenths := 10 * progress.done // progress.total) > self._tenths.get(progress.name, 0):
            self._tenths[progress.name] = tenths
            _tell(_line(progress))

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _paint(self, progress: Progress) -> None:
        if self._bar is None:
            self._bar = _rich_bars()
            self._bar.start()
        if progress.name not in self._tasks:
            self._tasks[progress.name] = self._bar.add_task(one_line(progress.name), total=progress.total)
        self._bar.update(self._tasks[progress.name], completed=progress.done, total=progress.total)


def _line(progress: Progress) -> str:
    left = (progress.total - progress.done) / progress.rate if progress.rate else 0
    rest = f", {left / 60:.0f} min left" if left >= 60 else f", {left:.0f} s left" if left else ""
    rate = f", {gigabytes(progress.rate)}/s" if progress.rate else ""
    return f"{progress.name}: {gigabytes(progress.done)} of {gigabytes(progress.total)}{rate}{rest}"


def _rich_bars() -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    return Progress("{task.description}", *columns, console=Console(stderr=True), transient=True)
