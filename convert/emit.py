"""What stands beside the weights of a conversion: config, index, tokenizer and template files, the plan as it was.

Files are written whole or not at all. Tokenizers and templates are copied byte for byte: re-saved ones have lost their
added tokens. Code is never copied.
"""

from __future__ import annotations

import filecmp
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

from mlx_qwen35 import __version__
from mlx_qwen35.convert.journal import PART
from mlx_qwen35.convert.layout import MTP_FILE
from mlx_qwen35.convert.packing import Packing
from mlx_qwen35.convert.plan import INLINE_MTP, ConversionPlan
from mlx_qwen35.convert.verify import TensorError, outliers
from mlx_qwen35.errors import CheckpointError
from mlx_qwen35.hub.headers import INDEX_NAME

PLAN_FILE = "quant_plan.json"
_COPIED = re.compile(
    r"(tokenizer|tokenizer_config|special_tokens_map|added_tokens|vocab|chat_template|generation_config"
    r"|preprocessor_config|video_preprocessor_config|processor_config)\.json"
    r"|merges\.txt|tokenizer\.model|[\w.-]+\.tiktoken|chat_template\.jinja|(LICENSE|NOTICE)(\.md|\.txt)?"
)
_TEMPLATES = "additional_chat_templates"


def copy_files(folder: Path, out: Path) -> tuple[str, ...]:
    """Tokenizer, template, generation and preprocessor files, and the licence: byte for byte, and compared."""
    files = [p for p in folder.iterdir() if _COPIED.fullmatch(p.name)] + list(folder.glob(f"{_TEMPLATES}/*.jinja"))
    names = []
    for path in sorted(files):
        if path.is_file():
            target = out / path.relative_to(folder)
            target.parent.mkdir(exist_ok=True)
            shutil.copyfile(path, target)
            _sync(target)
            if not filecmp.cmp(path, target, shallow=False):
                raise CheckpointError(f"{target} differs from {path}; it changed while it was copied.")
            names.append(str(target.relative_to(out)))
    return tuple(names)


def output_config(plan: ConversionPlan) -> dict[str, Any]:
    """The source's config.json with the packing, and without what the output does not have."""
    source = plan.source.config
    without = ("quantization_config", "auto_map", *(() if plan.has_vision else ("vision_config",)))
    config = {k: v for k, v in source.items() if k not in without}
    text = config["text_config"] = dict(config["text_config"]) if "text_config" in config else {}
    if not text:
        del config["text_config"]
        text = config
    # Stock mlx-lm knows the family by these two names, flat configs included.
    config["model_type"] = config["model_type"].removesuffix("_text")
    if "mtp_num_hidden_layers" in text or plan.has_mtp:
        text["mtp_num_hidden_layers"] = int(plan.has_mtp)
    if plan.source.model_config.tie_embeddings:
        text["tie_word_embeddings"] = True  # stock mlx-lm reads it here only
    quantization = quantization_of(plan)
    return {**config, "quantization": quantization, "quantization_config": quantization}


def quantization_of(plan: ConversionPlan) -> dict[str, Any]:
    """The settings as stock mlx-lm writes them: one default, and each module that has others."""
    base = plan.packing
    found: dict[str, Any] = {"group_size": base.group_size, "bits": base.bits, "mode": base.mode}
    if plan.source.is_packed:
        found = dict(plan.source.config.get("quantization") or plan.source.config["quantization_config"])
    for job in plan.jobs:
        if job.packing and job.packing != base:
            for path in _paths(job.parameter.path, plan):
                found[path] = _settings(job.packing, base)
    return found


def write_plan(
    plan: ConversionPlan, errors: list[TensorError], fate: dict[str, int], calibration: Any, out: Path
) -> None:
    """The plan as it was carried out, with what each packed tensor lost: reproducible, and to be compared."""
    by_name = {error.name: round(error.relative, 6) for error in errors}
    tensors = {
        job.target: {"format": str(job.packing)} | ({"error": by_name[job.target]} if job.target in by_name else {})
        for job in plan.jobs
        if job.packing
    }
    content = {
        "program": f"mlx_qwen35 {__version__}",
        "source": plan.source.name,
        "quality": plan.options.quality,
        "bits_per_weight": round(plan.bits_per_weight, 4),
        "bytes": plan.nbytes,
        "bytes_per_token": plan.token_bytes,
        "source_tensors": fate,
        "dropped": [{"tensors": len(d.names), "bytes": d.nbytes, "reason": d.reason} for d in plan.dropped],
        "outliers": [error.name for error in outliers(errors)],
        "tensors": tensors,
    }
    if calibration is not None:
        content["calibration"] = calibration
    write_json(out / PLAN_FILE, content)


def write_index(plan: ConversionPlan, out: Path) -> None:
    trunk = [file for file in plan.files if file.name != MTP_FILE]
    weight_map = {tensor.name: file.name for file in trunk for tensor in file.tensors}
    sizes = {
        "total_size": sum(file.nbytes for file in trunk),
        "total_parameters": sum(job.parameter.rows * job.parameter.width for file in trunk for job in file.jobs),
    }
    write_json(out / INDEX_NAME, {"metadata": sizes, "weight_map": dict(sorted(weight_map.items()))})


def write_json(path: Path, content: dict[str, Any]) -> None:
    """JSON, whole or not at all."""
    part = path.with_name(path.name + PART)
    part.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    _sync(part)
    part.replace(path)


def _settings(packing: Packing, base: Packing) -> dict[str, Any]:
    own = {"group_size": packing.group_size, "bits": packing.bits}
    return own if packing.mode == base.mode == "affine" else own | {"mode": packing.mode}


def _paths(path: str, plan: ConversionPlan) -> list[str]:
    """An inline MTP layer is looked for under either name."""
    inline = path.startswith("mtp.") and plan.options.mtp == "inline"
    return [path, INLINE_MTP + path] if inline else [path]


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
