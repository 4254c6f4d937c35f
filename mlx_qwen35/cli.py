"""The command `mlx-qwen35`: parse, call one function, turn errors into one line and an exit status.

Every import of what is heavy stands inside the function that needs it, so that `--help` and `models` start at once.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mlx_qwen35 import __version__
from mlx_qwen35.errors import UserError
from mlx_qwen35.terminal.app_arguments import add_app_options
from mlx_qwen35.terminal.arguments import (
    Parser,
    UsageError,
    add_answer_options,
    add_model_options,
    caches_of,
)
from mlx_qwen35.terminal.benching import add_bench_options, run_bench
from mlx_qwen35.terminal.chatting import add_chat_options, run_chat
from mlx_qwen35.terminal.convert_arguments import add_convert_options, conversion_options
from mlx_qwen35.terminal.doctoring import add_doctor_options, run_doctor
from mlx_qwen35.terminal.form_arguments import add_form_options
from mlx_qwen35.terminal.generating import add_generate_options, run_generate
from mlx_qwen35.terminal.loading import load_asked
from mlx_qwen35.terminal.planning import add_plan_options, run_plan
from mlx_qwen35.terminal.safe_text import safe
from mlx_qwen35.terminal.serve_arguments import add_cache_options, add_serve_options, rules_of

FOUND_WRONG, DEFECT, INTERRUPTED, BROKEN_PIPE = 2, 1, 130, 141
MAX_TOOLS_BYTES = 16 << 20


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return the exit status: 0, or 2 for what the user can mend."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    _ready_streams()
    try:
        args = make_parser().parse_args(arguments)
        args.run(args)
        sys.stdout.flush()
    except UserError as error:
        return _fail(str(error), FOUND_WRONG, debug)
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # the reader has left
        _drop_stdout()
        return BROKEN_PIPE
    except OSError as error:  # a full disk, a missing permission
        _drop_stdout()
        place = f"{error.filename}: " if error.filename else ""
        return _fail(f"{place}{(error.strerror or str(error)).lower()}.", FOUND_WRONG, debug)
    except Exception as error:
        advice = "" if debug else "; this is a defect, run again with --debug"
        return _fail(f"{type(error).__name__}: {' '.join(str(error).split())}{advice}", DEFECT, debug)
    return 0


def _fail(message: str, status: int, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    print(safe(f"mlx-qwen35: {message}"), file=sys.stderr)
    return status


def _ready_streams() -> None:
    """Streams that were closed read as empty and swallow what is written; a letter that cannot be written is a mark."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if reconfigure := getattr(stream, "reconfigure", None):
            reconfigure(errors="replace")


