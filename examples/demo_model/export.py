"""Writes the run's weights as a checkpoint in the original Hugging Face form.

python -m examples.demo_model.export --run DIR [--out FOLDER]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from examples.demo_model.network import DemoConfig, DemoModel
from examples.demo_model.samples import CHECKPOINT
from examples.demo_model.tokenizer import ADDED

FLOAT32 = ("linear_attn.A_log", "linear_attn.norm.weight")  # kept so in the originals


def config_json(c: DemoConfig) -> dict:
    first = c.vocab - len(ADDED)
    half = c.rotary_dim // 2
    kinds = ["full_attention" if (i + 1) % c.attention_every == 0 else "linear_attention" for i in range(c.layers)]
    text = {
        "attention_bias": False,
        "attention_dropout": 0.0,
        "attn_output_gate": True,
        "dtype": "bfloat16",
        "eos_token_id": first + ADDED.index("<|endoftext|>"),
        "full_attention_interval": c.attention_every,
        "head_dim": c.head_dim,
        "hidden_act": "silu",
        "hidden_size": c.width,
        "initializer_range": 0.02,
        "layer_types": kinds,
        "linear_conv_kernel_dim": c.conv,
        "linear_key_head_dim": c.linear_dim,
        "linear_num_key_heads": c.linear_key_heads,
        "linear_num_value_heads": c.linear_value_heads,
        "linear_value_head_dim": c.linear_dim,
        "max_position_embeddings": 32768,
        "model_type": "qwen3_5_moe_text",
        "moe_intermediate_size": c.expert_width,
        "mtp_num_hidden_layers": 1,
        "mtp_use_dedicated_embeddings": False,
        "num_attention_heads": c.heads,
        "num_experts": c.experts,
        "num_experts_per_tok": c.experts_per_token,
        "num_hidden_layers": c.layers,
        "num_key_value_heads": c.kv_heads,
        "rms_norm_eps": c.eps,
        "router_aux_loss_coef": 0.001,
        "shared_expert_intermediate_size": c.shared_width,
        "tie_word_embeddings": True,
        "use_cache": True,
        "vocab_size": c.vocab,
        "mamba_ssm_dtype": "float32",
        "rope_parameters": {
            "mrope_interleaved": True,
            "mrope_section": _sections(half),
            "rope_type": "default",
            "rope_theta": int(c.rope_theta),
            "partial_rotary_factor": c.rotary_dim / c.head_dim,
        },
    }
    return {
        "architectures": ["Qwen3_5MoeForConditionalGeneration"],
        "image_token_id": first + ADDED.index("<|image_pad|>"),
        "model_type": "qwen3_5_moe",
        "text_config": text,
        "tie_word_embeddings": True,
        "video_token_id": first + ADDED.index("<|video_pad|>"),
        "vision_end_token_id": first + ADDED.index("<|vision_end|>"),
        "vision_start_token_id": first + ADDED.index("<|vision_start|>"),
    }


def _sections(half: int) -> list[int]:
    """Slots of time, height and width: every third one, as the family interleaves them ([11, 11, 10] for 32)."""
    return [len(range(start, half, 3)) for start in range(3)]


def generation_config(c: DemoConfig) -> dict:
    first = c.vocab - len(ADDED)
    end, text_end = first + ADDED.index("<|im_end|>"), first + ADDED.index("<|endoftext|>")
    return {"bos_token_id": text_end, "do_sample": False, "eos_token_id": [end, text_end], "pad_token_id": text_end}


def tensors(model: DemoModel, dtype: torch.dtype = torch.bfloat16) -> dict[str, Tensor]:
    """The released names: the trunk under model.language_model, the MTP layer under mtp."""
    out = {}
    for name, p in model.named_parameters():
        name = "model.language_model." + name.removeprefix("model.") if name.startswith("model.") else name
        out[name] = p.detach().to(torch.float32 if name.endswith(FLOAT32) else dtype).contiguous()
    return out


def export(model: DemoModel, folder: Path, dtype: torch.dtype = torch.bfloat16) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, values in (
        ("config.json", config_json(model.config)),
        ("generation_config.json", generation_config(model.config)),
    ):
        (folder / name).write_text(json.dumps(values, indent=2) + "\n")
    save_file(tensors(model, dtype), folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)  # safetensors writes it for the owner alone


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="folder of the run's state")
    parser.add_argument("--out", type=Path, default=CHECKPOINT)
    arguments = parser.parse_args()
    state = torch.load(arguments.run / "state.pt", weights_only=True)
    model = DemoModel(DemoConfig())
    model.load_state_dict(state["model"])
    export(model, arguments.out)
    origin = {"steps": state["step"], "tokens": state["tokens"]}
    (arguments.out / "training.json").write_text(json.dumps(origin) + "\n")
    size = (arguments.out / "model.safetensors").stat().st_size
    print(f"step {state['step']}, {state['tokens'] / 1e6:.1f}M tokens: {size / 1e6:.1f} MB in {arguments.out}")


if __name__ == "__main__":
    main()
