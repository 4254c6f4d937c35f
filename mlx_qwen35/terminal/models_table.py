"""The family as a table: what each size weighs, what fits this machine, what is here already."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from typing import Any

from mlx_qwen35.columns import aligned
from mlx_qwen35.hub.catalog import Downloaded, downloaded
from mlx_qwen35.hub.family import FAMILY, FamilyEntry
from mlx_qwen35.hub.machine import GIB, Machine, this_machine
from mlx_qwen35.hub.memory import DEFAULT_CONTEXT, fits
from mlx_qwen35.hub.progress import gigabytes
from mlx_qwen35.terminal.safe_text import one_line

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
            "downloaded": _state(self.here),
        }


def print_models(as_json: bool = False) -> None:
    """Write the family, and other downloaded checkpoints of its architecture, to stdout."""
    machine, here = this_machine(), downloaded()
    rows = [_row(entry, machine, here) for entry in FAMILY.values()]
    others = [found for found in here if found.entry is None]
    if as_json:
        print(json.dumps(_data(machine, rows, others), indent=1))
        return
    _print_table(rows)
    print(
        f"\n{machine.budget / GIB:.1f} of {machine.total / GIB:.1f} GiB memory for a model ({machine.note}); "
        f"fits: with {DEFAULT_CONTEXT:,} tokens of context."
    )
    print("demo is bundled. 8-bit and 4-bit are made by: mlx-qwen35 convert MODEL --bits 4")
    for found in others:
        state = "" if found.complete else ", in part"
        print(f"also downloaded: {one_line(found.hub_id)} ({gigabytes(found.nbytes)}{state})")


def _row(entry: FamilyEntry, machine: Machine, here: list[Downloaded]) -> Row:
    fitting = next((bits for bits in BITS if fits(machine.budget, entry, bits)), None)
    return Row(entry, fitting, next((found for found in here if found.entry is entry), None))


def _data(machine: Machine, rows: list[Row], others: list[Downloaded]) -> dict[str, Any]:
    return {
        "memory": {"total": machine.total, "for_a_model": machine.budget},
        "context": DEFAULT_CONTEXT,
        "models": [row.data() for row in rows],
        "others": [{"hub_id": found.hub_id, "downloaded": _state(found)} for found in others],
    }


def _print_table(rows: list[Row]) -> None:
    cells = [HEADINGS, *(row.cells() for row in rows)]
    if sys.stdout.isatty():
        _print_rich_table(cells)
        return
    print(*aligned(cells), sep="\n")


def _print_rich_table(cells: list[tuple[str, ...]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in cells[0]:
        table.add_column(heading, justify="right" if heading in ("bf16", "8-bit", "4-bit") else "left")
    for line in cells[1:]:
        style = "dim" if line[HEADINGS.index("fits here")] == "no" else ""
        table.add_row(*line, style=style)
    Console().print(table)


def _state(found: Downloaded | None) -> dict[str, Any] | None:
    if found is None:
        return None
    return {"complete": found.complete, "bytes": found.nbytes, "folder": str(found.folder)}


def _billions(count: int) -> str:
    return f"{count / 1e9:.{0 if count >= 10e9 else 1}f}B"
