"""Any OpenAI-compatible server as a contender: its text completions, streamed. Only the standard library."""

from __future__ import annotations

import json
import os
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

from mlx_qwen35.benching.contenders import Run, timed
from mlx_qwen35.errors import UserError

PATIENCE = 600  # seconds without a byte


class Server:
    """Speaks to URL/completions (URL ends with /v1). Prompts are token ids; times are when pieces arrive.

    What a server streams as one piece counts as one token, so servers that bundle tokens look slower than they are.
    """

    batches = True

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UserError(f"{url!r} is no address of a server; give one like http://127.0.0.1:8080/v1.")
        self.name, self._base = parts.netloc, url.rstrip("/")
        self._model = self._ask("/models")["data"][0]["id"]

    def run(self, prompts: Sequence[Sequence[int]], tokens: int) -> Run:
        times: list[list[float]] = [[] for _ in prompts]
        faults: list[str] = []
        start = time.perf_counter()

        def read(place: int) -> None:
            try:
                self._stream(prompts[place], tokens, times[place])
            except (OSError, ValueError) as error:
                faults.append(str(error))

        readers = [threading.Thread(target=read, args=[place]) for place in range(len(prompts))]
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join()
        if faults or not all(times):
            raise UserError(f"{self.name} did not answer: {faults[0] if faults else 'an empty stream'}.")
        return timed(start, times)

    def _stream(self, ids: Sequence[int], tokens: int, times: list[float]) -> None:
        body = {"model": self._model, "prompt": list(ids), "max_tokens": tokens, "temperature": 0, "stream": True}
        with self._open("/completions", json.dumps(body).encode()) as response:
            for line in response:
                if line.startswith(b"data: {") and any(c.get("text") for c in json.loads(line[6:])["choices"]):
                    times.append(time.perf_counter())

    def _ask(self, path: str) -> Any:
        try:
            with self._open(path, None) as response:
                return json.load(response)
        except (OSError, ValueError) as error:
            raise UserError(f"No OpenAI-compatible server answers at {self._base}: {error}.") from None

    def _open(self, path: str, body: bytes | None) -> Any:
        headers = {"content-type": "application/json"}
        if key := os.environ.get("OPENAI_API_KEY"):
            headers["authorization"] = f"Bearer {key}"
        request = urllib.request.Request(self._base + path, body, headers)
        try:
            return urllib.request.urlopen(request, timeout=PATIENCE)
        except urllib.error.HTTPError as error:
            raise OSError(f"status {error.code}: {error.read(300).decode(errors='replace')}") from None
