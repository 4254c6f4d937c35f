"""The two servers that clients talk to, ours and `mlx_lm.server`, on the same checkpoints; one that died comes back."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from examples.benchmarks.chat_server import ChatServer
from examples.benchmarks.mlx_lm_server import MlxLmServer
from examples.benchmarks.our_server import OurServer

MODEL_NAME = "default_model"  # the one name that mlx_lm.server does not look up on the hub
SIDES = ("ours", "mlx_lm.server")


def our_server(checkpoint: Path, log: Path) -> OurServer:
    """`mlx-qwen35 serve` with all the context that the checkpoint was trained with."""
    context = json.loads((checkpoint / "config.json").read_text())["text_config"]["max_position_embeddings"]
    return OurServer(str(checkpoint), log, "--alias", MODEL_NAME, "--context", str(context))


MAKE: dict[str, Callable[[Path, Path], ChatServer]] = {"ours": our_server, "mlx_lm.server": MlxLmServer}


class Servers:
    """`with Servers({"demo": write}, folder) as servers: servers.url("ours", "demo")`; one at a time a side.

    write: for each checkpoint's name, what writes it into a folder that is not there yet
    folder: takes checkpoints and the servers' logs
    """

    def __init__(self, write: dict[str, Callable[[Path], Path]], folder: Path) -> None:
        self._write, self._folder = write, folder
        self._running: dict[str, tuple[str, ChatServer]] = {}

    def __enter__(self) -> Servers:
        return self

    def __exit__(self, *_: object) -> None:
        for side in tuple(self._running):
            self.stop(side)

    def url(self, side: str, model: str) -> str:
        """Without /v1. Starts the server, if it is not up with this checkpoint already."""
        name, server = self._running.get(side, ("", None))
        if server is None or name != model or not server.is_up():
            self.stop(side)
            server = MAKE[side](self._checkpoint(model), self._folder / f"{side}-{model}.log")
            self._running[side] = model, server.__enter__()
        return server.url

    def _checkpoint(self, model: str) -> Path:
        folder = self._folder / f"model-{model}"
        return folder if folder.is_dir() else self._write[model](folder)

    def stop(self, side: str) -> None:
        """End it: the next client begins with a new one."""
        if side in self._running:
            self._running.pop(side)[1].__exit__()
