"""FP8 originals (e4m3 weights, one scale for each block of 128 x 128), and formats that are refused by name.

Finds the scales that belong to weights and checks that each fits; decoding is reading.py's. A scale taken for a
weight, or a weight read without its scale, would be silently wrong text.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mlx_qwen35.errors import CheckpointError
from mlx_qwen35.hub.headers import TensorEntry

FP8 = "F8_E4M3"
SCALE = "_scale_inv"
ADVICE = "Convert from the BF16 original."
# A name's ending that only one kind of foreign quantization has.
_FOREIGN = (
    (".qweight", "GPTQ or AWQ"),
    (".qzeros", "GPTQ or AWQ"),
    (".g_idx", "GPTQ"),
    (".weight_packed", "compressed-tensors (NVFP4, MXFP4 or INT4)"),
    (".weight_scale_2", "ModelOpt NVFP4"),
    (".weight_global_scale", "compressed-tensors NVFP4"),
    (".weight_scale", "a quantization with scales by tensor, channel or group"),
    (".input_scale", "a quantization with static activation scales"),
)


@dataclass(frozen=True)
class BlockScales:
    """The scales of FP8 weights by the weight's name; each covers `block` = (rows, columns) values."""

    block: tuple[int, int] = (128, 128)
    by_weight: Mapping[str, TensorEntry] = field(default_factory=dict)


def split_scales(
    config: dict[str, Any], tensors: Mapping[str, TensorEntry], where: str
) -> tuple[dict[str, Any], dict[str, TensorEntry], BlockScales]:
    """The config and tensors of a checkpoint without its FP8 scales, and the scales.

    Raises CheckpointError for FP8 of another kind, and for scales that do not fit their weights.
    """
    settings = config.get("quantization_config")
    method = settings.get("quant_method") if isinstance(settings, dict) else None
    plain = {name: entry for name, entry in tensors.items() if not name.endswith(SCALE)}
    _refuse_foreign(plain, method, where)
    name = next((n for n, entry in tensors.items() if entry.dtype == FP8 or n not in plain), None)
    if method != "fp8" and name is None:
        return config, dict(tensors), BlockScales()
    block = settings.get("weight_block_size") if isinstance(settings, dict) else None
    sound = isinstance(block, list) and len(block) == 2 and all(type(n) is int and 0 < n <= 1 << 16 for n in block)
    if method != "fp8" or not sound:
        raise CheckpointError(
            f"{where} holds FP8 ({name} is {tensors[name].dtype if name else FP8}), but config.json describes no 'fp8' "
            f"with a weight_block_size. {ADVICE}"
        )
    assert isinstance(block, list)
    scales = BlockScales((block[0], block[1]), {n.removesuffix(SCALE): t for n, t in tensors.items() if n not in plain})
    _check_scales(plain, scales, where)
    return {k: v for k, v in config.items() if k != "quantization_config"}, plain, scales


def block_grid(shape: tuple[int, ...], block: tuple[int, int]) -> tuple[int, ...]:
    """The shape of a weight's scales: [..., out, in] -> [..., ceil(out / rows), ceil(in / columns)]"""
    return (*shape[:-2], -(-shape[-2] // block[0]), -(-shape[-1] // block[1]))


def _refuse_foreign(tensors: Mapping[str, TensorEntry], method: Any, where: str) -> None:
    for ending, kind in _FOREIGN:
        name = next((name for name in tensors if name.endswith(ending)), None)
        if name:
            shown = f" ({str(method)[:40]!r})" if method else ""
            raise CheckpointError(f"{where} is quantized already{shown}: {name} is a tensor of {kind}. {ADVICE}")


def _check_scales(weights: Mapping[str, TensorEntry], scales: BlockScales, where: str) -> None:
    if not any(entry.dtype == FP8 for entry in weights.values()):
        raise CheckpointError(f"{where}: config.json says 'fp8', but no weight is {FP8}. {ADVICE}")
    for name, entry in weights.items():
        if entry.dtype == FP8 and name not in scales.by_weight:
            raise CheckpointError(f"{where}: {name} is {FP8} and has no {SCALE[1:]}. Download the checkpoint again.")
    for name, scale in scales.by_weight.items():
        weight = weights.get(name)
        if weight is None or weight.dtype != FP8 or len(weight.shape) < 2:
            raise CheckpointError(f"{where}: {scale.name} belongs to no {FP8} matrix. Download the checkpoint again.")
        if scale.shape != block_grid(weight.shape, scales.block) or scale.dtype not in ("BF16", "F32", "F16"):
            raise CheckpointError(
                f"{where}: {scale.name} is {scale.dtype} {list(scale.shape)}; {name} {list(weight.shape)} needs "
                f"{list(block_grid(weight.shape, scales.block))}. {ADVICE}"
            )
