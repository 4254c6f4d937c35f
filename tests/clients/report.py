"""Results as JSON, and as the table in README.md."""

from __future__ import annotations

import json
from pathlib import Path

from tests.clients.running import Outcome
from tests.clients.servers import SIDES
from tests.clients.table import Client

README = Path(__file__).parents[2] / "README.md"
BEGIN, END = "<!-- clients -->", "<!-- clients end -->"

Results = dict[str, dict[str, Outcome]]  # by client's key and side


def write_json(results: Results, path: Path) -> None:
    """Every check of every client on every side, with its reason if it failed."""
    rows = {
        key: {side: {"seconds": outcome.seconds, "failures": outcome.failures} for side, outcome in sides.items()}
        for key, sides in results.items()
    }
    path.write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n")


def table(clients: list[Client], results: Results) -> str:
    """Markdown: one row a client, passed of all checks a side."""
    lines = ["| client | version | checks | " + " | ".join(SIDES) + " |", "|---" * 3 + "|---" * len(SIDES) + "|"]
    for client in clients:
        cells = [_cell(results[client.key].get(side)) for side in SIDES]
        lines.append(f"| {client.name} | {client.version} | {', '.join(client.checks)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def write_readme(clients: list[Client], results: Results) -> None:
    """Replace the table between the marks."""
    text = README.read_text()
    start, end = text.index(BEGIN) + len(BEGIN), text.index(END)
    README.write_text(f"{text[:start]}\n{table(clients, results)}\n{text[end:]}")


def _cell(outcome: Outcome | None) -> str:
    return f"{outcome.passed} of {len(outcome.failures)}" if outcome else "–"
