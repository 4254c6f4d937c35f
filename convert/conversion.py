"""One call: a checkpoint in, an MLX checkpoint out. Plan, write, verify; the folder is complete when this returns.

While a conversion runs, its folder holds a journal and no config.json, so that nothing takes it for a model. The next
run of the same conversion continues from what the journal says is done.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlx_qwen35.convert import emit, verify
from mlx_qwen35.convert.calibrating import Calibrating, finish, statistics_for
from mlx_qwen35.convert.drafts import DraftAgreement, draft_agreement
from mlx_qwen35.convert.journal import PART, Journal, is_interrupted
from mlx_qwen35.convert.options import Options
from mlx_qwen35.convert.plan import ConversionPlan, plan_conversion
from mlx_qwen35.convert.rounding import CALIBRATED
from mlx_qwen35.convert.source import open_source
from mlx_qwen35.convert.stream import Progress, disk_full, sync_folder, write_files
from mlx_qwen35.convert.verify import TensorError
from mlx_qwen35.errors import CheckpointError
from mlx_qwen35.hub.progress import ProgressCallback, gigabytes

SPARE_DISK_BYTES = 64 << 20


@dataclass(frozen=True)
class ConversionReport:
    """What was written. `errors` are the packed parameters' distances from the source, the largest first.

    fate: how many source tensors were kept, quantized, merged, dropped   drafts: None where it was not measured
    calibration: what it ran on and how many tokens each expert saw; None where there was none
    """

    out: Path
    plan: ConversionPlan
    errors: tuple[TensorError, ...]
    fate: dict[str, int]
    drafts: DraftAgreement | None
    copied: tuple[str, ...]
    notes: tuple[str, ...]
    seconds: float
    calibration: dict[str, Any] | None = None

    @property
    def nbytes(self) -> int:
        return self.plan.nbytes

    @property
    def bits_per_weight(self) -> float:
        return self.plan.bits_per_weight


def convert(
    source: str | Path,
    out: Path | None = None,
    options: Options | None = None,
    *,
    progress: Progress | None = None,
    fetching: ProgressCallback | None = None,
    calibrating: Calibrating | None = None,
    announce: Callable[[ConversionPlan, Path], None] | None = None,
) -> ConversionReport:
    """Convert a checkpoint to an MLX format, as stock mlx-lm reads it.

    source: a local folder, a hub id or a short name   out: by default ./<name>-<bits>bit
    progress: called with bytes written and bytes in all   fetching: called while shards of a hub source arrive
    calibrating: called with layers done and layers in all, for the qualities that want it
    announce: called once, before anything is written
    Raises UserError, one line, for anything that cannot be converted or written.
    """
    started, options = time.monotonic(), options or Options()
    plan = plan_conversion(open_source(source, stream=options.quality not in CALIBRATED), options)
    out = out if out is not None else Path(default_name(plan))
    fate = verify.account(plan)
    journal = begin(plan, out)
    try:
        if announce:
            announce(plan, out)
        _prepare_arrivals(plan, fetching)
        check = verify.check_job if options.delete_source_shards else None
        write_files(plan, out, journal, progress, statistics_for(plan, out, calibrating), check)
        errors = verify.check_tensors(plan, out, journal.done)
        emit.write_index(plan, out)
        copied = emit.copy_files(plan.source.folder, out)
        calibration = finish(out)
        emit.write_plan(plan, errors, fate, calibration, out)
        _complete(plan, out, journal)
    except OSError as error:
        raise disk_full(out, error) from None
    finally:
        journal.close()
        for each in (plan.source, plan.mtp):
            if each and each.arrival:
                each.arrival.close()
    drafts = _drafts(plan, out)
    seconds = time.monotonic() - started
    return ConversionReport(out, plan, tuple(errors), fate, drafts, copied, plan.source.notes, seconds, calibration)


def default_name(plan: ConversionPlan) -> str:
    options = plan.options
    if limit := options.size or options.fit:
        return f"{plan.source.name}-{limit / 1e9:.0f}GB"
    return f"{plan.source.name}-" + (options.mode if options.mode != "affine" else f"{plan.packing.bits}bit")


def begin(plan: ConversionPlan, out: Path) -> Journal:
    """Make `out`, or take up an interrupted run of the same plan; check the space on its disk."""
    for source in (plan.source, plan.mtp):
        if source is not None and source.folder.resolve() == out.resolve():
            raise CheckpointError(f"{out} is the source itself. Give another folder with --out.")
    if out.exists() and not out.is_dir():
        raise CheckpointError(f"{out} is a file. Give another folder with --out.")
    if out.is_dir() and any(out.iterdir()) and not is_interrupted(out):
        raise CheckpointError(f"{out} is not empty. Remove it, or give another folder with --out.")
    fresh = not out.exists()
    done = sum(_written(path) for path in out.rglob("*.safetensors*")) if out.is_dir() else 0
    _check_disk(plan, out, plan.nbytes - done)
    try:
        out.mkdir(parents=True, exist_ok=True)
        journal = Journal(plan, out)
        for part in out.rglob(f"*.json{PART}"):
            part.unlink()
        (out / "config.json").unlink(missing_ok=True)
    except OSError as error:
        if fresh:
            shutil.rmtree(out, ignore_errors=True)
        raise CheckpointError(f"{out} cannot be written: {error.strerror}.") from None
    return journal


def _written(path: Path) -> int:
    """Bytes a file has on the disk; its size says more before it is filled."""
    return path.stat().st_blocks * 512


def _check_disk(plan: ConversionPlan, out: Path, needed: int) -> None:
    place = next(p for p in (out.absolute(), *out.absolute().parents) if p.exists())
    needed = max(0, needed) + SPARE_DISK_BYTES
    for source in (plan.source, plan.mtp):
        if source and source.arrival:
            cache = next(p for p in (source.arrival.folder, *source.arrival.folder.parents) if p.exists())
            coming = source.arrival.coming_bytes(source.survey.files.files)
            if cache.stat().st_dev == place.stat().st_dev:
                needed += coming
    free = shutil.disk_usage(place).free
    if free < needed:
        raise CheckpointError(
            f"{out} needs {gigabytes(needed)}, and {gigabytes(free)} are free there. "
            "Free some space, or give a folder on another disk with --out."
        )


def _prepare_arrivals(plan: ConversionPlan, fetching: ProgressCallback | None) -> None:
    for source in (plan.source, plan.mtp):
        if source and source.arrival:
            source.arrival.progress = fetching or source.arrival.progress
            source.arrival.delete_used = plan.options.delete_source_shards
            source.arrival.fetch_small_files()


def _complete(plan: ConversionPlan, out: Path, journal: Journal) -> None:
    """Write config.json, which makes the folder a model; take it away again if the loader refuses it."""
    config = out / "config.json"
    emit.write_json(config, emit.output_config(plan))
    try:
        verify.check_loads(out)
    except BaseException:
        config.unlink(missing_ok=True)
        raise
    journal.remove()
    sync_folder(out)


def _drafts(plan: ConversionPlan, out: Path) -> DraftAgreement | None:
    source = plan.mtp or plan.source
    if not (plan.has_mtp and plan.options.check_drafts):
        return None
    if not all(file.exists() for file in source.survey.files.files):
        return None  # deleted as they were used up
    return draft_agreement(source, out)
