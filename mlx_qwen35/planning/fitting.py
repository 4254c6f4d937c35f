"""Which context fits which Mac: the memory plan of hub/memory.py, asked for many machines."""

from __future__ import annotations

from mlx_qwen35.convert.sizing import USABLE
from mlx_qwen35.hub.machine import GIB, Machine
from mlx_qwen35.hub.memory import MemoryPlan, plan_memory
from mlx_qwen35.models.context import LARGEST_FACTOR
from mlx_qwen35.planning.subject import Subject

CONTEXTS = (4_096, 8_192, 16_384, 32_768, 65_536, 131_072, 262_144, 524_288, 1_010_000)


def mac(memory: int) -> Machine:
    """A Mac with so many GiB, nothing else running."""
    total = memory * GIB
    return Machine(total, total, int(USABLE * total), "three quarters of memory")


def plan_of(subject: Subject, machine: Machine, context: int, batch: int, kv_bits: int, title: str) -> MemoryPlan:
    """As the runtime plans it on Metal: activations in 16 bits."""
    return plan_memory(
        subject.text,
        weight_bytes=subject.weights,
        context=context,
        batch=batch,
        kv_bits=kv_bits,
        machine=machine,
        title=title,
    )


def longest_context(subject: Subject, machine: Machine, batch: int, kv_bits: int) -> int | None:
    """The longest of CONTEXTS that fits for every one of `batch` sequences; None where not even the shortest does.

    No longer than YaRN takes the network.
    """
    most = LARGEST_FACTOR * subject.text.get("max_position_embeddings", CONTEXTS[-1])
    fitting = [c for c in CONTEXTS if c <= most and plan_of(subject, machine, c, batch, kv_bits, "").fits]
    return max(fitting, default=None)
