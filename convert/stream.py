"""Write a planned conversion: block of rows by block, at its place in files whose headers are written first.

Memory is bounded by the block, whatever the size of a tensor or of the model. A file carries the suffix `.part` until
all its jobs are done. Knows nothing of configs, or of why a tensor has its format (plan.py).
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_qwen35.convert.journal import PART, Journal
from mlx_qwen35.convert.parameters import Parameter
from mlx_qwen35.convert.plan import ConversionPlan, Job, OutputFile
from mlx_qwen35.convert.reading import Reader, RowSpan
from mlx_qwen35.convert.rounding import quality_of, round_rows
from mlx_qwen35.errors import CheckpointError

Progress = Callable[[int, int], None]  # bytes written, bytes in all
Check = Callable[[Job, int, Path], Any]  # a job, where its file's data begin, the file -> what was measured
Statistics = Callable[[str, int], Any]  # a parameter's name, the expert -> what calibration knows of its inputs
GROUP_BYTES = 32 << 20  # written between two syncs: what a crash can cost, unless one tensor is larger
BYTES_A_WEIGHT = 32  # of working memory while a block is rounded
MLX_DTYPES = {"BF16": mx.bfloat16, "F16": mx.float16, "F32": mx.float32, "U32": mx.uint32, "U8": mx.uint8}
_BITS_OF = {1: mx.uint8, 2: mx.uint16, 4: mx.uint32}  # numpy has no bfloat16


def write_files(
    plan: ConversionPlan,
    out: Path,
    journal: Journal,
    progress: Progress | None = None,
    statistics: Statistics | None = None,
    check: Check | None = None,
) -> None:
    """Write every file of the plan into `out`; jobs that the journal knows are left as they are.

    check: called with each job before it is recorded   progress: called after each block
    Raises CheckpointError when the disk is full, and for a source that changes or is damaged.
    """
    try:
        _create_files(plan, out, journal)
    except OSError as error:
        raise disk_full(out, error) from None
    sources = _Sources(plan, journal)
    done = sum(job.nbytes for job in plan.jobs if job.target in journal.done)
    with Reader(sources.wait_for) as reader:
        for file in plan.files:
            if (out / file.name).exists():
                continue
            writer = _FileWriter(plan, file, out / file.name, reader, statistics)
            try:
                for group in _groups(job for job in file.jobs if job.target not in journal.done):
                    for written in writer.write(group):
                        done += written
                        if progress:
                            progress(done, plan.nbytes)
                    measured = [(job.target, check(job, writer.data, writer.part) if check else None) for job in group]
                    writer.sync()
                    journal.finished(measured)
                    for used_up in sources.used(group):
                        reader.forget(used_up)
                        sources.release(used_up)
                writer.complete()
            except OSError as error:
                raise disk_full(out, error) from None
            finally:
                writer.close()


def disk_full(out: Path, error: OSError) -> CheckpointError:
    """The line for a person when writing failed."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return CheckpointError(
            f"The disk of {out} is full. Free some space and run the same command again: it continues where it is."
        )
    reason = (error.strerror or str(error)).lower()
    return CheckpointError(
        f"{out} cannot be written: {reason}. Once that is mended, run the same command again: it continues."
    )


