"""A chat server as a child process, asked over HTTP as its clients do: what is the same for ours and for a peer."""

from __future__ import annotations

import http.client
import json
import os
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import psutil

START_SECONDS, ANSWER_SECONDS = 120, 600


class PeerError(Exception):
    """What a server answered instead of an answer, in one line."""


@dataclass
class PeerAnswer:
    """One streamed answer. first_seconds: from the request until the first piece of any kind arrived; first_cpu: what
    the server's process computed in that time"""

    reasoning: str = ""
    content: str = ""
    calls: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    first_seconds: float = 0.0
    first_cpu: float = 0.0


class ChatServer:
    """`with ChatServer(command, log) as server: server.chat({...})`; on a free port of loopback, given as --port."""

    def __init__(self, command: Sequence[str], log: Path) -> None:
        self._log = log
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self._command = [*command, "--port", str(self.port)]

    @property
    def url(self) -> str:
        """Without a path."""
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        offline = {**os.environ, "HF_HUB_OFFLINE": "1"}
        with self._log.open("w") as log:
            self.process = subprocess.Popen(self._command, stdout=log, stderr=subprocess.STDOUT, env=offline)
        deadline = time.monotonic() + START_SECONDS
        while not self.is_up():
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.__exit__()
                raise PeerError(f"{self._command[2]} did not start: {self.last_words()!r}")
            time.sleep(0.2)
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()

    def last_words(self) -> str:
        """The end of its log."""
        return self._log.read_text()[-300:]

    def get(self, path: str) -> bytes:
        """The body of a response with status 200. Raises OSError or PeerError."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            if response.status != 200:
                raise PeerError(f"HTTP {response.status}: {response.read()[:200]!r}")
            return response.read()
        finally:
            connection.close()

    def cpu_seconds(self) -> float:
        """Of its process so far, to the hundredth."""
        times = psutil.Process(self.process.pid).cpu_times()
        return times.user + times.system

    def chat(self, body: Mapping[str, Any]) -> PeerAnswer:
        """One answer to the body of a chat completion, streamed. Raises PeerError."""
        text = json.dumps({**body, "stream": True, "stream_options": {"include_usage": True}})
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=ANSWER_SECONDS)
        answer, started = PeerAnswer(), (time.perf_counter(), self.cpu_seconds())
        try:
            connection.request("POST", "/v1/chat/completions", text, {"Content-Type": "application/json"})
            response = connection.getresponse()
            if response.status != 200:
                raise PeerError(f"HTTP {response.status}: {response.read()[:200]!r}")
            self._read(response, answer, started)
        except (OSError, http.client.HTTPException) as error:
            raise PeerError(f"{type(error).__name__}: {error}") from error
        finally:
            connection.close()
        if not answer.completion_tokens:
            raise PeerError(f"the stream ended early; its log says {self.last_words()!r}")
        return answer

    def is_up(self) -> bool:
        """Whether it says that it can serve."""
        try:
            return bool(self.get("/health"))
        except (OSError, PeerError):
            return False

    def _read(self, response: http.client.HTTPResponse, answer: PeerAnswer, started: tuple[float, float]) -> None:
        """Fill `answer` from the events of the stream; comments between them tell of the prefill only."""
        calls: dict[int, list[str]] = {}  # by index: name, and arguments, whole or piece by piece
        while line := response.readline():
            if not line.startswith(b"data: ") or line.startswith(b"data: [DONE]"):
                continue
            event = json.loads(line.removeprefix(b"data: "))
            for choice in event["choices"]:
                delta = choice["delta"]
                reasoning = delta.get("reasoning") or delta.get("reasoning_content") or ""
                content, made = delta.get("content") or "", delta.get("tool_calls") or []
                if (reasoning or content or made) and not answer.first_seconds:  # a role alone is no piece
                    answer.first_seconds = time.perf_counter() - started[0]
                    answer.first_cpu = self.cpu_seconds() - started[1]
                answer.reasoning += reasoning
                answer.content += content
                for call in made:
                    known = calls.setdefault(call["index"], ["", ""])
                    known[0] += call["function"].get("name") or ""
                    known[1] += call["function"].get("arguments") or ""
            if usage := event.get("usage"):
                answer.prompt_tokens, answer.completion_tokens = usage["prompt_tokens"], usage["completion_tokens"]
                answer.cached_tokens = (usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0)
        answer.calls = [(name, json.loads(arguments or "{}")) for name, arguments in calls.values()]
