"""Requests over plain sockets on an event loop, hundreds at a time: read fast, slowly, or not to the end."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any

LEAVE_AT_ONCE = struct.pack("ii", 1, 0)  # SO_LINGER: closing resets the connection


class Lost(Exception):
    """The connection ended where it should not have."""


@dataclass
class Pace:
    """How a client reads: `size` bytes at a time, then a pause. buffer: what the system takes unread; 0 is its own"""

    size: int = 65536
    pause: float = 0.0
    buffer: int = 0


class Connection:
    """One connection, kept for several requests in a row."""

    def __init__(self, port: int, pace: Pace = Pace()) -> None:  # noqa: B008 (never changed)
        self._port, self._pace = port, pace
        self._socket: socket.socket | None = None
        self._received = b""

    async def post(self, path: str, body: Mapping[str, Any]) -> tuple[int, dict[str, str]]:
        """Send a request, read status and headers (lower-case names). The body is `pieces`."""
        raw = json.dumps(body).encode()
        head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        connection = await self._connected()
        await asyncio.get_running_loop().sock_sendall(
            connection, f"{head}Content-Length: {len(raw)}\r\n\r\n".encode() + raw
        )
        lines = (await self._until(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        pairs = (line.partition(": ") for line in lines[1:] if line)
        self._headers = {name.lower(): value for name, _, value in pairs}
        return int(lines[0].split()[1]), self._headers

    async def pieces(self) -> AsyncIterator[bytes]:
        """The body as it comes."""
        if "content-length" in self._headers:
            yield await self._exactly(int(self._headers["content-length"]))
        else:
            while size := int(await self._until(b"\r\n"), 16):
                yield (await self._exactly(size + 2))[:-2]
            await self._exactly(2)
        if self._headers.get("connection") == "close":
            self.close()

    async def body(self) -> bytes:
        return b"".join([piece async for piece in self.pieces()])

    def close(self, reset: bool = False) -> None:
        """reset: without a farewell, as a program that is killed or a cable that is pulled"""
        if self._socket is not None:
            if reset:
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LEAVE_AT_ONCE)
            self._socket.close()
        self._socket, self._received = None, b""

    async def _connected(self) -> socket.socket:
        if self._socket is None:
            self._socket = socket.socket()
            if self._pace.buffer:
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self._pace.buffer)
            self._socket.setblocking(False)
            await asyncio.get_running_loop().sock_connect(self._socket, ("127.0.0.1", self._port))
        return self._socket

    async def _until(self, end: bytes) -> bytes:
        while end not in self._received:
            await self._more()
        found, _, self._received = self._received.partition(end)
        return found

    async def _exactly(self, size: int) -> bytes:
        while len(self._received) < size:
            await self._more()
        found, self._received = self._received[:size], self._received[size:]
        return found

    async def _more(self) -> None:
        assert self._socket is not None
        if self._pace.pause:
            await asyncio.sleep(self._pace.pause)
        piece = await asyncio.get_running_loop().sock_recv(self._socket, self._pace.size)
        if not piece:
            raise Lost("the server closed the connection")
        self._received += piece