def blocks(parameter: Parameter, block_bytes: int, by_expert: bool = False) -> Iterator[tuple[RowSpan, int]]:
    """The source rows of a parameter in pieces that fit the working memory, and the row where each begins in it.

    by_expert: whether a piece ends where an expert does
    """
    step = max(1, block_bytes // BYTES_A_WEIGHT // parameter.width)
    row = 0
    for span in parameter.spans:
        first = 0
        while first < span.count:
            count = min(step, span.count - first)
            if by_expert:
                count = min(count, parameter.expert_rows - row % parameter.expert_rows)
            yield RowSpan(span.entry, span.first + first, count, span.scale, span.block), row
            first, row = first + count, row + count


def converted(parameter: Parameter, stored: mx.array) -> mx.array:
    """Source rows as the values to write, before packing: a norm's offset becomes its factor, then the cast.

    The addition is in the stored dtype, as stock mlx-lm does it, so that both conversions are equal bit for bit.
    """
    if parameter.patches:
        stored = stored.reshape(-1, *parameter.patches).moveaxis(1, -1).reshape(stored.shape)
    if parameter.add:
        stored = stored + parameter.add
    return stored.astype(MLX_DTYPES[parameter.dtype])


class _FileWriter:
    """One output file, under its `.part` name until it is complete."""

    def __init__(
        self, plan: ConversionPlan, file: OutputFile, path: Path, reader: Reader, statistics: Statistics | None
    ) -> None:
        self.plan, self.path, self.reader, self.statistics = plan, path, reader, statistics
        self.part = part_of(path)
        self.data = len(file.header())
        self._descriptor = os.open(self.part, os.O_WRONLY)

    def write(self, jobs: list[Job]) -> Iterator[int]:
        """Write some jobs; yields the bytes written after each block."""
        options = self.plan.options
        for job in jobs:
            for span, row in blocks(job.parameter, options.block_bytes, self.statistics is not None):
                values = converted(job.parameter, self.reader.rows(span, job.parameter.width))
                parts = self._packed(job, values, row)
                for tensor, part in zip(job.tensors, parts):
                    _write_at(self._descriptor, _bytes_of(part), self._offset(job, tensor, row))
                yield sum(part.nbytes for part in parts)
                # Blocks of another shape would not reuse these buffers, and Metal's count as memory in use.
                if mx.get_cache_memory() > options.block_bytes:
                    mx.clear_cache()

    def _packed(self, job: Job, values: mx.array, row: int) -> list[mx.array]:
        """In the order of `job.tensors`."""
        if job.packing is None:
            return [values]
        known = self.statistics and self.statistics(job.target, row // job.parameter.expert_rows)
        packed = round_rows(values, job.packing, quality_of(self.plan.options.quality, job.target), known)
        return [part for part in packed if part is not None]

    def _offset(self, job: Job, tensor: Any, row: int) -> int:
        return self.data + tensor.begin + tensor.nbytes // job.parameter.rows * row

    def sync(self) -> None:
        os.fsync(self._descriptor)

    def complete(self) -> None:
        self.part.rename(self.path)
        sync_folder(self.path.parent)

    def close(self) -> None:
        os.close(self._descriptor)


class _Sources:
    """Which source files are still needed, and those that are on their way."""

    def __init__(self, plan: ConversionPlan, journal: Journal) -> None:
        self._arrivals = [s.arrival for s in (plan.source, plan.mtp) if s is not None and s.arrival is not None]
        self._needed_by: dict[Path, set[str]] = {}
        for job in plan.jobs:
            if job.target not in journal.done:
                for file in files_of(job):
                    self._needed_by.setdefault(file, set()).add(job.target)
        for arrival in self._arrivals:
            arrival.start([file for file in self._needed_by if arrival.covers(file)])

    def wait_for(self, file: Path) -> None:
        for arrival in self._arrivals:
            if arrival.covers(file):
                arrival.wait_for(file)

    def used(self, jobs: list[Job]) -> list[Path]:
        """The files that nothing needs any more, now that these jobs are done."""
        files = {file for job in jobs for file in files_of(job)}
        for job in jobs:
            for file in files_of(job):
                self._needed_by[file].discard(job.target)
        return [file for file in files if not self._needed_by[file]]

    def release(self, file: Path) -> None:
        for arrival in self._arrivals:
            if arrival.covers(file):
                arrival.release(file)


def files_of(job: Job) -> list[Path]:
    """The source files a job reads, in the order in which it reads them."""
    entries = [e for span in job.parameter.spans for e in (span.entry, span.scale) if e is not None]
    return list(dict.fromkeys(entry.file for entry in entries))


def part_of(path: Path) -> Path:
    return path.with_name(path.name + PART)


def sync_folder(folder: Path) -> None:
    """Make renames in a folder last through a power cut, where the system can."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _create_files(plan: ConversionPlan, out: Path, journal: Journal) -> None:
    """Every file at its full size, its header written; what the journal says of a file that is gone is forgotten."""
    for file in plan.files:
        path, header = out / file.name, file.header()
        if journal.is_new:
            path.unlink(missing_ok=True)
        elif path.exists():
            journal.finished((job.target, None) for job in file.jobs if job.target not in journal.done)
            continue
        part, size = part_of(path), len(header) + file.nbytes
        if part.exists() and part.stat().st_size == size and not journal.is_new:
            continue
        journal.forget(job.target for job in file.jobs)
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        try:
            _write_at(descriptor, header, 0)
            os.ftruncate(descriptor, size)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        sync_folder(path.parent)


def _groups(jobs: Iterator[Job]) -> Iterator[list[Job]]:
    group: list[Job] = []
    for job in jobs:
        group.append(job)
        if sum(j.nbytes for j in group) >= GROUP_BYTES:
            yield group
            group = []
    if group:
        yield group


def _bytes_of(array: mx.array) -> memoryview:
    integers = mx.contiguous(array).view(_BITS_OF[array.itemsize])
    return np.asarray(integers).data.cast("B")


def _write_at(descriptor: int, content: bytes | memoryview, offset: int) -> None:
    view = memoryview(content)
    while view:
        count = os.pwrite(descriptor, view, offset)
        view, offset = view[count:], offset + count
