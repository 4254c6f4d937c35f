"""Conversations: asked again, changed, branched, found, renamed, deleted, taken along, and still there after a reload.

All pages share one store, as all browser windows on one computer do; so titles differ from test to test.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.browser.conftest import Open
from tests.browser.page import ChatPage
from tests.browser.running import App


def messages(app: App) -> list[tuple[str, str]]:
    """Of the last request."""
    return [(m["role"], m["content"]) for m in app.requests()[-1]["messages"]]


def test_regenerating_asks_the_same_again_in_place(chat: ChatPage, app: App) -> None:
    chat.ask("Say: once")
    asked = len(app.requests())
    chat.click_on_answer("Retry")
    chat.wait_for_request(asked)
    chat.wait_for_texts(("Say: once", "once"))
    assert messages(app) == [("user", "Say: once")]


def test_editing_a_question_asks_the_new_one_and_keeps_what_was_before_it(chat: ChatPage, app: App) -> None:
    chat.ask("Say: kept")
    chat.ask("Say: wrong")
    chat.edit(1, "Say: right")
    chat.wait_for_texts(("Say: kept", "kept"), ("Say: right", "right"))
    assert messages(app) == [("user", "Say: kept"), ("assistant", "kept"), ("user", "Say: right")]


def test_a_branch_goes_on_and_the_chat_it_left_stays(chat: ChatPage, app: App) -> None:
    chat.ask("Say: trunk")
    chat.ask("Say: leaf")
    chat.click_on_answer("Branch", 0)
    chat.conversation.get_by_text("Branch from here").first.click()
    chat.questions.nth(1).wait_for(state="detached")
    assert chat.texts() == [("Say: trunk", "trunk")]
    chat.ask("Say: twig")
    assert messages(app) == [("user", "Say: trunk"), ("assistant", "trunk"), ("user", "Say: twig")]
    chat.chats.filter(has_text="Say: trunk").filter(has_not_text="branch").first.click()
    chat.wait_for_text("leaf")
    assert chat.texts() == [("Say: trunk", "trunk"), ("Say: leaf", "leaf")]


def test_undo_brings_the_question_back_to_be_changed(chat: ChatPage) -> None:
    chat.ask("Say: first")
    chat.ask("Say: secnd")
    chat.click_on_answer("Undo")
    chat.questions.nth(1).wait_for(state="detached")
    assert chat.texts() == [("Say: first", "first")]
    assert chat.question.input_value() == "Say: secnd"


def test_a_reload_shows_the_same_conversation_with_its_settings(chat: ChatPage, open_page: Open, app: App) -> None:
    chat.settings()
    chat.fill("system", "Be brief.")
    chat.think(True)
    chat.ask("What is 12 plus 30?")
    chat.think(False)
    chat.ask("Say: **bold** after all")
    said = chat.texts()
    chat.page.wait_for_url("**/?chat=*")
    chat.page.reload()
    chat.wait_for_text("after all")
    assert chat.texts() == said
    assert chat.answers.last.locator("strong").inner_text() == "bold"
    assert chat.folded.count() == 1
    chat.settings()
    assert chat.field("system").input_value() == "Be brief."
    chat.ask("Say: again")
    assert [role for role, _ in messages(app)] == ["system", "user", "assistant", "user", "assistant", "user"]
    # Another window finds it in the list.
    other = open_page(app)
    other.chats.filter(has_text="What is 12 plus 30?").first.click()
    other.wait_for_text("again")
    assert other.texts() == chat.texts()


def test_nothing_is_set_or_sent_before_the_page_knows_what_is_open(chat: ChatPage, app: App) -> None:
    chat.ask("Say: kept")
    chat.page.wait_for_url("**/?chat=*")
    held: list[Any] | None = []
    chat.page.route("**/gradio_api/run/predict*", lambda r: r.continue_() if held is None else held.append(r))
    chat.page.reload()
    chat.question.wait_for()
    chat.part("thinking").wait_for(state="attached")
    assert not chat.part("thinking").is_visible()
    asked = len(app.requests())
    chat.question.fill("Say: early")
    chat.question.press("Enter")
    answers, held = held, None
    for route in answers:
        route.continue_()
    chat.think(True)
    chat.wait_for_texts(("Say: kept", "kept"))
    assert chat.question.input_value() == "Say: early"
    assert len(app.requests()) == asked
    chat.ask("What is 12 plus 30?")
    request = app.requests()[-1]
    assert request["thinking"], "it was switched back"
    assert [role for role, _ in messages(app)] == ["user", "assistant", "user"]
    # What a thought took is there after a reload, too.
    title = chat.folded.last.locator(".title").inner_text()
    assert "tokens" in title
    chat.page.reload()
    chat.folded.wait_for()
    assert chat.folded.last.locator(".title").inner_text() == title


def test_chats_are_found_renamed_and_deleted(chat: ChatPage) -> None:
    chat.ask("Say: the heron stands in the reeds")
    chat.part("new-chat").click()
    chat.questions.first.wait_for(state="detached")
    chat.ask("Say: nothing of birds")
    chat.chats.filter(has_text="nothing of birds").wait_for()  # the list follows the answer
    chat.field("search-chats").fill("heron reeds")
    chat.chats.filter(has_text="nothing of birds").wait_for(state="detached")
    assert chat.chats.count() == 1
    chat.chats.first.click()
    chat.wait_for_text("the heron stands")
    chat.part("this-chat").get_by_role("button", name="This chat").click()
    chat.field("rename-chat").fill("Of herons")
    chat.field("rename-chat").press("Enter")
    chat.chats.filter(has_text="Of herons").wait_for()
    chat.part("delete-chat").click()
    chat.part("delete-really").click()
    chat.questions.first.wait_for(state="detached")
    chat.part("search-chats").locator("input, textarea").fill("")
    chat.chats.filter(has_text="nothing of birds").wait_for()
    assert chat.chats.filter(has_text="herons").count() == 0


def test_a_chat_is_exported_and_comes_back_whole(chat: ChatPage, tmp_path: Path) -> None:
    chat.ask("Say: carry **me** over")
    chat.part("this-chat").get_by_role("button", name="This chat").click()
    saved = {}
    for kind in ("markdown", "json"):
        with chat.page.expect_download() as download:
            chat.part(f"export-{kind}").click()
        saved[kind] = tmp_path / download.value.suggested_filename
        download.value.save_as(saved[kind])
    assert "carry **me** over" in saved["markdown"].read_text()
    assert [m["role"] for m in json.loads(saved["json"].read_text())["messages"]] == ["user", "assistant"]
    changed = tmp_path / "changed.json"
    changed.write_text(saved["json"].read_text().replace("Say: carry", "Please carry"))
    chat.page.locator("input[type=file]").set_input_files(changed)
    chat.wait_for_text("Please carry")
    assert chat.texts() == [("Please carry **me** over".replace("*", ""), "carry me over")]
    broken = tmp_path / "broken.json"
    broken.write_text('{"format": "else"}')
    chat.page.locator("input[type=file]").set_input_files(broken)
    chat.status.get_by_text("not a saved chat").wait_for()
