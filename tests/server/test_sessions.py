"""Sessions over HTTP: kept within bounds, forked, carried to another server, and never a way in."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest

from mlx_qwen35.caches import sealed
from mlx_qwen35.options import CacheOptions
from mlx_qwen35.qwen import Qwen
from mlx_qwen35.runtime import Runtime
from mlx_qwen35.server.settings import Settings
from tests.server.conftest import RunningServer, running

SYSTEM = {"role": "system", "content": "Be brief. " + "This is a long prompt for agents. " * 20}
FIRST = [SYSTEM, {"role": "user", "content": "What is 3 + 4?"}]
FILE = {"Content-Type": "application/octet-stream"}


def ask(server: RunningServer, messages: list[dict[str, Any]], session: str | None = None, **fields: Any) -> Any:
    body = {"messages": messages, "temperature": 0, "max_tokens": 60, "session_id": session, **fields}
    answer = server.post("/v1/chat/completions", body)
    assert answer.status == 200, answer.body
    return answer.json


def goes_on(answer: Any, question: str, before: list[dict[str, Any]]) -> list[dict[str, Any]]:
    said = answer["choices"][0]["message"]["content"]
    return [*before, {"role": "assistant", "content": said}, {"role": "user", "content": question}]


def listed(server: RunningServer) -> dict[str, Any]:
    return {entry["id"]: entry for entry in server.get("/v1/sessions").json["data"]}


@pytest.fixture(autouse=True)
def _nothing_left(demo_server: RunningServer) -> Iterator[None]:
    yield
    for name in listed(demo_server):
        assert demo_server.request("DELETE", f"/v1/sessions/{name}").status == 200


@pytest.fixture(scope="module")
def other_server() -> Iterator[RunningServer]:
    """Another process, as far as models, caches and sessions go."""
    runtime = Runtime.load("demo", caches=CacheOptions(disk=None))
    with running(runtime, Settings(grace_seconds=0)) as server:
        yield server
    runtime.close()


@pytest.fixture
def exported(demo_server: RunningServer) -> tuple[bytes, list[dict[str, Any]], Any]:
    """A session's file, the next turn's messages, and the answer to them where nothing was carried."""
    first = ask(demo_server, FIRST, "talk")
    then = goes_on(first, "What is 5 + 6?", FIRST)
    file = demo_server.get("/v1/sessions/talk/export")
    assert file.status == 200
    assert file.headers["content-type"] == "application/octet-stream"
    return file.body, then, ask(demo_server, then)


def test_a_session_is_kept_told_and_forgotten(demo_server: RunningServer) -> None:
    answer = ask(demo_server, FIRST, "talk")
    entry = listed(demo_server)["talk"]
    assert entry["messages"] == len(FIRST) + 1
    assert entry["tokens"] == answer["usage"]["total_tokens"]
    assert 0 < entry["kept_tokens"] <= entry["tokens"]
    assert 0 < entry["kept_bytes"] <= demo_server.get("/v1/sessions").json["limit_bytes"]
    told = demo_server.get("/v1/sessions/talk").json
    assert told["conversation"][-1]["content"] == answer["choices"][0]["message"]["content"]
    assert demo_server.request("DELETE", "/v1/sessions/talk").json["deleted"]
    assert demo_server.get("/v1/sessions/talk").status == 404


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/responses", "/v1/messages"])
@pytest.mark.parametrize("stream", [False, True])
def test_every_protocol_names_its_conversation(demo_server: RunningServer, path: str, stream: bool) -> None:
    said = {"input": FIRST[1:]} if path == "/v1/responses" else {"messages": FIRST[1:], "max_tokens": 30}
    assert demo_server.post(path, {"model": "demo", **said, "stream": stream, "session_id": "a.b-c_1"}).status == 200
    demo_server.wait(lambda: listed(demo_server)["a.b-c_1"]["messages"] == 2)


def test_what_a_fork_answers_is_what_a_cold_start_answers(
    demo_server: RunningServer, other_server: RunningServer
) -> None:
    first = ask(demo_server, FIRST, "talk")
    fork = demo_server.post("/v1/sessions/talk/fork", {}).json["id"]
    assert demo_server.post("/v1/sessions/talk/fork", {"session_id": "named"}).json["id"] == "named"
    for name, question in ((fork, "What is 5 + 6?"), ("talk", "What is 8 + 1?"), ("named", "What is 2 + 2?")):
        messages = goes_on(first, question, FIRST)
        warm, cold = ask(demo_server, messages, name), ask(other_server, messages)
        assert warm["choices"][0]["message"] == cold["choices"][0]["message"]
        assert warm["usage"]["cache"]["reused_tokens"] > 100
    assert demo_server.post("/v1/sessions/talk/fork", {"session_id": "named"}).status == 409


def test_an_imported_session_goes_on_without_computing_it_again(
    exported: tuple[bytes, list[dict[str, Any]], Any], other_server: RunningServer
) -> None:
    file, then, expected = exported
    taken = other_server.request("POST", "/v1/sessions/moved/import", file, FILE)
    assert taken.status == 200, taken.body
    assert [m["role"] for m in taken.json["conversation"]] == ["system", "user", "assistant"]
    answer = ask(other_server, then, "moved")
    assert answer["choices"][0]["message"] == expected["choices"][0]["message"]
    assert answer["usage"]["cache"]["reused_tokens"] > 100
    assert other_server.request("POST", "/v1/sessions/moved/import", file, FILE).status == 409


def test_what_was_imported_is_used_by_its_session_only(demo_server: RunningServer, tmp_path: Path) -> None:
    """A forged file has numbers of its own choice under a prompt that others use too."""
    question = [{"role": "system", "content": "Nobody asked so yet. " * 20}, FIRST[1]]
    expected = ask(demo_server, question)["choices"][0]["message"]
    runtime = Runtime.load("demo", caches=CacheOptions(disk=None))
    with running(runtime, Settings(grace_seconds=0)) as fresh:
        ask(fresh, question, "talk")
        path = tmp_path / "forged"
        path.write_bytes(fresh.get("/v1/sessions/talk/export").body)
        fresh.request("DELETE", "/v1/sessions/talk")
    runtime.close()
    with sealed.opened(path) as (file, size):
        raw = sealed.raw_header(file, path, size, size)
        header = sealed.checked_header(raw, path, size)
        blobs = sealed.payload(file, size, raw, header)
    for name, blob in blobs.items():
        if ".checkpoint." in name:
            blobs[name] = sealed.Blob(blob.dtype, blob.shape, bytes(len(blob.data)))
    metadata = {key: value for key, value in header.metadata.items() if key != "checksum"}
    sealed.write(path, sealed.seal(metadata, blobs))
    victim = Runtime.load("demo", caches=CacheOptions(disk=None))
    with running(victim, Settings(grace_seconds=0)) as server:
        assert server.request("POST", "/v1/sessions/forged/import", path.read_bytes(), FILE).status == 200
        misled = ask(server, question, "forged")
        assert misled["usage"]["cache"]["reused_tokens"] > 50
        honest = ask(server, question)
        assert honest["usage"]["cache"]["reused_tokens"] == 0
        assert honest["choices"][0]["message"] == expected
    victim.close()


def test_a_session_of_another_model_is_refused_in_one_line(
    exported: tuple[bytes, list[dict[str, Any]], Any], endless_server: RunningServer
) -> None:
    answer = endless_server.request("POST", "/v1/sessions/moved/import", exported[0], FILE)
    assert answer.status == 400
    message = answer.json["error"]["message"]
    assert message == "The file cannot be gone on from: it was saved with another model, KV format or version."
    assert listed(endless_server) == {}


@pytest.mark.parametrize("cut", [0, 7, 100, -1])
def test_what_is_no_session_is_refused_in_one_line(
    exported: tuple[bytes, list[dict[str, Any]], Any], demo_server: RunningServer, cut: int
) -> None:
    answer = demo_server.request("POST", "/v1/sessions/moved/import", exported[0][:cut], FILE)
    assert answer.status == 400
    assert answer.json["error"]["message"].startswith("The file ")
    assert "/" not in answer.json["error"]["message"]
    assert "moved" not in listed(demo_server)


def test_a_file_that_is_too_large_is_refused_while_it_comes(
    demo_server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    sessions = demo_server.app.served.sessions
    monkeypatch.setattr(type(sessions), "file_limit", 1000)
    connection = HTTPConnection(demo_server.host, demo_server.port, timeout=30)
    connection.putrequest("POST", "/v1/sessions/large/import")
    connection.putheader("Content-Type", "application/octet-stream")
    connection.putheader("Content-Length", str(10**12))
    connection.endheaders()
    connection.send(bytes(100_000))
    assert connection.getresponse().status == 413
    connection.close()


NAMES = ["..", "%2e%2e%2fetc", "-a", "a" * 65, "a%00", "a%20b", "%0a"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("method", "action"), [("GET", ""), ("GET", "/export"), ("POST", "/import"), ("POST", "/fork")]
)
def test_a_name_is_no_path(demo_server: RunningServer, name: str, method: str, action: str) -> None:
    headers = FILE if action == "/import" else {"Content-Type": "application/json"}
    body = b"{}" if method == "POST" else None
    assert demo_server.request(method, f"/v1/sessions/{name}{action}", body, headers).status in (400, 404)


def test_names_of_refused_requests_are_bounded_too(demo_server: RunningServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo_server.app.served.sessions, "_most", 3)
    for i in range(6):
        refused = {"messages": FIRST[1:], "session_id": f"none-{i}", "temperature": -1}
        assert demo_server.post("/v1/chat/completions", refused).status == 400
    assert list(listed(demo_server)) == ["none-5", "none-4", "none-3"]


@pytest.mark.parametrize("name", ["../x", "", "a b", 5])
def test_a_name_in_a_body_is_checked(demo_server: RunningServer, name: Any) -> None:
    answer = demo_server.post("/v1/chat/completions", {"messages": FIRST, "session_id": name})
    assert answer.status == 400
    assert answer.json["error"]["param"] == "session_id"
    for path, method, body in (("fork", "POST", b"{}"), ("export", "GET", None)):
        headers = {"Content-Type": "application/json"}
        assert demo_server.request(method, f"/v1/sessions/nobody/{path}", body, headers).status == 404


def test_sessions_give_way_to_each_other(demo_server: RunningServer, monkeypatch: pytest.MonkeyPatch) -> None:
    sessions = demo_server.app.served.sessions
    monkeypatch.setattr(sessions, "_most", 2)
    for i in range(3):
        ask(demo_server, [{"role": "user", "content": f"What is {i} + 4?"}], f"talk-{i}")
    assert list(listed(demo_server)) == ["talk-2", "talk-1"]  # the one used last first
    # Room for one of them: the other is still known, and no longer kept.
    room = max(entry["kept_bytes"] for entry in listed(demo_server).values())
    monkeypatch.setattr(type(sessions), "byte_budget", room)
    ask(demo_server, [{"role": "user", "content": "What is 2 + 4?"}], "talk-2")
    kept = {name: entry["kept_bytes"] for name, entry in listed(demo_server).items()}
    assert kept["talk-1"] == 0 < kept["talk-2"] <= room


def test_python_reads_what_the_server_wrote(
    exported: tuple[bytes, list[dict[str, Any]], Any], tmp_path: Path, demo_server: RunningServer
) -> None:
    (tmp_path / "talk").write_bytes(exported[0])
    with Qwen(demo_server.runtime).load_session(tmp_path / "talk") as session:
        assert [m["role"] for m in session.messages] == ["system", "user", "assistant"]


@pytest.mark.slow
def test_a_server_in_another_process_goes_on_from_it(
    exported: tuple[bytes, list[dict[str, Any]], Any], tmp_path: Path
) -> None:
    file, then, expected = exported
    environment = {**os.environ, "HOME": str(tmp_path)}
    command = [sys.executable, "-m", "mlx_qwen35", "serve", "demo", "--port", "0", "--disk", "none"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        try:
            assert process.stderr is not None
            line = process.stderr.readline()
            port = int(line.partition("http://127.0.0.1:")[2].partition("/")[0])
            other = RunningServer("", None, None, "127.0.0.1", port)  # type: ignore[arg-type]
            assert other.request("POST", "/v1/sessions/moved/import", file, FILE).status == 200
            answer = ask(other, then, "moved")
            assert answer["choices"][0]["message"] == expected["choices"][0]["message"]
            assert answer["usage"]["cache"]["reused_tokens"] > 100
        finally:
            process.terminate()


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/responses", "/v1/messages"])
def test_a_fold_is_asked_for_in_every_protocol(demo_server: RunningServer, path: str) -> None:
    said = {"input": FIRST[1:]} if path == "/v1/responses" else {"messages": FIRST[1:], "max_tokens": 30}
    answer = demo_server.post(path, {"model": "demo", **said, "fold_at": 100})
    assert answer.status == 400
    assert "fold_at is 100; at least 512" in answer.json["error"]["message"]
    assert demo_server.post(path, {"model": "demo", **said, "fold_at": 600}).status == 200


@pytest.mark.slow
def test_a_long_conversation_is_folded(demo_server: RunningServer) -> None:
    turns = [
        {"role": role, "content": f"{text} {i}. " * 12}
        for i in range(6)
        for role, text in (("user", "Please note the number"), ("assistant", "I noted the number"))
    ]
    messages = [*turns, {"role": "user", "content": "What is 3 + 4?"}]
    counted = demo_server.post("/v1/messages/count_tokens", {"model": "demo", "messages": messages}).json
    folded = ask(demo_server, messages, fold_at=512, max_tokens=4)
    assert counted["input_tokens"] > 600
    assert folded["usage"]["prompt_tokens"] < 512
