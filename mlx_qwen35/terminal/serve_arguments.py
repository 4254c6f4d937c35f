"""The options of `mlx-qwen35 serve`."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from mlx_qwen35.chat.canonical import RULES
from mlx_qwen35.terminal.arguments import Parser, between


def add_serve_options(parser: Parser) -> None:
    """Where it listens, who may ask, and how much."""
    parser.add_argument(
        "model", nargs="?", metavar="MODEL", help="folder, hub name or short name (the last used, or demo)"
    )
    parser.add_argument("--host", default="127.0.0.1", metavar="ADDRESS", help="where to listen (127.0.0.1)")
    parser.add_argument("--port", type=between(int, 0, 65535), default=8080, metavar="N", help="port (8080); 0 is any")
    parser.add_argument(
        "--alias",
        action="append",
        default=[],
        metavar="NAME",
        help="another name of the model for clients (repeatable)",
    )
    who = parser.add_argument_group("who may ask")
    who.add_argument(
        "--api-key",
        action="append",
        default=[],
        metavar="KEY",
        help="as does MLX_QWEN35_API_KEY in the "
        "environment, which other users of this computer cannot see (repeatable)",
    )
    who.add_argument("--api-key-file", action="append", default=[], type=Path, metavar="FILE", help="keys, one a line")
    who.add_argument("--allow-host", action="append", default=[], metavar="NAME", help="answer under this name too")
    who.add_argument(
        "--allow-origin",
        action="append",
        default=[],
        metavar="URL",
        help="pages from there may ask, such as http://localhost:3000",
    )
    limits = parser.add_argument_group("limits")
    limits.add_argument("--batch", type=between(int, 1, 256), metavar="N", help="answers computed at a time (16)")
    limits.add_argument(
        "--queue",
        type=between(int, 0, 4096),
        default=64,
        metavar="N",
        help="answers in line beside them; more get 429 (64)",
    )
    limits.add_argument("--body-mib", type=between(int, 1, 1024), default=32, metavar="N", help="of a request (32)")
    limits.add_argument(
        "--timeout", type=between(float, 1, 1 << 24), default=3600, metavar="SECONDS", help="of an answer (3600)"
    )
    limits.add_argument(
        "--grace",
        type=between(float, 0, 3600),
        default=5,
        metavar="SECONDS",
        help="that running answers get when the server is stopped (5)",
    )
    _add_as_sent(parser)
    parser.add_argument("--log", action="store_true", help="a line for each request on stderr, without its content")
    parser.add_argument(
        "--quote-cache",
        action="store_true",
        help="notes on the cache quote where a prompt departs from an earlier one, which may be another client's",
    )


def add_cache_options(parser: Parser) -> None:
    """What `cache diff` compares."""
    parser.add_argument("what", choices=["diff"], metavar="diff", help="compare two request bodies as prompts")
    for name in ("first", "second"):
        parser.add_argument(name, type=Path, metavar=f"{name.upper()}.json", help="of any of the server's protocols")
    parser.add_argument("--model", metavar="MODEL", help="whose template and tokenizer (the last used, or demo)")
    _add_as_sent(parser)


def rules_of(args: Namespace) -> tuple[str, ...]:
    """The rules of chat/canonical.py that `--as-sent` leaves on."""
    return tuple(rule for rule in RULES if rule not in args.as_sent and "all" not in args.as_sent)


def _add_as_sent(parser: Parser) -> None:
    parser.add_argument(
        "--as-sent",
        action="append",
        default=[],
        choices=(*RULES, "all"),
        metavar="RULE",
        help="prompts keep what would otherwise be written so that a client's next turn can go on from the last: "
        f"{', '.join(RULES)}, or all (repeatable)",
    )
