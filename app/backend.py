"""The page over a running server: what a `Runtime` does in this process, asked of an OpenAI-compatible address.

Our own server is known by what it says of its models: then its presets, budgets and counts are taken as they are. Of
others only what most of them understand is asked. Knows nothing of Gradio.
"""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from mlx_qwen35.access import read_secrets
from mlx_qwen35.app.chunks import Chunks
from mlx_qwen35.app.desk import Backend
from mlx_qwen35.chat import presets
from mlx_qwen35.chat.constraints import thinking
from mlx_qwen35.chat.events import Event, Finished, PrefillProgress, Usage
from mlx_qwen35.errors import RequestError, UserError
from mlx_qwen35.generation.sampling import check_sampling
from mlx_qwen35.hub.family import FAMILY, FamilyEntry
from mlx_qwen35.hub.machine import Machine, this_machine
from mlx_qwen35.loopback import is_loopback
from mlx_qwen35.openai_client import Call, Client, ServerError
from mlx_qwen35.options import Sampling
from mlx_qwen35.requests import ChatRequest

HEARTBEAT = 0.25  # seconds; so often a silent answer asks whether it was stopped
MEMORY_SECONDS = 2.0  # between two looks at the server's counts
OURS = "mlx-qwen35"
NUMBERS = tuple(f.name for f in fields(Sampling))
OUR_FIELDS = ("thinking_budget", "reasoning_effort", "fold_at")
NO_FIELDS = ("regex", "choices", "grammar", "draft")  # of ChatRequest, that no server's protocol has


@dataclass(frozen=True)
class RemoteStats:
    """As much of `generation.stats.Stats` as the server tells."""

    active_bytes: int | None = None
    peak_bytes: int | None = None


class ServerBackend:
    """A server's model, with the surface of a `Runtime` that the page uses."""

    folder: Path | None = None

    def __init__(self, url: str, key: str | None = None) -> None:
        """Raises UserError, one line, when no such server answers there."""
        self._client = Client(url, key)
        self._stats, self._stats_at = RemoteStats(), float("-inf")
        self.entries: Sequence[Mapping[str, Any]] = ()
        self.name = ""
        self.away = False  # when it was last looked for
        self.refresh()

    @property
    def url(self) -> str:
        return self._client.url

    @property
    def host(self) -> str:
        return self._client.host

    @property
    def entry(self) -> Mapping[str, Any]:
        """What the server says of the model that is asked."""
        return next((entry for entry in self.entries if entry["id"] == self.name), {})

    @property
    def context(self) -> int | None:
        """Tokens, where the server says so."""
        length = self.entry.get("max_model_len")
        return length if isinstance(length, int) else None

    @property
    def is_ours(self) -> bool:
        return self.entry.get("owned_by") == OURS

    def refresh(self) -> None:
        """Ask which models there are. The one in use stays where it is still served. Raises UserError."""
        listing = self._client.ask("/models")
        data = listing.get("data") if isinstance(listing, dict) else None
        entries = [e for e in data if isinstance(e, dict) and isinstance(e.get("id"), str)] if data else []
        if not entries:
            raise UserError(f"The server at {self._client.name} names no models; is {self.url} its OpenAI address?")
        self.entries = entries
        self.use(self.name if self.entry else entries[0]["id"])

    def use(self, name: str) -> None:
        """Ask this one from now on. Raises UserError for a model that the server does not name."""
        if all(entry["id"] != name for entry in self.entries):
            raise UserError(f"The server at {self._client.name} has no model {name[:80]!r}.")
        self.name = name

    def close(self) -> None:
        """Nothing of it is kept."""

    def thinks(self, request: ChatRequest) -> bool:
        """As `Runtime.thinks`; where the request leaves it open, as the server says, or the model's name."""
        asked, _ = thinking(request.enable_thinking, request.thinking_budget, request.reasoning_effort)
        if asked is not None:
            return asked
        known = self.entry.get("thinks_by_default")
        family = self._family()
        return known if isinstance(known, bool) else family.thinks_by_default if family else True

    def sampling(self, request: ChatRequest) -> Sampling:
        """As `Runtime.sampling`: the server's own presets where it tells them, else the family's."""
        if unknown := sorted(set(request.sampling) - set(NUMBERS)):
            raise RequestError(f"Unknown sampling option {unknown[0]!r}; known are {', '.join(sorted(NUMBERS))}.")
        family = self._family()
        base = presets.choose(request.preset, thinks := self.thinks(request), family.short if family else None)
        told = self.entry.get("sampling")
        name = request.preset or ("default-thinking" if thinks else "default-non-thinking")
        if isinstance(told, Mapping) and isinstance(told.get(name), Mapping):
            base = Sampling(**{key: value for key, value in told[name].items() if key in NUMBERS})
        sampling = replace(base, **request.sampling)
        check_sampling(sampling)
        return sampling

    def stats(self) -> RemoteStats:
        """The server's memory, where it tells that; looked up every few seconds at most."""
        now = time.monotonic()
        if self.is_ours and now - self._stats_at > MEMORY_SECONDS:
            self._stats_at = now
            try:
                with self._client.open("GET", "//metrics") as reply:
                    self._stats, self.away = _memory_in(reply.text()), False
            except ServerError as error:
                self._stats, self.away = RemoteStats(), error.status == 0
        return self._stats

    def machine(self) -> Machine | None:
        """The machine that the server runs on, if it is this one."""
        return this_machine() if is_loopback(self.host) else None

    def chat(self, request: ChatRequest) -> Iterator[Event]:
        """Answer. Closing the iterator closes the connection, which cancels. Raises UserError."""
        with closing(self.submit(self.prepare(request)).events()) as events:
            yield from events

    def prepare(self, request: ChatRequest) -> dict[str, Any]:
        """The body. Raises RequestError for what cannot be asked of this server."""
        if asked := [name for name in NO_FIELDS if getattr(request, name) is not None]:
            raise RequestError(f"{asked[0]} cannot be asked of a server.")
        body: dict[str, Any] = {
            "model": self.name,
            "messages": [*request.messages],
            "stream": True,
            "stream_options": {"include_usage": True},
            # All of them, so that what the page shows is what is used.
            **vars(self.sampling(request)),
        }
        for name in ("tools", "tool_choice", "max_tokens", "seed", "response_format", *OUR_FIELDS):
            if (value := getattr(request, name)) is not None:
                body[name] = value
        if not self.is_ours and (ours := [name for name in OUR_FIELDS if name in body]):
            raise RequestError(f"The server at {self._client.name} takes no {ours[0].replace('_', ' ')}.")
        if request.stop:
            body["stop"] = [*request.stop]
        if request.tools and not request.parallel_tool_calls:
            body["parallel_tool_calls"] = False
        if request.logit_bias:
            body["logit_bias"] = {str(token): bias for token, bias in request.logit_bias.items()}
        if request.enable_thinking is not None:
            body["chat_template_kwargs"] = {"enable_thinking": request.enable_thinking}
        return body

    def submit(self, prepared: dict[str, Any]) -> Asked:
        """Sends nothing before its events are read."""
        return Asked(self, self._client, prepared)

    def _family(self) -> FamilyEntry | None:
        """The released size that the model's name tells, if it does."""
        name = self.name.lower()
        return next((entry for entry in FAMILY.values() if entry.name.lower() in name or name == entry.short), None)


