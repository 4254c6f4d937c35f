"""Starts the server and keeps it running: who may ask, where it listens, under which names the model is asked for."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from mlx_qwen35.access import LONGEST_SECRET, read_secrets, url_of
from mlx_qwen35.ending import ended_in_order
from mlx_qwen35.errors import ConfigError
from mlx_qwen35.loopback import is_loopback
from mlx_qwen35.runtime import Runtime
from mlx_qwen35.server.app import App
from mlx_qwen35.server.listening import Server, bind
from mlx_qwen35.server.protocol import Served
from mlx_qwen35.server.settings import Settings

KEY_VARIABLE = "MLX_QWEN35_API_KEY"


def serve(
    load: Callable[[], Runtime],
    settings: Settings,
    host: str = "127.0.0.1",
    port: int = 8080,
    aliases: Sequence[str] = (),
) -> None:
    """Serve until interrupted. The URL goes to stderr in one line when it answers.

    load: gives the model, once it is known that it can be served   port: 0 takes any free one
    aliases: further names by which requests may ask for the model
    Raises UserError: a host beyond loopback without a key, a port in use, or what `load` raises.
    """
    settings = replace(settings, loopback=is_loopback(host))
    if not settings.loopback:
        settings = replace(settings, hosts=(*settings.hosts, host))
        if not settings.keys:
            raise ConfigError(
                f"Listening on {host[:80]} opens the model to other machines and needs a key: set {KEY_VARIABLE}, or "
                "give --api-key-file. Without --host the server answers on this computer only."
            )
    with bind(host, port) as listener, contextlib.closing(load()) as runtime:
        names = (model_name(runtime), *aliases)
        served = Served(runtime, names, int(time.time()), settings.quote_cache, settings.rules)

        def ready() -> None:
            print(
                f"mlx-qwen35: {names[0]} answers at {url_of(listener)}/v1 (Ctrl-C stops it)",
                file=sys.stderr,
                flush=True,
            )

        with ended_in_order():
            Server(App(served, settings), ready).run(sockets=[listener])


def model_name(runtime: Runtime) -> str:
    """The name shown to clients: as it was given, but of a folder only the last part, since paths are private."""
    return Path(runtime.folder).resolve().name if Path(runtime.name).expanduser().is_dir() else runtime.name


def api_keys(given: Sequence[str], files: Sequence[Path]) -> tuple[str, ...]:
    """Keys of the command line, of files (one a line) and of the environment. Raises ConfigError."""
    keys = read_secrets("key", given, files, KEY_VARIABLE)
    for key in keys:
        if not key or len(key) > LONGEST_SECRET or not key.isascii() or not key.isprintable() or " " in key:
            raise ConfigError(f"An API key has 1 to {LONGEST_SECRET} ASCII characters, without spaces.")
    return keys
