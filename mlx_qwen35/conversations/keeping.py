"""A conversation that goes on, and what is kept of it: saved after each answer, or nothing where that is not wanted.

A disk that refuses costs one line and no conversation. For the terminal chat and the page alike.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from mlx_qwen35.conversations.conversation import Conversation
from mlx_qwen35.conversations.index import Summary
from mlx_qwen35.conversations.store import ChangedElsewhere, Store
from mlx_qwen35.errors import UserError


@dataclass
class Keeper:
    """What is saved of the conversation that goes on.

    keeps: whether anything is   current: None before its first answer   shown: ids of the list that was shown last
    advice: for the person, where the disk refuses
    """

    keeps: bool = False
    store: Store = field(default_factory=Store)
    current: Summary | None = None
    shown: tuple[str, ...] = ()
    advice: str = "The chat goes on in memory; /save FILE writes it elsewhere."
    _trouble: str = ""
    _unsaved: bool = False
    _branch_of: str = ""

    def keep(self, conversation: Conversation, model: str) -> str:
        """Save the conversation; what its person should know of that, or "". The same trouble is told once."""
        if not self.keeps or not conversation.messages:
            return ""
        try:
            trouble = self._save(conversation, model)
            self._unsaved = False
        except UserError as error:
            self._unsaved = True
            trouble = f"Not saved: {error} {self.advice}"
        told, self._trouble = self._trouble, trouble
        return "" if trouble == told else trouble

    def open(self, id: str) -> Conversation:
        """Go on with a saved conversation."""
        summary, conversation = self.store.open(id)
        self.part()
        self.current = summary
        conversation.title = summary.title
        return conversation

    def require_saved(self, conversation: Conversation, model: str) -> None:
        """Before another takes its place. Raises UserError where the disk refused this one, and still does."""
        if self._unsaved:
            self.keep(conversation, model)
        if self._unsaved:
            raise UserError(f"{self._trouble.removesuffix(self.advice).strip()} /reset lets this chat go.")

    def part(self, branch_of: str = "") -> None:
        """What is said from now on belongs to a new conversation, perhaps a copy of another."""
        self.current, self._branch_of, self._unsaved = None, branch_of, False

    def _save(self, conversation: Conversation, model: str) -> str:
        note = ""
        try:
            if self.current:
                self.current = self.store.save(self.current, conversation, model)
        except ChangedElsewhere as change:
            note = f"{change} What you see here is saved as a chat of its own."
            self.current = None
        if self.current is None:
            self.current = self.store.create(conversation, model, self._branch_of)
        conversation.title = self.current.title
        return note
