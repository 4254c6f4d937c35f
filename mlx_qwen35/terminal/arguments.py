"""The command line's grammar: argparse, with one clear line in place of its usage dump. Runs nothing."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from mlx_qwen35.chat import presets
from mlx_qwen35.errors import UserError
from mlx_qwen35.hub.cache import prefix_folder
from mlx_qwen35.loopback import name_of
from mlx_qwen35.options import DRAFTS, GIB, KV_BITS, PLAIN, CacheOptions, Draft, Sampling


class UsageError(UserError):
    """The command line asks for something that does not exist."""


class Parser(argparse.ArgumentParser):
    """Raises UsageError, one line with the nearest thing that exists, instead of printing usage and leaving."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(*args, allow_abbrev=False, **kwargs)
        # Adds options when they are asked for, where they stand in a module that is heavy to import.
        self.later: Callable[[Parser], None] | None = None

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        if self.later is not None:
            self.later, add = None, self.later
            add(self)
        return super().parse_known_args(args, namespace)

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:
        found, extra = self.parse_known_args(args, namespace)
        if extra:
            command = getattr(found, "command", None)
            raise UsageError(_unknown(extra, self._options_of(command), command))
        return found

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message.replace('argument ', '', 1)}. {self.prog} --help shows how.")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is None or value in action.choices:
            return
        names = [str(choice) for choice in action.choices]
        what = "command" if isinstance(action, argparse._SubParsersAction) else (action.option_strings or ["value"])[0]
        raise UsageError(f"unknown {what} {value[:80]!r}; {_nearest(value, names)}")

    def _options_of(self, command: str | None) -> list[str]:
        """Option strings of this parser and of the command's own."""
        options = list(self._option_string_actions)
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction) and command in action.choices:
                options += action.choices[command]._option_string_actions
        return options


def _unknown(extra: list[str], options: list[str], command: str | None) -> str:
    dashed = next((text for text in extra if text.startswith("-")), None)
    if dashed is None:
        place = f"{command} " if command else ""
        return f"{place}has no place for {extra[0][:80]!r}; put a text of several words in quotes."
    name = dashed.partition("=")[0][:80]
    program = f"mlx-qwen35 {command}" if command else "mlx-qwen35"
    close = difflib.get_close_matches(name, options, n=1)
    advice = f"did you mean {close[0]}?" if close else f"{program} --help lists the options."
    return f"unknown option {name}; {advice}"


def _nearest(value: str, names: Iterable[str]) -> str:
    names = list(names)
    close = difflib.get_close_matches(value.lower(), names, n=1)
    return f"did you mean {close[0]}?" if close else f"known are {', '.join(names)}."


def between(kind: Callable[[str], float], low: float, high: float) -> Callable[[str], float]:
    """An argparse type: a number of this kind within the range."""

    def convert(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text[:40]!r} is not a number") from None
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text[:40]} is not between {low:,} and {high:,}")
        return value

    return convert


def add_model_options(parser: Parser) -> None:
    """How the model is found and loaded."""
    group = parser.add_argument_group("model")
    whole = between(int, 1, 1 << 24)
    group.add_argument(
        "--context",
        type=whole,
        metavar="TOKENS",
        help="context to fit the memory and the positions; beyond the native one YaRN is on (8192)",
    )
    group.add_argument("--force", action="store_true", help="load even what does not fit this machine's memory")
    group.add_argument("--offline", action="store_true", help="use only what is downloaded already")
    group.add_argument("--kv-bits", type=kv_bits, default=PLAIN, metavar="N", help="KV cache in 16, 8 or 4 bits (16)")
    group.add_argument(
        "--draft", type=_draft, default="auto", metavar="N", help="tokens guessed ahead: auto, off, or 1 to 4 (auto)"
    )
    group.add_argument(
        "--exact", action="store_true", help="the same answer whoever shares the batch, drafts or not; slower"
    )
    group.add_argument(
        "--disk",
        type=filled,
        metavar="FOLDER",
        help="where what was computed of texts outlives the program, or none (mlx-qwen35/prefixes in the cache folder)",
    )
    group.add_argument(
        "--prefix-memory",
        type=between(float, 0, 4096),
        metavar="GIB",
        help="memory for what was computed of texts (half of what is left beside the model, up to 8)",
    )
    group.add_argument(
        "--no-read-ahead",
        dest="read_ahead",
        action="store_false",
        help="compute nothing while nobody asks; otherwise what the next question will come after is read meanwhile",
    )


