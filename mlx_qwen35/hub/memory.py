"""The memory plan: what a checkpoint and its caches need, against what this machine has, before anything is loaded.

One definition of weights + KV + recurrent state + workspace for every command. Sizes come from tensor
headers (or the family table) and the text config; nothing is loaded and nothing is measured.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from mlx_qwen35.errors import ConfigError, MemoryPlanError
from mlx_qwen35.hub.family import FAMILY, FamilyEntry
from mlx_qwen35.hub.headers import TensorEntry
from mlx_qwen35.hub.machine import GIB, Machine, this_machine
from mlx_qwen35.options import PLAIN

VISION_PREFIXES = ("model.visual.", "visual.", "vision_tower.", "model.vision_tower.", "vision_model.")
MTP_PREFIXES = ("mtp.", "model.mtp.", "language_model.mtp.")
MAX_WINDOW = 1024  # tokens; larger prefill windows gain little and hold more memory
MAX_SCORE_BYTES = GIB
DEFAULT_CONTEXT = 32_768
# Live arrays of the chunked delta rule, in units of [window, value heads, head size] float32.
DELTA_ARRAYS = 14


def score_bytes(heads: int, window: int, context: int) -> int:
    """Of one layer's float32 attention scores [heads, window, context], which MLX holds for heads of 256."""
    return 4 * heads * window * context


def prefill_window(heads: int, context: int) -> int:
    """Tokens in one prefill window: `MAX_WINDOW`, halved until one layer's scores stay within `MAX_SCORE_BYTES`."""
    window = MAX_WINDOW
    while window > 64 and score_bytes(heads, window, context) > MAX_SCORE_BYTES:
        window //= 2
    return window


@dataclass(frozen=True)
class TextSizes:
    """The dimensions of a text network that its caches and activations depend on."""

    hidden: int
    full_layers: int
    linear_layers: int
    heads: int
    kv_heads: int
    head_dim: int
    value_heads: int
    key_width: int
    value_width: int
    conv_dim: int
    conv_rows: int
    feed_forward: int  # inner width that one token passes through: dense, or chosen experts and the shared one
    chosen: int  # experts that a token passes through; 0 in a dense network
    vocabulary: int
    mtp_layers: int = 0  # attention layers that draft

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "TextSizes":
        """From config.json or its text_config. Raises ConfigError naming the key that is absent or no size."""
        text = config.get("text_config", config)
        size = _Sizes(text if isinstance(text, Mapping) else {})
        layers = size("num_hidden_layers")
        types = text.get("layer_types") if isinstance(text, Mapping) else None
        full = (
            types.count("full_attention")
            if isinstance(types, list) and types
            else layers // size("full_attention_interval", 4)
        )
        keys = size("linear_num_key_heads") * size("linear_key_head_dim")
        values = size("linear_num_value_heads") * size("linear_value_head_dim")
        if size.values.get("num_experts"):
            routed = size("num_experts_per_tok") * size("moe_intermediate_size")
            feed_forward = routed + size("shared_expert_intermediate_size")
        else:
            feed_forward = size("intermediate_size")
        return cls(
            hidden=size("hidden_size"),
            full_layers=full,
            linear_layers=max(0, layers - full),
            heads=size("num_attention_heads"),
            kv_heads=size("num_key_value_heads"),
            head_dim=size("head_dim", 256),
            value_heads=size("linear_num_value_heads"),
            key_width=size("linear_key_head_dim"),
            value_width=size("linear_value_head_dim"),
            conv_dim=2 * keys + values,
            conv_rows=size("linear_conv_kernel_dim", 4) - 1,
            feed_forward=feed_forward,
            chosen=size("num_experts_per_tok") if size.values.get("num_experts") else 0,
            vocabulary=size("vocab_size"),
            mtp_layers=1 if size.values.get("mtp_num_hidden_layers") else 0,
        )

    def kv_bytes_per_token(self, bits: int = 16, group_size: int = 64) -> int:
        """Keys and values of all attention layers. Below 16 bits each group adds a 16-bit scale and bias."""
        stored = bits if bits >= 16 else bits + 32 / group_size
        return round(self.full_layers * 2 * self.kv_heads * self.head_dim * stored / 8)

    def mtp_kv_bytes_per_token(self, bits: int = 16) -> int:
        """The same of the MTP layer, which is kept where drafts are not switched off."""
        return replace(self, full_layers=self.mtp_layers).kv_bytes_per_token(bits)

    @property
    def recurrent_state_bytes(self) -> int:
        """The float32 DeltaNet state of one sequence."""
        return 4 * self.linear_layers * self.value_heads * self.key_width * self.value_width

    def conv_tail_bytes(self, activation_bytes: int = 2) -> int:
        return activation_bytes * self.linear_layers * self.conv_rows * self.conv_dim

    def prefill_window(self, context: int) -> int:
        """Tokens in one prefill window of a prompt of `context` tokens."""
        return min(prefill_window(self.heads, context), context)

    def workspace_bytes(
        self, window: int, context: int, batch: int = 1, activation_bytes: int = 2, kv_bits: int = 16
    ) -> int:
        """The most that is alive at once in a prefill window: arrays of one layer, the residual stream, one row of
        logits. Operations are launched ahead of those that run, so attention and the feed-forward after it count
        together; experts begin when a router's choice is known.
        """
        narrow, wide = activation_bytes * window, 4 * window  # the delta rule is computed in float32
        values, queries = self.value_heads * self.value_width, self.heads * self.head_dim
        # Projections, and what goes into the convolution; out of it, before and after SiLU; queries and keys, normed
        # and scaled.
        delta = narrow * (2 * self.conv_dim + values)
        delta += wide * (2 * self.conv_dim + 2 * (self.conv_dim - values) + DELTA_ARRAYS * values)
        # Queries and gates, keys and values as projected; queries rotated and scaled; what they find, twice, and gated.
        attention = narrow * (2 * queries + 2 * self.kv_heads * self.head_dim + 5 * queries)
        attention += score_bytes(self.heads, window, context) + window * context  # and their mask
        if self.full_layers:  # the longer buffers of keys and values that a layer copies its own into
            attention += context * self.kv_bytes_per_token(kv_bits) // self.full_layers
        attention += narrow * 4 * self.feed_forward
        # Each token's row once for every expert, as it goes in and comes out, put back in order and weighted.
        experts = narrow * self.chosen * (4 * self.hidden + 3 * self.feed_forward // max(1, self.chosen))
        logits = batch * self.vocabulary * (4 + activation_bytes)
        return max(delta, attention, experts) + narrow * 4 * self.hidden + logits


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


class _Sizes:
    """Reads positive whole numbers of a config, and names the key where there is none."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.values = values

    def __call__(self, key: str, default: int | None = None) -> int:
        value = self.values.get(key, default)
        if type(value) is not int or not 0 < value < 1 << 32:
            raise ConfigError(f"config: {key} is {str(value)[:40]!r}; the memory plan needs a positive number.")
        return value
