"""The saved conversations: list, search, open, new, rename, delete, export, import."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gradio as gr

from mlx_qwen35.app.chat_panel import ChatPanel, at_rest
from mlx_qwen35.app.desk import Desk
from mlx_qwen35.app.harmless import plain
from mlx_qwen35.app.settings_panel import Asked, SettingsPanel, values
from mlx_qwen35.app.tab import Tab
from mlx_qwen35.conversations.conversation import clean_title
from mlx_qwen35.conversations.search import search
from mlx_qwen35.conversations.settings import Settings
from mlx_qwen35.errors import UserError

SHOWN = 100


@dataclass(frozen=True)
class ChatsPanel:
    """of_open: what can be done with the conversation that is open"""

    fresh: gr.Button
    words: gr.Textbox
    chats: gr.Radio
    note: gr.Markdown
    title: gr.Textbox
    markdown: gr.Button
    json: gr.Button
    delete: gr.Button
    sure: gr.Group
    sure_text: gr.Markdown
    really: gr.Button
    rather_not: gr.Button
    upload: gr.UploadButton

    @property
    def listed(self) -> list[Any]:
        """As `listing` gives their values."""
        return [self.chats, self.note, self.title, self.markdown, self.json, self.delete, self.sure]


def make() -> ChatsPanel:
    """Inside the sidebar that is open."""
    fresh = gr.Button("New chat", variant="primary", elem_id="new-chat")
    words = gr.Textbox(
        label="Search", show_label=False, placeholder="Search chats", container=False, elem_id="search-chats"
    )
    chats = gr.Radio([], label="Chats", show_label=False, container=False, elem_id="chats")
    # Gradio takes what it has listed itself only; after a restart that is nothing, and the store checks ids anyway.
    chats.preprocess = lambda payload: payload if isinstance(payload, str) else None
    note = gr.Markdown("", elem_id="chats-note")
    with gr.Accordion("This chat", open=False, elem_id="this-chat"):
        title = gr.Textbox(
            label="Title",
            info="Enter renames it.",
            max_lines=1,
            max_length=200,
            interactive=True,
            elem_id="rename-chat",
        )
        with gr.Row():
            markdown = gr.Button("Markdown", size="sm", min_width=80, interactive=False, elem_id="export-markdown")
            json = gr.Button("JSON", size="sm", min_width=80, interactive=False, elem_id="export-json")
        delete = gr.Button("Delete", size="sm", variant="stop", interactive=False, elem_id="delete-chat")
        with gr.Group(visible=False, elem_id="delete-sure") as sure:
            sure_text = gr.Markdown(container=True)
            with gr.Row():
                really = gr.Button("Delete it", size="sm", variant="stop", min_width=80, elem_id="delete-really")
                rather_not = gr.Button("Keep it", size="sm", min_width=80, elem_id="delete-not")
    upload = gr.UploadButton(
        "Import a chat (JSON)", size="sm", file_types=[".json"], type="filepath", elem_id="import-chat"
    )
    return ChatsPanel(
        fresh, words, chats, note, title, markdown, json, delete, sure, sure_text, really, rather_not, upload
    )


def listing(desk: Desk, tab: Tab, words: str = "") -> tuple[Any, ...]:
    """The list, newest first or where the words stand, and what belongs to the open conversation."""
    try:
        choices, note = _found(desk, words) if (words or "").strip() else _newest(desk)
    except UserError as error:
        choices, note = [], plain(str(error))
    id = tab.id
    known = any(value == id for _, value in choices)
    return (
        gr.Radio(choices, value=id if known else None),
        note,
        tab.conversation.title or (tab.title if id else ""),
        gr.Button(interactive=bool(id), link=f"/chats/{id}.md" if id else None),
        gr.Button(interactive=bool(id), link=f"/chats/{id}.json" if id else None),
        gr.Button(interactive=bool(id)),
        gr.Group(visible=False),
    )


def _newest(desk: Desk) -> tuple[list[tuple[str, str]], str]:
    listing = desk.store.listing()
    notes = [plain(f"{file.name} {file.why}") for file in listing.broken[:5]]
    if (older := len(listing.chats) - SHOWN) > 0:
        notes.append(f"{older:,} older: search finds them.")
    if not listing.chats:
        notes.append("Chats are saved here, on this computer.")
    return [(chat.title, chat.id) for chat in listing.chats[:SHOWN]], "\n\n".join(notes)


def _found(desk: Desk, words: str) -> tuple[list[tuple[str, str]], str]:
    found = search(desk.store, words)
    labels = [(hit.chat.title + (f"\n{hit.excerpt}" if hit.excerpt else ""), hit.chat.id) for hit in found.hits]
    if not labels:
        return labels, "Nothing found."
    return labels, "" if found.complete else "There may be more; try other words."


class _Acts:
    """What people do here. Each ends in the page's values: of the open conversation, of its settings, of the list."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    def _whole(self, tab: Tab, words: str = "") -> tuple[Any, ...]:
        return (*at_rest(tab), *values(self._desk, tab.conversation.settings), *listing(self._desk, tab, words))

    def opened(self, tab: Tab, id: str | None, words: str) -> tuple[Any, ...]:
        try:
            if id and id != tab.id:
                tab.open(id)
        except UserError as error:
            tab.notice = str(error)
        return self._whole(tab, words)

    def fresh(self, tab: Tab, place: str, *asked: Any) -> tuple[Any, ...]:
        tab.find(place)
        try:
            kept = Asked.of(list(asked), Settings()).settings
        except UserError:  # a schema half typed
            kept = Settings()
        tab.start(replace(kept, stop=(), seed=None))
        return self._whole(tab)

    def found(self, tab: Tab, place: str, request: gr.Request) -> tuple[Any, ...]:
        tab.find(place or str(request.query_params.get("chat") or ""))
        return self._whole(tab)

    def rename(self, tab: Tab, place: str, title: str, words: str) -> tuple[Any, ...]:
        tab.find(place)
        try:
            if tab.id:
                self._desk.store.rename(tab.id, title)
            tab.conversation.title = clean_title(title)
        except UserError as error:
            tab.notice = str(error)
        return (*at_rest(tab), *listing(self._desk, tab, words))

    def delete(self, tab: Tab, place: str, *asked: Any) -> tuple[Any, ...]:
        tab.find(place)
        try:
            tab.stop()
            if tab.id:
                self._desk.store.delete(tab.id)
            return self.fresh(tab, "", *asked)
        except UserError as error:
            tab.notice = str(error)
            return self._whole(tab)

    def imported(self, tab: Tab, path: str, words: str) -> tuple[Any, ...]:
        try:
            tab.open(self._desk.store.import_file(Path(path)).id)
        except UserError as error:
            tab.notice = str(error).replace(path, Path(path).name)
        finally:
            with contextlib.suppress(OSError):
                Path(path).unlink()  # what was uploaded is kept nowhere else
        return self._whole(tab, words)


