"""What all pages of one process share: the model, the saved conversations, the tools, and what was answered.

Components read `desk.runtime` when they run, so that another model can take its place under open pages.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from mlx_qwen35.app.loading import Loading
from mlx_qwen35.chat.events import Event, Usage
from mlx_qwen35.conversations.store import Store
from mlx_qwen35.options import Sampling
from mlx_qwen35.requests import ChatRequest
from mlx_qwen35.tools.toolbox import Toolbox

LOGGED = 5_000  # answers


class Backend(Protocol):
    """What answers: a `Runtime` in this process, or something that asks a server.

    folder: of the checkpoint, None where it is not on this computer   context: tokens of a conversation, if known
    stats: `generation.stats.Stats`, or what has as much of it as is known
    """

    @property
    def name(self) -> str: ...
    @property
    def folder(self) -> Path | None: ...
    @property
    def context(self) -> int | None: ...
    def chat(self, request: ChatRequest) -> Iterator[Event]: ...
    def prepare(self, request: ChatRequest) -> Any: ...
    def submit(self, prepared: Any) -> Answers: ...
    def sampling(self, request: ChatRequest) -> Sampling: ...
    def thinks(self, request: ChatRequest) -> bool: ...
    def stats(self) -> Any: ...
    def close(self) -> None: ...


class Answers(Protocol):
    """A request on its way, as `Running`."""

    def events(self) -> Generator[Event]: ...


@dataclass(frozen=True)
class Logged:
    """An answer that ended. at: seconds since 1970   model: that gave it   memory: bytes in use then, where told"""

    at: float
    model: str
    usage: Usage
    reason: str
    memory: int | None = None


@dataclass
class Desk:
    """One for each process. log: of ended answers, the oldest first

    loading: how other models are loaded; None where a server has them
    """

    runtime: Backend
    store: Store = field(default_factory=Store)
    toolbox: Toolbox | None = None
    loading: Loading | None = None
    log: deque[Logged] = field(default_factory=lambda: deque(maxlen=LOGGED))
    _using: threading.Lock = field(default_factory=threading.Lock)

    def use(self, runtime: Backend) -> Backend:
        """Let `runtime` answer from now on. Returns the one before; close it when its answers have ended."""
        with self._using:
            before, self.runtime = self.runtime, runtime
        return before

    def record(self, usage: Usage, reason: str, model: str) -> None:
        """Write an ended answer into the log."""
        memory = getattr(self.runtime.stats(), "active_bytes", None)
        self.log.append(Logged(time.time(), model, usage, reason, memory))