def add_toolbox_option(parser: Parser) -> None:
    """Which tools the model may call while people chat."""
    parser.add_argument(
        "--tools",
        dest="toolbox",
        action="append",
        default=[],
        metavar="NAMES",
        help="calc,clock,files:FOLDER,mcp:FILE (repeatable)",
    )


def filled(text: str) -> str:
    """An argument that may not be empty, as a variable that is not set would leave it."""
    if not text.strip():
        raise argparse.ArgumentTypeError("it is empty")
    return text


def own_name(text: str) -> str:
    """A name as it stands in a Host header, without a port, in lower case."""
    name = name_of(text)
    if not name or name != text.strip("[]").lower():
        raise argparse.ArgumentTypeError(f"{text[:80]!r} is no name; give it as in mac.local, without http:// and port")
    return name


def kv_bits(text: str) -> int:
    if text not in map(str, KV_BITS):
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is not one of {', '.join(map(str, KV_BITS))}")
    return int(text)


def _draft(text: str) -> Draft:
    value = int(text) if text.isdecimal() else text.lower()
    if value not in DRAFTS:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is not one of {', '.join(map(str, DRAFTS))}")
    return value


def caches_of(args: argparse.Namespace) -> CacheOptions:
    """What is remembered, as the options say."""
    if args.disk is None:
        folder = prefix_folder()
    else:
        folder = None if args.disk.lower() == "none" else Path(args.disk).expanduser()
    return CacheOptions(
        kv_bits=args.kv_bits,
        prefix_bytes=None if args.prefix_memory is None else int(args.prefix_memory * GIB),
        disk=folder,
        draft=args.draft,
        exact=args.exact,
        read_ahead=args.read_ahead,
    )


def add_answer_options(parser: Parser) -> None:
    """How an answer is asked for. What is not given stays with the preset."""
    group = parser.add_argument_group("answer")
    group.add_argument("--think", action=argparse.BooleanOptionalAction, help="think before answering, or not")
    group.add_argument("--preset", choices=list(presets.FAMILY), metavar="NAME", help=", ".join(presets.FAMILY))
    group.add_argument("--system", metavar="TEXT", help="the system prompt")
    group.add_argument("--temperature", type=between(float, 0, 100), metavar="X", help="0 takes the likeliest token")
    group.add_argument(
        "--top-p", type=between(float, 0, 1), metavar="X", help="keep the likeliest tokens up to this sum"
    )
    group.add_argument("--top-k", type=between(int, 0, 1 << 31), metavar="N", help="keep the N likeliest tokens")
    group.add_argument(
        "--min-p", type=between(float, 0, 1), metavar="X", help="keep tokens this likely beside the best"
    )
    penalty = between(float, -100, 100)
    group.add_argument("--presence-penalty", type=penalty, metavar="X", help="against tokens said before")
    group.add_argument("--frequency-penalty", type=penalty, metavar="X", help="the same, for each time")
    group.add_argument(
        "--repetition-penalty", type=between(float, 0.01, 100), metavar="X", help="the same, as a factor"
    )
    group.add_argument("--max-tokens", type=between(int, 1, 1 << 31), metavar="N", help="end the answer after N tokens")
    group.add_argument(
        "--seed", type=between(int, 0, (1 << 64) - 1), metavar="N", help="the same seed, the same answer"
    )
    group.add_argument("--stop", action="append", default=[], metavar="TEXT", help="end before this text (repeatable)")


def sampling_of(args: argparse.Namespace) -> dict[str, float]:
    """The sampling values that were given, by the names of `options.Sampling`."""
    given = {name: getattr(args, name) for name in vars(Sampling())}
    return {name: value for name, value in given.items() if value is not None}
