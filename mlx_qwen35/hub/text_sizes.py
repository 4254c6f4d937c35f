"""The dimensions of a text network, and what its caches and activations take by them. Arithmetic only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from mlx_qwen35.errors import ConfigError
from mlx_qwen35.hub.machine import GIB

MAX_WINDOW = 1024  # tokens; larger prefill windows gain little and hold more memory
MAX_SCORE_BYTES = GIB
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
    def from_config(cls, config: Mapping[str, Any]) -> TextSizes:
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


class _Sizes:
    """Reads positive whole numbers of a config, and names the key where there is none."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.values = values

    def __call__(self, key: str, default: int | None = None) -> int:
        value = self.values.get(key, default)
        if type(value) is not int or not 0 < value < 1 << 32:
            raise ConfigError(f"config: {key} is {str(value)[:40]!r}; the memory plan needs a positive number.")
        return value
