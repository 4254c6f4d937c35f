"""config.json read once, at the door, into frozen dataclasses. What the network does not implement is refused by name.

Values come from the file alone: the defaults of other libraries describe one size and are wrong for the others.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mlx_qwen35.errors import ConfigError
from mlx_qwen35.hub.headers import read_json
from mlx_qwen35.models.config_reader import Reader, show

MODEL_TYPES = {"qwen3_5", "qwen3_5_moe", "qwen3_5_text", "qwen3_5_moe_text"}
LINEAR, FULL = "linear_attention", "full_attention"


@dataclass(frozen=True)
class RotaryConfig:
    """Partial rotary embedding with three position axes; `factor` > 1 is YaRN's stretch of the context."""

    theta: float
    dims: int  # rotated dims of each head, the rest passes through
    sections: tuple[int, int, int]  # frequency slots of the t, h and w axis; sums to dims / 2
    factor: float = 1.0
    original_context: int = 0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None


@dataclass(frozen=True)
class ExpertsConfig:
    """A mixture-of-experts feed-forward: `chosen` of `count` experts a token, beside a shared one."""

    count: int
    chosen: int
    width: int
    shared_width: int


@dataclass(frozen=True)
class Quantization:
    """How a converted checkpoint is packed: one default, and what single modules do instead."""

    bits: int
    group_size: int
    mode: str
    per_module: dict[str, dict[str, Any] | bool] = field(default_factory=dict)


@dataclass(frozen=True)
class ModelConfig:
    """The text network. Letters as in the code: C hidden_size, H heads, Hk/Hv key/value heads, Dk/Dv widths."""

    hidden_size: int
    vocab_size: int
    layer_types: tuple[str, ...]
    num_heads: int
    num_kv_heads: int
    head_dim: int
    num_key_heads: int
    num_value_heads: int
    key_dim: int
    value_dim: int
    conv_width: int
    norm_eps: float
    intermediate_size: int  # of the dense feed-forward; 0 with experts
    experts: ExpertsConfig | None
    rotary: RotaryConfig
    max_context: int
    tie_embeddings: bool
    mtp_layers: int
    quantization: Quantization | None
    later_release: bool  # Qwen3.6 and after, whose configs name the output gate; the network is the same
    notes: tuple[str, ...] = ()  # what was found and not used, for people to read


# Keys that say nothing about what this network computes. Anything else unread is named in `notes`.
_SILENT = {
    "architectures", "attention_dropout", "auto_map", "bos_token_id", "dtype", "eos_token_id", "image_token_id",
    "initializer_range", "language_model_only", "model_type", "pad_token_id", "router_aux_loss_coef",
    "output_router_logits", "torch_dtype", "transformers_version", "use_cache", "video_token_id",
    "vision_config", "vision_end_token_id", "vision_start_token_id", "text_config", "tie_word_embeddings",
    "quantization", "quantization_config", "model_file", "_name_or_path", "id2label", "label2id",
    "return_dict", "chunk_size_feed_forward", "is_encoder_decoder", "output_attentions", "output_hidden_states",
    "problem_type", "mlx_qwen35",
}  # fmt: skip


# Keys whose other values would mean another network, and the values that are implemented; an absent key is fine.
_ONLY = {
    "hidden_act": ("silu",),
    "attention_bias": (False,),
    "attn_output_gate": (True,),
    "output_gate_type": ("swish",),
    "mamba_ssm_dtype": ("float32",),
    "mtp_use_dedicated_embeddings": (False,),
    "mlp_only_layers": ([],),
    "decoder_sparse_step": (1,),
    "norm_topk_prob": (True,),
    "rope_scaling": (),
}


def read_config(folder: Path) -> ModelConfig:
    """The config of the checkpoint in `folder`. Raises ConfigError with one line."""
    path = folder / "config.json"
    if not path.is_file():
        raise ConfigError(f"No config.json in {folder}. Give a model folder or a hub name such as Qwen/Qwen3.5-4B.")
    return parse_config(read_json(path), str(path))


