"""`mlx-qwen35 generate`: its options, its question, its answer; `chat` without a terminal answers like this too."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlx_qwen35.errors import UserError
from mlx_qwen35.terminal.arguments import Parser, UsageError, sampling_of
from mlx_qwen35.terminal.form_arguments import form_of, tool_choice_of
from mlx_qwen35.terminal.loading import load_asked

if TYPE_CHECKING:
    from mlx_qwen35.runtime import ChatRequest

MAX_TOOLS_BYTES = 16 << 20


def add_generate_options(parser: Parser) -> None:
    parser.add_argument("prompt", nargs="?", metavar="PROMPT", help="the question; - or nothing reads stdin")
    parser.add_argument("--model", metavar="MODEL", help="folder, hub name or short name (the last used, or demo)")
    parser.add_argument("--tools", type=Path, metavar="FILE", help="JSON list of the tools it may call")
    parser.add_argument("--tool-choice", metavar="NAME", help="auto, none, required, or the tool to call (auto)")
    parser.add_argument("--json", action="store_true", help="one JSON object with content, reasoning, usage and more")


def run_generate(args: argparse.Namespace) -> None:
    """Answer one question and leave."""
    if args.prompt in (None, "-") and sys.stdin.isatty():
        raise UsageError('generate needs a prompt: mlx-qwen35 generate "your question", or pipe one in.')
    answer_once(args, asked_question(args.prompt), args.model)


def answer_once(args: argparse.Namespace, question: str, name: str | None) -> None:
    """Load what is asked for, and write the answer to `question`."""
    tools, form = _tools(getattr(args, "tools", None)), form_of(args)
    from mlx_qwen35.runtime import ChatRequest
    from mlx_qwen35.terminal.loading import demo_notice, is_demo
    from mlx_qwen35.terminal.once import answer_as_json, answer_plainly

    system = [{"role": "system", "content": args.system}] if args.system else []
    request: ChatRequest = ChatRequest(
        [*system, {"role": "user", "content": question}],
        tools=tools,
        enable_thinking=args.think,
        preset=args.preset,
        sampling=sampling_of(args),
        max_tokens=args.max_tokens,
        stop=tuple(args.stop),
        seed=args.seed,
        tool_choice=tool_choice_of(getattr(args, "tool_choice", None)),
        **form,
    )
    with contextlib.closing(load_asked(args, name, guided=bool(tools or form))) as runtime:
        if args.command == "chat" and is_demo(runtime.name):
            print(demo_notice(), file=sys.stderr)
        if getattr(args, "json", False):
            answer_as_json(runtime, request)
        else:
            answer_plainly(runtime, request)


def asked_question(prompt: str | None) -> str:
    """The prompt, or all of stdin for None and -."""
    if prompt in (None, "-"):
        try:
            prompt = sys.stdin.buffer.read().decode()
        except UnicodeDecodeError:
            raise UserError("stdin is not UTF-8 text.") from None
    if not prompt or not prompt.strip():
        raise UserError("The prompt is empty; give a question.")
    return prompt


def _tools(path: Path | None) -> list[dict[str, Any]] | None:
    if path is None:
        return None
    from mlx_qwen35.chat.messages import normalise_tools

    try:
        if path.stat().st_size > MAX_TOOLS_BYTES:
            raise UserError(f"{path} is too large for a list of tools.")
        tools = json.loads(path.read_bytes())
    except OSError as error:
        raise UserError(f"Cannot read {path}: {(error.strerror or str(error)).lower()}.") from None
    except (ValueError, RecursionError):
        raise UserError(f"{path} is not JSON; a list of tools is needed.") from None
    return normalise_tools(tools)
