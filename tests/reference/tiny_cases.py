"""Which tiny checkpoints there are, their config.json, and the seeded numbers everything is drawn from.

Knows nothing of tensors (tiny_tensors.py) or files (tiny.py).
"""

import hashlib
import math
from dataclasses import dataclass, field

import numpy as np

RECORDED_TOKENS = 232  # 200 for the longest recorded forward pass, and some to decode after it
# The last of the ids that exist; never drawn.
SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|vision_end|>",
    "<|vision_start|>",
    "<|video_pad|>",
    "<|image_pad|>",
    "<|im_end|>",
)


@dataclass(frozen=True)
class TinyCase:
    """One checkpoint: the text config's values that differ from the base, and how its tensors are stored."""

    name: str
    about: str
    tokens: int  # ids that exist; rows from here to config's vocab_size are padding and must never be sampled
    text: dict = field(default_factory=dict)
    flat: bool = False  # a text-only fine-tune: no `text_config`, no `language_model.` in the names
    tied: bool = False
    dtype: str = "BF16"
    separate_experts: bool = False  # the trunk's experts one by one; fused otherwise
    mtp: str = "fused"  # the MTP layer's experts: "fused", "separate"; or "absent": no `mtp.*` at all
    vision: bool = False  # a few tensors of the vision tower, there to be skipped
    shards: int = 1
    draw: int = 0  # which of the seeded token sequences: one with no near-tie among tokens or experts
    faint: bool = False  # some rows a thousandth of the others, so that each norm's eps shows

    @property
    def moe(self) -> bool:
        return "num_experts" in self.text


_BASE = {
    "attention_bias": False,
    "attention_dropout": 0.0,
    "attn_output_gate": True,
    "full_attention_interval": 4,
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "linear_conv_kernel_dim": 4,
    "max_position_embeddings": 1024,
    "mtp_num_hidden_layers": 1,
    "mtp_use_dedicated_embeddings": False,
    "num_hidden_layers": 4,
    "rms_norm_eps": 1e-06,
    "use_cache": True,
    "mamba_ssm_dtype": "float32",
}
_EIGHT_SLOTS = {"mrope_section": [3, 3, 2]}  # head_dim 64: 16 rotary dims, 8 frequencies
_FOUR_SLOTS = {"mrope_section": [2, 1, 1]}  # head_dim 32


def _sizes(hidden: int, heads: tuple[int, int, int], linear: tuple[int, int, int, int], vocab: int) -> dict:
    """heads: query heads, kv heads, head_dim. linear: key heads, value heads, Dk, Dv."""
    return {
        "hidden_size": hidden,
        "num_attention_heads": heads[0],
        "num_key_value_heads": heads[1],
        "head_dim": heads[2],
        "linear_num_key_heads": linear[0],
        "linear_num_value_heads": linear[1],
        "linear_key_head_dim": linear[2],
        "linear_value_head_dim": linear[3],
        "vocab_size": vocab,
        "rope_parameters": _FOUR_SLOTS if heads[2] == 32 else _EIGHT_SLOTS,
    }


def _experts(count: int, chosen: int, width: int, shared: int) -> dict:
    return {
        "num_experts": count,
        "num_experts_per_tok": chosen,
        "moe_intermediate_size": width,
        "shared_expert_intermediate_size": shared,
        "router_aux_loss_coef": 0.001,
    }


_YARN = {
    **_EIGHT_SLOTS,
    "rope_type": "yarn",
    "factor": 4.0,
    "original_max_position_embeddings": 64,
    "rope_theta": 10000,  # puts the ramp inside the eight frequencies
}

_ALL = (
    TinyCase(
        "dense",
        "dense, untied; GQA 6, Hv/Hk 3; widths that 4-bit groups of 64 divide",
        tokens=243,
        draw=3,
        text={**_sizes(128, (6, 1, 64), (2, 6, 32, 64), 256), "intermediate_size": 192},
        faint=True,
    ),
    TinyCase(
        "moe",
        "mixture, untied; fused experts, the MTP layer's separate; GQA 4, Hv/Hk 2; two shards by index",
        tokens=181,
        draw=5,
        text={**_sizes(128, (4, 1, 64), (2, 4, 64, 32), 192), **_experts(8, 2, 64, 128)},
        mtp="separate",
        shards=2,
        faint=True,
    ),
    TinyCase(
        "tied_f32",
        "dense, tied, eight layers, everything stored in float32; GQA 2, Hv/Hk 1; awkward widths",
        tokens=139,
        text={
            **_sizes(80, (4, 2, 32), (3, 3, 24, 40), 150),
            "intermediate_size": 112,
            "num_hidden_layers": 8,
        },
        tied=True,
        dtype="F32",
        faint=True,
    ),
    TinyCase(
        "moe_separate",
        "mixture, tied; experts one by one, the MTP layer's fused; vision tensors; GQA 1, Hv/Hk 4",
        tokens=121,
        draw=3,
        text={**_sizes(96, (3, 3, 32), (1, 4, 48, 32), 130), **_experts(6, 3, 40, 72)},
        tied=True,
        separate_experts=True,
        vision=True,
    ),
    TinyCase(
        "flat",
        "text-only fine-tune: flat config, no `language_model.`; says it has an MTP layer but ships none",
        tokens=157,
        draw=5,
        text={**_sizes(72, (4, 2, 32), (2, 4, 16, 24), 160), "intermediate_size": 100},
        flat=True,
        mtp="absent",
    ),
    TinyCase(
        "yarn",
        "dense with YaRN (factor 4 over 64 positions), vision tensors; GQA 2, Hv/Hk 2",
        tokens=187,
        draw=3,
        text={
            **_sizes(64, (4, 2, 64), (2, 4, 64, 32), 192),
            "intermediate_size": 128,
            "rope_parameters": _YARN,
            "max_position_embeddings": 256,
        },
        vision=True,
    ),
)
CASES = {case.name: case for case in _ALL}

