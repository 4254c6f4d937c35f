"""Any OpenAI-compatible server as a contender: its text completions, streamed."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Sequence

from mlx_qwen35.benching.contenders import Moment, Run, now, timed
from mlx_qwen35.errors import UserError
from mlx_qwen35.openai_client import Client, ServerError


class Server:
    """Speaks to URL/completions (URL ends with /v1). Prompts are token ids; times are when pieces arrive.

    What a server streams as one piece counts as one token, so servers that bundle tokens look slower than they are.
    """

    batches = True

    def __init__(self, url: str) -> None:
        self._client = Client(url, os.environ.get("OPENAI_API_KEY"))
        self.name = self._client.name
        try:
            self._model = self._client.ask("/models")["data"][0]["id"]
        except (ServerError, LookupError, TypeError) as error:
            raise UserError(f"No OpenAI-compatible server answers at {self._client.url}: {error}") from None

    def run(self, prompts: Sequence[Sequence[int]], tokens: int) -> Run:
        times: list[list[Moment]] = [[] for _ in prompts]
        faults: list[str] = []
        start = _here()

        def read(place: int) -> None:
            try:
                self._stream(prompts[place], tokens, times[place])
            except (ServerError, LookupError, TypeError) as error:
                faults.append(str(error))

        readers = [threading.Thread(target=read, args=[place]) for place in range(len(prompts))]
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join()
        if faults or not all(times):
            raise UserError(f"{self.name} did not answer: {faults[0] if faults else 'an empty stream'}")
        return timed(start, times)

    def _stream(self, ids: Sequence[int], tokens: int, times: list[Moment]) -> None:
        body = {"model": self._model, "prompt": list(ids), "max_tokens": tokens, "temperature": 0, "stream": True}
        with self._client.post("/completions", body) as reply:
            for line in reply:
                if line.startswith(b"data: {") and any(c.get("text") for c in json.loads(line[6:])["choices"]):
                    times.append(_here())


def _here() -> Moment:
    """By the clock alone: who computes is the server."""
    return now()[0], 0.0
