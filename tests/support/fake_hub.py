"""A hub on loopback that serves repositories, and misbehaves on request: cuts, lies, flips, refuses.

Speaks the two requests a download makes: the listing (/api/models/.../revision/...?blobs=true) and files with
ranges (/<id>/resolve/<commit>/<path>).
"""

import hashlib
import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Fault:
    """Something that goes wrong with one path, `times` times.

    cut: close after this many body bytes. flip: invert the byte at this offset of the file. status: answer that.
    length: add this to Content-Length. ignore_range: send everything. shift: send a range this much later.
    hold: wait for this before the last 16 KiB. redirect: send to this address instead.
    """

    cut: int | None = None
    flip: int | None = None
    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    length: int = 0
    ignore_range: bool = False
    shift: int = 0
    hold: threading.Event | None = None
    etag: str | None = None
    redirect: str | None = None
    times: int = 1_000_000


@dataclass
class Request:
    path: str
    headers: dict[str, str]
    status: int = 0
    sent: int = 0


class FakeHub:
    """`with FakeHub({"org/name": {"config.json": b"..."}}) as hub:` then fetch from `hub.endpoint`."""

    def __init__(self, repositories: dict[str, dict[str, bytes]]) -> None:
        self.repositories = repositories
        self.commit = COMMIT
        self.faults: dict[str, Fault] = {}
        self.edit_listing: Callable[[dict[str, Any]], Any] = lambda listing: listing
        self.requests: list[Request] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self._server.daemon_threads = True

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> "FakeHub":
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def of(self, path: str) -> list[Request]:
        """The requests made for a file."""
        return [request for request in self.requests if request.path == path]

    def sent(self, path: str) -> int:
        """Body bytes of a file sent in all requests together."""
        return sum(request.sent for request in self.of(path))

    def listing(self, hub_id: str) -> Any:
        siblings = [_sibling(path, content) for path, content in self.repositories[hub_id].items()]
        return self.edit_listing({"id": hub_id, "sha": self.commit, "siblings": siblings})

    def fault(self, path: str) -> Fault:
        fault = self.faults.get(path, Fault())
        if fault.times <= 0:
            return Fault()
        fault.times -= 1
        return fault


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def git_blob_id(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _sibling(path: str, content: bytes) -> dict[str, Any]:
    entry: dict[str, Any] = {"rfilename": path, "size": len(content), "blobId": git_blob_id(content)}
    if path.endswith((".safetensors", "tokenizer.json")):
        entry["lfs"] = {"sha256": sha256(content), "size": len(content), "pointerSize": 130}
    return entry


class _Handler(BaseHTTPRequestHandler):
    """One request at a hub. hub: which one, told by a subclass for each"""

    hub: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        parts = unquote(urlsplit(self.path).path).strip("/").split("/")
        name = "/".join(parts[2:4]) if parts[0] == "api" else "/".join(parts[4:])
        request = Request(name, {key.lower(): value for key, value in self.headers.items()})
        self.hub.requests.append(request)
        fault = self.hub.fault(name)
        if fault.redirect is not None:
            self._answer(request, 302, b"", {"Location": fault.redirect + self.path})
        elif fault.status is not None:
            self._answer(request, fault.status, b"", fault.headers)
        elif parts[0] == "api":
            self._list(request, name, fault)
        else:
            self._file(request, "/".join(parts[:2]), name, fault)

    def _list(self, request: Request, hub_id: str, fault: Fault) -> None:
        if hub_id not in self.hub.repositories:
            self._answer(request, 401, b"", {"X-Error-Code": "RepoNotFound"})
            return
        listing = self.hub.listing(hub_id)
        body = listing if isinstance(listing, bytes) else json.dumps(listing).encode()
        self._answer(request, 200, body, fault.headers)

    def _file(self, request: Request, hub_id: str, name: str, fault: Fault) -> None:
        content = self.hub.repositories[hub_id].get(name)
        if content is None:
            self._answer(request, 404, b"", {"X-Error-Code": "EntryNotFound"})
            return
        etag = fault.etag or f'"{sha256(content)[:20]}"'
        if fault.flip is not None:
            content = content[: fault.flip] + bytes([content[fault.flip] ^ 0xFF]) + content[fault.flip + 1 :]
        begin, asked = 0, request.headers.get("range")
        if asked and not fault.ignore_range and request.headers.get("if-range", etag) == etag:
            first, _, last = asked.removeprefix("bytes=").partition("-")
            begin = int(first) + fault.shift
            if begin >= len(content):
                self._answer(request, 416, b"", {"Content-Range": f"bytes */{len(content)}"})
                return
            end = min(len(content), int(last) + 1) if last else len(content)
            span = f"bytes {begin}-{end - 1}/{len(content)}"
            self._answer(request, 206, content[begin:end], {"ETag": etag, "Content-Range": span}, fault)
        else:
            self._answer(request, 200, content, {"ETag": etag}, fault)

    def _answer(
        self, request: Request, status: int, body: bytes, headers: dict[str, str], fault: Fault | None = None
    ) -> None:
        fault = fault or Fault()
        request.status = status
        self.send_response(status)
        self.send_header("Content-Length", str(len(body) + fault.length))
        for key, value in headers.items():
            self.send_header(key, value)
        self.end_headers()
        body = body if fault.cut is None else body[: fault.cut]
        try:
            for at in range(0, len(body), 16384):
                piece = body[at : at + 16384]
                if fault.hold is not None and at + 16384 >= len(body):
                    fault.hold.wait(60)
                request.sent += len(piece)  # before it is sent, so that no one who has it all counts less
                self.wfile.write(piece)
        except OSError:  # the client is gone
            self.close_connection = True
        if fault.cut is not None or fault.length:
            self.close_connection = True
