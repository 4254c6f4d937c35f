"""`mlx-qwen35 doctor`: one screen, green and red; for machines; for a bug report."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from mlx_qwen35.errors import UserError
from mlx_qwen35.terminal.arguments import Parser
from mlx_qwen35.terminal.safe_text import one_line

if TYPE_CHECKING:
    from mlx_qwen35.doctor.findings import Finding

STYLES = {"ok": "green", "WRONG": "bold red", "not run": "dim"}


def add_doctor_options(parser: Parser) -> None:
    parser.add_argument("model", nargs="?", default="demo", metavar="MODEL", help="folder, hub or short name (demo)")
    parser.add_argument("--offline", action="store_true", help="use only what is downloaded already")
    parser.add_argument("--json", action="store_true", help="for machines")
    parser.add_argument("--report", type=Path, metavar="FILE", help="write the findings to a file, for a bug report")


def run_doctor(args: argparse.Namespace) -> None:
    """Raises UserError where something is wrong, after everything was told."""
    from mlx_qwen35.doctor.examination import examination
    from mlx_qwen35.hub.download import ensure_local
    from mlx_qwen35.models.config import read_config

    folder = ensure_local(args.model, offline=args.offline)
    read_config(folder)  # what is no Qwen3.5 is refused by its own line
    findings = []
    show = (lambda finding: None) if args.json else _printer()
    for finding in examination(folder):
        findings.append(finding)
        show(finding)
    if args.json:
        print(json.dumps({"findings": [asdict(f) for f in findings]}, indent=1, ensure_ascii=False))
    if args.report:
        args.report.write_text(_report(findings), encoding="utf-8")
        print(f"written: {args.report}", file=sys.stderr)
    if wrong := [finding.name for finding in findings if finding.is_bad]:
        raise UserError(f"{len(wrong)} of {len(findings)} examinations found something wrong: {', '.join(wrong)}.")


def _printer():
    """Prints a finding; in colour on a terminal."""
    if not sys.stdout.isatty():
        return lambda finding: print(_line(finding), flush=True)
    from rich.console import Console
    from rich.text import Text

    console = Console()

    def show(finding: Finding) -> None:
        text = Text(f"{finding.verdict:<8}", style=STYLES[finding.verdict])
        text.append(f"{finding.name:<26}", style="default").append(one_line(finding.note), style="default")
        console.print(text)

    return show


def _line(finding: Finding) -> str:
    return f"{finding.verdict:<8}{finding.name:<26}{one_line(finding.note)}"


def _report(findings: list[Finding]) -> str:
    """Without paths, prompts or names of files: nothing of the user's."""
    home = str(Path.home())
    lines = [f"{_line(f)}  ({f.seconds:.1f} s)".replace(home, "~") for f in findings]
    return "\n".join(["mlx-qwen35 doctor", *lines, ""])
