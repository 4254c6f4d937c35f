"""The app in a process of its own, perhaps in a network of its own, and the browser that belongs to it."""

from __future__ import annotations

import json
import os
import queue
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PATIENCE = 120  # seconds for a start; Gradio takes ten on a machine at rest
ADDRESS = re.compile(r"answers at (http://127\.0\.0\.1:\d+)")
MAC_CHROME = "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome"
# A user and a network of its own, with nothing in it but loopback.
NO_NETWORK = ("unshare", "--map-root-user", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "sh")


def chromium() -> str:
    """The browser's program. Raises FileNotFoundError where there is none: what is not run proves nothing."""
    names = [os.environ.get("MLX_QWEN35_BROWSER", ""), "chromium", "chromium-browser", "google-chrome", MAC_CHROME]
    for name in filter(None, names):
        if found := shutil.which(name):
            return found
    raise FileNotFoundError("no Chromium here: apt install chromium, or name a browser in MLX_QWEN35_BROWSER")


def may_unshare() -> bool:
    """Whether this system lets us have a network without a way out."""
    try:
        return subprocess.run([*NO_NETWORK, "true"], capture_output=True).returncode == 0
    except OSError:
        return False


@dataclass
class App:
    """`mlx-qwen35 app` as tests.browser.served runs it, with a home of its own that outlives a restart.

    options: after `app demo`   alone: in a network where nobody else is
    """

    home: Path
    options: Sequence[str] = ()
    alone: bool = False
    url: str = ""
    said: list[str] = field(default_factory=list)  # on stderr
    _process: Any = None
    _lines: Any = None

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def state(self) -> Path:
        """Where it keeps what it remembers."""
        return self.home / "state" / "mlx-qwen35"

    def start(self, port: int = 0) -> App:
        """Returns when it answers. Raises AssertionError, with what it said, where it does not."""
        served = [sys.executable, "-m", "tests.browser.served", str(self._record)]
        command = [*served, "app", "demo", "--port", str(port), "--no-browser", *self.options]
        self._process = subprocess.Popen(
            [*(NO_NETWORK if self.alone else ()), *command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env=self._environment(),
            cwd=self.home,
        )
        lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        threading.Thread(target=self._listen, args=(self._process.stderr, lines), daemon=True).start()
        while line := lines.get(timeout=PATIENCE):
            if found := ADDRESS.search(line):
                self.url = found[1]
                return self
        raise AssertionError("the app did not start:\n" + "".join(self.said))

    def stop(self, number: int = signal.SIGINT) -> None:
        """Ctrl-C, or another signal; returns when the process has ended."""
        if self._process.poll() is None:
            self._process.send_signal(number)
        self._process.wait(60)

    @property
    def port(self) -> int:
        """To start again at the same address."""
        return int(self.url.rpartition(":")[2])

    def requests(self) -> list[dict[str, Any]]:
        """What the model was asked, oldest first."""
        return [json.loads(line) for line in self._record.read_text().splitlines()] if self._record.exists() else []

    @property
    def _record(self) -> Path:
        return self.home / "requests.jsonl"

    def _listen(self, stream: Any, lines: queue.SimpleQueue[str]) -> None:
        for line in stream:
            self.said.append(line)
            lines.put(line)
        lines.put("")

    def _environment(self) -> dict[str, str]:
        kept = ("PATH", "LD_PRELOAD", "LD_LIBRARY_PATH", "VIRTUAL_ENV", "LANG", "TMPDIR")
        return {name: os.environ[name] for name in kept if name in os.environ} | {
            "HOME": str(self.home),
            "XDG_STATE_HOME": str(self.home / "state"),
            "XDG_CACHE_HOME": str(self.home / "cache"),
            "HF_HOME": str(self.home / "huggingface"),
            "OPENBLAS_NUM_THREADS": "1",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(Path(__file__).parents[2]),
            "PYTHONUNBUFFERED": "1",
        }


def browser_beside(app: App, folder: Path) -> str:
    """A program that runs the browser in the network of `app`, which is alone there."""
    program = folder / "chromium_beside"
    inside = f"nsenter --preserve-credentials --user --net --target {app.pid}"
    program.write_text(f'#!/bin/sh\nexec {inside} {chromium()} "$@"\n')
    program.chmod(0o755)
    return str(program)
