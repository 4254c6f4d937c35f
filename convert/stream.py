"""Write a planned conversion: slab of rows by slab, at its place in a file whose header is written first.

Memory is bounded by the slab, whatever the size of a tensor: one expert, or part of a matrix, is live at a time. A
file carries the suffix `.part` until it is whole and on the disk. Knows nothing of configs, or of why a tensor has
its format (plan.py).
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import mlx.core as mx
import numpy as np

from mlx_qwen35.convert.plan import METADATA, ConversionPlan, Job, OutputFile, RowSpan
from mlx_qwen35.errors import CheckpointError
from mlx_qwen35.hub.headers import TensorEntry

Progress = Callable[[int, int], None]  # bytes written, bytes in all
PART = ".part"
SLAB_WEIGHTS = 8 << 20  # read at once; about 12 bytes for each are live
_STORED = {
    "BF16": (np.uint16, mx.bfloat16),
    "F16": (np.uint16, mx.float16),
    "F32": (np.uint32, mx.float32),
    "U32": (np.uint32, mx.uint32),
}
_OUTPUT = {"BF16": mx.bfloat16, "F16": mx.float16, "F32": mx.float32}
_BITS_OF = {2: mx.uint16, 4: mx.uint32}  # numpy has no bfloat16; bytes are written as integers of the same size


class SourceReader:
    """Rows of stored tensors by `pread`, files kept open; mx.load would read whole tensors."""

    def __init__(self) -> None:
        self._descriptors: dict[Path, int] = {}

    def __enter__(self) -> SourceReader:
        return self

    def __exit__(self, *_: object) -> None:
        for descriptor in self._descriptors.values():
            os.close(descriptor)

    def rows(self, span: RowSpan, width: int) -> mx.array:
        """[count, width] in the stored dtype."""
        integers, dtype = _STORED[span.entry.dtype]
        row_bytes = width * np.dtype(integers).itemsize
        raw = self._read(span.entry, span.first * row_bytes, span.count * row_bytes)
        return mx.array(np.frombuffer(raw, integers).reshape(span.count, width)).view(dtype)

    def _read(self, entry: TensorEntry, start: int, length: int) -> bytes:
        try:
            if entry.file not in self._descriptors:
                self._descriptors[entry.file] = os.open(entry.file, os.O_RDONLY)
            raw = os.pread(self._descriptors[entry.file], length, entry.begin + start)
        except OSError as error:
            raise CheckpointError(f"{entry.file} cannot be read: {error.strerror}.") from None
        if len(raw) != length:
            raise CheckpointError(f"{entry.file} ended inside {entry.name}; it changed while it was read.")
        return raw


def write_files(plan: ConversionPlan, out: Path, progress: Progress | None = None) -> None:
    """Write every file of the plan into `out`; files that are whole already are left as they are.

    progress: called after each slab. An interruption leaves `.part` files, which the next run writes anew.
    Raises CheckpointError when the disk is full.
    """
    done = 0
    with SourceReader() as reader:
        for file in plan.files:
            path = out / file.name
            if not path.exists():
                for written in _write_file(plan, file, path, reader):
                    done += written
                    if progress:
                        progress(done, plan.nbytes)
            else:
                done += file.nbytes
                if progress:
                    progress(done, plan.nbytes)


def _write_file(plan: ConversionPlan, file: OutputFile, path: Path, reader: SourceReader) -> Iterator[int]:
    """Write one file to its `.part`, then make it whole; yields the bytes written after each slab."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + PART)
    header = file_header(file)
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    try:
        write_at(descriptor, header, 0)
        for job in file.jobs:
            yield from _write_job(plan, job, descriptor, len(header), reader)
        os.fsync(descriptor)
    except OSError as error:
        raise CheckpointError(f"{part} cannot be written: {error.strerror}.") from None
    finally:
        os.close(descriptor)
    part.rename(path)
    sync_folder(path.parent)


def file_header(file: OutputFile) -> bytes:
    """The bytes before a file's tensors: the length, and the JSON header padded to a multiple of eight."""
    entries: dict[str, object] = {"__metadata__": METADATA}
    for tensor in sorted(file.tensors, key=lambda t: t.begin):
        place = [tensor.begin, tensor.begin + tensor.nbytes]
        entries[tensor.name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": place}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _write_job(plan: ConversionPlan, job: Job, descriptor: int, data: int, reader: SourceReader) -> Iterator[int]:
    row = 0
    for slab in slabs(plan, job):
        parts = packed(job, reader.rows(slab, job.width))
        for tensor, part in zip(job.tensors, parts):
            write_at(descriptor, _bytes_of(part), data + tensor.begin + tensor.nbytes // job.rows * row)
        row += slab.count
        yield sum(part.nbytes for part in parts)
        # Slabs of another shape would not reuse these buffers, and Metal's count as memory in use.
        mx.clear_cache()


def slabs(plan: ConversionPlan, job: Job) -> Iterator[RowSpan]:
    """The source rows of a parameter, cut so that each piece has at most SLAB_WEIGHTS values."""
    for span in plan.spans(job):
        step = max(1, SLAB_WEIGHTS // job.width)
        for first in range(0, span.count, step):
            yield RowSpan(span.entry, span.first + first, min(step, span.count - first))


def converted(job: Job, stored: mx.array) -> mx.array:
    """Source rows as the values to write, before packing: a norm's offset becomes its factor, then the cast.

    The addition is in the stored dtype, as stock mlx-lm does it, so that both conversions are equal bit for bit.
    """
    return (stored + job.add if job.add else stored).astype(_OUTPUT[job.dtype])


def packed(job: Job, stored: mx.array) -> tuple[mx.array, ...]:
    """What is written for some source rows, in the order of `job.tensors`."""
    values = converted(job, stored)
    if not job.packing:
        return (values,)
    return tuple(mx.quantize(values, job.packing.group_size, job.packing.bits))


def _bytes_of(array: mx.array) -> memoryview:
    integers = mx.contiguous(array).view(_BITS_OF[array.itemsize])
    return np.asarray(integers).data.cast("B")


def write_at(descriptor: int, content: bytes | memoryview, offset: int) -> None:
    view = memoryview(content)
    while view:
        count = os.pwrite(descriptor, view, offset)
        view, offset = view[count:], offset + count


def sync_folder(folder: Path) -> None:
    """Make renames in a folder last through a power cut, where the system can."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