@dataclass
class Asked:
    """A request to a server, as `Running`: read its events once."""

    backend: ServerBackend
    client: Client
    body: dict[str, Any]

    def events(self) -> Generator[Event]:
        """The answer's events. Closing the iterator closes the connection."""
        try:
            yield from self._events()
        except ServerError as error:
            if error.status != 404 or error.code != "model_not_found":
                raise
            # It was started again, with another model.
            self.backend.refresh()
            self.body["model"] = self.backend.name
            yield from self._events()

    def _events(self) -> Generator[Event]:
        lines: queue.SimpleQueue[bytes | Exception | None] = queue.SimpleQueue()
        call, chunks, clock = Call(), Chunks(), Clock()
        threading.Thread(target=self._read, args=[lines, call], daemon=True).start()
        try:
            while not chunks.done:
                try:
                    line = lines.get(timeout=HEARTBEAT)
                except queue.Empty:
                    # An iterator can only be closed where it gives something.
                    yield chunks.progress
                    continue
                if line is None:
                    raise ServerError(f"The server at {self.client.name} broke off its answer.")
                if isinstance(line, Exception):
                    raise line
                for event in chunks.take(line):
                    clock.take(event)
                    yield event
            yield from chunks.finish()
            yield Finished(chunks.reason, clock.timed(chunks.usage))
        finally:
            call.break_off()

    def _read(self, lines: queue.SimpleQueue[bytes | Exception | None], call: Call) -> None:
        """The lines of the reply, on a thread of its own: only so can a wait for the server be ended at once."""
        try:
            with self.client.post("/chat/completions", self.body, call) as reply:
                for line in reply:
                    lines.put(line)
            lines.put(None)
        except Exception as error:  # raised where the events are read
            lines.put(error)


class Clock:
    """Times on this side, since the protocol has none: of the first piece, and of all that follow."""

    def __init__(self) -> None:
        self._asked, self._first = time.monotonic(), 0.0

    def take(self, event: Event) -> None:
        if not self._first and not isinstance(event, PrefillProgress):
            self._first = time.monotonic()

    def timed(self, usage: Usage) -> Usage:
        now = time.monotonic()
        first = self._first or now
        return replace(usage, prefill_seconds=first - self._asked, decode_seconds=now - first)


def goes_to(backend: Backend) -> str:
    """Where what is said on the page goes, for people."""
    if isinstance(backend, ServerBackend) and not is_loopback(backend.host):
        return f"What is said here goes to {backend.url}."
    return "Everything stays on this computer."


def key_for_server(files: Sequence[Path]) -> str | None:
    """The key in a file, or in MLX_QWEN35_API_KEY as of `serve`, or in OPENAI_API_KEY. Raises ConfigError."""
    keys = read_secrets("key", (), files, "MLX_QWEN35_API_KEY")
    return keys[0] if keys else os.environ.get("OPENAI_API_KEY")


def _memory_in(exposition: str) -> RemoteStats:
    """What our server's /metrics says of memory."""
    found: dict[str, int] = {}
    for line in exposition.splitlines():
        name, _, value = line.partition(" ")
        if name in ("mlx_qwen35_active_memory_bytes", "mlx_qwen35_peak_memory_bytes"):
            try:
                found[name.split("_")[2]] = int(float(value))
            except (ValueError, OverflowError):
                continue
    return RemoteStats(found.get("active"), found.get("peak"))