def _drop_stdout() -> None:
    """The interpreter flushes stdout once more when it ends, and would complain once more."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def make_parser() -> Parser:
    """The whole grammar."""
    parser = Parser(
        prog="mlx-qwen35",
        description="The Qwen3.5 family on Apple Silicon: chat, convert, embed.",
        epilog="Example: mlx-qwen35 chat 4b",
    )
    parser.add_argument("--version", action="version", version=f"mlx-qwen35 {__version__}")
    parser.set_defaults(run=lambda args: parser.print_help())
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands")

    def add(name: str, run: Any, help: str, example: str) -> Parser:
        command = commands.add_parser(name, help=help, description=help, epilog=f"Example: mlx-qwen35 {example}")
        command.add_argument("--debug", action="store_true", help="show where an error comes from")
        command.set_defaults(run=run)
        return command

    add_chat_options(add("chat", run_chat, "Talk with a model.", "chat 35b-a3b --think"))
    add_generate_options(add("generate", run_generate, "Answer one question.", 'generate "What is MLX?" --model 4b'))
    models = add("models", run_models, "List the family: sizes, what fits here, what is downloaded.", "models --json")
    models.add_argument("--json", action="store_true", help="for machines")
    add_plan_options(add("plan", run_plan, "What fits this machine and other Macs, and how fast.", "plan 35b-a3b"))
    add_convert_options(add("convert", run_convert, "Convert a checkpoint to MLX, quantized.", "convert 4b --bits 4"))
    measure = add("eval", run_eval, "Measure a conversion against its source.", "eval kl 4b ./Qwen3.5-4B-4bit")
    measure.later = _add_eval
    add_app_options(add("app", run_app, "Chat in the browser.", "app 4b"))
    add_serve_options(
        add("serve", run_serve, "Serve a model to agent tools, as OpenAI and Anthropic do.", "serve 35b-a3b")
    )
    add_cache_options(add("cache", run_cache, "See where two saved requests differ.", "cache diff 1.json 2.json"))
    add_doctor_options(add("doctor", run_doctor, "Is everything right, on this machine, with this model?", "doctor 4b"))
    add_bench_options(add("bench", run_bench, "How fast is it here, beside a peer?", "bench 4b --vs mlx-lm"))
    kernels = add("kernels", run_kernels, "Count launches and bytes of a step, beside stock mlx-lm.", "kernels 35b-a3b")
    kernels.add_argument("sizes", nargs="*", metavar="SIZE", help="which of the family (27b and the mixtures)")
    kernels.add_argument("--check", type=Path, metavar="FOLDER", help="run a checkpoint's kernels on this Mac instead")
    for name in ("chat", "generate", "app", "serve"):
        add_model_options(commands.choices[name])
    for name in ("chat", "generate"):
        add_answer_options(commands.choices[name])
        add_form_options(commands.choices[name])
    return parser


def _add_eval(parser: Parser) -> None:
    from mlx_qwen35.convert.eval_command import add_arguments

    parser.add_argument("measure", choices=["kl"], metavar="kl", help="divergence of the next token's distribution")
    add_arguments(parser)


def run_models(args: argparse.Namespace) -> None:
    from mlx_qwen35.terminal.models_table import print_models

    print_models(args.json)


def run_convert(args: argparse.Namespace) -> None:
    """Convert, or show what would be written."""
    from mlx_qwen35.terminal.converting import convert_visibly, show_plan

    options = conversion_options(args)
    if args.dry_run:
        show_plan(args.source, options)
    else:
        convert_visibly(args.source, args.out, options, args.upload, args.card)


def run_eval(args: argparse.Namespace) -> None:
    from mlx_qwen35.convert.eval_command import run

    run(args)


def run_cache(args: argparse.Namespace) -> None:
    from mlx_qwen35.server.compare import report
    from mlx_qwen35.terminal.loading import chosen_model

    for line in report(args.first, args.second, chosen_model(args.model), rules_of(args)):
        print(safe(line))


def run_kernels(args: argparse.Namespace) -> None:
    if args.check:
        from mlx_qwen35.counting.check import check_kernels

        print(*check_kernels(args.check), sep="\n")
        return
    from mlx_qwen35.counting.report import SIZES, print_report

    print_report(args.sizes or SIZES)


def run_app(args: argparse.Namespace) -> None:
    """The chat page, over a model loaded here or over a running server."""
    local = {"MODEL": args.model, "--context": args.context, "--force": args.force, "--offline": args.offline}
    if args.url and (given := [name for name, value in local.items() if value]):
        raise UsageError(
            f"--url asks a server that runs, and {given[0]} is about loading a model here; give one of them."
        )
    from mlx_qwen35.app.backend import ServerBackend, key_for_server
    from mlx_qwen35.app.door import Door, read_passwords
    from mlx_qwen35.app.loading import Loading
    from mlx_qwen35.app.server import say, serve
    from mlx_qwen35.runtime import USUAL_CONTEXT

    serve(
        ServerBackend(args.url, key_for_server(args.api_key_file)) if args.url else args.model,
        Door(args.host, args.port, read_passwords(args.password_file), tuple(args.allow_host)),
        open_browser=sys.platform == "darwin" if args.browser is None else args.browser,
        loading=Loading(args.context or USUAL_CONTEXT, args.force, args.offline, caches_of(args), say),
        tools=args.toolbox,
    )


def run_serve(args: argparse.Namespace) -> None:
    """Answer over HTTP until interrupted."""
    from mlx_qwen35.server.settings import MIB, Settings
    from mlx_qwen35.server.start import api_keys, serve

    settings = Settings(
        api_keys(args.api_key, args.api_key_file),
        hosts=tuple(args.allow_host),
        origins=tuple(args.allow_origin),
        max_queue=args.queue,
        body_bytes=args.body_mib * MIB,
        answer_seconds=args.timeout,
        grace_seconds=args.grace,
        quote_cache=args.quote_cache,
        rules=rules_of(args),
    )
    if args.log:
        logging.basicConfig(format="%(asctime)s %(message)s", stream=sys.stderr)
        logging.getLogger("mlx_qwen35.server").setLevel(logging.INFO)
    serve(lambda: load_asked(args, args.model, guided=True), settings, args.host, args.port, args.alias)
