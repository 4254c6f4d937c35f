"""Checkpoints in, MLX checkpoints out: plan (headers only), stream (bounded memory), verify."""

from mlx_qwen35.convert.conversion import ConversionReport, convert
from mlx_qwen35.convert.plan import BITS, GROUP_SIZES, ConversionPlan, plan_conversion

__all__ = ["BITS", "GROUP_SIZES", "ConversionPlan", "ConversionReport", "convert", "plan_conversion"]