def wire(
    desk: Desk, page: gr.Blocks, panel: ChatsPanel, chat: ChatPanel, settings: SettingsPanel, changed: list[Any]
) -> None:
    """changed: events after which the list is made anew."""
    quiet: dict[str, Any] = {"api_visibility": "private", "queue": False, "show_progress": "hidden"}
    everything = [*chat.painted, *settings.components, *panel.listed]
    where = [chat.tab, chat.place]
    acts = _Acts(desk)
    panel.chats.input(acts.opened, [chat.tab, panel.chats, panel.words], everything, api_name="open", queue=False)
    panel.fresh.click(acts.fresh, [*where, *settings.components], everything, api_name="new", queue=False)
    panel.title.submit(
        acts.rename, [*where, panel.title, panel.words], [*chat.painted, *panel.listed], api_name="rename", queue=False
    )
    panel.really.click(acts.delete, [*where, *settings.components], everything, api_name="delete", queue=False)
    panel.upload.upload(acts.imported, [chat.tab, panel.upload, panel.words], everything, **quiet)
    panel.delete.click(_asking, chat.tab, [panel.sure, panel.sure_text], **quiet)
    panel.rather_not.click(lambda: gr.Group(visible=False), outputs=panel.sure, **quiet)
    again: dict[str, Any] = {
        "fn": lambda tab, words: listing(desk, tab, words),
        "inputs": [chat.tab, panel.words],
        "outputs": panel.listed,
        **quiet,
    }
    panel.words.change(**again, trigger_mode="always_last")
    for event in changed:
        event.then(**again)
    page.load(acts.found, where, everything, **quiet)


def _asking(tab: Tab) -> tuple[Any, Any]:
    return gr.Group(visible=bool(tab.id)), f"Delete **{plain(tab.title)}**? It cannot be brought back."
