"""`mlx_lm.server` as a child process, asked over HTTP as its clients do: the peer that numbers stand beside."""

from __future__ import annotations

import http.client
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

START_SECONDS, ANSWER_SECONDS = 120, 600


class PeerError(Exception):
    """What the peer answered instead of an answer, in one line."""


@dataclass
class PeerAnswer:
    """One streamed answer. first_seconds: from the request until the first piece of any kind arrived."""

    reasoning: str = ""
    content: str = ""
    calls: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    first_seconds: float = 0.0


class MlxLmServer:
    """`with MlxLmServer(folder, log) as peer: peer.chat({...})`; a server of its own on a free port of loopback."""

    def __init__(self, folder: Path, log: Path) -> None:
        self._folder, self._log = folder, log
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port: int = probe.getsockname()[1]

    def __enter__(self) -> MlxLmServer:
        command = [sys.executable, "-m", "mlx_lm", "server", "--model", str(self._folder), "--port", str(self._port)]
        offline = {**os.environ, "HF_HUB_OFFLINE": "1"}
        with self._log.open("w") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=offline)
        deadline = time.monotonic() + START_SECONDS
        while not self._is_up():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.__exit__()
                raise PeerError(f"mlx_lm.server did not start: {self._log.read_text()[-300:]!r}")
            time.sleep(0.2)
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()

    def chat(self, body: Mapping[str, Any]) -> PeerAnswer:
        """One answer to the body of a chat completion, streamed. Raises PeerError."""
        text = json.dumps({**body, "stream": True, "stream_options": {"include_usage": True}})
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=ANSWER_SECONDS)
        answer, started = PeerAnswer(), time.perf_counter()
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
            raise PeerError(f"the stream ended early; its log says {self._log.read_text()[-300:]!r}")
        return answer

    def _is_up(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=5)
        try:
            connection.request("GET", "/health")
            return connection.getresponse().status == 200
        except OSError:
            return False
        finally:
            connection.close()

    @staticmethod
    def _read(response: http.client.HTTPResponse, answer: PeerAnswer, started: float) -> None:
        """Fill `answer` from the events of the stream; comments between them tell of the prefill only."""
        while line := response.readline():
            if not line.startswith(b"data: ") or line.startswith(b"data: [DONE]"):
                continue
            event = json.loads(line.removeprefix(b"data: "))
            answer.first_seconds = answer.first_seconds or time.perf_counter() - started
            for choice in event["choices"]:
                delta = choice["delta"]
                answer.reasoning += delta.get("reasoning") or ""
                answer.content += delta.get("content") or ""
                for call in delta.get("tool_calls") or []:
                    answer.calls.append((call["function"]["name"], json.loads(call["function"]["arguments"])))
            if usage := event.get("usage"):
                answer.prompt_tokens, answer.completion_tokens = usage["prompt_tokens"], usage["completion_tokens"]
                answer.cached_tokens = (usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0)
