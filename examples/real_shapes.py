"""Random-weight checkpoints with the real layer shapes of any size of the family, to measure speed and memory with.

    python -m examples.real_shapes 35b-a3b /tmp/a3b --layers 4 --vocab 1024 --form 4bit

Original form (bfloat16, Hugging Face names) or the 4-bit form that the converter writes. Names and shapes are those
of our network itself; values are seeded, of sizes that keep activations sane, with decays from 0.5 to 0.999. Written
block by block: a few hundred megabytes are live, whatever the size. Routing is near uniform and the text is noise:
nothing measured on such a checkpoint says anything about quality.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten

from mlx_qwen35.hub.family import FAMILY, FamilyEntry
from mlx_qwen35.models.config import parse_config
from mlx_qwen35.models.model import Model
from mlx_qwen35.models.norms import METADATA_KEY, PLUS_ONE
from mlx_qwen35.models.tensor_names import is_zero_centred_norm

ORIGINAL, FOUR_BIT = "original", "4bit"
SHARD_BYTES = 5_000_000_000
BLOCK = 16 << 20  # values made at once
ITEM_BYTES = {"BF16": 2, "F32": 4, "U32": 4}
BITS, GROUP_SIZE = 4, 64
HIGH_BITS = 8  # of routers and shared-expert gates


@dataclass(frozen=True)
class Tensor:
    """One tensor to write; `inputs` is the width that its values are scaled by."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    inputs: int
    bits: int = 16

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]


def config_of(entry: FamilyEntry, layers: int, vocab: int, mtp: bool) -> dict[str, Any]:
    """A config.json as the released ones, with fewer layers and words."""
    kind = "qwen3_5_moe" if entry.experts else "qwen3_5"
    rotary = {"rope_type": "default", "rope_theta": 10_000_000, "partial_rotary_factor": 0.25}
    text = entry.text_config | {
        "model_type": f"{kind}_text",
        "num_hidden_layers": layers,
        "layer_types": ["linear_attention" if (i + 1) % 4 else "full_attention" for i in range(layers)],
        "vocab_size": vocab,
        "eos_token_id": vocab - 1,
        "hidden_act": "silu",
        "attention_bias": False,
        "attn_output_gate": True,
        "rms_norm_eps": 1e-6,
        "dtype": "bfloat16",
        "mamba_ssm_dtype": "float32",
        "mtp_num_hidden_layers": int(mtp),
        "tie_word_embeddings": entry.tied,
        "rope_parameters": rotary | {"mrope_section": [11, 11, 10], "mrope_interleaved": True},
    }
    architecture = "Qwen3_5MoeForConditionalGeneration" if entry.experts else "Qwen3_5ForConditionalGeneration"
    return {
        "architectures": [architecture],
        "model_type": kind,
        "text_config": text,
        "tie_word_embeddings": entry.tied,
    }


def tensors_of(config: dict[str, Any], form: str) -> list[Tensor]:
    """What the checkpoint holds, in the order of the network. No weight is made."""
    model = Model(parse_config(config))
    if form == FOUR_BIT:
        nn.quantize(model, GROUP_SIZE, BITS, class_predicate=_settings)
    tensors: list[Tensor] = []
    parameters = dict(tree_flatten(model.parameters()))
    for name, parameter in parameters.items():
        if form == ORIGINAL:
            tensors += _original(name, parameter.shape)
        else:
            tensors.append(_four_bit(name, parameters))
    return tensors


def _settings(path: str, module: nn.Module) -> bool | dict[str, int]:
    if path == "mtp.fc" or not hasattr(module, "to_quantized"):
        return False
    return {"bits": HIGH_BITS, "group_size": 64} if _is_router(path) else True


def _is_router(path: str) -> bool:
    return path.endswith((".mlp.gate", ".shared_expert_gate"))


def _original(name: str, shape: tuple[int, ...]) -> Iterator[Tensor]:
    """A parameter under the names, and in the layout, of the released files."""
    name = name.replace("language_model.model.", "model.language_model.").replace("language_model.lm_head", "lm_head")
    if name.endswith("switch_mlp.up_proj.weight"):
        return  # second half of the gate's
    if name.endswith("switch_mlp.gate_proj.weight"):
        fused = name.replace("switch_mlp.gate_proj.weight", "experts.gate_up_proj")
        yield Tensor(fused, "BF16", (shape[0], 2 * shape[1], shape[2]), shape[2])
    elif name.endswith("switch_mlp.down_proj.weight"):
        yield Tensor(name.replace("switch_mlp.down_proj.weight", "experts.down_proj"), "BF16", shape, shape[2])
    elif name.endswith("conv1d.weight"):
        yield Tensor(name, "BF16", (shape[0], shape[2], shape[1]), shape[1])
    else:
        wide = name.endswith(("A_log", "linear_attn.norm.weight"))
        yield Tensor(name, "F32" if wide else "BF16", shape, shape[-1])


def _four_bit(name: str, parameters: dict[str, mx.array]) -> Tensor:
    """A parameter as the converter writes it. Packed words and their scales share `inputs` and `bits`."""
    path, _, kind = name.rpartition(".")
    shape = parameters[name].shape
    if f"{path}.scales" not in parameters:
        return Tensor(name, "F32" if kind == "A_log" else "BF16", shape, shape[1] if "conv1d" in name else shape[-1])
    bits = HIGH_BITS if _is_router(path) else BITS
    inputs = parameters[f"{path}.weight"].shape[-1] * 32 // bits
    return Tensor(name, "U32" if kind == "weight" else "BF16", shape, inputs, bits)


