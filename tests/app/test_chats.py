"""Conversations on disk, as the page keeps and finds them, through Gradio's client over a real model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest
from gradio_client import Client

from mlx_qwen35.conversations.conversation import Conversation
from tests.app.conftest import PARAMETERS, Blocks, RunningApp, ask, texts

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:gradio"),  # Gradio's own use of pandas
    pytest.mark.timeout(90),
]
PLACE = 4  # of `/chat`'s results: the conversation's id
PAINTED = 6  # values that `/open` gives before those of the settings


def said(client: Client, question: str, **settings: Any) -> tuple[Blocks, str]:
    """Ask for a short answer; the conversation and its id."""
    result = ask(client, question, max_tokens=8, **settings).result(timeout=60)
    return result[0], result[PLACE]["value"] if isinstance(result[PLACE], dict) else result[PLACE]


def test_an_answer_is_kept_and_found_by_another_page(tiny_app: RunningApp) -> None:
    blocks, id = said(tiny_app.client(), "Remember the walrus")
    assert tiny_app.desk.store.open(id)[0].title == "Remember the walrus"
    opened, *_ = tiny_app.client().predict(id, "", api_name="/open")
    assert opened == blocks


def test_a_page_whose_server_was_restarted_goes_on_where_it_was(tiny_app: RunningApp) -> None:
    _, id = said(tiny_app.client(), "First")
    # A server that knows nothing of the page but what the page itself says.
    blocks, again = said(tiny_app.client(), "Second", place=id)
    assert again == id
    assert texts(blocks, role="user") == ["First", "Second"]
    assert [m["role"] for m in tiny_app.requests[-1].messages] == ["user", "assistant", "user"]


def test_the_same_chat_in_two_tabs_loses_nothing(tiny_app: RunningApp) -> None:
    first, second = tiny_app.client(), tiny_app.client()
    _, id = said(first, "Start")
    second.predict(id, "", api_name="/open")
    said(first, "From the first")
    result = ask(second, "From the second", max_tokens=8).result()
    assert "went on in another window" in result[1]
    other = result[PLACE]
    assert other != id
    questions = {
        chat: [m["content"] for m in tiny_app.desk.store.open(chat)[1].messages if m["role"] == "user"]
        for chat in (id, other)
    }
    assert questions == {id: ["Start", "From the first"], other: ["Start", "From the second"]}


def test_settings_are_kept_with_a_conversation_and_come_back(tiny_app: RunningApp) -> None:
    schema = '{"type": "object"}'
    client = tiny_app.client()
    _, id = said(client, "Hi", thinking=True, budget=256, system="Be brief.", as_json=True, schema=schema, top_k=9)
    fresh = tiny_app.client()
    shown = fresh.predict(id, "", api_name="/open")[PAINTED:]
    found = dict(zip(PARAMETERS[1:], shown))
    assert (found["thinking"], found["budget"], found["top_k"], found["max_tokens"]) == (True, 256, 9, 8)
    assert (found["system"], found["as_json"]) == ("Be brief.", True)


def test_new_conversation_forgets_the_old_one(tiny_app: RunningApp) -> None:
    client = tiny_app.client()
    _, id = said(client, "My name is Ada.")
    blocks, *_ = client.predict(api_name="/new")
    assert blocks == []
    _, other = said(client, "Who am I?")
    assert other != id
    assert len(tiny_app.requests[-1].messages) == 1


def test_a_chat_is_renamed_and_deleted(tiny_app: RunningApp) -> None:
    client, store = tiny_app.client(), tiny_app.desk.store
    _, id = said(client, "Something")
    client.predict(id, "<b>Ada's</b> *chat*", "", api_name="/rename")
    assert store.open(id)[0].title == "<b>Ada's</b> *chat*"
    said(client, "More")
    assert store.open(id)[0].title == "<b>Ada's</b> *chat*"
    blocks, *_ = client.predict(id, api_name="/delete")
    assert blocks == []
    assert id not in [chat.id for chat in store.listing().chats]


def test_a_chat_is_exported_and_read_back(tiny_app: RunningApp, tmp_path: Path) -> None:
    _, id = said(tiny_app.client(), "Take me with you")
    markdown = httpx.get(f"{tiny_app.url}/chats/{id}.md")
    assert markdown.headers["content-disposition"] == 'attachment; filename="Take-me-with-you.md"'
    assert "## You\n\nTake me with you" in markdown.text
    path = tmp_path / "chat.json"
    path.write_bytes(httpx.get(f"{tiny_app.url}/chats/{id}.json").content)
    assert Conversation.load(path).messages == tiny_app.desk.store.open(id)[1].messages


@pytest.mark.parametrize("name", ["nothing.md", "../../etc/passwd", "20260101-000000-00000000.json", "x"])
def test_no_other_file_is_given_out(tiny_app: RunningApp, name: str) -> None:
    assert httpx.get(f"{tiny_app.url}/chats/{name}").status_code == 404
