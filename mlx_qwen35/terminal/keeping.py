"""How a terminal chat begins: as a new conversation, or with a saved one."""

from __future__ import annotations

from dataclasses import replace

from mlx_qwen35.conversations.conversation import Conversation
from mlx_qwen35.conversations.keeping import Keeper
from mlx_qwen35.conversations.settings import Settings
from mlx_qwen35.errors import UserError
from mlx_qwen35.terminal.answering import counted


def begun(keeper: Keeper, resume: int | None, settings: Settings) -> Conversation:
    """A new conversation, or the Nth newest saved one with what `settings` says more than the defaults."""
    if resume is None:
        return Conversation(settings)
    chats = keeper.store.listing().chats
    if resume > len(chats):
        raise UserError(f"There is no saved chat {resume}: {counted(len(chats), 'chat')} so far.")
    conversation = keeper.open(chats[resume - 1].id)
    given = {name: value for name, value in vars(settings).items() if value != getattr(Settings(), name)}
    conversation.settings = replace(conversation.settings, **given)
    return conversation
