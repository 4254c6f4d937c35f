"""The options of `mlx-qwen35 app`."""

from __future__ import annotations

import argparse
from pathlib import Path

from mlx_qwen35.terminal.arguments import Parser, add_toolbox_option, between, own_name


def add_app_options(parser: Parser) -> None:
    """Where the page is, and who may see it."""
    parser.add_argument(
        "model", nargs="?", metavar="MODEL", help="folder, hub name or short name (the last used, or demo)"
    )
    parser.add_argument("--host", default="127.0.0.1", metavar="ADDRESS", help="where to listen (127.0.0.1)")
    parser.add_argument("--port", type=between(int, 0, 65535), metavar="N", help="port (the first free from 7860)")
    parser.add_argument("--browser", action=argparse.BooleanOptionalAction, help="open the page, or not")
    add_toolbox_option(parser)
    parser.add_argument(
        "--url",
        metavar="URL",
        help="no model here, but that of a running OpenAI-compatible server, such as http://127.0.0.1:8080/v1",
    )
    parser.add_argument(
        "--api-key-file",
        action="append",
        default=[],
        type=Path,
        metavar="FILE",
        help="its key, as MLX_QWEN35_API_KEY and OPENAI_API_KEY in the environment",
    )
    who = parser.add_argument_group("who may see it")
    who.add_argument(
        "--password-file",
        action="append",
        default=[],
        type=Path,
        metavar="FILE",
        help="passwords, one a line, as is MLX_QWEN35_APP_PASSWORD in the environment; with --host one is needed",
    )
    who.add_argument(
        "--allow-host",
        action="append",
        default=[],
        type=own_name,
        metavar="NAME",
        help="answer under this name too (repeatable)",
    )
