"""The command line's options for the form of an answer and for how long to think, as fields of a request."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from mlx_qwen35.chat.constraints import EFFORTS
from mlx_qwen35.chat.folding import SMALLEST_LIMIT
from mlx_qwen35.conversations.settings import check_form
from mlx_qwen35.errors import UserError
from mlx_qwen35.terminal.arguments import Parser, between

MAX_BYTES = 4 << 20  # of a schema or grammar


def add_form_options(parser: Parser) -> None:
    """Of `chat` and `generate`."""
    efforts = ", ".join(f"{name} {limit:,}" for name, limit in EFFORTS.items() if limit)
    group = parser.add_argument_group("thinking, and the answer's form")
    group.add_argument(
        "--thinking-budget", type=between(int, 0, 1 << 31), metavar="N", help="end thinking after N tokens; 0: none"
    )
    group.add_argument("--reasoning-effort", choices=list(EFFORTS), metavar="NAME", help=f"none, {efforts}, xhigh")
    group.add_argument(
        "--fold-at",
        type=between(int, SMALLEST_LIMIT, 1 << 31),
        metavar="TOKENS",
        help="summarise older turns of a conversation that outgrows so many tokens",
    )
    group.add_argument("--schema", type=Path, metavar="FILE", help="answer with JSON that this JSON schema describes")
    group.add_argument("--json-object", action="store_true", help="answer with a JSON object")
    group.add_argument("--regex", metavar="TEXT", help="answer with what this regular expression matches")
    group.add_argument("--choice", action="append", metavar="TEXT", help="answer with one of these (repeatable)")
    group.add_argument("--grammar", type=Path, metavar="FILE", help="answer by this grammar (llguidance's Lark)")


def form_of(args: argparse.Namespace) -> dict[str, Any]:
    """What was given, by the names of `ChatRequest`'s fields. Raises UserError for what cannot be."""
    if args.schema is not None and args.json_object:
        raise UserError("--schema and --json-object are both given; an answer has one form.")
    given = {name: getattr(args, name) for name in ("thinking_budget", "reasoning_effort", "regex", "fold_at")}
    given |= {"choices": args.choice, "grammar": None if args.grammar is None else _read(args.grammar)}
    if args.schema is not None:
        given["response_format"] = {"type": "json_schema", "json_schema": {"schema": _json(args.schema)}}
    elif args.json_object:
        given["response_format"] = {"type": "json_object"}
    form = {name: value for name, value in given.items() if value is not None}
    check_form(form)
    return form


def tool_choice_of(name: str | None) -> str | dict[str, Any] | None:
    """auto, none and required as they are; any other word is the tool that has to be called."""
    if name in (None, "auto", "none", "required"):
        return name
    return {"type": "function", "function": {"name": name}}


def _json(path: Path) -> Any:
    try:
        return json.loads(_read(path))
    except (ValueError, RecursionError):
        raise UserError(f"{path} is not JSON; a JSON schema is needed.") from None


def _read(path: Path) -> str:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise UserError(f"{path} is too large: at most {MAX_BYTES >> 20} MiB.")
        return path.read_bytes().decode()
    except OSError as error:
        raise UserError(f"Cannot read {path}: {(error.strerror or str(error)).lower()}.") from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is not UTF-8 text.") from None
