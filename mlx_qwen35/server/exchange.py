"""One HTTP request and its response: the body in, answers of the model out, as one JSON body or as events.

Whoever leaves cancels what was computed for them within one step. Knows no protocol: endpoints translate.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from starlette.datastructures import Headers
from starlette.types import Message, Receive, Scope, Send

from mlx_qwen35.chat.reply import Gathering
from mlx_qwen35.server.answers import Answers
from mlx_qwen35.server.body import parse_object
from mlx_qwen35.server.files import BINARY, receive_file, send_file
from mlx_qwen35.server.gate import Gate
from mlx_qwen35.server.protocol import (
    Asked,
    Call,
    Download,
    Endpoint,
    Frame,
    Generation,
    Json,
    Refused,
    Served,
    Upload,
)
from mlx_qwen35.server.refusals import refusal
from mlx_qwen35.server.responses import as_text, send_json, send_refusal
from mlx_qwen35.server.settings import Settings

DRAIN_SECONDS = 1.0  # for a client that sends more than it may, so that it reads why


class Gone(Exception):
    """The client has left: there is nobody to answer."""


class Exchange:
    """`await Exchange(...).run()` answers one request, whatever happens. `status` and `told` say how it ended."""

    def __init__(
        self,
        endpoint: Endpoint,
        scope: Scope,
        receive: Receive,
        send: Send,
        served: Served,
        gate: Gate,
        limits: Settings,
    ) -> None:
        self._endpoint, self._scope, self._receive, self._raw_send = endpoint, scope, receive, send
        self._served, self._gate, self._limits = served, gate, limits
        self.status = 0
        self._answers = Answers(served, limits)
        self._streaming = False

    async def run(self) -> None:
        """Raises nothing but cancellation."""
        try:
            call, endpoint = await self._call(), self._endpoint
            if isinstance(endpoint, Generation):
                await self._generate(endpoint, call)
            elif isinstance(endpoint, Upload):
                await self._take_file(endpoint, call)
            elif isinstance(endpoint, Download):
                await self._give_file(endpoint, call)
            else:
                await self._send_json(200, await asyncio.to_thread(endpoint.answer, call))
        except Gone:
            self.status = self.status or 499
        except Exception as error:
            await self._refuse(refusal(error))

    def told(self) -> str:
        """For the log: how much was computed, and nothing of what."""
        usages = [finished.usage for finished in self._answers.finished]
        if not usages:
            return ""
        prompt, cached = sum(u.prompt_tokens for u in usages), sum(u.cached_tokens for u in usages)
        return f": {prompt} prompt tokens ({cached} reused), {sum(u.completion_tokens for u in usages)} answered"

    async def _refuse(self, refused: Refused) -> None:
        try:
            if not self._streaming and not self.status:
                await send_refusal(self._send, refused, self._endpoint.error)
                self.status = refused.status
        except Gone:
            pass  # there is nobody to tell, and the status stays that of no answer

    # The request

    async def _call(self) -> Call:
        headers = Headers(scope=self._scope)
        body = await self._body(headers) if self._endpoint.body is not None else {}
        return Call(body, self._scope.get("path_params", {}), dict(headers.items()))

    async def _body(self, headers: Headers) -> dict[str, Any]:
        _require_kind(headers, "application/json")
        try:
            async with asyncio.timeout(self._limits.body_seconds):
                raw = await self._read()
        except TimeoutError:
            raise Refused(408, f"The body was not complete after {self._limits.body_seconds:g} seconds.") from None
        return await asyncio.to_thread(parse_object, raw)

    async def _read(self) -> bytes:
        raw, more = bytearray(), True
        while more:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise Gone
            raw += message.get("body", b"")
            more = message.get("more_body", False)
            if len(raw) > self._limits.body_bytes:
                raw.clear()
                if more:
                    await self._drain()
                raise Refused(413, f"The body has more than {self._limits.body_bytes} bytes, which is the limit.")
        return bytes(raw)

    async def _drain(self) -> None:
        try:
            async with asyncio.timeout(DRAIN_SECONDS):
                while (message := await self._receive())["type"] == "http.request" and message.get("more_body"):
                    pass
        except TimeoutError:
            pass  # it goes on sending: then it reads why when it has done so, or not at all

    # Files

    async def _take_file(self, endpoint: Upload, call: Call) -> None:
        _require_kind(Headers(scope=self._scope), BINARY)
        with tempfile.TemporaryDirectory(prefix="mlx-qwen35-") as folder:
            path, limit = Path(folder) / "upload", self._served.sessions.file_limit
            if not await receive_file(self._receive, path, limit, self._limits.body_seconds):
                raise Gone
            body = await asyncio.to_thread(endpoint.answer, call, path)
        await self._send_json(200, body)

    async def _give_file(self, endpoint: Download, call: Call) -> None:
        saved = await asyncio.to_thread(endpoint.answer, call)
        try:
            self.status = 200  # what goes wrong from here on can only cut it short
            await send_file(self._send, saved.path)
        finally:
            saved.done()

    # The answer

    async def _generate(self, endpoint: Generation, call: Call) -> None:
        asked = await asyncio.to_thread(endpoint.read, call)
        with self._gate.places(len(asked.requests)):
            answer = asyncio.create_task(self._stream(asked) if asked.stream else self._whole(asked))
            watch = asyncio.create_task(self._until_gone())
            ended = asyncio.create_task(self._gate.ended.wait())
            try:
                done, _ = await asyncio.wait(
                    {answer, watch, ended}, timeout=self._limits.answer_seconds, return_when=asyncio.FIRST_COMPLETED
                )
            finally:
                for task in (answer, watch, ended):
                    task.cancel()
                await asyncio.gather(answer, watch, ended, return_exceptions=True)
            await self._conclude(asked, answer, done, watch, ended)

    async def _conclude(self, asked: Asked, answer: asyncio.Task[None], done: set[Any], watch: Any, ended: Any) -> None:
        """How the answer's task ended is told to the client, if it is still there."""
        if not answer.cancelled():
            error = answer.exception()
            if error is None:
                return
        elif watch in done:
            raise Gone
        elif ended in done:
            error = Refused(503, "The server is shutting down.", code="shutting_down", retry_after=10)
        else:
            error = Refused(504, f"The answer was not complete after {self._limits.answer_seconds:g} seconds.")
        if not self._streaming or isinstance(error, Gone):
            raise error
        await self._send_frames(asked.author.failed(refusal(error)))
        await self._send({"type": "http.response.body", "body": b""})

    async def _until_gone(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass

    async def _whole(self, asked: Asked) -> None:
        gatherings = [Gathering() for _ in asked.requests]
        async with self._answers.batches(asked) as items:
            async for batch in items:
                for choice, event in batch:
                    gatherings[choice].take(event)
        body = asked.author.whole([gathering.reply() for gathering in gatherings])
        await self._send_json(200, body)

    async def _stream(self, asked: Asked) -> None:
        async with self._answers.batches(asked) as items:
            async for batch in items:
                frames: list[Frame] = []
                if not self._streaming:
                    await self._start_stream()
                    frames += asked.author.begin()
                for choice, event in batch:
                    frames += asked.author.event(choice, event)
                if frames:
                    await self._send_frames(frames)
                elif (progress := self._answers.progress) is not None:
                    await self._send_body(f": prefill {progress.done}/{progress.total} tokens\n\n".encode())
                else:
                    await self._send_body(b": waiting\n\n")
        await self._send_frames(asked.author.end())
        await self._send({"type": "http.response.body", "body": b""})

    # The response

    async def _send(self, message: Message) -> None:
        """Raises Gone where the reader takes nothing for too long."""
        try:
            async with asyncio.timeout(self._limits.stall_seconds):
                await self._raw_send(message)
        except (TimeoutError, OSError):
            transport = self._scope.get("state", {}).get("transport")
            if transport is not None:
                transport.abort()
            raise Gone from None

    async def _send_json(self, status: int, body: Json) -> None:
        await send_json(self._send, status, body)
        self.status = status

    async def _start_stream(self) -> None:
        self._streaming, self.status = True, 200
        headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-store")]
        await self._send({"type": "http.response.start", "status": 200, "headers": headers})

    async def _send_body(self, body: bytes) -> None:
        await self._send({"type": "http.response.body", "body": body, "more_body": True})

    async def _send_frames(self, frames: Iterable[Frame]) -> None:
        if text := "".join(map(as_text, frames)):
            await self._send_body(text.encode())


def _require_kind(headers: Headers, wanted: str) -> None:
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != wanted:
        raise Refused(415, f"The content type is {kind[:80] or 'missing'!r}; {wanted} is needed.")
    if headers.get("content-encoding", "identity").lower() != "identity":
        raise Refused(415, "The body is compressed; send it as it is.")
