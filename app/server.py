"""Starts the chat page and keeps it running. Knows nothing of what the page shows.

Gradio is imported inside the functions, since it is an extra, and after its telemetry is switched off.
"""

from __future__ import annotations

import contextlib
import os
import sys
import webbrowser
from collections.abc import Sequence

from mlx_qwen35.access import url_of
from mlx_qwen35.app.backend import ServerBackend
from mlx_qwen35.app.door import Door, bind
from mlx_qwen35.app.loading import Loading
from mlx_qwen35.ending import ended_in_order
from mlx_qwen35.errors import ConfigError
from mlx_qwen35.hub.catalog import last_used
from mlx_qwen35.hub.names import DEMO
from mlx_qwen35.tools.choosing import open_toolbox

QUIET = {"GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_RUN_HISTORY": "False", "HF_HUB_DISABLE_TELEMETRY": "1"}


def serve(
    source: str | ServerBackend | None,
    door: Door = Door(),  # noqa: B008 (frozen)
    open_browser: bool = sys.platform == "darwin",
    loading: Loading = Loading(),  # noqa: B008 (frozen)
    tools: Sequence[str] = (),
) -> None:
    """Load a model, or ask a server, and serve the chat page until interrupted. The URL goes to stderr in one line.

    source: folder, hub id or short name; None takes the last used one, else the demo; or a server that runs
    tools: as for `tools.choosing.open_toolbox`
    Raises UserError: no gradio here, a host beyond loopback without a password, a port in use, or what loading raises.
    """
    _require_gradio()
    from mlx_qwen35.app.desk import Desk
    from mlx_qwen35.app.web import Server, make_app

    with bind(door) as listener, contextlib.ExitStack() as open_now:
        toolbox = open_now.enter_context(open_toolbox(tools)) if tools else None
        for note in toolbox.notes if toolbox else ():
            say(note)
        if isinstance(source, ServerBackend):
            desk, name = Desk(source, toolbox=toolbox), f"{source.name} of {source.url}"
        else:
            name = source or last_used() or DEMO
            desk = Desk(loading.load(name, _Loading(name)), toolbox=toolbox, loading=loading)
        # Another model may be in use by then.
        open_now.callback(lambda: desk.runtime.close())

        def ready() -> None:
            url = url_of(listener)
            say(f"{name} answers at {url} (Ctrl-C stops it)")
            if not door.only_loopback:
                say("What is said there is not encrypted: on a network you do not trust, use a tunnel (ssh -L).")
            if open_browser and _has_display():
                webbrowser.open(url)

        with ended_in_order():
            Server(make_app(desk, door), ready).run(sockets=[listener])


def say(line: str) -> None:
    """A line for whoever started it."""
    print(f"mlx-qwen35: {line}", file=sys.stderr, flush=True)


class _Loading:
    """Says so once, as soon as weights are read: what cannot be loaded shall give its one line only."""

    def __init__(self, name: str) -> None:
        self._line = f"mlx-qwen35: loading {name}"

    def __call__(self, done: int, total: int) -> None:
        if self._line:
            print(self._line, file=sys.stderr, flush=True)
            self._line = ""


def _require_gradio() -> None:
    os.environ.update(QUIET)
    try:
        import gradio  # noqa: F401
    except ImportError:
        raise ConfigError("The app needs Gradio, which is not installed: pip install 'mlx-qwen35[app]'.") from None


def _has_display() -> bool:
    """Without one, Python would open a text browser in this terminal."""
    return sys.platform in ("darwin", "win32") or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
