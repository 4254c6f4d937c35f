"""Responses as they go over the wire: JSON, text, events, refusals. Knows no request."""

from __future__ import annotations

import json
from collections.abc import Iterable

from starlette.types import Send

from mlx_qwen35.server.protocol import Error, Frame, Json, Refused


def as_text(frame: Frame) -> str:
    """A frame as it goes over the wire."""
    data = frame.data if isinstance(frame.data, str) else dumps(frame.data)
    return (f"event: {frame.event}\n" if frame.event else "") + f"data: {data}\n\n"


def dumps(value: Json) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


async def send_json(send: Send, status: int, body: Json, headers: Iterable[tuple[bytes, bytes]] = ()) -> None:
    """A whole response. Text that UTF-8 cannot carry becomes U+FFFD."""
    raw = dumps(body).encode("utf-8", "replace")
    start = [(b"content-type", b"application/json"), (b"content-length", str(len(raw)).encode()), *headers]
    await send({"type": "http.response.start", "status": status, "headers": start})
    await send({"type": "http.response.body", "body": raw})


async def send_text(send: Send, text: str) -> None:
    """A whole response of plain text."""
    headers = [(b"content-type", b"text/plain; version=0.0.4; charset=utf-8")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": text.encode()})


async def send_empty(send: Send) -> None:
    await send({"type": "http.response.start", "status": 204, "headers": []})
    await send({"type": "http.response.body", "body": b""})


async def send_refusal(send: Send, refused: Refused, error: Error, headers: Iterable[tuple[bytes, bytes]] = ()) -> None:
    """A refusal in the shape of its protocol."""
    extra = list(headers)
    if refused.retry_after is not None:
        extra.append((b"retry-after", str(refused.retry_after).encode()))
    if refused.status in (408, 413):  # what is left of the body is not read
        extra.append((b"connection", b"close"))
    if refused.status == 401:
        extra.append((b"www-authenticate", b"Bearer"))
    await send_json(send, refused.status, error(refused), extra)
