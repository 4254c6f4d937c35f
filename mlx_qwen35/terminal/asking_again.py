"""The commands that ask once more: the last question in other words, or as it was, in place of what was answered."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from mlx_qwen35.chat.messages import normalise_messages
from mlx_qwen35.conversations.conversation import Conversation
from mlx_qwen35.errors import UserError

if TYPE_CHECKING:
    from mlx_qwen35.terminal.commands import ChatState


def edit(state: ChatState, argument: str) -> None:
    """Ask something else instead: what was given, or what its person makes of the question at the prompt."""
    question = _last_question(state.conversation, "/edit")
    if argument:
        state.asked_again = argument
    elif state.offers:
        state.offered = question
    else:
        raise UserError("/edit needs the new question here: /edit TEXT.")


def again(state: ChatState, argument: str) -> None:
    """Another answer to the same question."""
    state.asked_again = _last_question(state.conversation, "/again")


@contextmanager
def without_last_question(conversation: Conversation) -> Iterator[None]:
    """The conversation as it was before its last question. Where nothing takes its place, it stands there again."""
    at = _last_place(conversation)
    conversation.messages, taken = conversation.messages[:at], conversation.messages[at:]
    try:
        yield
    finally:
        if len(conversation.messages) == at:
            conversation.messages += taken


def _last_place(conversation: Conversation) -> int:
    """The index of the last question; -1 where there is none."""
    return max((i for i, message in enumerate(conversation.messages) if message["role"] == "user"), default=-1)


def _last_question(conversation: Conversation, command: str) -> str:
    at = _last_place(conversation)
    if at < 0:
        raise UserError(f"{command} has nothing to ask again: no question was answered yet.")
    return normalise_messages(conversation.messages[at : at + 1])[0]["content"]
