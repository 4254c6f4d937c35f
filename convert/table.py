"""A plan as people read it: what becomes of each part of the network, how large it gets, and where it fits."""

from __future__ import annotations

from mlx_qwen35.columns import aligned
from mlx_qwen35.convert.plan import ConversionPlan, Job
from mlx_qwen35.convert.roles import ROLES, token_share
from mlx_qwen35.convert.sizing import chosen_share, memory_for_weights
from mlx_qwen35.errors import ConfigError
from mlx_qwen35.hub.machine import GIB, MACS, this_machine
from mlx_qwen35.hub.memory import DEFAULT_CONTEXT
from mlx_qwen35.hub.progress import gigabytes


def table_of(plan: ConversionPlan) -> str:
    """Lines by role and format: tensors, bytes, bytes read for one token; then what is left out, and the sums."""
    config = plan.source.model_config
    share = chosen_share(config)
    lines: dict[tuple[str, str], list[float]] = {}
    for job in plan.jobs:
        counts = lines.setdefault((ROLES[job.parameter.place.role], format_of(job)), [0, 0, 0])
        counts[0] += 1
        counts[1] += job.nbytes
        counts[2] += job.nbytes * token_share(job.parameter.place, share, config.tie_embeddings)
    order = list(ROLES.values())
    rows = [("part", "format", "tensors", "size", "a token")]
    for (role, how), (count, size, token) in sorted(lines.items(), key=lambda line: order.index(line[0][0])):
        rows.append((role, how, str(count), gigabytes(size), gigabytes(token) if token else "-"))
    for dropped in plan.dropped:
        rows.append(("left out", dropped.reason, str(len(dropped.names)), gigabytes(dropped.nbytes), ""))
    total = f"{plan.bits_per_weight:.2f} bits a weight"
    rows.append(("written", total, "", gigabytes(plan.nbytes), gigabytes(plan.token_bytes)))
    return "\n".join(aligned(rows, right=(2, 3, 4)))


def memory_line(plan: ConversionPlan) -> str:
    """The smallest Mac whose GPU memory holds the weights beside a conversation, and whether this machine does."""
    config, needed = plan.source.config, plan.nbytes
    macs = [memory for memory in MACS if _holds(config, memory * GIB, needed)]
    where = f"a Mac with {macs[0]} GB of memory or more" if macs else "no Mac"
    here = this_machine().budget
    left = "fits" if _holds(config, here / 0.75, needed) else "does not fit"
    context = f"beside a context of {DEFAULT_CONTEXT:,} tokens"
    return f"{gigabytes(needed)} {context} fits {where}; it {left} this machine ({here / GIB:.1f} GiB usable)."


def format_of(job: Job) -> str:
    if job.packing:
        return str(job.packing)
    return f"{job.parameter.dtype} ({job.kept})" if job.kept else job.parameter.dtype


def _holds(config: dict, memory: float, needed: int) -> bool:
    try:
        return memory_for_weights(config, int(memory)) >= needed
    except ConfigError:
        return False
