"""The commands of the terminal chat that have to do with saved conversations: find, resume, rename, branch, delete."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from mlx_qwen35.chat.messages import normalise_messages
from mlx_qwen35.conversations.conversation import clean_title
from mlx_qwen35.conversations.search import Hit, search
from mlx_qwen35.conversations.store import branched, title_of
from mlx_qwen35.errors import UserError
from mlx_qwen35.terminal.answering import counted
from mlx_qwen35.terminal.safe_text import one_line

if TYPE_CHECKING:
    from mlx_qwen35.terminal.commands import ChatState

SHOWN = 20
WIDTH = 60  # characters of a title, or of what was said


def show(state: ChatState, argument: str) -> None:
    """List, or search."""
    if argument:
        found = search(state.keeper.store, argument, SHOWN)
        hits, broken, more = found.hits, found.broken, "" if found.complete else "there may be more; try other words"
    else:
        listing = state.keeper.store.listing()
        hits, broken = tuple(map(Hit, listing.chats[:SHOWN])), listing.broken
        rest = len(listing.chats) - len(hits)
        more = f"{rest:,} older: /chats WORDS finds them" if rest else ""
    state.keeper.shown = tuple(hit.chat.id for hit in hits)
    lines = [_line(state, number, hit) for number, hit in enumerate(hits, 1)]
    lines += [one_line(f"{file.name} {file.why}") for file in broken[:SHOWN]]
    if more:
        lines.append(more)
    state.say("\n".join(lines) or ("nothing found" if argument else "no chat is saved"))


def resume(state: ChatState, argument: str) -> None:
    """Go on with another chat."""
    id = _chosen(state, argument, "/resume")
    state.keeper.require_saved(state.conversation, state.runtime.name)
    state.conversation = state.keeper.open(id)
    say_where_it_stood(state)


def rename(state: ChatState, argument: str) -> None:
    """Of the chat that goes on; what is not yet saved will be, with this title."""
    title = clean_title(argument)
    if not title:
        raise UserError("/rename needs a title.")
    if state.keeper.current:
        state.keeper.store.rename(state.keeper.current.id, title)
    state.conversation.title = title
    state.say(f"this chat is now called {one_line(title)}")


def branch(state: ChatState, argument: str) -> None:
    """Go on in a copy; the chat itself stays as it is."""
    messages = state.conversation.messages
    ends = [i + 1 for i, message in enumerate(messages) if i + 1 == len(messages) or messages[i + 1]["role"] == "user"]
    number = _number(argument, "/branch") if argument else len(ends)
    if not 1 <= number <= len(ends):
        raise UserError(f"This chat has {counted(len(ends), 'answer')}; /branch takes the number of one.")
    state.keeper.require_saved(state.conversation, state.runtime.name)
    title = state.conversation.title or title_of(state.conversation)
    state.conversation = branched(state.conversation, ends[number - 1], title)
    state.keeper.part(state.keeper.current.id if state.keeper.current else "")
    if trouble := state.keeper.keep(state.conversation, state.runtime.name):
        state.say(one_line(trouble))
    say_where_it_stood(state)


def delete(state: ChatState, argument: str) -> None:
    """By its number in a list that was shown, so that nothing is deleted unseen."""
    if not state.keeper.shown:
        raise UserError("/delete takes a number of /chats; look there first.")
    id = _chosen(state, argument, "/delete")
    state.keeper.store.delete(id)
    if state.keeper.current and state.keeper.current.id == id:
        state.keeper.part()
    state.say("deleted")


def say_where_it_stood(state: ChatState) -> None:
    """The title, and the last words of both, so that its person remembers."""
    conversation = state.conversation
    count = counted(len(conversation.messages), "message")
    state.say(f"{one_line(conversation.title or title_of(conversation), 200)} ({count})")
    for message in normalise_messages(conversation.messages)[-2:] if conversation.messages else []:
        if text := message["content"].strip():
            state.say(("> " if message["role"] == "user" else "") + one_line(text))


def _line(state: ChatState, number: int, hit: Hit) -> str:
    when = time.strftime("%Y-%m-%d %H:%M", time.localtime(hit.chat.changed))
    here = " (this one)" if state.keeper.current and state.keeper.current.id == hit.chat.id else ""
    line = f"{number:>2}  {when}  {one_line(hit.chat.title, WIDTH)}, {counted(hit.chat.messages, 'message')}{here}"
    return f"{line}\n    {one_line(hit.excerpt, 2 * WIDTH)}" if hit.excerpt else line


def _chosen(state: ChatState, argument: str, command: str) -> str:
    """The id behind a number: of the list shown last, or of the newest chats."""
    shown = state.keeper.shown or tuple(chat.id for chat in state.keeper.store.listing().chats[:SHOWN])
    if not shown:
        raise UserError("No chat is saved.")
    number = _number(argument, command)
    if not 1 <= number <= len(shown):
        raise UserError(f"There is no chat {number} in the list: it has {len(shown)}. /chats shows it.")
    return shown[number - 1]


def _number(argument: str, command: str) -> int:
    if not (argument.isascii() and argument.isdigit() and len(argument) < 6):
        found = f", not {argument[:40]!r}" if argument else ""
        raise UserError(f"{command} takes a number{found}.")
    return int(argument)
