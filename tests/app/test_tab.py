"""What one tab has open, without a browser: cutting, undoing, branching, and what tools are allowed to do."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from mlx_qwen35.app.chat_panel import Acts
from mlx_qwen35.app.desk import Desk
from mlx_qwen35.app.tab import Tab
from mlx_qwen35.app.turn import Turn
from mlx_qwen35.chat.events import Content, Event, Finished, Reasoning, ToolCallEnd, ToolCallStart, Usage
from mlx_qwen35.conversations.store import Store
from mlx_qwen35.errors import RequestError
from mlx_qwen35.options import Sampling
from mlx_qwen35.requests import ChatRequest
from mlx_qwen35.tools.tool import Tool
from mlx_qwen35.tools.toolbox import Toolbox


@dataclass
class Scripted:
    """A backend that calls the tool where one may be called and no result is there yet, and else echoes."""

    name: str = "scripted"
    folder: Path | None = None
    context: int | None = None
    requests: list[ChatRequest] = field(default_factory=list)
    refuses: bool = False

    def events(self, request: ChatRequest) -> Generator[Event]:
        self.requests.append(request)
        if self.refuses:
            raise RequestError("Refused, as told.")
        last = request.messages[-1]
        if request.tools and last["role"] == "user":
            yield Reasoning("Hm", 1)
            yield ToolCallStart(0, f"call_{len(self.requests)}", "write")
            yield ToolCallEnd(0, f"call_{len(self.requests)}", "write", {"text": last["content"]})
            yield Finished("tool_calls", Usage(1, 1))
        else:
            yield Content(f"re: {last['content']}")
            yield Finished("stop", Usage(1, 1))

    def chat(self, request: ChatRequest) -> Iterator[Event]:
        return self.events(request)

    def prepare(self, request: ChatRequest) -> ChatRequest:
        return request

    def submit(self, prepared: ChatRequest) -> Any:
        backend = self

        class Answers:
            def events(self) -> Generator[Event]:
                return backend.events(prepared)

        return Answers()

    def sampling(self, request: ChatRequest) -> Sampling:
        return Sampling()

    def thinks(self, request: ChatRequest) -> bool:
        return False

    def stats(self) -> None:
        return None

    def close(self) -> None:
        pass


@pytest.fixture
def written() -> list[str]:
    """What the tool has written."""
    return []


@pytest.fixture
def desk(tmp_path: Path, written: list[str]) -> Desk:
    def write(arguments: Any) -> str:
        written.append(arguments["text"])
        return "written"

    schema = {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]}
    return Desk(Scripted(), Store(tmp_path), Toolbox([Tool("write", "Writes.", schema, write, effect=True)]))


@pytest.fixture
def tab(desk: Desk) -> Tab:
    return Tab.of(desk.store)


def ask(tab: Tab, desk: Desk, question: str, tools: bool = False, asked: Callable[[Turn], None] | None = None) -> Turn:
    """Ask, and see to the end of it. asked: called once for each call that waits"""
    turn, seen = tab.begin(desk, question, tools), None
    for _ in turn.run():
        if turn.asked is not seen and (seen := turn.asked) and asked:
            asked(turn)
    tab.end(turn)
    return turn


def said(tab: Tab) -> list[str]:
    return ["".join(part["text"] for part in block["content"]) for block in tab.shown().blocks]


def kept(desk: Desk, id: str) -> list[str]:
    return [message["content"] for message in desk.store.open(id)[1].messages]


def test_what_is_asked_anew_takes_the_place_of_what_followed(tab: Tab, desk: Desk) -> None:
    for question in ("a", "b"):
        ask(tab, desk, question)
    assert tab.question_at(3) == (2, "b")
    assert tab.cut(2, "m") == ""  # one question and its answer, which were asked to be replaced
    ask(tab, desk, "c")
    assert said(tab) == ["a", "re: a", "c", "re: c"] == kept(desk, tab.id)
    assert len(desk.store.listing().chats) == 1


def test_an_edit_in_the_middle_keeps_what_followed_as_a_chat(tab: Tab, desk: Desk) -> None:
    for question in ("a", "b", "c"):
        ask(tab, desk, question)
    assert "(branch)" in tab.cut(2, "m")
    ask(tab, desk, "d")
    assert kept(desk, tab.id) == ["a", "re: a", "d", "re: d"]
    (other,) = [chat.id for chat in desk.store.listing().chats if chat.id != tab.id]
    assert kept(desk, other) == ["a", "re: a", "b", "re: b", "c", "re: c"]


def test_an_edited_question_that_is_not_answered_leaves_the_old_one(tab: Tab, desk: Desk) -> None:
    ask(tab, desk, "a")
    assert isinstance(desk.runtime, Scripted)
    desk.runtime.refuses = True
    tab.cut(0, "m")
    ask(tab, desk, "b")
    assert said(tab) == ["a", "re: a", "b", "⚠️ Refused, as told."]
    desk.runtime.refuses = False
    assert tab.question_at(3) == (2, "b")
    ask(tab, desk, "c")
    assert said(tab) == ["a", "re: a", "c", "re: c"] == kept(desk, tab.id)


def test_undo_gives_the_question_back_and_a_chat_without_any_is_gone(tab: Tab, desk: Desk) -> None:
    for question in ("a", "b"):
        ask(tab, desk, question)
    assert tab.undo("m") == "b"
    assert kept(desk, tab.id) == ["a", "re: a"]
    assert tab.undo("m") == "a"
    assert (tab.id, said(tab), desk.store.listing().chats) == ("", [], ())
    assert tab.undo("m") == ""


def test_undo_that_cannot_be_written_says_so_and_loses_nothing(tab: Tab, desk: Desk) -> None:
    for question in ("a", "b"):
        ask(tab, desk, question)
    lock = desk.store.folder / ".lock"
    lock.unlink()
    lock.mkdir()  # which keeps even an administrator from writing
    acts, id = Acts(desk), tab.id
    blocks, line, box, *_ = acts.undo(tab, id)
    assert (len(blocks), box["value"] if isinstance(box, dict) else box.value) == (2, "b")
    assert "Not saved: Cannot write to" in line
    # Of the last question there would be nothing left to show, so it stays where it is.
    blocks, line, *_ = acts.undo(tab, id)
    assert "Cannot write to" in line
    assert "\n" not in line
    assert said(tab) == ["a", "re: a"]
    assert kept(desk, id) == ["a", "re: a", "b", "re: b"]
    lock.rmdir()
    assert acts.undo(tab, id)[0] == []
    assert desk.store.listing().chats == ()


def test_a_branch_ends_where_it_was_asked_for_and_leaves_its_stem(tab: Tab, desk: Desk) -> None:
    for question in ("a", "b"):
        ask(tab, desk, question)
    stem = tab.id
    tab.branch(tab.end_at(1))
    assert tab.id != stem
    assert said(tab) == ["a", "re: a"] == kept(desk, tab.id)
    assert kept(desk, stem) == ["a", "re: a", "b", "re: b"]


@pytest.mark.parametrize("verdict", ["yes", "no"])
def test_nothing_with_an_effect_runs_before_it_is_approved(
    tab: Tab, desk: Desk, written: list[str], verdict: Any
) -> None:
    def asked(turn: Turn) -> None:
        assert written == []
        assert turn.asked
        assert turn.asked.arguments == {"text": "x"}
        turn.reply(verdict)
        turn.reply("always")  # a second click answers nothing

    ask(tab, desk, "x", tools=True, asked=asked)
    assert written == (["x"] if verdict == "yes" else [])
    titles = [(block.get("metadata") or {}).get("title") for block in tab.shown().blocks]
    assert titles == [None, "Thought · 1 tokens", "Called write" if verdict == "yes" else "Refused write", None]
    with pytest.raises(AssertionError, match="asked again"):
        ask(tab, desk, "y", tools=True, asked=again)
    assert "y" not in written


def again(turn: Turn) -> None:
    raise AssertionError("asked again")


def test_always_is_for_this_conversation_only(tab: Tab, desk: Desk, written: list[str]) -> None:
    ask(tab, desk, "x", tools=True, asked=lambda turn: turn.reply("always"))
    ask(tab, desk, "y", tools=True, asked=again)
    assert written == ["x", "y"]
    tab.start(tab.conversation.settings)
    with pytest.raises(AssertionError, match="asked again"):
        ask(tab, desk, "z", tools=True, asked=again)
    with pytest.raises(AssertionError, match="asked again"):
        ask(Tab.of(desk.store), desk, "z", tools=True, asked=again)
    assert written == ["x", "y"]


def test_a_stop_while_a_person_is_asked_leaves_nothing_running(tab: Tab, desk: Desk, written: list[str]) -> None:
    before = threading.active_count()
    ask(tab, desk, "x", tools=True, asked=lambda turn: turn.stop())
    assert [message["role"] for message in tab.conversation.messages] == ["user", "assistant", "tool"]
    assert tab.shown().blocks[-1]["metadata"]["title"] == "Stopped write"
    while threading.active_count() > before:
        time.sleep(0.01)
    assert written == []


def test_what_nobody_answers_is_refused(
    tab: Tab, desk: Desk, written: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlx_qwen35.app.turn.APPROVAL_SECONDS", 0.1)
    ask(tab, desk, "x", tools=True)
    assert written == []
    assert tab.conversation.messages[-1]["content"].startswith("re: The user refused")


def test_a_chat_that_is_opened_looks_as_it_did_thoughts_and_calls_with_what_they_took(tab: Tab, desk: Desk) -> None:
    ask(tab, desk, "x", tools=True, asked=lambda turn: turn.reply("yes"))
    live, other = tab.shown().blocks, Tab.of(desk.store)
    other.open(tab.id)
    assert [block.get("metadata") for block in other.shown().blocks] == [block.get("metadata") for block in live]
    assert other.shown().blocks[1]["metadata"]["title"] == "Thought · 1 tokens"
    copy = desk.store.branch(tab.id, 2)
    assert desk.store.open(copy.id)[1].efforts.keys() == {1, "call_1"}


def test_leaving_a_chat_stops_its_answer_and_keeps_it(tab: Tab, desk: Desk) -> None:
    turn = tab.begin(desk, "x", with_tools=True)
    for _ in turn.run():
        if turn.asked and turn.running:
            tab.start(tab.conversation.settings)
    tab.end(turn)
    assert said(tab) == []
    (chat,) = desk.store.listing().chats
    assert kept(desk, chat.id)[0] == "x"


def test_each_answer_is_logged_with_its_model(tab: Tab, desk: Desk) -> None:
    ask(tab, desk, "x", tools=True, asked=lambda turn: turn.reply("yes"))
    assert [(entry.model, entry.reason) for entry in desk.log] == [("scripted", "tool_calls"), ("scripted", "stop")]