# Recorded by itself (record_long.py): the released context, and positions behind it for three factors of YaRN.
LONG = TinyCase(
    "long",
    "dense, with the released context and base; GQA 3, Hv/Hk 2",
    tokens=151,
    text={
        **_sizes(72, (6, 2, 64), (2, 4, 32, 24), 160),
        "intermediate_size": 96,
        "rope_parameters": _EIGHT_SLOTS,
        "max_position_embeddings": 262144,
    },
)
LONG_FACTORS = {2: 300_000, 3: 700_000, 4: 1_000_000}  # factor -> the first position
LONG_TOKENS = 24


def config(case: TinyCase) -> dict:
    """The checkpoint's config.json, with the keys the released files have."""
    text = {**_BASE, **case.text}
    layers = range(text["num_hidden_layers"])
    text["layer_types"] = ["linear_attention" if (i + 1) % 4 else "full_attention" for i in layers]
    text["dtype"] = {"BF16": "bfloat16", "F32": "float32"}[case.dtype]
    text["eos_token_id"] = case.tokens - 1
    text["rope_parameters"] = {
        "mrope_interleaved": True,
        "rope_type": "default",
        "rope_theta": 10000000,
        "partial_rotary_factor": 0.25,
        **text["rope_parameters"],
    }
    kind = "qwen3_5_moe" if case.moe else "qwen3_5"
    text["model_type"] = f"{kind}_text"
    prefix = "Qwen3_5Moe" if case.moe else "Qwen3_5"
    if case.flat:
        return {"architectures": [f"{prefix}ForCausalLM"], **text, "tie_word_embeddings": case.tied}
    if case.tied:  # the released tied files say so in both places, the untied ones only at the top
        text["tie_word_embeddings"] = True
    return {
        "architectures": [f"{prefix}ForConditionalGeneration"],
        "model_type": kind,
        "text_config": text,
        "vision_config": _vision_config(kind, text["hidden_size"]),
        "tie_word_embeddings": case.tied,
        "image_token_id": case.tokens - 2,
        "video_token_id": case.tokens - 3,
        "vision_start_token_id": case.tokens - 4,
        "vision_end_token_id": case.tokens - 5,
        "transformers_version": "4.57.0.dev0",
    }


def _vision_config(kind: str, out_width: int) -> dict:
    return {
        "deepstack_visual_indexes": [],
        "depth": 1,
        "hidden_act": "gelu_pytorch_tanh",
        "hidden_size": 32,
        "in_channels": 3,
        "initializer_range": 0.02,
        "intermediate_size": 48,
        "model_type": kind,
        "num_heads": 2,
        "num_position_embeddings": 16,
        "out_hidden_size": out_width,
        "patch_size": 16,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
    }


def uniform(label: str, shape: tuple[int, ...]) -> np.ndarray:
    """float64 in [0, 1), the same on every machine: the label is the seed.

    From the generator's raw bits, because numpy promises the bit stream and not its distributions.
    """
    seed = int.from_bytes(hashlib.sha256(label.encode()).digest()[:8], "little")
    bits = np.random.PCG64(seed).random_raw(math.prod(shape))
    return (bits >> np.uint64(11)).astype(np.float64).reshape(shape) * 2.0**-53


def token_ids(case: TinyCase) -> np.ndarray:
    """int64 [RECORDED_TOKENS]: the sequence whose first T tokens are the input of every recorded pass."""
    drawn = uniform(f"{case.name}/tokens/{case.draw}", (RECORDED_TOKENS,)) * (case.tokens - len(SPECIAL_TOKENS))
    return drawn.astype(np.int64)
