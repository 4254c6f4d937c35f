"""The family as a table: what each size weighs, what fits this machine, what is here already."""

from __future__ import annotations

import json
import sys
from typing import Any

from mlx_qwen35.columns import aligned
from mlx_qwen35.hub.catalog import Downloaded, downloaded
from mlx_qwen35.hub.machine import GIB, Machine, this_machine
from mlx_qwen35.hub.memory import DEFAULT_CONTEXT
from mlx_qwen35.hub.progress import gigabytes
from mlx_qwen35.hub.table import HEADINGS, Row, family_rows, state_of
from mlx_qwen35.terminal.safe_text import one_line


def print_models(as_json: bool = False) -> None:
    """Write the family, and other downloaded checkpoints of its architecture, to stdout."""
    machine, here = this_machine(), downloaded()
    rows = family_rows(machine, here)
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


def _data(machine: Machine, rows: list[Row], others: list[Downloaded]) -> dict[str, Any]:
    return {
        "memory": {"total": machine.total, "for_a_model": machine.budget},
        "context": DEFAULT_CONTEXT,
        "models": [row.data() for row in rows],
        "others": [{"hub_id": found.hub_id, "downloaded": state_of(found)} for found in others],
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
