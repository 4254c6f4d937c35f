"""Checkpoints in, MLX checkpoints out: plan (headers only), stream (bounded memory), verify."""

from mlx_qwen35.convert.conversion import ConversionReport, convert
from mlx_qwen35.convert.options import Options
from mlx_qwen35.convert.packing import BITS, GROUP_SIZES, Packing
from mlx_qwen35.convert.plan import ConversionPlan, plan_conversion

__all__ = [
    "BITS",
    "GROUP_SIZES",
    "ConversionPlan",
    "ConversionReport",
    "Options",
    "Packing",
    "convert",
    "plan_conversion",
]
