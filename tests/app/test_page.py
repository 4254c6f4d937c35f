"""The page driven as a browser drives it, through Gradio's client, over a real model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from gradio_client import Client
from gradio_client.client import Job

from mlx_qwen35.chat.presets import FAMILY as PRESETS
from mlx_qwen35.options import Sampling
from mlx_qwen35.runtime import ChatRequest
from tests.app.conftest import Blocks, RunningApp, ask, texts

ENDLESS = "Say something"  # 32,768 tokens of it, unless stopped
NUMBERS = ("temperature", "top_p", "top_k", "min_p", "presence_penalty", "repetition_penalty")
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:gradio"),  # Gradio's own use of pandas
    pytest.mark.timeout(90),  # what is not stopped runs for minutes
]


def watched(job: Job) -> Iterator[tuple[Blocks, str]]:
    """The conversation and the status line, as the page repaints them."""
    for blocks, status, *_ in job:
        yield blocks, status


def until(client: Client, job: Job, title: str = "", length: int = 20) -> Blocks:
    """Wait for the newest answer (or its folded block of that title) to have some text; stop it; what is left."""
    for blocks, _ in watched(job):
        last = len(blocks) - [block["role"] for block in blocks][::-1].index("user")
        if len("".join(texts(blocks[last:], title=title))) > length:
            client.predict(api_name="/stop")
            break
    else:
        raise AssertionError("the answer ended before it was stopped")
    blocks, *_ = job.result(timeout=60)
    return blocks


def test_thinking_on_gives_one_folded_block_and_off_gives_none(tiny_app: RunningApp) -> None:
    client = tiny_app.client()
    blocks = until(client, ask(client, ENDLESS, thinking=True), title="Thinking")
    assert len(texts(blocks, title="Thought")) == 1
    assert tiny_app.requests[-1].enable_thinking is True
    client = tiny_app.client()
    blocks = until(client, ask(client, ENDLESS, thinking=False))
    assert all(block["metadata"] is None for block in blocks)
    assert tiny_app.requests[-1].enable_thinking is False


def test_stop_ends_the_model_s_work_and_keeps_what_was_said(tiny_app: RunningApp) -> None:
    client = tiny_app.client()
    blocks = until(client, ask(client, ENDLESS))
    while tiny_app.runtime.stats().rows:  # for ever, if the stopped answer still ran
        list(tiny_app.runtime.chat(ChatRequest([{"role": "user", "content": "Hi"}], max_tokens=1)))
    until(client, ask(client, "And then?"))
    history = tiny_app.requests[-1].messages
    assert [message["role"] for message in history] == ["user", "assistant", "user"]
    assert texts(blocks) == texts([{"role": "assistant", "metadata": None, "content": [{"text": texts(blocks)[0]}]}])


def test_history_keeps_reasoning_apart_from_what_is_shown(tiny_app: RunningApp) -> None:
    client = tiny_app.client()
    until(client, ask(client, ENDLESS, thinking=True), title="Thinking")
    until(client, ask(client, "And then?", system="Be brief."))
    system, _, answer, question = tiny_app.requests[-1].messages
    assert system == {"role": "system", "content": "Be brief."}
    assert len(answer["reasoning_content"]) > 20
    assert answer["content"] == ""
    assert question == {"role": "user", "content": "And then?"}


def test_two_tabs_answer_at_once_and_see_nothing_of_each_other(tiny_app: RunningApp) -> None:
    first, second = tiny_app.client(), tiny_app.client()
    running, other = ask(first, "Mine"), ask(second, "Yours")
    blocks = until(second, other)
    assert not running.done()
    assert texts(blocks, role="user") == ["Yours"]
    assert texts(until(first, running), role="user") == ["Mine"]


def test_leaving_the_page_ends_the_model_s_work_and_keeps_it(tiny_app: RunningApp) -> None:
    asked = len(tiny_app.requests)
    with httpx.Client(base_url=tiny_app.url) as browser:
        config = browser.get("/config").json()
        chat = next(function for function in config["dependencies"] if function["api_name"] == "chat")
        shown = {component["id"]: component["props"].get("value") for component in config["components"]}
        data = ["Leaving", *(shown[id] for id in chat["inputs"][1:])]
        join = {"data": data, "fn_index": chat["id"], "session_hash": "leaving"}
        browser.post("/gradio_api/queue/join", json=join).raise_for_status()
        with browser.stream("GET", "/gradio_api/queue/data?session_hash=leaving") as stream:
            seen = (line for line in stream.iter_lines() if "process_generating" in line)
            assert len([next(seen) for _ in range(5)]) == 5
    assert len(tiny_app.requests) == asked + 1
    while tiny_app.runtime.stats().rows:
        list(tiny_app.runtime.chat(ChatRequest([{"role": "user", "content": "Hi"}], max_tokens=1)))
    while not any(chat.title == "Leaving" for chat in tiny_app.desk.store.listing().chats):
        pass


@pytest.mark.parametrize("thinking", [True, False])
@pytest.mark.parametrize("preset", ["", *PRESETS])
def test_a_preset_samples_as_the_model_card_says(tiny_app: RunningApp, thinking: bool, preset: str) -> None:
    client = tiny_app.client()
    *shown, base = client.predict(thinking, preset, "{}", api_name="/sampling")
    card = PRESETS[preset or ("thinking" if thinking else "non-thinking")]
    assert dict(zip(NUMBERS, shown, strict=True)) == {name: getattr(card, name) for name in NUMBERS}
    ask(client, "Hi", thinking=thinking, preset=preset, base=base, max_tokens=1, **dict(zip(NUMBERS, shown))).result()
    request = tiny_app.requests[-1]
    assert tiny_app.runtime.sampling(request) == card
    assert request.sampling == {}
    opens = tiny_app.runtime.template.opens_thinking(tiny_app.runtime.render(request))
    assert opens is thinking


def test_numbers_that_a_person_changes_are_used_and_no_others(tiny_app: RunningApp) -> None:
    client = tiny_app.client()
    *shown, base = client.predict(False, "", "{}", api_name="/sampling")
    numbers = {**dict(zip(NUMBERS, shown, strict=True)), "temperature": 0.4, "top_k": 7}
    ask(client, "Hi", base=base, max_tokens=1, **numbers).result()
    assert tiny_app.requests[-1].sampling == {"temperature": 0.4, "top_k": 7}
    # Thinking was switched, and its numbers have not come back yet: nobody changed the others.
    ask(client, "Hi", thinking=True, base=base, max_tokens=1, **numbers).result()
    sampling = tiny_app.runtime.sampling(tiny_app.requests[-1])
    card = PRESETS["thinking"]
    assert sampling == Sampling(0.4, card.top_p, 7, presence_penalty=card.presence_penalty)


def test_a_budget_of_thinking_reaches_the_model(tiny_app: RunningApp) -> None:
    client = tiny_app.client()
    ask(client, "Hi", thinking=True, budget=512, max_tokens=1).result()
    assert tiny_app.requests[-1].thinking_budget == 512
    ask(client, "Hi", thinking=True, budget=0, max_tokens=1).result()
    assert tiny_app.requests[-1].thinking_budget is None


def test_a_schema_shapes_the_answer_and_its_value_is_shown(tiny_app: RunningApp) -> None:
    client = tiny_app.client()
    schema = {"type": "object", "properties": {"on": {"type": "boolean"}}, "required": ["on"]}
    schema["additionalProperties"] = False
    blocks, *_ = ask(client, "Is it?", as_json=True, schema=json.dumps(schema)).result(timeout=60)
    (parsed,) = texts(blocks, title="Parsed JSON")
    assert set(json.loads(parsed.strip("`").removeprefix("json"))) == {"on"}
    form = tiny_app.requests[-1].response_format
    assert form
    assert form["json_schema"]["schema"] == schema


@pytest.mark.parametrize("schema", ["{oops", "[]", '"text"'])
def test_a_bad_schema_is_one_line_and_keeps_the_question(tiny_app: RunningApp, schema: str) -> None:
    asked = len(tiny_app.requests)
    blocks, status, question, *_ = ask(tiny_app.client(), "Is it?", as_json=True, schema=schema).result()
    assert "JSON schema" in status
    assert "\n" not in status
    assert blocks == []
    assert question["value"] == "Is it?"
    assert len(tiny_app.requests) == asked


def test_a_request_that_cannot_run_gives_one_line_and_spoils_no_later_one(tiny_app: RunningApp) -> None:
    client = tiny_app.client()
    blocks, status, *_ = ask(client, "long " * 70_000).result()
    assert status == ""
    (line,) = texts(blocks)
    assert "tokens" in line
    assert "\n" not in line
    assert "Traceback" not in line
    until(client, ask(client, "short"))
    assert tiny_app.requests[-1].messages == [{"role": "user", "content": "short"}]


def test_nothing_asked_is_nothing_done(tiny_app: RunningApp) -> None:
    asked = len(tiny_app.requests)
    result: Any = ask(tiny_app.client(), "  \n").result()
    assert result is not None
    assert len(tiny_app.requests) == asked


def test_retry_and_edit_ask_anew_in_place_of_what_was_answered(tiny_app: RunningApp) -> None:
    client = tiny_app.client()
    ask(client, "First", max_tokens=4).result(timeout=60)
    ask(client, "Second", max_tokens=4).result(timeout=60)
    clicked(tiny_app, client, "retry", {"index": 2, "value": "Second"})
    assert [m["content"] for m in tiny_app.requests[-1].messages if m["role"] == "user"] == ["First", "Second"]
    clicked(tiny_app, client, "edit", {"index": 0, "value": "Changed", "previous_value": "First"})
    assert tiny_app.requests[-1].messages == [{"role": "user", "content": "Changed"}]


def clicked(app: RunningApp, client: Client, name: str, event: dict[str, Any]) -> None:
    """What the page sends when a button of a message is clicked; until the answer has ended."""
    with httpx.Client(base_url=app.url, timeout=60) as browser:
        config = browser.get("/config").json()
        function = next(function for function in config["dependencies"] if function["api_name"] == name)
        shown = {component["id"]: component["props"].get("value") for component in config["components"]}
        data = [4 if id == max_tokens(config) else shown[id] for id in function["inputs"]]
        session = client.session_hash
        join = {"data": data, "fn_index": function["id"], "session_hash": session, "event_data": event}
        browser.post("/gradio_api/queue/join", json=join).raise_for_status()
        with browser.stream("GET", f"/gradio_api/queue/data?session_hash={session}") as stream:
            end = next(line for line in stream.iter_lines() if "process_completed" in line)
        assert json.loads(end.removeprefix("data:"))["success"]


def max_tokens(config: dict[str, Any]) -> int:
    return next(c["id"] for c in config["components"] if c["props"].get("elem_id") == "max_tokens")
