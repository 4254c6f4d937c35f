"""Safetensors headers, read and checked before MLX reads the file; and the files that make up a checkpoint.

MLX accepts overlapping tensors, gaps and trailing bytes; a file with any of these is damaged or
hostile, so it is refused here. Knows names, dtypes, shapes and byte ranges; knows nothing of what a
tensor means, and reads no tensor data.
"""

import os
import re
import struct
from collections.abc import Iterable
from dataclasses import dataclass, field
from math import prod
from pathlib import Path, PurePosixPath
from typing import Any

from mlx_qwen35.errors import CheckpointError
from mlx_qwen35.hub.jsonfile import fetch_again, file_size, not_a_download, parse_object, read_json

MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors library itself
MAX_DIMENSIONS = 32
MAX_DIMENSION = 1 << 48
INDEX_NAME = "model.safetensors.index.json"
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")

DTYPE_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "U16": 16, "I16": 16, "U32": 32, "I32": 32, "U64": 64, "I64": 64,
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8, "F16": 16, "BF16": 16, "F32": 32, "F64": 64, "C64": 64,
}  # fmt: skip


@dataclass(frozen=True)
class TensorEntry:
    """One tensor of a safetensors file; its data are the bytes [begin, end) from the start of the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    begin: int
    end: int

    @property
    def nbytes(self) -> int:
        return self.end - self.begin

    @property
    def elements(self) -> int:
        return prod(self.shape)


@dataclass(frozen=True)
class Header:
    """What one safetensors file holds: its tensors by name, and its `__metadata__` (strings)."""

    tensors: dict[str, TensorEntry]
    metadata: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class CheckpointFiles:
    """All tensors of a checkpoint folder by name, the merged metadata of its files, and the files."""

    folder: Path
    tensors: dict[str, TensorEntry]
    metadata: dict[str, str]
    files: tuple[Path, ...]


def read_header(path: Path | str) -> Header:
    """The checked header of a safetensors file; reads the header only.

    Raises CheckpointError: one line with the file, what is wrong with it, and what to do.
    """
    path = Path(path)
    size = file_size(path)
    try:
        with path.open("rb") as file:
            start = file.read(512)
            if instead := not_a_download(start):
                raise CheckpointError(f"{path} {instead}. {fetch_again(path)}")
            length = header_length(start, size, path)
            raw = (start + file.read(max(0, 8 + length - len(start))))[8 : 8 + length]
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror}). {fetch_again(path)}") from None
    return parse_header(raw, path, size)


def header_length(start: bytes, size: int, path: Path) -> int:
    """Bytes of the JSON header, from the start of a file of `size` bytes; checked against the limits."""
    if size < 8 or len(start) < 8:
        raise CheckpointError(f"{path} has {size} bytes, too few for a safetensors file. {fetch_again(path)}")
    (length,) = struct.unpack("<Q", start[:8])
    if length > MAX_HEADER_BYTES:
        raise CheckpointError(
            f"{path} announces a header of {length:,} bytes; at most {MAX_HEADER_BYTES:,} are allowed, "
            f"so it is damaged or no safetensors file. {fetch_again(path)}"
        )
    if 8 + length > size:
        raise CheckpointError(
            f"{path} is cut short: its header alone needs {8 + length:,} bytes, the file has {size:,}. "
            f"{fetch_again(path)}"
        )
    return length


def parse_header(raw: bytes, path: Path, size: int) -> Header:
    """Check the JSON header `raw` of a file of `size` bytes. Raises CheckpointError naming path and fault."""
    try:
        if not raw.startswith(b"{"):
            raise ValueError("has a header that is not a JSON object")
        entries = parse_object(raw)
        metadata = _metadata(entries.pop("__metadata__", {}))
        data = 8 + len(raw)
        tensors = {name: _entry(name, value, path, data) for name, value in entries.items()}
        _check_layout(tensors.values(), data, size)
    except ValueError as error:
        raise CheckpointError(f"{path} {error}. {fetch_again(path)}") from None
    return Header(tensors, metadata)


def _metadata(value: Any) -> dict[str, str]:
    if value is None:  # what mx.save_safetensors writes when it is given none
        return {}
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise ValueError("has a __metadata__ that is not a table of strings")
    return value


def _entry(name: str, value: Any, path: Path, data: int) -> TensorEntry:
    label = f"tensor {name[:120]!r}"
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"describes {label} by something else than dtype, shape and data_offsets")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        raise ValueError(f"gives {label} the unknown dtype {str(dtype)[:40]!r}")
    if not _are_sizes(shape) or len(shape) > MAX_DIMENSIONS:
        raise ValueError(f"gives {label} a shape that is not a short list of sizes")
    if not _are_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise ValueError(f"gives {label} byte offsets that are not [begin, end]")
    bits = prod(shape) * DTYPE_BITS[dtype]
    if bits != 8 * (offsets[1] - offsets[0]):
        given = offsets[1] - offsets[0]
        raise ValueError(f"gives {label} {given:,} bytes where {dtype} of shape {shape} needs {bits / 8:,.0f}")
    return TensorEntry(name, dtype, tuple(shape), path, data + offsets[0], data + offsets[1])


def _are_sizes(value: Any) -> bool:
    # `type(n) is int` keeps out true and false, which are ints to isinstance; 1.0 is a float.
    return isinstance(value, list) and all(type(n) is int and 0 <= n <= MAX_DIMENSION for n in value)


def _check_layout(tensors: Iterable[TensorEntry], data: int, size: int) -> None:
    """The tensors lie side by side from the end of the header to the end of the file."""
    end = data
    for entry in sorted(tensors, key=lambda entry: (entry.begin, entry.end)):
        if entry.begin != end:
            what = "overlaps the one before it" if entry.begin < end else "leaves a gap before it"
            raise ValueError(f"is damaged: tensor {entry.name[:120]!r} {what}")
        end = entry.end
    if end > size:
        raise ValueError(f"is cut short: its header describes {end:,} bytes, the file has {size:,}")
    if end < size:
        raise ValueError(f"has {size - end:,} bytes after its last tensor, which its header does not describe")


def read_checkpoint(folder: Path | str) -> CheckpointFiles:
    """Every tensor of a checkpoint folder, from checked headers; no tensor data is read.

    Follows model.safetensors.index.json where there is one, else takes model*.safetensors; plus
    *.safetensors in a subfolder mtp/. Raises CheckpointError, one line: no weights, only pickled or GGUF
    weights, missing shards, a damaged file, a tensor that the index promises and no file holds, a tensor in
    two files.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is not a folder. Give a model folder or a hub name such as Qwen/Qwen3.5-4B.")
    index = folder / INDEX_NAME
    weight_map = read_index(index) if os.path.lexists(index) else None
    files = _shards(folder, weight_map) if weight_map is not None else _unindexed(folder)
    files += sorted((folder / "mtp").glob("*.safetensors"))
    tensors: dict[str, TensorEntry] = {}
    metadata: dict[str, str] = {}
    for path in files:
        header = read_header(path)
        for name, entry in header.tensors.items():
            if name in tensors:
                raise CheckpointError(
                    f"{folder}: tensor {name[:120]!r} is in {tensors[name].file.name} and in {path.name}. "
                    "Remove the file that does not belong to this checkpoint."
                )
            tensors[name] = entry
        metadata = header.metadata | metadata
    if weight_map is not None:
        _check_promises(folder, weight_map, tensors)
    return CheckpointFiles(folder, tensors, metadata, tuple(files))


