"""Check a written conversion against its plan and its source, before it is declared complete.

Reads the output as any loader would: headers, scales and samples of the weights. Knows nothing of how it was written.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx

from mlx_qwen35.convert.plan import ConversionPlan, Job, RowSpan
from mlx_qwen35.convert.stream import SourceReader, converted, slabs
from mlx_qwen35.errors import CheckpointError
from mlx_qwen35.hub.headers import TensorEntry, read_checkpoint
from mlx_qwen35.models.weights import survey

# Zero is one of the values that MLX's packing can give, so rounding to the nearest never errs by more than the weight
# itself; wrong rows err by 1.4 times the weights.
ALLOWED_RELATIVE = 0.75
# An element errs by one scale at most, where the end of its group is cut so that zero is hit, and by what rounding
# scale and bias to 16 bits adds: that shows at 8 bits, or where a group lies far from zero.
BIAS_ROUNDING = 2.0**-8
SAMPLED_SLABS = 3  # of each parameter: the first, the last, and one between


@dataclass(frozen=True)
class TensorError:
    """How far a packed parameter is from its source, on samples: root mean squares."""

    name: str
    relative: float  # of the error, to the weights
    of_scale: float  # of the error, to the scales: 0.29 for rounding to the nearest of evenly spaced values


def check_tensors(plan: ConversionPlan, out: Path) -> list[TensorError]:
    """Every planned tensor is there, finite, and near its source. Raises CheckpointError naming what is not."""
    found = read_checkpoint(out).tensors
    planned = {tensor.name: tensor for file in plan.files for tensor in file.tensors}
    wrong = [f"{name} is missing" for name in planned if name not in found]
    wrong += [f"{name} is not planned" for name in found if name not in planned]
    for name, tensor in planned.items():
        if name in found and (found[name].shape, found[name].dtype) != (tensor.shape, tensor.dtype):
            wrong.append(f"{name} is {found[name].dtype} {list(found[name].shape)}")
    _raise(out, wrong)
    errors: list[TensorError] = []
    with SourceReader() as reader:
        for job in plan.jobs:
            if job.packing:
                error, faults = _check_packed(plan, job, found, reader)
                errors.append(error)
            else:
                faults = _check_kept(plan, job, found, reader)
            wrong += faults
            mx.clear_cache()
    _raise(out, wrong)
    return errors


def check_loads(out: Path) -> None:
    """Our own strict loader takes the folder, without a warning. Reads headers and norms, not the weights."""
    found = survey(out)
    if found.conventions.notes:
        raise CheckpointError(f"The conversion in {out} is faulty: {found.conventions.notes[0]}")


def _check_packed(
    plan: ConversionPlan, job: Job, found: dict[str, TensorEntry], reader: SourceReader
) -> tuple[TensorError, list[str]]:
    weight, scales, biases = (found[t.name] for t in job.tensors)
    packing = job.packing
    assert packing is not None
    faults = [f"{e.name} is not finite" for e in (scales, biases) if not _is_finite(job, e, reader)]
    sums = [mx.zeros(4)]

    def compare(span: RowSpan, row: int) -> None:
        source = converted(job, reader.rows(span, job.width)).astype(mx.float32)
        parts = [_packed_rows(entry, job, row, span.count, reader) for entry in (weight, scales, biases)]
        scale, bias = parts[1].astype(mx.float32), parts[2].astype(mx.float32)
        unpacked = mx.dequantize(parts[0], scale, bias, group_size=packing.group_size, bits=packing.bits)
        sums[0] = sums[0] + mx.stack([(a * a).mean() for a in (unpacked - source, source, scale, bias)])
        mx.eval(sums)

    _sample(plan, job, compare)
    error, power, spacing, offset = (float(v) ** 0.5 for v in sums[0].tolist())  # pyright: ignore
    measured = TensorError(weight.name, error / power if power else 0.0, error / spacing if spacing else 0.0)
    # Written so that a NaN fails.
    near = error <= (spacing**2 + (BIAS_ROUNDING * offset) ** 2) ** 0.5 and measured.relative <= ALLOWED_RELATIVE
    if not near:
        faults.append(f"{weight.name} is {measured.relative:.0%} away from the source")
    return measured, faults


def _check_kept(plan: ConversionPlan, job: Job, found: dict[str, TensorEntry], reader: SourceReader) -> list[str]:
    entry = found[job.tensors[0].name]
    faults: list[str] = []

    def compare(span: RowSpan, row: int) -> None:
        source = converted(job, reader.rows(span, job.width))
        written = _packed_rows(entry, job, row, span.count, reader)
        if not mx.isfinite(written).all().item():
            faults.append(f"{entry.name} is not finite")
        elif not mx.array_equal(written, source).item():
            faults.append(f"{entry.name} differs from the source")

    _sample(plan, job, compare)
    return faults[:1]


def _sample(plan: ConversionPlan, job: Job, compare: Callable[[RowSpan, int], None]) -> None:
    """Call `compare` with some slabs of source rows, and the row of the parameter where each begins."""
    pieces, row = [], 0
    for slab in slabs(plan, job):
        pieces.append((slab, row))
        row += slab.count
    chosen = {round(i * (len(pieces) - 1) / (SAMPLED_SLABS - 1)) for i in range(SAMPLED_SLABS)}
    for i in sorted(chosen):
        compare(*pieces[i])


def _packed_rows(entry: TensorEntry, job: Job, row: int, count: int, reader: SourceReader) -> mx.array:
    width = entry.elements // job.rows
    return reader.rows(RowSpan(entry, row, count), width)


def _is_finite(job: Job, entry: TensorEntry, reader: SourceReader) -> bool:
    step = max(1, (8 << 20) // max(1, entry.nbytes // job.rows))
    return all(
        mx.isfinite(_packed_rows(entry, job, row, min(step, job.rows - row), reader)).all().item()
        for row in range(0, job.rows, step)
    )


def _raise(out: Path, wrong: list[str]) -> None:
    if wrong:
        more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise CheckpointError(f"The conversion in {out} is faulty: {'; '.join(wrong[:5])}{more}.")