def write(
    size: str, folder: Path, layers: int | None, vocab: int | None, form: str, mtp: bool = False, seed: int = 0
) -> Path:
    """Write a checkpoint of the family's `size` (a key of FAMILY) and return its folder."""
    entry = FAMILY[size]
    config = config_of(entry, layers or entry.layers, vocab or entry.text_config["vocab_size"], mtp)
    tensors = tensors_of(config, form)
    folder.mkdir(parents=True, exist_ok=True)
    metadata = {"format": "pt"}
    files = [("model", tensors)]
    if form == FOUR_BIT:
        settings = {t.name.removesuffix(".weight"): t.bits for t in tensors if t.bits == HIGH_BITS and t.dtype == "U32"}
        packing: dict[str, Any] = {"group_size": GROUP_SIZE, "bits": BITS, "mode": "affine"}
        packing |= {path: {"group_size": 64, "bits": bits} for path, bits in settings.items()}
        config |= {"quantization": packing, "quantization_config": packing}
        metadata = {"format": "mlx", METADATA_KEY: PLUS_ONE}
        # Beside the model, as the converter does, so that stock mlx-lm loads the rest.
        files = [("model", [t for t in tensors if not t.name.startswith("mtp.")])]
        files += [("mtp/model", [t for t in tensors if t.name.startswith("mtp.")])] if mtp else []
    random, weight_map = np.random.default_rng(seed), {}
    for stem, content in files:
        shards = _shards(content)
        for i, shard in enumerate(shards, 1):
            suffix = "" if len(shards) == 1 else f"-{i:05d}-of-{len(shards):05d}"
            path = folder / f"{stem}{suffix}.safetensors"
            path.parent.mkdir(exist_ok=True)
            _write_file(path, shard, metadata, random)
            weight_map |= {t.name: path.name for t in shard if stem == "model"}
    index = {"metadata": {"total_size": sum(t.nbytes for t in tensors)}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    return folder


def _shards(tensors: list[Tensor]) -> list[list[Tensor]]:
    shards: list[list[Tensor]] = [[]]
    for tensor in tensors:
        if shards[-1] and sum(t.nbytes for t in shards[-1]) + tensor.nbytes > SHARD_BYTES:
            shards.append([])
        shards[-1].append(tensor)
    return shards


def _write_file(path: Path, tensors: list[Tensor], metadata: dict[str, str], random: np.random.Generator) -> None:
    header: dict[str, Any] = {"__metadata__": metadata}
    end = 0
    ordered = sorted(tensors, key=lambda t: -ITEM_BYTES[t.dtype])  # keeps each tensor aligned to its own type
    for tensor in ordered:
        place = [end, end + tensor.nbytes]
        header[tensor.name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": place}
        end += tensor.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in ordered:
            _write_tensor(file, tensor, metadata["format"] == "mlx", random)


def _write_tensor(file: BinaryIO, tensor: Tensor, mlx_form: bool, random: np.random.Generator) -> None:
    for start in range(0, count := math.prod(tensor.shape), BLOCK):
        size = min(BLOCK, count - start)
        if tensor.dtype == "U32":
            file.write(random.integers(0, 2**32, size, np.uint32).data)
        elif tensor.dtype == "F32":
            file.write(_values(tensor, size, mlx_form, random).data)
        else:
            bits = _values(tensor, size, mlx_form, random).view(np.uint32) >> np.uint32(16)
            file.write(bits.astype(np.uint16).data)


def _values(tensor: Tensor, size: int, mlx_form: bool, random: np.random.Generator) -> np.ndarray:
    """float32 [size]"""
    name = tensor.name
    drawn = random.random(size, np.float32) * 2 - 1
    spread = math.sqrt(3 / tensor.inputs)  # uniform values of this reach give outputs as large as the inputs
    if name.endswith((".scales", ".biases")):
        scale = np.float32(2 * spread / (2**tensor.bits - 1))
        # Packed words are uniform, so this offset centres the weights on zero.
        return np.full(size, scale if name.endswith("scales") else -scale * (2**tensor.bits - 1) / 2, np.float32)
    if is_zero_centred_norm(name):
        return drawn * np.float32(0.1) + np.float32(1 if mlx_form else 0)
    if name.endswith("linear_attn.norm.weight"):
        return drawn * np.float32(0.1) + 1
    if name.endswith("dt_bias"):
        return np.full(size, math.log(math.expm1(0.5)), np.float32)  # softplus of it is 0.5
    if name.endswith("A_log"):
        wanted = 1 - 0.5 * 0.002 ** np.linspace(0, 1, size)  # each head's decay: 0.5 to 0.999
        return np.log(-np.log(wanted) / 0.5).astype(np.float32)
    return drawn * np.float32(spread)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("size", choices=FAMILY, help="which size's layer shapes")
    parser.add_argument("folder", type=Path, help="where to write")
    parser.add_argument("--layers", type=int, help="number of layers (the size's own)")
    parser.add_argument("--vocab", type=int, help="number of words (the size's own); cut it, so that the head is small")
    parser.add_argument("--form", choices=(ORIGINAL, FOUR_BIT), default=FOUR_BIT, help=f"(default {FOUR_BIT})")
    parser.add_argument("--mtp", action="store_true", help="with an MTP layer")
    parser.add_argument("--seed", type=int, default=0, help="(default 0)")
    args = parser.parse_args()
    if args.folder.exists() and any(args.folder.iterdir()):
        sys.exit(f"real_shapes: {args.folder} is not empty. Remove it, or give another folder.")
    if (args.layers or 1) < 1 or (args.vocab or 64) < 64:
        sys.exit("real_shapes: at least one layer and 64 words are needed.")
    folder = write(args.size, args.folder, args.layers, args.vocab, args.form, args.mtp, args.seed)
    size = sum(path.stat().st_size for path in folder.rglob("*.safetensors"))
    print(f"{folder}: {size / 1e9:.2f} GB")


if __name__ == "__main__":
    main()
