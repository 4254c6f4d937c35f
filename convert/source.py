"""Where a conversion reads from: a folder, or a hub repository of which the headers are here and the rest is coming.

Decides what kind of checkpoint it is and refuses what would be misread. Reads headers and norms, no other weight.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import mlx.core as mx

from mlx_qwen35.convert.arrival import Arrival
from mlx_qwen35.convert.fp8 import ADVICE, FP8, BlockScales, split_scales
from mlx_qwen35.convert.options import listed
from mlx_qwen35.errors import CheckpointError, ConfigError
from mlx_qwen35.hub.headers import CheckpointFiles, TensorEntry, read_checkpoint
from mlx_qwen35.hub.http import Hub
from mlx_qwen35.hub.jsonfile import read_json
from mlx_qwen35.models.config import ModelConfig, parse_config
from mlx_qwen35.models.tensor_names import plan_tensors
from mlx_qwen35.models.weights import Survey, survey_files

PLAIN_DTYPES = ("BF16", "F16", "F32")
FP8_NOTE = (
    "WARNING: the source is FP8, which has lost about as much as a good 4-bit quantization does. "
    "The BF16 original converts better."
)


@dataclass(frozen=True)
class Source:
    """A checkpoint whose headers fit its config. config: config.json as it is   identity: changes with its content"""

    name: str
    identity: str
    folder: Path
    config: dict[str, Any]
    survey: Survey
    scales: BlockScales
    notes: tuple[str, ...]
    arrival: Arrival | None = None  # None: all files are here

    @property
    def model_config(self) -> ModelConfig:
        return self.survey.config

    @property
    def is_packed(self) -> bool:
        """Whether it is an MLX conversion with packed weights already."""
        return self.survey.config.quantization is not None


def open_source(source: str | Path, stream: bool = True) -> Source:
    """A local folder, hub id or short name. stream: whether weights may still be on the hub when this returns.

    Raises UserError, one line, for anything that cannot be converted.
    """
    if isinstance(source, Path):
        return _from_folder(source, source.resolve().name)
    # Only a name needs the hub.
    from mlx_qwen35.hub.download import cached_snapshot, download
    from mlx_qwen35.hub.names import resolve
    from mlx_qwen35.hub.remote import remote_headers

    found = resolve(source)
    if found.path is not None:
        # `demo` is no folder of that name, and keeps it.
        named = Path(source).expanduser().exists()
        return _from_folder(found.path, found.path.resolve().name if named else found.name)
    hub = Hub.from_environment()
    name = found.hub_id.rpartition("/")[2]
    if snapshot := cached_snapshot(found.hub_id, None, hub):
        return _from_folder(snapshot, name, found.hub_id)
    if stream and not hub.offline:
        remote = remote_headers(found.hub_id, hub=hub)
        arrival = Arrival(found.hub_id, remote.commit, hub)
        tensors = {n: replace(t, file=_in_snapshot(t, found.hub_id, arrival)) for n, t in remote.tensors.items()}
        if plan_tensors(tensors).original_layout:
            identity = f"{found.hub_id}@{remote.commit}"
            return _checked(name, identity, arrival.folder, remote.config, tensors, {}, arrival)
    return _from_folder(download(found.hub_id, hub=hub), name, found.hub_id)


def _in_snapshot(entry: TensorEntry, hub_id: str, arrival: Arrival) -> Path:
    return arrival.folder / entry.file.relative_to(hub_id)


def _from_folder(folder: Path, name: str, hub_id: str = "") -> Source:
    if not (folder / "config.json").is_file():
        raise ConfigError(f"No config.json in {folder}. Give a model folder or a hub name such as Qwen/Qwen3.5-4B.")
    config = read_json(folder / "config.json")
    _refuse_other_families(config, folder)
    files = read_checkpoint(folder)
    if hub_id:
        identity = f"{hub_id}@{folder.name}"
    else:
        status = [(path, path.stat()) for path in files.files]
        identity = "\n".join(f"{path.resolve()} {s.st_size} {s.st_mtime_ns}" for path, s in status)
    return _checked(name, identity, folder, config, files.tensors, files.metadata, None)


def _refuse_other_families(config: dict[str, Any], folder: Path) -> None:
    """Before the headers of what may be any model at all are read."""
    parse_config({k: v for k, v in config.items() if k != "quantization_config"}, str(folder / "config.json"))


def _checked(
    name: str,
    identity: str,
    folder: Path,
    config: dict[str, Any],
    tensors: Mapping[str, TensorEntry],
    metadata: dict[str, str],
    arrival: Arrival | None,
) -> Source:
    plain_config, plain, scales = split_scales(config, tensors, str(folder))
    model_config = parse_config(plain_config, str(folder / "config.json"))
    files = CheckpointFiles(folder, plain, metadata, tuple({entry.file: None for entry in plain.values()}))
    # Originals say by their layout how norms are stored; what has not arrived cannot be looked at. Verified at the end.
    survey = survey_files(model_config, files, (lambda recipe: mx.zeros(1)) if arrival else None)
    if not model_config.quantization:
        _refuse_dtypes(plain)
    # What becomes of the vision tower and the MTP layer, the plan says.
    notes = [note for note in survey.notes if "vision tensors were skipped" not in note]
    notes += [FP8_NOTE] if scales.by_weight else []
    return Source(name, identity, folder, config, survey, scales, tuple(notes), arrival)


def _refuse_dtypes(tensors: Mapping[str, TensorEntry]) -> None:
    for entry in tensors.values():
        if entry.dtype not in (*PLAIN_DTYPES, FP8):
            raise CheckpointError(
                f"{entry.name} in {entry.file} is {entry.dtype}; the converter reads {listed(PLAIN_DTYPES)}, and FP8 "
                f"in blocks. {ADVICE}"
            )
