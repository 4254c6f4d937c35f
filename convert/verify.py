"""Check a written conversion against its plan and its source, before it is declared complete.

Reads the output as any loader would: headers, scales and samples of the weights. Knows nothing of how it was written.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import mlx.core as mx

from mlx_qwen35.convert.layout import OutputTensor
from mlx_qwen35.convert.plan import ConversionPlan, Job
from mlx_qwen35.convert.reading import Reader, RowSpan
from mlx_qwen35.convert.stream import blocks, converted, files_of
from mlx_qwen35.errors import CheckpointError
from mlx_qwen35.hub.headers import TensorEntry, read_checkpoint
from mlx_qwen35.models.weights import survey

# Zero is one of the values that MLX's packing can give, so rounding to the nearest never errs by more than the weight
# itself; wrong rows err by 1.4 times the weights.
ALLOWED_RELATIVE = 0.75
# An element errs by one scale at most, where the end of its group is cut so that zero is hit, and by what rounding
# scale and bias to 16 bits adds: that shows at 8 bits, or where a group lies far from zero.
BIAS_ROUNDING = 2.0**-8
SAMPLES = 3  # of each parameter: its first rows, its last, and some between
SAMPLE_WEIGHTS = 1 << 18
OUTLIER = 2.0  # times the median error of its format
_SCAN_BYTES = 8 << 20


@dataclass(frozen=True)
class TensorError:
    """How far a packed parameter is from its source, on samples: root mean squares."""

    name: str
    packing: str
    relative: float  # of the error, to the weights
    of_scale: float  # of the error, to the scales: 0.29 for rounding to the nearest of evenly spaced values


def account(plan: ConversionPlan) -> dict[str, int]:
    """How many source tensors were kept, quantized, merged into others, or dropped. Raises CheckpointError naming
    those of which nothing is known."""
    fate: Counter[str] = Counter()
    known: set[str] = set()
    for job in plan.jobs:
        names = set(job.parameter.sources) - known
        merged = len(job.parameter.sources) > 1
        fate["merged and quantized" if merged and job.packing else "quantized" if job.packing else "kept"] += len(names)
        known |= names
    for dropped in plan.dropped:
        fate["dropped"] += len(set(dropped.names) - known)
        known |= set(dropped.names)
    fate["scales, applied"] = len(plan.source.scales.by_weight)
    if forgotten := sorted(set(plan.source.survey.files.tensors) - known):
        raise CheckpointError(
            f"{len(forgotten)} tensors of {plan.source.folder} have no place in the plan ({forgotten[0]}, ...); "
            "this is a defect of the converter."
        )
    return dict(fate)


def check_tensors(plan: ConversionPlan, out: Path, measured: Mapping[str, Any] | None = None) -> list[TensorError]:
    """Every planned tensor is there, finite, and near its source. Raises CheckpointError naming what is not.

    measured: what `check_job` gave for jobs whose sources are not here any more, by parameter
    """
    found = read_checkpoint(out).tensors
    planned = {tensor.name: tensor for file in plan.files for tensor in file.tensors}
    wrong = [f"{name} is missing" for name in planned if name not in found]
    wrong += [f"{name} is not planned" for name in found if name not in planned]
    for name, tensor in planned.items():
        if name in found and (found[name].shape, found[name].dtype) != (tensor.shape, tensor.dtype):
            wrong.append(f"{name} is {found[name].dtype} {list(found[name].shape)}")
        wrong += _wrong_convention(tensor)
    _raise(out, wrong)
    errors: list[TensorError] = []
    with Reader() as reader:
        for job in plan.jobs:
            known = measured.get(job.target) if measured else None
            if known is not None and not all(file.exists() for file in files_of(job)):
                errors += [TensorError(**known)] if known else []
                continue
            error, faults = _check_job(job, [found[t.name] for t in job.tensors], reader)
            errors += [error] if error else []
            wrong += faults
    _raise(out, wrong)
    return sorted(errors, key=lambda e: -e.relative)


def check_job(job: Job, data: int, file: Path) -> dict[str, Any]:
    """The same for one job in a file that is not complete, its tensors' bytes beginning at `data`; empty if kept."""
    entries = [
        TensorEntry(t.name, t.dtype, t.shape, file, data + t.begin, data + t.begin + t.nbytes) for t in job.tensors
    ]
    with Reader() as reader:
        error, faults = _check_job(job, entries, reader)
    _raise(file.parent, faults)
    return vars(error) if error else {}


def check_loads(out: Path) -> None:
    """Our own strict loader takes the folder, without a warning. Reads headers and norms, not the weights."""
    found = survey(out)
    if found.conventions.notes:
        raise CheckpointError(f"The conversion in {out} is faulty: {found.conventions.notes[0]}")


