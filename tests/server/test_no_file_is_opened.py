"""No text of a request is ever taken for a file, an address or a program, whichever field it stands in."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from tests.server.conftest import RunningServer
from tests.server.test_protocol_bodies import BODIES, places, put

CHAT_BODY: dict[str, Any] = {
    "model": "demo",
    "max_tokens": 2,
    "messages": [
        {"role": "system", "content": "Help."},
        {"role": "user", "content": [{"type": "text", "text": "Hello"}], "name": "ana"},
        {
            "role": "assistant",
            "content": "So",
            "reasoning_content": "So",
            "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "look", "arguments": "{}"}}],
        },
        {"role": "tool", "tool_call_id": "c1", "content": "done"},
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]},
    ],
    "tools": [{"type": "function", "function": {"name": "look", "description": "x", "parameters": {"$ref": "x"}}}],
    "tool_choice": "auto",
    "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"$ref": "x"}}},
    "chat_template_kwargs": {"chat_template": "x"},
}
SAMPLES = {**BODIES, "/v1/chat/completions": CHAT_BODY}
# Values of the client's own, which a wrong server would follow all the same.
REFERENCES = [("tools", 0, "function", "parameters", "$ref"), ("response_format", "json_schema", "schema", "$ref")]
NAME, SECRET = "canary-of-the-test", "what the canary sings"
FOLLOWED: list[str] = []
# What the interpreter announces before it does it, and whose first texts are a name, a command or an address.
EVENTS = ("open", "os.", "shutil.", "subprocess.", "socket.", "urllib.", "glob.", "import", "ctypes.dlopen", "mmap.")


def listen(event: str, arguments: tuple[Any, ...]) -> None:
    if event.startswith(EVENTS) and NAME in repr(arguments):
        FOLLOWED.append(f"{event}: {arguments!r:.200}")


@pytest.fixture(scope="module")
def canary(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A file that nobody may open; from now on it is heard who tries."""
    path = tmp_path_factory.mktemp("canary") / NAME
    path.write_text(SECRET)
    sys.addaudithook(listen)  # stays for the process; without a canary it hears nothing
    path.read_text()
    assert FOLLOWED, "the hook is deaf"
    yield path
    path.unlink()


def guises(canary: Path) -> list[str]:
    """The canary by all the names that others' servers followed."""
    path = str(canary)
    return [
        path,
        "../" * 12 + path.lstrip("/"),
        f"file://{path}",
        f"http://{NAME}.invalid/x",
        f"..%2f..%2f{quote(path, safe='')}",
        f"{path}\x00.json",
        f"{{% include '{path}' %}}",
    ]


def own_fields(document: Any, path: str) -> list[str]:
    """The fields of an operation's body."""
    content = document["paths"][path]["post"].get("requestBody", {}).get("content", {})
    if "application/json" not in content:  # bytes, or nothing
        return []
    name = content["application/json"]["schema"]["$ref"].rpartition("/")[2]
    return list(document["components"]["schemas"][name]["properties"])


def bodies(document: Any, text: str) -> Iterator[tuple[str, Any]]:
    """Every operation with a body, with the text in every field, and at every place of a body that uses them all."""
    for path in document["paths"]:
        if "post" not in document["paths"][path]:
            continue
        sample = SAMPLES.get(path) or {"model": "demo", "max_tokens": 2, "prompt": "x", "messages": [], "input": "x"}
        for field in own_fields(document, path):
            for value in (text, [text], {"path": text, "url": text, "type": text}):
                yield path, {**sample, field: value}
        if path in SAMPLES:
            extra = REFERENCES if path == "/v1/chat/completions" else []
            for place in [*places(sample), *extra]:
                yield path, put(sample, place, text)


@pytest.mark.slow
@pytest.mark.parametrize("guise", range(7))
def test_a_path_in_any_field_is_only_a_text(demo_server: RunningServer, canary: Path, guise: int) -> None:
    text, document = guises(canary)[guise], demo_server.get("/openapi.json").json
    FOLLOWED.clear()
    asked = 0
    for path, body in bodies(document, text):
        filled = path.replace("{", "").replace("}", "")
        raw = json.dumps({**body, "max_tokens": body["max_tokens"], "stream": False} if "max_tokens" in body else body)
        answer = demo_server.post(filled, raw.encode())
        assert answer.status < 500, (path, answer.body)
        assert SECRET.encode() not in answer.body
        asked += 1
    for path, methods in document["paths"].items():
        for method in methods:
            if "{" in path:
                head, _, rest = path.partition("{")
                target = head + quote(text, safe="") + rest.partition("}")[2]
                answer = demo_server.request(method.upper(), target, b"{}", {"Content-Type": "application/json"})
                assert answer.status < 500, (target, answer.body)
                assert SECRET.encode() not in answer.body
                asked += 1
    assert asked > 200
    assert FOLLOWED == []


def test_a_path_as_model_or_preset_or_template_is_refused(demo_server: RunningServer, canary: Path) -> None:
    FOLLOWED.clear()
    for text in guises(canary):
        for change in (
            {"model": text},
            {"preset": text},
            {"chat_template_kwargs": {"chat_template": text}},
            {"messages": CHAT_BODY["messages"]},
        ):
            body = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 1, **change}
            assert demo_server.post("/v1/chat/completions", body).status in (400, 404)
    assert FOLLOWED == []
