"""A checkpoint as it would be after conversion, rounded in memory while it is read; nothing is written.

For measuring: the points of stock's uniform conversions beside a quantized checkpoint, and tables of qualities.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn

from mlx_qwen35.convert.layerwise import LayerwiseModel, Read
from mlx_qwen35.convert.observing import matrices
from mlx_qwen35.convert.rounding import ROUTERS, Packing, quality_of, round_rows
from mlx_qwen35.convert.statistics import CalibrationStore
from mlx_qwen35.models.weights import Survey


class RoundedModel(LayerwiseModel):
    """`source` with its matrices rounded to `packings`, at `quality`; `dtype` is what conversion would cast to."""

    def __init__(
        self,
        source: Path | Survey,
        packings: Mapping[str, Packing | None],
        quality: str = "stock",
        store: CalibrationStore | None = None,
        dtype: mx.Dtype = mx.bfloat16,
        read: Read | None = None,
    ) -> None:
        super().__init__(source, read)
        self.packings, self.quality, self.store, self.dtype = packings, quality, store, dtype

    def load(self, path: str) -> nn.Module:
        module = super().load(path)
        for name, part, weight in matrices(module):
            target = f"{path}.{name}".replace("..", ".")
            if packing := self.packings.get(target):
                part.weight = self._rounded(weight, packing, target)
        return module

    def _rounded(self, weight: mx.array, packing: Packing, target: str) -> mx.array:
        if weight.ndim == 2:
            return rounded(weight, packing, self.quality, self.dtype, self.store, target)
        experts = range(len(weight))
        return mx.stack([rounded(weight[e], packing, self.quality, self.dtype, self.store, target, e) for e in experts])


def rounded(
    weight: mx.array,
    packing: Packing,
    quality: str,
    dtype: mx.Dtype,
    store: CalibrationStore | None = None,
    name: str = "",
    expert: int | None = None,
) -> mx.array:
    """A matrix [rows, in] as it will be after conversion, in the dtype it has; `dtype` is what conversion casts to."""
    statistics = store.statistics(name, expert) if store else None
    packed, scales, biases = round_rows(weight.astype(dtype), packing, quality_of(quality, name), statistics)
    if biases is not None:
        scales, biases = scales.astype(mx.float32), biases.astype(mx.float32)
    values = mx.dequantize(packed, scales, biases, packing.group_size, packing.bits, mode=packing.mode)
    values = values.astype(weight.dtype)
    mx.eval(values)
    return values


def uniform(source: Survey, bits: int, group_size: int = 64) -> dict[str, Packing | None]:
    """Stock mlx-lm's packings: every matrix it can pack at `bits`, router and shared-expert gate at 8."""
    found: dict[str, Packing | None] = {}
    for path, module in source.model.named_modules():
        if not hasattr(module, "to_quantized") or path == "mtp.fc":
            continue
        target, width = f"{path}.weight", module.weight.shape[-1]
        packing = Packing(8, 64) if target.endswith(ROUTERS) else Packing(bits, group_size)
        found[target] = packing if width % packing.group_size == 0 else None
    return found
