"""The memory plan: what a checkpoint and its caches need, against what this machine has, before anything is loaded.

One definition of weights + KV + recurrent state + workspace for every command. Sizes come from tensor
headers (or the family table) and the text config; nothing is loaded and nothing is measured.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from mlx_qwen35.errors import MemoryPlanError
from mlx_qwen35.hub.family import FAMILY, FamilyEntry
from mlx_qwen35.hub.headers import TensorEntry
from mlx_qwen35.hub.machine import GIB, Machine, this_machine
from mlx_qwen35.hub.text_sizes import TextSizes
from mlx_qwen35.options import PLAIN

VISION_PREFIXES = ("model.visual.", "visual.", "vision_tower.", "model.vision_tower.", "vision_model.")
MTP_PREFIXES = ("mtp.", "model.mtp.", "language_model.mtp.")
DEFAULT_CONTEXT = 32_768


@dataclass(frozen=True)
class PlanRow:
    name: str
    nbytes: int
    note: str = ""


@dataclass(frozen=True)
class MemoryPlan:
    """What a model needs at a context length, and what the machine has. All sizes in bytes."""

    title: str
    rows: tuple[PlanRow, ...]
    machine: Machine
    context: int
    suggestion: str

    @property
    def total(self) -> int:
        return sum(row.nbytes for row in self.rows)

    @property
    def fits(self) -> bool:
        return self.total <= self.machine.budget

    def table(self) -> str:
        """Rows, their sum, and this machine, aligned; no trailing newline."""
        rows = [*self.rows, PlanRow("needed", self.total)]
        rows.append(PlanRow("this machine", self.machine.budget, self.machine.note))
        width = max(len(row.name) for row in rows)
        lines = [
            f"  {row.name:<{width}}  {row.nbytes / GIB:8.2f} GiB{'  ' + row.note if row.note else ''}" for row in rows
        ]
        return "\n".join(lines)


def weights_as_loaded(tensors: Mapping[str, TensorEntry], mtp: bool = True) -> int:
    """Bytes of the tensors that are loaded, as they are stored."""
    return sum(entry.nbytes for entry in loaded_tensors(tensors, mtp))


def loaded_tensors(tensors: Mapping[str, TensorEntry], mtp: bool = True) -> list[TensorEntry]:
    """All but the vision tower, and the MTP layer only if `mtp`."""
    skipped = VISION_PREFIXES if mtp else VISION_PREFIXES + MTP_PREFIXES
    return [entry for name, entry in tensors.items() if not name.startswith(skipped)]


@dataclass(frozen=True)
class _Demand:
    """What is asked of the model: `batch` sequences of `context` tokens, stored and computed at these widths."""

    context: int
    batch: int
    kv_bits: int
    activation_bytes: int
    window: int | None

    def rows(self, sizes: TextSizes, weight_bytes: int) -> tuple[PlanRow, ...]:
        window = self.window or sizes.prefill_window(self.context)
        kv = self.batch * self.context * sizes.kv_bytes_per_token(self.kv_bits)
        drafts = self.batch * self.context * sizes.mtp_kv_bytes_per_token(self.kv_bits)
        state = sizes.recurrent_state_bytes + sizes.conv_tail_bytes(self.activation_bytes)
        work = sizes.workspace_bytes(window, self.context, self.batch, self.activation_bytes, self.kv_bits)
        sequences = f" x {self.batch} sequences" if self.batch > 1 else ""
        return (
            PlanRow("weights", weight_bytes),
            PlanRow("KV cache", kv, f"{self.context:,} tokens{sequences}"),
            PlanRow("DeltaNet state", self.batch * state, "does not grow with the context"),
            *([PlanRow("KV of drafts", drafts, "unless --draft off")] if drafts else []),
            PlanRow("workspace", work, f"estimate, prefill in windows of {window:,}"),
        )

    def total(self, sizes: TextSizes, weight_bytes: int) -> int:
        return sum(row.nbytes for row in self.rows(sizes, weight_bytes))


def plan_memory(
    config: Mapping[str, Any],
    *,
    weight_bytes: int,
    context: int,
    batch: int = 1,
    kv_bits: int = 16,
    activation_bytes: int = 2,
    window: int | None = None,
    machine: Machine | None = None,
    title: str = "this model",
) -> MemoryPlan:
    """The plan for `batch` sequences of `context` tokens each.

    config: config.json or its text_config. weight_bytes: as loaded (`weights_as_loaded`, or more where
    weights are dequantized or widened at load). kv_bits and activation_bytes: 32 and 4 where the runtime
    computes in float32. window: tokens in one prefill window, by default `TextSizes.prefill_window`.
    Raises ConfigError for a config without the sizes.
    """
    sizes = TextSizes.from_config(config)
    machine = machine or this_machine()
    demand = _Demand(context, batch, kv_bits, activation_bytes, window)
    suggestion = _suggest(sizes, weight_bytes, demand, machine.budget)
    return MemoryPlan(title, demand.rows(sizes, weight_bytes), machine, context, suggestion)


def check(plan: MemoryPlan, force: bool = False) -> None:
    """Raise MemoryPlanError with the table and a suggestion when the plan does not fit, unless `force`."""
    if plan.fits or force:
        return
    needed, budget = plan.total / GIB, plan.machine.budget / GIB
    raise MemoryPlanError(
        f"{plan.title} needs {needed:.1f} GiB at {plan.context:,} tokens of context; this machine has "
        f"{budget:.1f} GiB for it.\n{plan.table()}\n{plan.suggestion} Or try it anyway with --force."
    )


def fits(machine_bytes: int, entry: FamilyEntry, bits: int, context: int = DEFAULT_CONTEXT) -> bool:
    """Whether a released size, at 16, 8 or 4 bits a weight, fits `machine_bytes` with one full context."""
    return family_bytes(entry, bits, context) <= machine_bytes


def family_bytes(entry: FamilyEntry, bits: int, context: int = DEFAULT_CONTEXT) -> int:
    """Weights (with MTP, without vision), one sequence of `context` tokens, and workspace."""
    sizes = TextSizes.from_config(entry.text_config)
    caches = context * sizes.kv_bytes_per_token() + sizes.recurrent_state_bytes + sizes.conv_tail_bytes()
    workspace = sizes.workspace_bytes(sizes.prefill_window(context), context)
    return entry.weight_bytes(bits, mtp=True) + caches + workspace


def best_for(machine_bytes: int, context: int = DEFAULT_CONTEXT) -> tuple[FamilyEntry, int] | None:
    """The largest released size that fits at 4 bits, with the most bits (16, 8 or 4) at which it still fits."""
    for entry in sorted(FAMILY.values(), key=lambda entry: -entry.parameters):
        for bits in (16, 8, 4):
            if fits(machine_bytes, entry, bits, context):
                return entry, bits
    return None


def _suggest(sizes: TextSizes, weight_bytes: int, demand: _Demand, budget: int) -> str:
    """What would fit: a quantized KV cache, a smaller context, the same model at fewer bits, or a smaller model."""
    for bits in (8, 4):
        if bits < min(demand.kv_bits, PLAIN) and replace(demand, kv_bits=bits).total(sizes, weight_bytes) <= budget:
            return f"With --kv-bits {bits} it fits."
    context = demand.context
    while context > 2048:
        context = 1 << ((context - 1).bit_length() - 1)  # the next power of two below
        if replace(demand, context=context).total(sizes, weight_bytes) <= budget:
            return f"Give a smaller context, such as {context:,} tokens."
    same = next((e for e in FAMILY.values() if TextSizes.from_config(e.text_config) == sizes), None)
    for bits in (8, 4):
        smaller = same.weight_bytes(bits, mtp=True) if same else weight_bytes
        if same and smaller < weight_bytes and demand.total(sizes, smaller) <= budget:
            return _convert(same, bits)
    best = best_for(budget, min(demand.context, DEFAULT_CONTEXT))
    if best is None:
        return "No released size fits this machine; the bundled demo does."
    return _convert(*best)


def _convert(entry: FamilyEntry, bits: int) -> str:
    if bits == 16:
        return f"{entry.hub_id} fits as it is."
    return f"{entry.hub_id} fits at {bits} bits: mlx-qwen35 convert {entry.hub_id} --bits {bits}."
