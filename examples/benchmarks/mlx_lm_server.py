"""`mlx_lm.server` as a child process: the peer that numbers stand beside."""

from __future__ import annotations

import sys
from pathlib import Path

from examples.benchmarks.chat_server import ChatServer, PeerAnswer, PeerError

__all__ = ["MlxLmServer", "PeerAnswer", "PeerError"]


class MlxLmServer(ChatServer):
    """`with MlxLmServer(folder, log) as peer: peer.chat({...})`."""

    def __init__(self, folder: Path, log: Path, *options: str) -> None:
        super().__init__([sys.executable, "-m", "mlx_lm", "server", "--model", str(folder), *options], log)