def parse_config(config: dict[str, Any], where: str = "config.json") -> ModelConfig:
    """A config.json as a dictionary -> ModelConfig. Raises ConfigError naming the key."""
    model_type = config.get("model_type")
    if model_type not in MODEL_TYPES:
        raise ConfigError(
            f"{where}: model_type is {show(model_type)}; this program runs {', '.join(sorted(MODEL_TYPES))}."
        )
    text = config.get("text_config", config)
    if not isinstance(text, dict):
        raise ConfigError(f"{where}: text_config is {show(text)}, which should be an object.")
    reader = Reader(text, where)
    for key, allowed in _ONLY.items():
        reader.expect(key, allowed)
    heads, head_dim = reader.integer("num_attention_heads"), reader.integer("head_dim", most=1 << 14)
    kv_heads = reader.integer("num_key_value_heads")
    key_heads, value_heads = reader.integer("linear_num_key_heads"), reader.integer("linear_num_value_heads")
    _divides(where, "num_key_value_heads", kv_heads, "num_attention_heads", heads)
    _divides(where, "linear_num_key_heads", key_heads, "linear_num_value_heads", value_heads)
    experts = _experts(reader)
    result = ModelConfig(
        hidden_size=reader.integer("hidden_size"),
        vocab_size=reader.integer("vocab_size"),
        layer_types=_layer_types(reader),
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        num_key_heads=key_heads,
        num_value_heads=value_heads,
        key_dim=reader.integer("linear_key_head_dim"),
        value_dim=reader.integer("linear_value_head_dim"),
        conv_width=reader.integer("linear_conv_kernel_dim", least=2),
        norm_eps=reader.number("rms_norm_eps", 1e-6),
        intermediate_size=0 if experts else reader.integer("intermediate_size"),
        experts=experts,
        rotary=_rotary(reader, head_dim),
        max_context=reader.integer("max_position_embeddings", most=1 << 31),
        tie_embeddings=bool(config.get("tie_word_embeddings", text.get("tie_word_embeddings", False))),
        mtp_layers=reader.integer("mtp_num_hidden_layers", 0, least=0),
        quantization=_quantization(config, text, where),
        later_release="output_gate_type" in text,
    )
    if result.mtp_layers > 1:
        raise ConfigError(f"{where}: mtp_num_hidden_layers is {result.mtp_layers}; one MTP layer is implemented.")
    unread = reader.unread(_SILENT)
    if text is not config:
        unread += sorted(set(config) - _SILENT)
    return replace(result, notes=_notes(config, unread))


def _notes(config: dict[str, Any], unread: list[str]) -> tuple[str, ...]:
    notes = [f"config.json: not used here: {', '.join(unread)}"] if unread else []
    if config.get("model_file") or config.get("auto_map"):
        notes.append("config.json names code to run (model_file or auto_map); it is ignored.")
    return tuple(notes)


def _layer_types(reader: Reader) -> tuple[str, ...]:
    layers = reader.integer("num_hidden_layers", most=1024)
    interval = reader.integer("full_attention_interval", 4)
    by_interval = [FULL if (i + 1) % interval == 0 else LINEAR for i in range(layers)]
    types = reader.get("layer_types", by_interval)
    if not isinstance(types, list) or len(types) != layers:
        raise ConfigError(f"{reader.where}: layer_types does not list num_hidden_layers ({layers}) layers.")
    for i, kind in enumerate(types):
        if kind not in (LINEAR, FULL):
            raise ConfigError(f"{reader.where}: layer_types[{i}] is {show(kind)}; known are {LINEAR} and {FULL}.")
    return tuple(types)


