"""The packed formats MLX has, and the tensors a packed matrix becomes. Knows no values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

BITS = (2, 3, 4, 5, 6, 8)
GROUP_SIZES = (32, 64, 128)


class Mode(NamedTuple):
    """What a mode packs to where nothing is asked for."""

    bits: int
    group_size: int


MODES = {"affine": Mode(4, 64), "mxfp4": Mode(4, 32), "nvfp4": Mode(4, 16), "mxfp8": Mode(8, 32)}


@dataclass(frozen=True)
class Packing:
    """`bits` a weight, and for each group a scale and (affine) a bias of 16 bits, else a scale of 8."""

    bits: int
    group_size: int
    mode: str = "affine"

    def __str__(self) -> str:
        if self.mode != "affine":
            return self.mode
        return f"{self.bits}-bit, groups of {self.group_size}"

    @property
    def bits_per_weight(self) -> float:
        """With scales and biases, where the network's dtype has 16 bits."""
        return self.bits + (32 if self.mode == "affine" else 8) / self.group_size
