"""The conversation and what is done in it: ask, stop, edit, try again, undo, branch, approve a tool's call.

Each function behind the page ends in `paint`: everything that shows the tab, made from the tab alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import gradio as gr

from mlx_qwen35.app.backend import goes_to
from mlx_qwen35.app.conversation import status_line
from mlx_qwen35.app.desk import Desk
from mlx_qwen35.app.harmless import as_typed, plain
from mlx_qwen35.app.look import LATEX
from mlx_qwen35.app.settings_panel import Asked, SettingsPanel
from mlx_qwen35.app.tab import Tab
from mlx_qwen35.conversations.markdown import fenced
from mlx_qwen35.errors import UserError
from mlx_qwen35.tools.tool import Verdict

AT_ONCE = 16  # answers; the engine decides how many of them run
BRANCH = "Branch from here"
PAINTED = 7  # values of a `paint`


@dataclass(frozen=True)
class ChatPanel:
    """tab: what is open here, on the server   place: hidden; the conversation's id, in the page"""

    tab: gr.State
    place: gr.Textbox
    title: gr.Markdown
    chatbot: gr.Chatbot
    status: gr.Markdown
    question: gr.Textbox
    approval: gr.Group
    approval_text: gr.Markdown
    verdicts: dict[Verdict, gr.Button]

    @property
    def painted(self) -> list[Any]:
        """As `paint` gives their values."""
        return [
            self.chatbot,
            self.status,
            self.question,
            self.approval,
            self.approval_text,
            self.place,
            self.title,
        ]


def make_conversation(desk: Desk) -> tuple[gr.State, gr.Textbox, gr.Markdown, gr.Chatbot]:
    """The upper part: title and messages."""
    tab = gr.State(Tab.of(desk.store))
    place = gr.Textbox("", visible="hidden", elem_id="chat-id", label="Chat")
    title = gr.Markdown("New chat", elem_id="chat-title")
    chatbot = gr.Chatbot(
        label="Conversation",
        show_label=False,
        scale=1,
        min_height=200,
        sanitize_html=True,
        latex_delimiters=LATEX,
        allow_tags=False,
        buttons=["copy"],
        editable="user",
        placeholder=f"## What would you like to know?\n{goes_to(desk.runtime)}",
        feedback_options=[BRANCH],
        layout="bubble",
        elem_id="conversation",
    )
    return tab, place, title, chatbot


def make_approval() -> tuple[gr.Group, gr.Markdown, dict[Verdict, gr.Button]]:
    """What is asked before a tool with an effect runs."""
    with gr.Group(visible=False, elem_id="approval") as approval:
        text = gr.Markdown(elem_id="approval-text", container=True)
        with gr.Row():
            verdicts: dict[Verdict, gr.Button] = {
                "yes": gr.Button("Allow", variant="primary", size="sm", elem_id="approve"),
                "always": gr.Button("Always in this chat", size="sm", elem_id="approve-always"),
                "no": gr.Button("Deny", variant="stop", size="sm", elem_id="deny"),
            }
    return approval, text, verdicts


def make_question() -> gr.Textbox:
    """Where messages are written."""
    return gr.Textbox(
        label="Message",
        show_label=False,
        placeholder="Message (Enter sends, Shift+Enter breaks the line, Esc stops)",
        max_lines=12,
        submit_btn=True,
        autofocus=True,
        scale=1,
        elem_id="question",
    )


def paint(tab: Tab, question: Any = None) -> tuple[Any, ...]:
    """The page's values. question: of its box, None leaves it"""
    turn = tab.turn
    running = turn is not None and turn.running
    line = "" if turn is None or turn.trouble else status_line(turn.answer)
    if turn and turn.asked:
        line = f"Waiting for you: may {plain(turn.asked.name)} run?"
    if tab.notice:
        line = f"⚠️ {plain(tab.notice)}" + (f" · {line}" if line else "")
    box = gr.skip() if question is None else gr.Textbox(question, submit_btn=not running, stop_btn=running)
    return tab.shown().blocks, line, box, *_approval(tab), tab.id, plain(tab.title)


def _approval(tab: Tab) -> tuple[Any, Any]:
    call = tab.turn.asked if tab.turn else None
    if call is None:
        return gr.Group(visible=False), gr.skip()
    arguments = fenced(call.arguments_text())
    return gr.Group(visible=True), f"The model asks to run **{plain(call.name)}** with\n\n{arguments}"


