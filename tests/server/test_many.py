"""Many at once, and those who leave: nobody waits for them, and nobody gets another's answer."""

from __future__ import annotations

import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from mlx_qwen35.chat.folding import summary_tokens
from mlx_qwen35.requests import ChatRequest
from mlx_qwen35.runtime import Runtime
from mlx_qwen35.server.settings import Settings
from tests.server.conftest import HANG_SECONDS, RunningServer, running

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
LONG = {"messages": [{"role": "user", "content": "Go on"}], "max_tokens": 50_000}


def read_until(connection: socket.socket, wanted: bytes) -> bytes:
    received = b""
    while wanted not in received:
        piece = connection.recv(65536)
        assert piece, received[-2000:]
        received += piece
    return received


def test_twenty_streams_do_not_cross(demo_server: RunningServer, demo_runtime: Runtime) -> None:
    letters = "abcdefghijklmnopqrst"
    ids = {letter: demo_runtime.tokenizer.encode(letter)[0] for letter in letters}

    def ask(letter: str) -> tuple[str, set[str], int]:
        body = {"prompt": f"Say {letter}", "max_tokens": 30, "logit_bias": {str(ids[letter]): 100}, "stream": True}
        chunks = [data for _, data in demo_server.post(TEXT, body).events]
        assert chunks[-1] == "[DONE]"
        return (
            "".join(chunk["choices"][0]["text"] for chunk in chunks[:-1]),
            {chunk["id"] for chunk in chunks[:-1]},
            len(chunks),
        )

    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(ask, letters))
    assert [text for text, _, _ in answers] == [letter * 30 for letter in letters]
    names = [name for _, names, _ in answers for name in names]
    assert len(names) == len(set(names)) == 20


@pytest.mark.parametrize("stream", [True, False])
def test_who_leaves_is_not_answered_further(endless_server: RunningServer, stream: bool) -> None:
    connection = endless_server.begin(CHAT, {**LONG, "stream": stream})
    if stream:
        read_until(connection, b"data: ")
    endless_server.wait(lambda: endless_server.runtime.stats().rows == 1)
    answered = endless_server.runtime.stats().answer_tokens
    connection.close()
    endless_server.wait_until_idle()
    assert endless_server.runtime.stats().answer_tokens - answered < LONG["max_tokens"] // 2
    endless_server.wait(lambda: endless_server.app.tally.responses[CHAT, 200 if stream else 499] > 0)


def test_who_leaves_while_the_prompt_is_read_or_while_in_line_is_forgotten(endless_server: RunningServer) -> None:
    reading = endless_server.begin(CHAT, {"messages": [{"role": "user", "content": "word " * 8_000}], "stream": True})
    endless_server.wait(lambda: endless_server.runtime.stats().rows == 1)
    reading.close()
    places = endless_server.runtime.caches.max_sequences
    connections = [endless_server.begin(CHAT, {**LONG, "stream": True, "seed": i}) for i in range(places + 2)]
    endless_server.wait(lambda: endless_server.runtime.stats().waiting == 2)
    connections.pop().close()
    endless_server.wait(lambda: endless_server.runtime.stats().waiting == 1)
    for connection in connections:
        connection.close()
    endless_server.wait_until_idle()


@pytest.mark.parametrize("stream", [True, False])
def test_who_leaves_while_older_turns_are_summarised_stops_the_summary(
    endless_server: RunningServer, stream: bool
) -> None:
    runtime = endless_server.runtime
    turns = [{"role": role, "content": f"{stream} " * 60} for role in ("user", "assistant")] * 4
    said, limit = [*turns, *LONG["messages"]], 2_048
    assert len(runtime.prompt(ChatRequest(said)).ids) > limit
    connection = endless_server.begin(CHAT, {**LONG, "messages": said, "fold_at": limit, "stream": stream})
    endless_server.wait(lambda: runtime.stats().rows == 1)
    answered = runtime.stats().answer_tokens
    endless_server.wait(lambda: runtime.stats().answer_tokens > answered)
    connection.close()
    endless_server.wait_until_idle()
    # Of a summary, and no answer after it.
    assert 0 < runtime.stats().answer_tokens - answered < summary_tokens(limit)


