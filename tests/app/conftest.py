"""The app running for real: on a tiny random checkpoint in this process, and on the demo in one of its own."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from gradio_client import Client
from gradio_client.client import Job
from starlette.types import ASGIApp

from mlx_qwen35.access import url_of
from mlx_qwen35.app.desk import Desk
from mlx_qwen35.app.door import Door, bind
from mlx_qwen35.app.settings_panel import NUMBERS
from mlx_qwen35.app.web import Server, make_app
from mlx_qwen35.chat.events import Event
from mlx_qwen35.conversations.store import Store
from mlx_qwen35.runtime import ChatRequest, Runtime
from tests.support.tiny_chat import write_tiny_chat

Blocks = list[Mapping[str, Any]]


@dataclass
class RunningApp:
    """url: of the page   requests: what the page asked of the runtime, oldest first"""

    url: str
    runtime: Runtime
    desk: Desk
    requests: list[ChatRequest] = field(default_factory=list)

    def client(self) -> Client:
        """A browser tab, as far as the server can tell."""
        return Client(self.url, verbose=False)


@pytest.fixture(scope="session")
def tiny_app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningApp]:
    """On a checkpoint that answers nonsense for longer than any test may take, thinking or not as asked."""
    runtime = Runtime.load(str(write_tiny_chat(tmp_path_factory.mktemp("app") / "tiny")))
    chat = runtime.chat
    tags = [token for tag in ("<think>", "</think>", "<tool_call>") for token in runtime.tokenizer.encode(tag)]
    never = dict.fromkeys([*runtime.tokenizer.stop_ids, *tags], -100.0)

    def recorded(request: ChatRequest) -> Iterator[Event]:
        app.requests.append(request)
        return chat(replace(request, logit_bias=never))

    runtime.chat = recorded
    desk = Desk(runtime, Store(tmp_path_factory.mktemp("chats")))
    app = RunningApp("", runtime, desk)
    with served(make_app(desk)) as app.url:
        yield app


@contextmanager
def served(app: ASGIApp) -> Iterator[str]:
    """Any application on a loopback port, and its address."""
    ready = threading.Event()
    server = Server(app, ready.set)
    with bind(Door(port=0)) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        assert ready.wait(60)
        yield url_of(listener)
        server.should_exit = True
        thread.join(10)


def texts(blocks: Blocks, role: str = "assistant", title: str = "") -> list[str]:
    """What the blocks of one role show, either the folded ones of a title or those that are not folded."""

    def is_meant(block: Mapping[str, Any]) -> bool:
        found = (block["metadata"] or {}).get("title") or ""
        return found.startswith(title) if title else not found

    return [
        "".join(part["text"] for part in block["content"])
        for block in blocks
        if block["role"] == role and is_meant(block)
    ]


# As the page passes them to `/chat`, after the question.
PARAMETERS = (
    "place",
    "thinking",
    "budget",
    "preset",
    *(name for name, *_ in NUMBERS),
    "max_tokens",
    "system",
    "as_json",
    "schema",
    "base",
    "tools",
)


def ask(client: Client, question: str, **settings: Any) -> Job:
    """Send a question as the page does; what is not named is as the page shows it at first."""
    named = {f"param_{PARAMETERS.index(name) + 2}" if name != "place" else name: v for name, v in settings.items()}
    return client.submit(question, api_name="/chat", **named)
