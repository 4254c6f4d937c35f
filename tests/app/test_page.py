"""The page driven as a browser drives it, through Gradio's client, over a real model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from gradio_client import Client
from gradio_client.client import Job
from gradio_client.utils import Status

from mlx_qwen35.chat.presets import FAMILY as PRESETS
from mlx_qwen35.runtime import ChatRequest
from tests.app.conftest import Blocks, RunningApp, texts

ENDLESS = "Say something"  # 32,768 tokens of it, unless stopped
AUTOMATIC = ""
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:gradio"),  # Gradio's own use of pandas
    pytest.mark.timeout(90),  # what is not stopped runs for minutes
]


def ask(client: Client, question: str = ENDLESS, system: str = "", thinking: bool = False, preset: str = "") -> Job:
    return client.submit(question, system, thinking, preset, api_name="/chat")


def watched(job: Job) -> Iterator[tuple[Blocks, str]]:
    """The conversation and the status line, as the page repaints them."""
    for blocks, status, *_ in job:
        yield blocks, status


def until(job: Job, title: str | None = None, length: int = 20) -> Blocks:
    """Wait for the newest answer (or its folded block of that title) to have some text; then stop it."""
    for blocks, _ in watched(job):
        last = len(blocks) - [block["role"] for block in blocks][::-1].index("user")
        if len("".join(texts(blocks[last:], title=title))) > length:
            job.cancel()
            return blocks
    raise AssertionError("the answer ended before it was stopped")


def test_thinking_on_gives_one_folded_block_and_off_gives_none(tiny_app: RunningApp) -> None:
    blocks = until(ask(tiny_app.client(), thinking=True), title="Thinking")
    assert len(texts(blocks, title="Thinking")) == 1
    assert blocks[-1]["metadata"]["status"] == "pending"
    assert tiny_app.requests[-1].enable_thinking is True
    blocks = until(ask(tiny_app.client(), thinking=False))
    assert all(block["metadata"] is None for block in blocks)
    assert tiny_app.requests[-1].enable_thinking is False


def test_stop_ends_the_model_s_work_and_keeps_what_was_said(tiny_app: RunningApp) -> None:
    client = tiny_app.client()
    blocks = until(ask(client))
    # The runtime answers one after another: this returns only if the stopped answer no longer runs.
    assert list(tiny_app.runtime.chat(ChatRequest([{"role": "user", "content": "Hi"}], max_tokens=1)))
    said = texts(blocks)[0]
    until(ask(client, "And then?"))
    history = tiny_app.requests[-1].messages
    assert [message["role"] for message in history] == ["user", "assistant", "user"]
    assert history[1]["content"].startswith(said)


def test_history_keeps_reasoning_apart_from_what_is_shown(tiny_app: RunningApp) -> None:
    client = tiny_app.client()
    thought = texts(until(ask(client, thinking=True), title="Thinking"), title="Thinking")[0]
    until(ask(client, "And then?", system="Be brief."))
    system, _, answer, question = tiny_app.requests[-1].messages
    assert system == {"role": "system", "content": "Be brief."}
    assert answer["reasoning_content"].startswith(thought.strip())
    assert answer["content"] == ""
    assert question == {"role": "user", "content": "And then?"}


def test_two_tabs_take_turns_and_see_nothing_of_each_other(tiny_app: RunningApp) -> None:
    first, second = tiny_app.client(), tiny_app.client()
    running = ask(first, "Mine")
    next(watched(running))
    waiting = ask(second, "Yours")
    until(running)
    blocks = until(waiting)
    assert texts(blocks, role="user") == ["Yours"]


def test_a_question_that_waits_its_turn_can_be_withdrawn(tiny_app: RunningApp) -> None:
    first, second = tiny_app.client(), tiny_app.client()
    running = ask(first, "Mine")
    repaints = watched(running)
    next(repaints)
    waiting = ask(second, "Withdrawn")
    while waiting.status().code != Status.IN_QUEUE:
        next(repaints)
    waiting.cancel()
    until(running, length=200)
    until(ask(second, "Instead"))
    assert [request.messages[-1]["content"] for request in tiny_app.requests[-2:]] == ["Mine", "Instead"]


def test_leaving_the_page_ends_the_model_s_work(tiny_app: RunningApp) -> None:
    httpx = pytest.importorskip("httpx")
    asked = len(tiny_app.requests)
    with httpx.Client(base_url=tiny_app.url) as browser:
        functions = browser.get("/config").json()["dependencies"]
        chat = next(function["id"] for function in functions if function["api_name"] == "chat")
        join = {"data": [ENDLESS, None, "", False, ""], "fn_index": chat, "session_hash": "leaving"}
        browser.post("/gradio_api/queue/join", json=join).raise_for_status()
        with browser.stream("GET", "/gradio_api/queue/data?session_hash=leaving") as stream:
            assert any("process_generating" in line for line in stream.iter_lines())
    assert len(tiny_app.requests) == asked + 1
    assert list(tiny_app.runtime.chat(ChatRequest([{"role": "user", "content": "Hi"}], max_tokens=1)))


@pytest.mark.parametrize("thinking", [True, False])
def test_numbers_shown_are_those_of_the_preset(tiny_app: RunningApp, thinking: bool) -> None:
    client = tiny_app.client()
    general = "thinking" if thinking else "non-thinking"
    shown = {preset: client.predict(thinking, preset, api_name="/sampling") for preset in (AUTOMATIC, *PRESETS)}
    assert shown[AUTOMATIC] == shown[general]
    assert len(set(shown.values())) == len(PRESETS)
    for name, sampling in PRESETS.items():
        assert f"temperature {sampling.temperature:g}" in shown[name]
        assert f"top-k {sampling.top_k}" in shown[name]
    until(ask(client, preset="thinking-coding"))
    assert tiny_app.requests[-1].preset == "thinking-coding"


def test_a_request_that_cannot_run_gives_one_line_and_spoils_no_later_one(tiny_app: RunningApp) -> None:
    client = tiny_app.client()
    *_, (blocks, status) = watched(ask(client, "long " * 70_000))
    assert status == ""
    (line,) = texts(blocks)
    assert "tokens" in line
    assert "\n" not in line
    assert "Traceback" not in line
    until(ask(client, "short"))
    assert tiny_app.requests[-1].messages == [{"role": "user", "content": "short"}]


def test_new_conversation_forgets_the_old_one(tiny_app: RunningApp) -> None:
    client = tiny_app.client()
    until(ask(client, "My name is Ada."))
    blocks, *_ = client.predict(api_name="/reset")
    assert blocks == []
    until(ask(client, "Who am I?"))
    assert len(tiny_app.requests[-1].messages) == 1


def test_nothing_asked_is_nothing_done(tiny_app: RunningApp) -> None:
    asked = len(tiny_app.requests)
    result: Any = ask(tiny_app.client(), "  \n").result()
    assert result is not None
    assert len(tiny_app.requests) == asked
