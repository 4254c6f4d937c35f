"""A hub on loopback that takes uploads, as huggingface_hub sends them without its xet storage.

Who is there, make a repository, which files go where, the batch of large ones, their bytes, and the commit.
"""

import base64
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class UploadHub:
    """`with UploadHub() as hub:`; `files` of the repository after each commit, `sent` the bytes of large files."""

    def __init__(self) -> None:
        self.who: dict[str, Any] = {"name": "me", "type": "user", "auth": {"accessToken": {"role": "write"}}}
        self.refuse: dict[str, int] = {}  # the start of a path, and the status it is answered with
        self.files: dict[str, bytes] = {}
        self.stored: dict[str, bytes] = {}  # large files by their sha256
        self.sent = 0
        self.asked: list[str] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> "UploadHub":
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def answer(self, path: str, body: bytes) -> Any:
        if path == "/api/whoami-v2":
            return self.who
        if path == "/api/repos/create":
            return {"url": f"{self.endpoint}/me/Tiny-4bit"}
        if "/preupload/" in path:
            asked = json.loads(body)["files"]
            return {"files": [self._mode(file["path"]) for file in asked]}
        if path.endswith("/info/lfs/objects/batch"):
            return {"objects": [self._action(each) for each in json.loads(body)["objects"]]}
        if path.startswith("/put/"):
            oid = path.removeprefix("/put/")
            assert hashlib.sha256(body).hexdigest() == oid
            self.stored[oid], self.sent = body, self.sent + len(body)
            return {}
        if "/commit/" in path:
            self._commit([json.loads(line) for line in body.splitlines()])
            return {"commitUrl": f"{self.endpoint}/me/Tiny-4bit/commit/{'0' * 40}", "commitOid": "0" * 40}
        return {}

    def _mode(self, path: str) -> dict[str, Any]:
        large = path.endswith((".safetensors", "tokenizer.json", ".png"))
        return {"path": path, "uploadMode": "lfs" if large else "regular", "shouldIgnore": False}

    def _action(self, each: dict[str, Any]) -> dict[str, Any]:
        oid = each["oid"]
        known = {} if oid in self.stored else {"actions": {"upload": {"href": f"{self.endpoint}/put/{oid}"}}}
        return {"oid": oid, "size": each["size"], **known}

    def _commit(self, lines: list[dict[str, Any]]) -> None:
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                self.files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                self.files[value["path"]] = self.stored[value["oid"]]


def _handler(hub: UploadHub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:
            pass

        def _any(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if self.headers.get("Transfer-Encoding") == "chunked":
                body = b"".join(iter(self._chunk, b""))
            path = self.path.partition("?")[0]
            hub.asked.append(path)
            status = next((code for start, code in hub.refuse.items() if path.startswith(start)), 200)
            answer = hub.answer(path, body) if status == 200 else {"error": "not today"}
            content = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def _chunk(self) -> bytes:
            length = int(self.rfile.readline().strip() or b"0", 16)
            chunk = self.rfile.read(length)
            self.rfile.readline()
            return chunk

        do_GET = do_POST = do_PUT = do_HEAD = _any

    return Handler
