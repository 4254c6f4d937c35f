"""Results as JSON, kept from run to run, and as the table in README.md."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.clients.running import Outcome
from tests.clients.servers import SIDES
from tests.clients.table import Client

README = Path(__file__).parents[2] / "README.md"
BEGIN, END = "<!-- clients -->", "<!-- clients end -->"

Results = dict[str, dict[str, Outcome]]  # by client's key and side


def keep(clients: list[Client], results: Results, path: Path) -> dict[str, Any]:
    """Write what was found to `path`, in place of what it said of the same clients, and return all it says now."""
    rows = json.loads(path.read_text()) if path.is_file() else {}
    for client in clients:
        row = rows.get(client.key)
        if row is None or row["version"] != client.version:
            row = {"version": client.version, "sides": {}}
        for side, outcome in results[client.key].items():
            row["sides"][side] = {"seconds": outcome.seconds, "failures": outcome.failures}
        rows[client.key] = row
    path.write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n")
    return rows


def table(clients: list[Client], rows: dict[str, Any]) -> str | None:
    """Markdown: one row a client, checks that held of all, a side; None while a client has not met both servers."""
    lines = ["| client | version | checks | " + " | ".join(SIDES) + " |", "|---" * (3 + len(SIDES)) + "|"]
    for client in clients:
        row = rows.get(client.key)
        if row is None or row["version"] != client.version:
            return None
        found = [row["sides"].get(side, {}).get("failures", {}) for side in SIDES]
        if any(tuple(failures) != client.expected for failures in found):
            return None
        cells = [f"{sum(not failure for failure in failures.values())} of {len(failures)}" for failures in found]
        lines.append(" | ".join([f"| {client.name}", client.version, ", ".join(client.checks), *cells]) + " |")
    return "\n".join(lines)


def written() -> str:
    """The table that README.md has now."""
    text = README.read_text()
    return text[text.index(BEGIN) + len(BEGIN) : text.index(END)].strip()


def write_readme(shown: str) -> None:
    """Replace the table between the marks."""
    text = README.read_text()
    start, end = text.index(BEGIN) + len(BEGIN), text.index(END)
    README.write_text(f"{text[:start]}\n{shown}\n{text[end:]}")
