"""What a conversion is asked for, checked at the door. Knows nothing of checkpoints."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from mlx_qwen35.convert.packing import BITS, GROUP_SIZES, MODES, Packing
from mlx_qwen35.convert.rounding import CALIBRATED, QUALITIES
from mlx_qwen35.errors import ConfigError

MTP_PLACES = ("subdir", "inline", "drop")
VISION = ("keep", "drop")
BLOCK_BYTES = 256 << 20
LEAST_BLOCK_BYTES = 1 << 20


@dataclass(frozen=True)
class Options:
    """All sizes in bytes.

    bits, group_size, mode: of most matrices; None is the mode's own (4 bits, groups of 64, affine)
    size: of the weight files; fit: of a Mac's memory. Either picks the bits itself
    token_bytes: read for one token, a second limit beside `size` or `fit`
    quality: how weights are rounded   recipe: 'uniform', 'balanced' or a JSON file; by default uniform for
    quality 'stock', so that it is bit for bit what mlx_lm.convert writes, and balanced for the others
    mtp_source: a folder or hub name to take the MTP layer from   block_bytes: of working memory at once
    calibration: texts for the qualities good and best, instead of our own   seed: shuffles them
    """

    bits: int | None = None
    group_size: int | None = None
    mode: str = "affine"
    size: int | None = None
    fit: int | None = None
    token_bytes: int | None = None
    quality: str = "fast"
    recipe: str | Path | None = None
    mtp: str = "subdir"
    mtp_source: str | Path | None = None
    vision: str = "keep"
    block_bytes: int = BLOCK_BYTES
    delete_source_shards: bool = False
    check_drafts: bool = True
    calibration: str | Path | None = None
    calibration_tokens: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name, known in (("mode", MODES), ("quality", QUALITIES), ("mtp", MTP_PLACES), ("vision", VISION)):
            if getattr(self, name) not in known:
                raise ConfigError(f"{name} {getattr(self, name)!r} is unknown; known are {listed(known, 'and')}.")
        self._check_packing()
        if self.size and self.fit:
            raise ConfigError("--size and --fit both pick the bits; give one of them.")
        budget = self.size or self.fit
        if budget and (self.bits or self.recipe or self.mode != "affine"):
            raise ConfigError("--size and --fit pick the bits of every tensor; leave --bits, --mode and --recipe out.")
        if self.token_bytes and not budget:
            raise ConfigError("--token-size limits what --size or --fit pick; give one of them too.")
        if self.block_bytes < LEAST_BLOCK_BYTES:
            raise ConfigError(f"--block is {self.block_bytes:,} bytes; at least 1 MB is needed.")
        if (self.calibration or self.calibration_tokens) and self.quality not in CALIBRATED:
            raise ConfigError(f"quality {self.quality!r} needs no calibration; take {listed(CALIBRATED)} with it.")
        if self.mtp == "drop" and self.mtp_source:
            raise ConfigError("--mtp drop leaves the MTP layer out; then --mtp-source has nothing to give.")
        if self.delete_source_shards and self.quality in CALIBRATED:
            raise ConfigError(
                f"quality {self.quality!r} reads the source more than once; leave --delete-source-shards out."
            )

    @property
    def packing(self) -> Packing:
        """Of most matrices, where neither `size` nor `fit` picks the bits."""
        return Packing(self.bits or MODES[self.mode].bits, self.group_size or MODES[self.mode].group_size, self.mode)

    def _check_packing(self) -> None:
        bits, group_size, mode = self.packing.bits, self.packing.group_size, MODES[self.mode]
        if self.mode == "affine":
            if bits not in BITS:
                raise ConfigError(f"{bits} bits: MLX packs weights to {listed(BITS)} bits.")
            if group_size not in GROUP_SIZES:
                raise ConfigError(f"Group size {group_size}: MLX packs weights in groups of {listed(GROUP_SIZES)}.")
        elif (bits, group_size) != (mode.bits, mode.group_size):
            raise ConfigError(
                f"Mode {self.mode} has {mode.bits} bits in groups of {mode.group_size}, always; "
                "leave --bits and --group-size out."
            )


def listed(values: Iterable[object], last_word: str = "or") -> str:
    *most, last = map(str, values)
    return f"{', '.join(most)} {last_word} {last}" if most else last
