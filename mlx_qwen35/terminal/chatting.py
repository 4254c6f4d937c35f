"""`mlx-qwen35 chat`: its options, and what is opened for it."""

from __future__ import annotations

import argparse
import contextlib
import sys

from mlx_qwen35.terminal.arguments import Parser, UsageError, add_toolbox_option, between, sampling_of
from mlx_qwen35.terminal.form_arguments import form_of
from mlx_qwen35.terminal.generating import answer_once, asked_question
from mlx_qwen35.terminal.loading import load_asked


def add_chat_options(chat: Parser) -> None:
    chat.add_argument(
        "model", nargs="?", metavar="MODEL", help="folder, hub name or short name (the last used, or demo)"
    )
    chat.add_argument(
        "--resume",
        nargs="?",
        const=1,
        type=between(int, 1, 10_000),
        metavar="N",
        help="go on with the chat that was saved last, or the Nth of /chats",
    )
    chat.add_argument(
        "--no-history",
        action="store_true",
        help="save neither this chat nor what is typed (with --disk none, nothing of them is on disk)",
    )
    chat.add_argument(
        "--theme",
        choices=["auto", "dark", "light", "either"],
        default="auto",
        metavar="NAME",
        help="colours: auto, dark, light, or either, which suits both (auto)",
    )
    add_toolbox_option(chat)


def run_chat(args: argparse.Namespace) -> None:
    """Talk at a terminal; where stdin is none, answer all of it as one question."""
    from mlx_qwen35.conversations.keeping import Keeper
    from mlx_qwen35.conversations.settings import Settings
    from mlx_qwen35.terminal.keeping import begun

    settings = Settings(
        args.system or "",
        args.think,
        args.preset,
        sampling_of(args),
        args.max_tokens,
        args.seed,
        tuple(args.stop),
        form_of(args),
    )
    if not sys.stdin.isatty():
        if args.resume:
            raise UsageError("--resume goes on with a chat at a terminal; stdin is none.")
        if args.toolbox:
            raise UsageError("chat --tools needs a terminal, where somebody can be asked before a tool runs.")
        answer_once(args, asked_question(None), args.model)
        return
    keeper = Keeper(keeps=not args.no_history)
    conversation = begun(keeper, args.resume, settings)
    with contextlib.ExitStack() as open_now:
        toolbox = None
        if args.toolbox:
            from mlx_qwen35.tools.choosing import open_toolbox

            toolbox = open_now.enter_context(open_toolbox(args.toolbox))
        runtime = open_now.enter_context(contextlib.closing(load_asked(args, args.model, guided=toolbox is not None)))
        from mlx_qwen35.terminal.chat import Chat

        Chat(runtime, conversation, keeper, args.debug, toolbox, args.theme).run()
