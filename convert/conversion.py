"""One call: a checkpoint in, an MLX checkpoint out. Plan, write, verify; the folder is complete when this returns.

While a conversion runs, its folder holds a marker and no config.json, so that nothing takes it for a model. The next
run of the same conversion continues from the files that are whole.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlx_qwen35 import __version__
from mlx_qwen35.convert import verify
from mlx_qwen35.convert.plan import MTP_FILE, ConversionPlan, plan_conversion
from mlx_qwen35.convert.stream import PART, Progress, file_header, sync_folder, write_files
from mlx_qwen35.convert.verify import TensorError
from mlx_qwen35.errors import CheckpointError
from mlx_qwen35.hub.headers import INDEX_NAME
from mlx_qwen35.hub.jsonfile import read_json
from mlx_qwen35.hub.progress import gigabytes

MARKER = "conversion-in-progress.json"
SPARE_DISK_BYTES = 64 << 20
# What goes with the weights, byte for byte: re-saved tokenizers have lost their added tokens. Never code.
_COPIED = re.compile(
    r"(tokenizer|tokenizer_config|special_tokens_map|added_tokens|vocab|chat_template|generation_config"
    r"|preprocessor_config|video_preprocessor_config|processor_config)\.json"
    r"|merges\.txt|tokenizer\.model|[\w.-]+\.tiktoken|chat_template\.jinja|(LICENSE|NOTICE)(\.md|\.txt)?"
)
_TEMPLATES = "additional_chat_templates"


@dataclass(frozen=True)
class ConversionReport:
    """What was written. `errors` are the packed parameters' distances from the source, the largest first."""

    out: Path
    plan: ConversionPlan
    errors: tuple[TensorError, ...]
    copied: tuple[str, ...]
    notes: tuple[str, ...]
    seconds: float

    @property
    def nbytes(self) -> int:
        return self.plan.nbytes

    @property
    def bits_per_weight(self) -> float:
        return self.plan.bits_per_weight


def convert(
    source: str | Path,
    out: Path | None = None,
    bits: int = 4,
    group_size: int = 64,
    progress: Progress | None = None,
    announce: Callable[[ConversionPlan, Path], None] | None = None,
) -> ConversionReport:
    """Convert a checkpoint to MLX's affine format, as stock mlx-lm reads it.

    source: a local folder, a hub id or a short name   out: by default ./<name>-<bits>bit
    progress: called with bytes written and bytes in all   announce: called once, before anything is written
    Raises UserError, one line, for anything that cannot be converted or written.
    """
    started = time.monotonic()
    folder, name = find_source(source)
    plan = plan_conversion(folder, bits, group_size)
    out = out if out is not None else Path(f"{name}-{bits}bit")
    prepare_folder(plan, out)
    if announce:
        announce(plan, out)
    write_files(plan, out, progress)
    errors = verify.check_tensors(plan, out)
    _write_index(plan, out)
    copied = copy_files(folder, out)
    _complete(plan, folder, out)
    errors.sort(key=lambda e: -e.relative)
    return ConversionReport(out, plan, tuple(errors), copied, plan.source.notes, time.monotonic() - started)


def find_source(source: str | Path) -> tuple[Path, str]:
    """The folder of a source, downloaded if need be, and the name its conversion goes by."""
    if isinstance(source, Path):
        return source, source.resolve().name
    # Only a name needs the hub.
    from mlx_qwen35.hub.download import download
    from mlx_qwen35.hub.names import resolve

    found = resolve(source)
    if found.path is not None:
        # `demo` is no folder of that name, and keeps it.
        return found.path, found.path.resolve().name if Path(source).expanduser().exists() else found.name
    return download(found.hub_id), found.hub_id.rpartition("/")[2]


def prepare_folder(plan: ConversionPlan, out: Path) -> None:
    """Make `out`, or take up an interrupted run of the same plan; check the space on its disk."""
    if plan.source.files.folder.resolve() == out.resolve():
        raise CheckpointError(f"{out} is the source itself. Give another folder with --out.")
    marker, identity = out / MARKER, {"plan": _digest(plan), "program": f"mlx_qwen35 {__version__}"}
    whole = 0
    if out.is_dir() and any(out.iterdir()):
        if not marker.is_file():
            raise CheckpointError(f"{out} is not empty. Remove it, or give another folder with --out.")
        if _read_marker(marker) != identity:
            raise CheckpointError(
                f"{out} holds an interrupted conversion of another source or format. "
                "Remove it, or give another folder with --out."
            )
        whole = sum(f.nbytes for f in plan.files if (out / f.name).exists())
    elif out.exists() and not out.is_dir():
        raise CheckpointError(f"{out} is a file. Give another folder with --out.")
    _check_disk(out, plan.nbytes - whole)
    try:
        out.mkdir(parents=True, exist_ok=True)
        for part in out.rglob(f"*{PART}"):
            part.unlink()
        (out / "config.json").unlink(missing_ok=True)
        _write(marker, identity)
    except OSError as error:
        raise CheckpointError(f"{out} cannot be written: {error.strerror}.") from None