def outliers(errors: list[TensorError]) -> list[TensorError]:
    """Those that lost more than twice what is usual for their format, the largest first."""
    usual = {p: median(e.relative for e in errors if e.packing == p) for p in {e.packing for e in errors}}
    return [error for error in errors if error.relative > OUTLIER * usual[error.packing]]


def _wrong_convention(tensor: OutputTensor) -> Iterator[str]:
    """What every MLX loader relies on and no shape check of the network's own would notice in all of them."""
    if tensor.name.endswith(".A_log") and tensor.dtype != "F32":
        yield f"{tensor.name} is {tensor.dtype}, not F32"
    if tensor.name.endswith(".conv1d.weight") and tensor.shape[-1] != 1:
        yield f"{tensor.name} is {list(tensor.shape)}, its last axis should be 1"


def _check_job(job: Job, entries: list[TensorEntry], reader: Reader) -> tuple[TensorError | None, list[str]]:
    if job.packing is None:
        return None, _check_kept(job, entries[0], reader)
    return _check_packed(job, entries, reader)


def _check_packed(job: Job, entries: list[TensorEntry], reader: Reader) -> tuple[TensorError, list[str]]:
    packing, scales = job.packing, entries[1]
    assert packing is not None
    faults: list[str] = []
    affine = packing.mode == "affine"
    for entry in entries[1:] if affine else []:
        faults += _faults(entry, job, reader)
    if faults:
        return TensorError(job.target, str(packing), 0.0, 0.0), faults
    sums = mx.zeros(4)
    for span, row in _samples(job):
        source = converted(job.parameter, reader.rows(span, job.parameter.width)).astype(mx.float32)
        parts = [_written(entry, job, row, span.count, reader) for entry in entries]
        if affine:
            parts[1:] = [part.astype(mx.float32) for part in parts[1:]]
        biases = parts[2] if affine else None
        unpacked = mx.dequantize(parts[0], parts[1], biases, packing.group_size, packing.bits, packing.mode)
        error = unpacked.astype(mx.float32) - source
        spacing, offset = parts[1:] if affine else (mx.zeros(1), mx.zeros(1))
        sums = sums + mx.stack([(a * a).mean() for a in (error, source, spacing, offset)])
        mx.eval(sums)
    error, power, spacing, offset = (float(v) ** 0.5 for v in sums.tolist())  # pyright: ignore
    measured = TensorError(
        job.target, str(packing), error / power if power else 0.0, error / spacing if spacing else 0.0
    )
    # Written so that a NaN fails.
    near = measured.relative <= ALLOWED_RELATIVE
    if affine:
        near = near and error <= (spacing**2 + (BIAS_ROUNDING * offset) ** 2) ** 0.5
    if not near:
        faults.append(f"{scales.name.removesuffix('.scales')} is {measured.relative:.0%} away from the source")
    return measured, faults


def _check_kept(job: Job, entry: TensorEntry, reader: Reader) -> list[str]:
    for span, row in _samples(job):
        source = converted(job.parameter, reader.rows(span, job.parameter.width))
        try:
            written = _written(entry, job, row, span.count, reader)
        except CheckpointError:
            return [f"{entry.name} is not finite"]
        if not mx.array_equal(written, source).item():
            return [f"{entry.name} differs from the source"]
    return []


def _samples(job: Job) -> list[tuple[RowSpan, int]]:
    """Some blocks of source rows, and the row of the parameter where each begins."""
    pieces = list(blocks(job.parameter, SAMPLE_WEIGHTS * 32))
    chosen = {round(i * (len(pieces) - 1) / (SAMPLES - 1)) for i in range(SAMPLES)}
    return [pieces[i] for i in sorted(chosen)]


def _written(entry: TensorEntry, job: Job, row: int, count: int, reader: Reader) -> mx.array:
    return reader.rows(RowSpan(entry, row, count), entry.elements // job.parameter.rows)


def _faults(entry: TensorEntry, job: Job, reader: Reader) -> list[str]:
    """Reads a whole tensor, since one value that is not finite is enough."""
    step = max(1, _SCAN_BYTES // max(1, entry.nbytes // job.parameter.rows))
    try:
        for row in range(0, job.parameter.rows, step):
            _written(entry, job, row, min(step, job.parameter.rows - row), reader)
    except CheckpointError:
        return [f"{entry.name} is not finite"]
    return []


def _raise(out: Path, wrong: list[str]) -> None:
    if wrong:
        more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise CheckpointError(f"The conversion in {out} is faulty: {'; '.join(wrong[:5])}{more}.")