def at_rest(tab: Tab, question: Any = None) -> tuple[Any, ...]:
    """The same when nothing runs, however the last answer ended. question: for its box, None leaves what is typed"""
    chatbot, line, _, *rest = paint(tab)
    typed = {} if question is None else {"value": question}
    return chatbot, line, gr.Textbox(**typed, submit_btn=True, stop_btn=False), *rest


def respond(desk: Desk, tab: Tab, question: str, values: list[Any]) -> Iterator[tuple[Any, ...]]:
    """Ask the model; yield the page's values as the answer grows. Closing this generator stops the model."""
    try:
        asked = Asked.of(values, tab.conversation.settings)
        tab.stop()
        tab.conversation.settings = asked.settings
        turn = tab.begin(desk, question, asked.tools)
    except UserError as error:
        tab.notice = str(error)
        yield at_rest(tab, question)
        return
    try:
        yield paint(tab, "")
        for _ in turn.run():
            if tab.turn is turn:
                yield paint(tab)
    finally:
        tab.end(turn)
    # Another conversation may be open here by now.
    yield at_rest(tab) if tab.turn is turn else _unchanged()


def _unchanged() -> tuple[Any, ...]:
    return tuple(gr.skip() for _ in range(PAINTED))


class Acts:
    """What people do here. Each ends in the values of what is painted."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    def ask(self, question: str, tab: Tab, place: str, *values: Any) -> Iterator[Any]:
        tab.find(place)
        if not question.strip():
            yield _unchanged()
            return
        yield from respond(self._desk, tab, question, list(values))

    def edit(self, tab: Tab, place: str, event: gr.EditData, *values: Any) -> Iterator[Any]:
        yield from self._again(tab, place, event.index, as_typed(str(event.value)), list(values))

    def retry(self, tab: Tab, place: str, event: gr.RetryData, *values: Any) -> Iterator[Any]:
        yield from self._again(tab, place, event.index, None, list(values))

    def _again(self, tab: Tab, place: str, block: Any, question: str | None, values: list[Any]) -> Iterator[Any]:
        tab.find(place)
        tab.stop()
        at, said = tab.question_at(block if isinstance(block, int) else block[0])
        try:
            Asked.of(values, tab.conversation.settings)  # else what follows would be cut for nothing
            notice = tab.cut(at, self._desk.runtime.name)
        except UserError as error:
            tab.notice = str(error)
            yield at_rest(tab)
            return
        for shown in respond(self._desk, tab, said if question is None else question, values):
            tab.notice = tab.notice or notice
            yield shown

    def undo(self, tab: Tab, place: str) -> tuple[Any, ...]:
        tab.find(place)
        try:
            question = tab.undo(self._desk.runtime.name)
        except UserError as error:
            question, tab.notice = None, str(error)
        return at_rest(tab, question)

    def branch(self, tab: Tab, place: str, event: gr.LikeData) -> tuple[Any, ...]:
        tab.find(place)
        try:
            tab.branch(tab.end_at(event.index if isinstance(event.index, int) else event.index[0]))
        except UserError as error:
            tab.notice = str(error)
        return at_rest(tab)

    def stop(self, tab: Tab) -> None:
        tab.stop()


def wire(desk: Desk, panel: ChatPanel, settings: SettingsPanel) -> list[Any]:
    """What people do here. Returns the events after which the list of chats has changed."""
    where = [panel.tab, panel.place]
    quiet = {"api_visibility": "private", "queue": False, "show_progress": "hidden"}
    streams = {
        "outputs": panel.painted,
        "show_progress": "hidden",
        "concurrency_limit": AT_ONCE,
        "concurrency_id": "answers",
    }
    acts = Acts(desk)
    inputs = [*where, *settings.components]
    changed = [
        panel.question.submit(acts.ask, [panel.question, *inputs], api_name="chat", **streams),
        panel.chatbot.edit(acts.edit, inputs, api_name="edit", **streams),
        panel.chatbot.retry(acts.retry, inputs, api_name="retry", **streams),
        panel.chatbot.undo(acts.undo, where, panel.painted, **quiet),
        panel.chatbot.like(acts.branch, where, panel.painted, **quiet),
    ]
    panel.question.stop(acts.stop, panel.tab, api_name="stop", queue=False, show_progress="hidden")
    for verdict, button in panel.verdicts.items():
        button.click(_replying(verdict), panel.tab, api_name=button.elem_id, queue=False, show_progress="hidden")
    return changed


def _replying(verdict: Verdict) -> Any:
    def reply(tab: Tab) -> None:
        if tab.turn:
            tab.turn.reply(verdict)

    return reply