def test_beyond_the_queue_is_a_429_that_says_when_to_come_back(endless_server: RunningServer) -> None:
    limit = endless_server.app.gate.limit
    connections = [endless_server.begin(CHAT, {**LONG, "stream": True}) for _ in range(limit)]
    endless_server.wait(lambda: endless_server.app.gate.open_answers == limit)
    refused = endless_server.post(CHAT, {**LONG, "max_tokens": 1})
    assert refused.status == 429
    assert 1 <= int(refused.headers["retry-after"]) <= 60
    assert refused.json["error"]["code"] == "server_busy"
    assert endless_server.get("/health").status == 200
    for connection in connections:
        connection.close()
    endless_server.wait_until_idle()
    assert endless_server.post(CHAT, {**LONG, "max_tokens": 1}).status == 200


def test_more_choices_than_places_do_not_slip_through(endless_server: RunningServer) -> None:
    with endless_server.begin(CHAT, {**LONG, "stream": True, "n": 16}):
        endless_server.wait(lambda: endless_server.app.gate.open_answers == 16)
        assert endless_server.post(CHAT, {**LONG, "n": 3, "max_tokens": 1}).status == 429
    endless_server.wait_until_idle()


def test_two_hundred_connections_are_all_answered_or_told(endless_server: RunningServer) -> None:
    def ask(i: int) -> int:
        body = {"messages": [{"role": "user", "content": f"{i}"}], "max_tokens": 3, "stream": bool(i % 2)}
        answer = endless_server.post(CHAT, body)
        if answer.status == 200 and i % 2:
            assert answer.events[-1][1] == "[DONE]"
        return answer.status

    with ThreadPoolExecutor(200) as pool:
        statuses = list(pool.map(ask, range(200)))
    assert set(statuses) <= {200, 429}
    assert statuses.count(200) >= endless_server.app.gate.limit
    endless_server.wait_until_idle()


def test_a_reader_who_stalls_holds_up_nobody_and_is_cut_off(endless_runtime: Runtime) -> None:
    with running(endless_runtime, Settings(stall_seconds=1, grace_seconds=0), "endless", buffer=4096) as server:
        # The system would otherwise take megabytes before anybody notices.
        connection = server.begin(CHAT, {**LONG, "stream": True}, buffer=4096)
        assert server.post(CHAT, {**LONG, "max_tokens": 5}).status == 200
        server.wait_until_idle()
        connection.close()


def test_a_long_prompt_shows_its_progress(endless_server: RunningServer) -> None:
    # Many windows long: of a shorter one the last event may come before anybody looks at the first.
    body = {"messages": [{"role": "user", "content": "word " * 1200}], "max_tokens": 1, "stream": True}
    assert b": prefill " in endless_server.post(CHAT, body).body


def test_an_answer_that_takes_too_long_ends_with_an_error(endless_runtime: Runtime) -> None:
    with running(endless_runtime, Settings(answer_seconds=0.5), "endless") as server:
        refused = server.post(CHAT, LONG)
        assert refused.status == 504
        assert server.post(CHAT, {**LONG, "stream": True}).events[-1][1]["error"]["type"] == "server_error"
        server.wait_until_idle()


def test_a_defect_ends_one_answer_only(endless_server: RunningServer, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare = endless_server.runtime.prepare

    def broken(request: Any, hold: Any = None) -> Any:
        if request.seed == 13:
            raise ZeroDivisionError("secret")
        return prepare(request, hold)

    monkeypatch.setattr(endless_server.runtime, "prepare", broken)
    for stream in (True, False):
        answer = endless_server.post(CHAT, {**LONG, "seed": 13, "stream": stream})
        assert answer.status == 500
        assert b"secret" not in answer.body
    assert endless_server.post(CHAT, {**LONG, "max_tokens": 1}).status == 200


def test_the_end_of_the_server_is_an_event_of_running_streams(endless_runtime: Runtime) -> None:
    seen: list[bytes] = []
    with running(endless_runtime, Settings(grace_seconds=0.2), "endless") as server:
        connection = server.begin(CHAT, {**LONG, "stream": True})
        read_until(connection, b"content")
        waiting = server.begin(CHAT, LONG)
        server.wait(lambda: server.app.gate.open_answers == 2)
        readers = [threading.Thread(target=lambda c=c: seen.append(rest_of(c))) for c in (connection, waiting)]
        for reader in readers:
            reader.start()
    for reader in readers:
        reader.join(HANG_SECONDS)
    assert len(seen) == 2
    assert all(b'"code":"shutting_down"' in text for text in seen)


def rest_of(connection: socket.socket) -> bytes:
    received = b""
    while piece := connection.recv(65536):
        received += piece
    return received
