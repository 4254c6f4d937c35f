"""Which model a command runs on, and loading it with something to look at meanwhile."""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from mlx_qwen35.hub import catalog
from mlx_qwen35.hub.advice import real_checkpoint
from mlx_qwen35.hub.names import DEMO
from mlx_qwen35.options import CacheOptions
from mlx_qwen35.terminal.arguments import caches_of
from mlx_qwen35.terminal.safe_text import safe

if TYPE_CHECKING:
    from mlx_qwen35.runtime import Runtime

BAR_AFTER_SECONDS = 0.5


def chosen_model(name: str | None) -> str:
    """The model named, else the one used last, else the bundled demo."""
    return name or catalog.last_used() or DEMO


def load_asked(args: argparse.Namespace, name: str | None, guided: bool = False) -> Runtime:
    """Load the model that a command's options ask for. Raises UserError."""
    if args.debug:
        from mlx_qwen35.blas import advice

        if line := advice():
            print(line, file=sys.stderr)
    caches = caches_of(args)
    if getattr(args, "batch", None) is not None:
        caches = replace(caches, max_sequences=args.batch)
    return _load(
        chosen_model(name), caches, context=args.context, force=args.force, offline=args.offline, guided=guided
    )


def _load(
    name: str,
    caches: CacheOptions,
    *,
    context: int | None = None,
    force: bool = False,
    offline: bool = False,
    guided: bool = False,
) -> Runtime:
    """Load a model, with a bar on stderr where that is a terminal, and remember it as the last used."""
    from mlx_qwen35.runtime import USUAL_CONTEXT, Runtime

    bar = LoadingBar(f"Loading {name}")
    try:
        runtime = Runtime.load(
            name,
            context=USUAL_CONTEXT if context is None else context,
            force=force,
            offline=offline,
            progress=bar,
            caches=caches,
            warn=warn,
            guided=guided,
        )
    except KeyboardInterrupt:
        bar.stop_loading()
        raise
    finally:
        bar.close()
    catalog.remember_last(name)
    return runtime


def warn(line: str) -> None:
    """Tell the person without disturbing the answer on stdout."""
    print(safe(f"mlx-qwen35: {line}"), file=sys.stderr, flush=True)


class LoadingBar:
    """Called with bytes done and bytes in all. What is loaded at once shows no bar."""

    def __init__(self, title: str) -> None:
        self._title, self._started = title, time.monotonic()
        self._bar: Any = None
        self._task: Any = None
        self._stopped = False

    def __call__(self, done: int, total: int) -> None:
        if self._stopped:
            raise KeyboardInterrupt
        if self._bar is None:
            if time.monotonic() - self._started < BAR_AFTER_SECONDS or not sys.stderr.isatty():
                return
            self._bar = _rich_bar()
            self._task = self._bar.add_task(self._title, total=total)
            self._bar.start()
        self._bar.update(self._task, completed=done, total=total)

    def stop_loading(self) -> None:
        """End the work that reports here at its next report, on whatever thread it runs."""
        self._stopped = True

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def is_demo(name: str) -> bool:
    """Whether this name means the bundled demo."""
    return name.strip().lower() == DEMO


def demo_notice() -> str:
    """What the demo is, and the real checkpoint to take instead on this machine."""
    return (
        "This is the bundled demo: a demonstration and a test bed, not a language model to rely on.\n"
        f"{real_checkpoint()}"
    )


def _rich_bar() -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress

    columns = (BarColumn(), DownloadColumn())
    return Progress("{task.description}", *columns, console=Console(stderr=True), transient=True)
