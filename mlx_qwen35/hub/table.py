"""The family as rows of a table: what each size weighs, whether it fits this machine, whether it is here already."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mlx_qwen35.hub.catalog import Downloaded
from mlx_qwen35.hub.family import FAMILY, FamilyEntry
from mlx_qwen35.hub.machine import Machine
from mlx_qwen35.hub.memory import fits
from mlx_qwen35.hub.progress import gigabytes

BITS = (16, 8, 4)
HEADINGS = ("model", "parameters", "bf16", "8-bit", "4-bit", "fits here", "thinks", "downloaded")


@dataclass(frozen=True)
class Row:
    entry: FamilyEntry
    fitting_bits: int | None  # the most bits a weight at which it fits this machine
    here: Downloaded | None

    def cells(self) -> tuple[str, ...]:
        e = self.entry
        active = f", {_billions(e.active_parameters)} active" if e.experts else ""
        sizes = [gigabytes(e.weight_bytes(bits, mtp=True)) for bits in BITS]
        fitting = {16: "yes", 8: "at 8 bits", 4: "at 4 bits", None: "no"}[self.fitting_bits]
        thinks = "by default" if e.thinks_by_default else "if asked"
        here = "" if self.here is None else "yes" if self.here.complete else f"in part ({gigabytes(self.here.nbytes)})"
        return (e.short, _billions(e.parameters) + active, *sizes, fitting, thinks, here)

    def data(self) -> dict[str, Any]:
        e = self.entry
        return {
            "name": e.short,
            "hub_id": e.hub_id,
            "parameters": e.parameters,
            "active_parameters": e.active_parameters,
            "bytes": {str(bits): e.weight_bytes(bits, mtp=True) for bits in BITS},
            "fits_at_bits": self.fitting_bits,
            "thinks_by_default": e.thinks_by_default,
            "downloaded": state_of(self.here),
        }


def family_rows(machine: Machine, here: list[Downloaded]) -> list[Row]:
    """One for each released size, the smallest first. here: what is downloaded"""
    return [_row(entry, machine, here) for entry in FAMILY.values()]


def _row(entry: FamilyEntry, machine: Machine, here: list[Downloaded]) -> Row:
    fitting = next((bits for bits in BITS if fits(machine.budget, entry, bits)), None)
    return Row(entry, fitting, next((found for found in here if found.entry is entry), None))


def state_of(found: Downloaded | None) -> dict[str, Any] | None:
    if found is None:
        return None
    return {"complete": found.complete, "bytes": found.nbytes, "folder": str(found.folder)}


def _billions(count: int) -> str:
    return f"{count / 1e9:.{0 if count >= 10e9 else 1}f}B"
