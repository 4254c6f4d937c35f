"""The options of `mlx-qwen35 serve`."""

from __future__ import annotations

from argparse import ArgumentTypeError, Namespace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from mlx_qwen35.chat.canonical import RULES
from mlx_qwen35.terminal.arguments import Parser, between, filled, own_name


def add_serve_options(parser: Parser) -> None:
    """Where it listens, who may ask, and how much."""
    parser.add_argument(
        "model", nargs="?", metavar="MODEL", help="folder, hub name or short name (the last used, or demo)"
    )
    parser.add_argument("--host", default="127.0.0.1", metavar="ADDRESS", help="where to listen (127.0.0.1)")
    parser.add_argument("--port", type=between(int, 0, 65535), default=8080, metavar="N", help="port (8080); 0 is any")
    _add_several(parser, "--alias", "NAME", "another name of the model for clients (repeatable)", type=filled)
    who = parser.add_argument_group("who may ask")
    unseen = "as does MLX_QWEN35_API_KEY in the environment, which other users of this computer cannot see (repeatable)"
    _add_several(who, "--api-key", "KEY", unseen)
    _add_several(who, "--api-key-file", "FILE", "keys, one a line", type=Path)
    _add_several(who, "--allow-host", "NAME", "answer under this name too", type=own_name)
    _add_several(who, "--allow-origin", "URL", "pages from there may ask, such as http://localhost:3000", type=_origin)
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


def _origin(text: str) -> str:
    """As browsers send it: a scheme, a host and perhaps a port, in lower case."""
    try:
        parts = urlsplit(text.lower())
        port = "" if parts.port is None else f":{parts.port}"
        origin = f"{parts.scheme}://{parts.hostname}{port}"
    except ValueError:
        origin = ""
    if origin != text.lower().removesuffix("/").replace("[", "").replace("]", "") or not parts.hostname:
        raise ArgumentTypeError(f"{text[:80]!r} is no origin; give scheme and host, such as http://localhost:3000")
    return text.lower().removesuffix("/")


def _add_as_sent(parser: Parser) -> None:
    says = "prompts keep what would otherwise be written so that a client's next turn can go on from the last: "
    _add_several(parser, "--as-sent", "RULE", f"{says}{', '.join(RULES)}, or all (repeatable)", choices=(*RULES, "all"))


def _add_several(group: Any, option: str, metavar: str, says: str, **more: Any) -> None:
    """An option that may be given several times. group: an argparse parser, or a group of one"""
    group.add_argument(option, action="append", default=[], metavar=metavar, help=says, **more)
