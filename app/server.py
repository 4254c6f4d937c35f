"""Starts the chat page and keeps it running. Decides where it listens; knows nothing of what the page shows.

Gradio is imported inside the functions, since it is an extra, and after its telemetry is switched off.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import webbrowser
from collections.abc import Sequence

from mlx_qwen35.errors import ConfigError
from mlx_qwen35.hub.catalog import last_used, remember_last
from mlx_qwen35.hub.names import DEMO
from mlx_qwen35.options import CacheOptions
from mlx_qwen35.runtime import USUAL_CONTEXT, Runtime
from mlx_qwen35.tools.choosing import open_toolbox

FIRST_PORT, PORTS_TRIED = 7860, 20
QUIET = {"GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_RUN_HISTORY": "False", "HF_HUB_DISABLE_TELEMETRY": "1"}


def serve(
    model: str | None,
    host: str = "127.0.0.1",
    port: int | None = None,
    open_browser: bool = sys.platform == "darwin",
    context: int = USUAL_CONTEXT,
    force: bool = False,
    offline: bool = False,
    caches: CacheOptions = CacheOptions(),  # noqa: B008 (frozen)
    tools: Sequence[str] = (),
) -> None:
    """Load `model` and serve the chat page until interrupted. The URL goes to stderr in one line when it answers.

    model: folder, hub id or short name; None takes the last used one, else the demo
    host: a loopback name or address   port: None takes the first free one from 7860, 0 any
    context, force, offline, caches: as for `Runtime.load`   tools: as for `tools.choosing.open_toolbox`
    Raises UserError: no gradio here, a host beyond loopback, a port in use, or what `Runtime.load` raises.
    """
    _require_gradio()
    from mlx_qwen35.app.desk import Desk
    from mlx_qwen35.app.web import Server, make_app

    with bind(host, port) as listener, contextlib.ExitStack() as open_now:
        toolbox = open_now.enter_context(open_toolbox(tools)) if tools else None
        name = model or last_used() or DEMO
        runtime = Runtime.load(
            name, context=context, force=force, offline=offline, progress=_Loading(name), caches=caches, warn=_say
        )
        remember_last(name)
        for note in (*runtime.notes, *(toolbox.notes if toolbox else ())):
            _say(note)

        def ready() -> None:
            url = url_of(listener)
            print(f"mlx-qwen35: {name} answers at {url} (Ctrl-C stops it)", file=sys.stderr, flush=True)
            if open_browser and _has_display():
                webbrowser.open(url)

        # uvicorn hands on the interrupt that ended it.
        with contextlib.closing(runtime), contextlib.suppress(KeyboardInterrupt):
            Server(make_app(Desk(runtime, toolbox=toolbox)), ready).run(sockets=[listener])


def _say(line: str) -> None:
    print(f"mlx-qwen35: {line}", file=sys.stderr, flush=True)


class _Loading:
    """Says so once, as soon as weights are read: what cannot be loaded shall give its one line only."""

    def __init__(self, name: str) -> None:
        self._line = f"mlx-qwen35: loading {name}"

    def __call__(self, done: int, total: int) -> None:
        if self._line:
            print(self._line, file=sys.stderr, flush=True)
            self._line = ""


def bind(host: str, port: int | None) -> socket.socket:
    """A listening socket on a loopback address. Raises ConfigError, before any model is loaded."""
    from mlx_qwen35.loopback import is_loopback

    if not is_loopback(host):
        raise ConfigError(
            f"The app listens on this computer only (127.0.0.1, localhost or ::1), not on {host[:80]!r}; a login for "
            "other machines comes in a later release. Until then use a tunnel: ssh -L 7860:127.0.0.1:7860 THIS_MACHINE."
        )
    address = "127.0.0.1" if host.lower() == "localhost" else host.strip("[]")
    if port is not None and not 0 <= port <= 65535:
        raise ConfigError(f"Port {port} does not exist; give one from 1 to 65535, or 0 for any free one.")
    for candidate in [port] if port is not None else range(FIRST_PORT, FIRST_PORT + PORTS_TRIED):
        if listener := _listen(address, candidate):
            return listener
    if port is not None:
        raise ConfigError(f"Port {port} on {address} is not available; give another, or none for the first free one.")
    raise ConfigError(f"No port from {FIRST_PORT} to {FIRST_PORT + PORTS_TRIED - 1} on {address} is free; give one.")


def url_of(listener: socket.socket) -> str:
    """Where a browser finds the page."""
    address, port = listener.getsockname()[:2]
    return f"http://[{address}]:{port}" if ":" in address else f"http://{address}:{port}"


def _listen(address: str, port: int) -> socket.socket | None:
    listener = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
    try:
        # Without it a restart within a minute would find its own port taken.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((address, port))
        listener.listen(128)
    except OSError:
        listener.close()
        return None
    return listener


def _require_gradio() -> None:
    os.environ.update(QUIET)
    try:
        import gradio  # noqa: F401
    except ImportError:
        raise ConfigError("The app needs Gradio, which is not installed: pip install 'mlx-qwen35[app]'.") from None


def _has_display() -> bool:
    """Without one, Python would open a text browser in this terminal."""
    return sys.platform in ("darwin", "win32") or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