def _experts(reader: Reader) -> ExpertsConfig | None:
    if not reader.integer("num_experts", 0, least=0):
        return None
    experts = ExpertsConfig(
        count=reader.integer("num_experts"),
        chosen=reader.integer("num_experts_per_tok"),
        width=reader.integer("moe_intermediate_size"),
        shared_width=reader.integer("shared_expert_intermediate_size"),
    )
    if experts.chosen > experts.count:
        raise ConfigError(
            f"{reader.where}: num_experts_per_tok is {experts.chosen}, more than num_experts ({experts.count})."
        )
    reader.get("intermediate_size")
    return experts


def _rotary(text: Reader, head_dim: int) -> RotaryConfig:
    where = f"{text.where}: rope_parameters"
    values = text.get("rope_parameters")
    if not isinstance(values, dict):
        raise ConfigError(f"{where} is missing; this is not a Qwen3.5 config.")
    reader = Reader(values, where)
    kind = reader.get("rope_type", reader.get("type", "default"))
    if kind not in ("default", "yarn"):
        raise ConfigError(f"{where}: rope_type is {show(kind)}; implemented are 'default' and 'yarn'.")
    reader.expect("mrope_interleaved", (True,))
    # Later checkpoints repeat partial_rotary_factor one level up.
    fraction = reader.number("partial_rotary_factor", text.get("partial_rotary_factor", 1.0))
    dims = int(head_dim * fraction)
    if dims % 2 or not 0 < dims <= head_dim:
        raise ConfigError(f"{where}: {dims} of {head_dim} dims would be rotated, which should be an even number.")
    sections = reader.get("mrope_section", [dims // 2 - 2 * (dims // 6), dims // 6, dims // 6])
    sane = isinstance(sections, list) and len(sections) == 3 and all(type(s) is int and s >= 0 for s in sections)
    if not sane or sum(sections) != dims // 2:
        raise ConfigError(f"{where}: mrope_section is {show(sections)}; its three parts should sum to {dims // 2}.")
    common = {"theta": reader.number("rope_theta"), "dims": dims, "sections": tuple(sections)}
    reader.get("type")
    if common["theta"] <= 1:
        raise ConfigError(f"{where}: rope_theta is {common['theta']}; it should be above 1.")
    if kind == "default":
        rotary = RotaryConfig(**common)
    else:
        attention_factor = reader.get("attention_factor")
        rotary = RotaryConfig(
            **common,
            factor=reader.number("factor"),
            original_context=reader.integer("original_max_position_embeddings", most=1 << 31),
            beta_fast=reader.number("beta_fast", 32.0),
            beta_slow=reader.number("beta_slow", 1.0),
            attention_factor=None if attention_factor is None else reader.number("attention_factor"),
        )
    if unread := reader.unread(_SILENT):
        # A rotary setting that is obeyed by nobody would be silently wrong text far into a long context.
        raise ConfigError(f"{where}: {', '.join(unread)} is not implemented for rope_type {kind!r}.")
    return rotary


def _quantization(config: dict[str, Any], text: dict[str, Any], where: str) -> Quantization | None:
    values = config.get("quantization") or config.get("quantization_config") or text.get("quantization_config")
    if values is None:
        return None
    if not isinstance(values, dict):
        raise ConfigError(f"{where}: quantization is {show(values)}, which should be an object.")
    if method := values.get("quant_method"):
        raise ConfigError(
            f"{where}: quantized with {show(method)}, which is not an MLX format. Use the BF16 original, "
            "or an MLX conversion of it."
        )
    mode = values.get("mode", "affine")
    if mode not in ("affine", "mxfp4", "nvfp4", "mxfp8"):
        raise ConfigError(f"{where}: quantization mode is {show(mode)}; known are affine, mxfp4, nvfp4 and mxfp8.")
    reader = Reader(values, f"{where}: quantization")
    per_module = {k: v for k, v in values.items() if isinstance(v, (dict, bool))}
    return Quantization(reader.integer("bits"), reader.integer("group_size"), mode, per_module)


def _divides(where: str, small_key: str, small: int, large_key: str, large: int) -> None:
    if large % small:
        raise ConfigError(f"{where}: {large_key} is {large}, which {small_key} ({small}) does not divide.")