def read_index(path: Path) -> dict[str, str]:
    """The weight_map of an index: tensor name -> shard file name, relative and inside the folder."""
    weight_map = read_json(path, MAX_HEADER_BYTES).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(shard, str) for shard in weight_map.values()):
        raise CheckpointError(f"{path} has no weight_map from tensors to files. {fetch_again(path)}")
    for shard in set(weight_map.values()):
        if not is_inside(shard) or not shard.endswith(".safetensors"):
            raise CheckpointError(
                f"{path} names {shard[:120]!r}, which is not a safetensors file inside the folder. "
                "Download the checkpoint again, from a source you trust."
            )
    return weight_map


def is_inside(name: str) -> bool:
    """Whether a file name from a download stays inside its folder: relative, no '..', nothing unprintable."""
    parts = PurePosixPath(name).parts
    return (
        0 < len(name) < 1024
        and name.isprintable()
        and "\\" not in name
        and not name.startswith("/")
        and "/".join(parts) == name
        and not {"..", "."} & set(parts)
        and all(len(part.encode("utf-8", "replace")) < 250 for part in parts)
    )


def _shards(folder: Path, weight_map: dict[str, str]) -> list[Path]:
    names = sorted(set(weight_map.values()))
    missing = [name for name in names if not (folder / name).is_file() and not (folder / name).is_symlink()]
    if missing:
        raise CheckpointError(_missing(folder, missing, len(names)))
    return [folder / name for name in names]


def _unindexed(folder: Path) -> list[Path]:
    files = sorted(folder.glob("model*.safetensors"))
    if not files:
        raise CheckpointError(_no_weights(folder))
    # `model-00002-of-00004.safetensors` and the family's own `model.safetensors-00002-of-00004.safetensors`
    for path in files:
        if match := re.fullmatch(r"(.*-)(\d{5})-of-(\d{5})(\.safetensors)", path.name):
            count = int(match[3])
            names = [f"{match[1]}{i:05d}-of-{match[3]}{match[4]}" for i in range(1, count + 1)]
            if missing := [name for name in names if not (folder / name).is_file()]:
                raise CheckpointError(_missing(folder, missing, count))
    return files


def _missing(folder: Path, missing: list[str], count: int) -> str:
    more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
    return (
        f"{folder} lacks {len(missing)} of {count} weight files: {', '.join(missing[:3])}{more}. "
        "Download them again, or finish the interrupted download."
    )


def _no_weights(folder: Path) -> str:
    names = [path.name for path in folder.iterdir()]
    if any(name.endswith(".gguf") for name in names):
        return f"{folder} holds GGUF weights, which are not read here. Give a folder with safetensors weights."
    if pickles := sorted(name for name in names if name.endswith(PICKLE_SUFFIXES)):
        return (
            f"{folder} holds only pickled weights ({pickles[0]}), which can run code and are never read. "
            "Give a folder with safetensors weights."
        )
    return f"{folder} holds no model*.safetensors. Give a folder with weights, or finish its download."


def _check_promises(folder: Path, weight_map: dict[str, str], tensors: dict[str, TensorEntry]) -> None:
    wrong = [name for name, shard in weight_map.items() if name not in tensors or tensors[name].file != folder / shard]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        shown = ", ".join(f"{name[:120]!r} in {weight_map[name]}" for name in wrong[:3])
        raise CheckpointError(
            f"{folder / INDEX_NAME} promises tensors that are not there: {shown}{more}. "
            "The index and the weights are from different versions; download both again."
        )
