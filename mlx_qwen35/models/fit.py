"""Whether a checkpoint fits this machine, found out before its weights are downloaded or read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx

from mlx_qwen35.hub.download import cached_snapshot, ensure_local
from mlx_qwen35.hub.headers import TensorEntry, read_checkpoint
from mlx_qwen35.hub.http import Hub
from mlx_qwen35.hub.jsonfile import read_json
from mlx_qwen35.hub.machine import Machine, this_machine
from mlx_qwen35.hub.memory import MemoryPlan, check, plan_memory, weights_as_loaded
from mlx_qwen35.hub.names import resolve
from mlx_qwen35.hub.progress import ProgressCallback
from mlx_qwen35.hub.remote import remote_headers
from mlx_qwen35.models import off_metal
from mlx_qwen35.models.config import parse_config, read_config
from mlx_qwen35.models.context import with_context
from mlx_qwen35.options import PLAIN


def fetch_if_it_fits(
    name: str,
    context: int,
    force: bool = False,
    offline: bool = False,
    kv_bits: int = PLAIN,
    progress: ProgressCallback | None = None,
) -> tuple[Path, MemoryPlan]:
    """The folder of a checkpoint given by folder, hub id or short name; downloaded if need be, and if it fits.

    context: tokens the plan counts, and the network is set for (see models/context.py)   kv_bits: of its KV cache
    progress: of the download, as for `ensure_local`
    Raises MemoryPlanError with a table and a suggestion, unless `force`; ConfigError for a context no setting reaches.
    """
    if _is_remote(name, offline):
        config, tensors = headers_of(name, offline)
        with_context(parse_config(config), context)
        check(plan_checkpoint(config, tensors, context, name, kv_bits), force)
    folder = ensure_local(name, offline=offline, progress=progress)
    plan = plan_folder(folder, context, name, kv_bits)
    check(plan, force)
    return folder, plan


def headers_of(name: str, offline: bool = False) -> tuple[dict[str, Any], dict[str, TensorEntry]]:
    """config.json and the tensor headers of a checkpoint by any name; of one that is not here, without its weights.

    Raises UserError, one line, where there is none or it is no Qwen3.5.
    """
    if _is_remote(name, offline):
        remote = remote_headers(resolve(name).hub_id, hub=Hub.from_environment(offline))
        parse_config(remote.config)
        return remote.config, remote.tensors
    folder = ensure_local(name, offline=offline)
    read_config(folder)  # what is no Qwen3.5 config is refused by its own line
    return read_json(folder / "config.json"), read_checkpoint(folder).tensors


def _is_remote(name: str, offline: bool) -> bool:
    located, hub = resolve(name), Hub.from_environment(offline)
    return located.path is None and not hub.offline and cached_snapshot(located.hub_id, hub=hub) is None


def plan_folder(folder: Path, context: int, title: str, kv_bits: int = PLAIN) -> MemoryPlan:
    """The plan of a checkpoint on disk, from its headers."""
    # What is no Qwen3.5 config, or too long a context, is refused by its own line first.
    with_context(read_config(folder), context)
    config = read_json(folder / "config.json")
    return plan_checkpoint(config, read_checkpoint(folder).tensors, context, title, kv_bits)


def plan_checkpoint(
    config: Mapping[str, Any],
    tensors: Mapping[str, TensorEntry],
    context: int,
    title: str,
    kv_bits: int = PLAIN,
) -> MemoryPlan:
    """Weights as this machine would hold them, one sequence of `context` tokens, and workspace."""
    on_metal = mx.metal.is_available()
    return plan_memory(
        config,
        weight_bytes=weights_as_loaded(tensors) if on_metal else off_metal.planned_bytes(tensors),
        context=context,
        kv_bits=32 if kv_bits == PLAIN and not on_metal else kv_bits,
        activation_bytes=2 if on_metal else 4,
        machine=machine(),
        title=title,
    )


def cache_bytes(plan: MemoryPlan) -> int:
    """What is left for caches beside weights and workspace; at least what the plan counts for them."""
    sizes = {row.name: row.nbytes for row in plan.rows}
    left = plan.machine.budget - sizes["weights"] - sizes["workspace"]
    return max(left, sizes["KV cache"] + sizes.get("KV of drafts", 0) + 2 * sizes["DeltaNet state"])


def machine() -> Machine:
    """This machine, with what MLX says the GPU may use."""
    if not mx.metal.is_available():
        return this_machine()
    recommended = mx.device_info().get("max_recommended_working_set_size")
    return this_machine(recommended if isinstance(recommended, int) else None)
