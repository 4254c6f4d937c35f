"""`mlx-qwen35 serve` as a child process, for numbers that are taken from outside."""

from __future__ import annotations

import sys
from pathlib import Path

from examples.benchmarks.chat_server import ChatServer


class OurServer(ChatServer):
    """`with OurServer("demo", log) as ours: ours.chat({...})`. Nothing of it on disk."""

    def __init__(self, model: str, log: Path, *options: str) -> None:
        command = [sys.executable, "-m", "mlx_qwen35", "serve", model, "--disk", "none", *options]
        super().__init__(command, log)

    def metrics(self) -> dict[str, float]:
        """The numbers of `/metrics`, without the project's prefix; labels are part of a name."""
        lines = [line for line in self.get("/metrics").decode().splitlines() if not line.startswith("#")]
        pairs = (line.rpartition(" ") for line in lines)
        return {name.removeprefix("mlx_qwen35_"): float(value) for name, _, value in pairs}
