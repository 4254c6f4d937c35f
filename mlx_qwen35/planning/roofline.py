"""Limits of speed: what a chip's memory bandwidth allows in decoding, and its arithmetic in reading a prompt.

Bounds, not forecasts: no launch, no wait and no cache miss costs anything here. Stock mlx-lm reaches 84 to 94 % of the
decode bound with dense models and 20 to 50 % with mixtures of experts, as people have published.
"""

from __future__ import annotations

from dataclasses import dataclass

from mlx_qwen35.hub.text_sizes import TextSizes
from mlx_qwen35.planning.chips import Chip
from mlx_qwen35.planning.subject import Subject

# FLOP of matrix products a token and value head in our delta_chunk kernel (C = 16, heads of 128), counted by the
# emulator: tests/metal_kernels/test_delta_chunk.py holds it.
DELTA_FLOPS = 107_500
ASSUMPTIONS = (
    "decode: every weight that the step's tokens choose is read once, each recurrent state once in and once out, each "
    "KV cache once, at Apple's bandwidth figure; prompts: matrix products at the GPU's float32 rate on M1 to M4 (where "
    "16 bits are no faster) and at its neural accelerators' on M5 (M5 measured by others, larger ones estimated); "
    "launches, small matrices and everything else cost nothing."
)


@dataclass(frozen=True)
class Limits:
    """Tokens a second that no implementation exceeds. decode: of all sequences together   prefill: of one prompt"""

    decode: float
    prefill: float


def limits(subject: Subject, chip: Chip, context: int, batch: int = 1, kv_bits: int = 16) -> Limits:
    """At a context of so many tokens. A prompt is that long; on average its tokens attend to half of it."""
    step = subject.step_bytes(context, batch, kv_bits)
    decode = batch * 1e9 * chip.gigabytes / step
    return Limits(decode, 1e12 * chip.matrix / prompt_flops(subject.sizes, context))


def prompt_flops(sizes: TextSizes, context: int) -> float:
    """Of matrix products, a token of a prompt of `context` tokens, on average. The head is not needed."""
    attention = 2 * 2 * sizes.heads * sizes.head_dim * context / 2
    delta = DELTA_FLOPS * sizes.value_heads
    return 2 * matrix_parameters(sizes) + sizes.full_layers * attention + sizes.linear_layers * delta


def matrix_parameters(sizes: TextSizes) -> float:
    """Weights that one token is multiplied with: projections and feed-forward, without routers, embedding and head."""
    attention = sizes.head_dim * (3 * sizes.heads + 2 * sizes.kv_heads)  # queries and gates, output, keys, values
    values = sizes.value_heads * sizes.value_width
    delta = sizes.conv_dim + 2 * values + 2 * sizes.value_heads
    layers = sizes.full_layers + sizes.linear_layers
    mixers = sizes.full_layers * attention + sizes.linear_layers * delta
    return sizes.hidden * (mixers + layers * 3 * sizes.feed_forward)