def copy_files(folder: Path, out: Path) -> tuple[str, ...]:
    """Tokenizer, template, generation and preprocessor files, and the licence: byte for byte."""
    files = [p for p in folder.iterdir() if _COPIED.fullmatch(p.name)] + list(folder.glob(f"{_TEMPLATES}/*.jinja"))
    names = []
    for path in sorted(files):
        if path.is_file():
            target = out / path.relative_to(folder)
            target.parent.mkdir(exist_ok=True)
            shutil.copyfile(path, target)
            _sync(target)
            names.append(str(target.relative_to(out)))
    return tuple(names)


def output_config(plan: ConversionPlan, source: dict[str, Any]) -> dict[str, Any]:
    """The source's config.json with the packing, and without what the output does not have."""
    config = {k: v for k, v in source.items() if k not in ("vision_config", "quantization_config", "auto_map")}
    text = config["text_config"] = dict(config["text_config"]) if "text_config" in config else {}
    if not text:
        del config["text_config"]
        text = config
    # Stock mlx-lm knows the family by these two names, flat configs included.
    config["model_type"] = config["model_type"].removesuffix("_text")
    has_mtp = any(file.name == MTP_FILE for file in plan.files)
    if "mtp_num_hidden_layers" in text:
        text["mtp_num_hidden_layers"] = int(has_mtp)
    if plan.source.config.tie_embeddings:
        text["tie_word_embeddings"] = True  # stock mlx-lm reads it here only
    quantization: dict[str, Any] = {"group_size": plan.packing.group_size, "bits": plan.packing.bits, "mode": "affine"}
    for job in plan.jobs:
        if job.packing and job.packing != plan.packing:
            path = job.recipe.target.removesuffix(".weight")
            quantization[path] = {"group_size": job.packing.group_size, "bits": job.packing.bits}
    return {**config, "quantization": quantization, "quantization_config": quantization}


def _complete(plan: ConversionPlan, folder: Path, out: Path) -> None:
    """Write config.json, which makes the folder a model; take it away again if the loader refuses it."""
    config = out / "config.json"
    _write(config, output_config(plan, read_json(folder / "config.json")))
    try:
        verify.check_loads(out)
    except BaseException:
        config.unlink(missing_ok=True)
        raise
    (out / MARKER).unlink()
    sync_folder(out)


def _write_index(plan: ConversionPlan, out: Path) -> None:
    trunk = [file for file in plan.files if file.name != MTP_FILE]
    weight_map = {tensor.name: file.name for file in trunk for tensor in file.tensors}
    sizes = {
        "total_size": sum(file.nbytes for file in trunk),
        "total_parameters": sum(job.rows * job.width for file in trunk for job in file.jobs),
    }
    _write(out / INDEX_NAME, {"metadata": sizes, "weight_map": dict(sorted(weight_map.items()))})


def _digest(plan: ConversionPlan) -> str:
    """Changes with the source's files, the formats and the layout: what a continued run must share."""
    digest = hashlib.sha256()
    for path in plan.source.files.files:
        status = path.stat()
        digest.update(f"{path.resolve()} {status.st_size} {status.st_mtime_ns}\n".encode())
    for file in plan.files:
        digest.update(file.name.encode() + file_header(file))
    return digest.hexdigest()


def _read_marker(marker: Path) -> dict[str, Any] | None:
    try:
        return read_json(marker)
    except CheckpointError:  # cut short by a crash
        return None


def _check_disk(out: Path, needed: int) -> None:
    place = next(p for p in (out.absolute(), *out.absolute().parents) if p.exists())
    free = shutil.disk_usage(place).free
    if free < needed + SPARE_DISK_BYTES:
        raise CheckpointError(
            f"{out} needs {gigabytes(needed + SPARE_DISK_BYTES)}, and {gigabytes(free)} are free there. "
            "Free some space, or give a folder on another disk with --out."
        )


def _write(path: Path, content: dict[str, Any]) -> None:
    """JSON, whole or not at all."""
    part = path.with_name(path.name + PART)
    part.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    _sync(part)
    part.replace(path)


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
