"""The calibration that one conversion asks for: which texts, which packings, where it is kept until the end.

It lies in the output folder while the conversion runs, so that a killed one takes it up too. Knows how a plan and
calibrate.py fit together, nothing of statistics.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mlx_qwen35.convert import texts
from mlx_qwen35.convert.calibrate import TOKENS, Plan, calibrate
from mlx_qwen35.convert.decoding import decoder
from mlx_qwen35.convert.plan import ConversionPlan
from mlx_qwen35.convert.rounding import CALIBRATED, Statistics
from mlx_qwen35.convert.statistics import SUMMARY, CalibrationStore
from mlx_qwen35.convert.stream import MLX_DTYPES

FOLDER = "calibration-in-progress"
Calibrating = Callable[[int, int], None]  # layers done, in all


def statistics_for(
    plan: ConversionPlan, out: Path, progress: Calibrating | None = None
) -> Callable[[str, int], Statistics] | None:
    """What calibration knows of a parameter's inputs, by parameter and expert; None where the quality wants none."""
    source, options = plan.source, plan.options
    if options.quality not in CALIBRATED or source.is_packed:
        return None
    chosen = texts.read_texts(Path(options.calibration)) if options.calibration else texts.bundled("calibration")
    wanted = Plan(
        {job.target: job.packing for job in plan.jobs if job.parameter.packable},
        options.quality,
        MLX_DTYPES[next(job.parameter.dtype for job in plan.jobs if job.packing)],
    )
    store = calibrate(
        source.survey,
        wanted,
        texts.tokenized(source.folder, chosen),
        out / FOLDER,
        tokens=options.calibration_tokens or TOKENS,
        seed=options.seed,
        progress=progress,
        read=decoder(source),
    )
    experts = {job.target for job in plan.jobs if job.parameter.rows != job.parameter.expert_rows}
    return lambda target, expert: store.statistics(target, expert if target in experts else None)


def finish(out: Path) -> dict[str, Any] | None:
    """Remove what calibration left, and give its summary: tokens, and how many each expert saw."""
    folder = out / FOLDER
    if not (folder / SUMMARY).is_file():
        return None
    summary = CalibrationStore(folder).summary()
    shutil.rmtree(folder)
    return summary
