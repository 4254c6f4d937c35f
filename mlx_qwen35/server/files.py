"""Files as bodies of requests and responses, in pieces, so that neither side holds all of one in memory."""

from __future__ import annotations

import asyncio
from pathlib import Path

from starlette.types import Message, Receive, Send

from mlx_qwen35.server.protocol import Refused

PIECE = 1 << 20
BINARY = "application/octet-stream"


async def receive_file(receive: Receive, path: Path, limit: int, piece_seconds: float) -> bool:
    """Write a request's body to `path`; False where the client left.

    limit: bytes   piece_seconds: for each piece of it
    Raises Refused: 413 for a larger one, 408 for one that stops coming, 503 where the disk is full.
    """
    size, more = 0, True
    try:
        with path.open("xb") as file:
            while more:
                message = await _next(receive, piece_seconds)
                if message["type"] == "http.disconnect":
                    return False
                piece, more = message.get("body", b""), message.get("more_body", False)
                size += len(piece)
                if size > limit:
                    raise Refused(413, f"The file has more than {limit} bytes, which is the limit.")
                await asyncio.to_thread(file.write, piece)
    except OSError:
        raise Refused(503, "There is no room on the disk for the file.", retry_after=60) from None
    return True


async def send_file(send: Send, path: Path) -> None:
    """A whole response."""
    size = path.stat().st_size
    headers = [(b"content-type", BINARY.encode()), (b"content-length", str(size).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    with path.open("rb") as file:
        while piece := await asyncio.to_thread(file.read, PIECE):
            await send({"type": "http.response.body", "body": piece, "more_body": True})
    await send({"type": "http.response.body", "body": b""})


async def _next(receive: Receive, seconds: float) -> Message:
    try:
        async with asyncio.timeout(seconds):
            return await receive()
    except TimeoutError:
        raise Refused(408, f"Nothing more of the file came within {seconds:g} seconds.") from None
