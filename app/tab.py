"""What one browser tab has open: a conversation, what is kept of it, and the question being answered.

Lives in the server's memory as long as the page does; `find` makes it again from the saved conversation, after a
reload as after a restart. Knows no Gradio.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from mlx_qwen35.app.conversation import Message, Shown, question_block, shown, trouble_block
from mlx_qwen35.app.desk import Desk
from mlx_qwen35.app.turn import Turn
from mlx_qwen35.conversations.conversation import Conversation
from mlx_qwen35.conversations.keeping import Keeper
from mlx_qwen35.conversations.settings import Settings
from mlx_qwen35.conversations.store import Store, branched, title_of
from mlx_qwen35.errors import UserError

ADVICE = "The chat goes on in this page only; export what you want to keep."


@dataclass(eq=False)
class Tab:
    """notice: a line for the person, of saving or of what could not be done"""

    keeper: Keeper
    conversation: Conversation = field(default_factory=Conversation)
    turn: Turn | None = None
    notice: str = ""
    blank: bool = True  # nothing was done here yet
    _allowed: set[str] = field(default_factory=set)
    _before: Shown | None = None
    _taken: list[Message] = field(default_factory=list)

    @classmethod
    def of(cls, store: Store) -> Tab:
        """With nothing open."""
        return cls(Keeper(True, store, advice=ADVICE))

    @property
    def id(self) -> str:
        """Of the conversation, "" before its first answer."""
        return self.keeper.current.id if self.keeper.current else ""

    @property
    def title(self) -> str:
        if self.conversation.messages:
            return self.conversation.title or title_of(self.conversation)
        return self.conversation.title or "New chat"

    def find(self, id: str) -> None:
        """Be where the page says it is, if this tab was made anew since: the server was gone, or the page reloaded."""
        if self.blank and id:
            try:
                self.open(id)
            except UserError as error:
                self.notice = str(error)
        self.blank = False

    def open(self, id: str) -> None:
        """Go on with a saved conversation. Raises UserError, and then nothing has changed."""
        summary, conversation = self.keeper.store.open(id)
        self._leave()
        self.keeper.part()
        self.keeper.current, self.conversation = summary, conversation
        conversation.title = summary.title

    def start(self, settings: Settings) -> None:
        """A new conversation, asked as the one before."""
        self._leave()
        self.keeper.part()
        self.conversation = Conversation(settings)

    def branch(self, messages: int) -> None:
        """Go on in a copy that ends after so many messages; the conversation itself stays as it is."""
        self.stop()
        copy, before = branched(self.conversation, messages, self.title), self.keeper.current
        self._leave()
        self.keeper.part(before.id if before else "")
        self.conversation = copy
        self.notice = self.keeper.keep(copy, before.model if before else "")

    def cut(self, messages: int, model: str) -> str:
        """Forget what follows the first messages; what is more than a question and its answer is kept as a branch.

        Where the next question is not answered, it stands there again. Returns a line for the person, or "". Raises
        UserError, and then nothing is forgotten.
        """
        said, notice = self.conversation.messages, ""
        if self.id and sum(m["role"] == "user" for m in said[messages:]) > 1:
            kept = self.keeper.store.create(branched(self.conversation, len(said), self.title), model, self.id)
            notice = f"What followed is kept as a chat of its own: {kept.title}"
        self.conversation.messages, self._taken = said[:messages], said[messages:]
        self.turn, self._before = None, None
        return notice

    def undo(self, model: str) -> str:
        """Take back the last question with its answer. Returns the question.

        Raises UserError where a chat that has no other cannot be deleted, and then it stays.
        """
        self.stop()
        if self.turn and not self.turn.messages():  # it failed, and only the page shows it
            question, self.turn = self.turn.question, None
            return question
        place, question = self.question_at(len(self.shown().blocks) - 1)
        if not place and self.id:
            self.keeper.store.delete(self.id)
            self.keeper.part()
        self.cut(place, model)
        self._taken = []
        self.notice = self.keeper.keep(self.conversation, model)
        return question

    def begin(self, desk: Desk, question: str, with_tools: bool) -> Turn:
        """Ask; run what is returned, then `end` it."""
        self.stop()
        self.notice = ""
        self._before = None
        toolbox = desk.toolbox if with_tools else None
        request = self.conversation.request(question, toolbox.declarations() if toolbox else None)
        self.turn = Turn(desk, request, question, toolbox is not None, self._allowed)
        return self.turn

    def end(self, turn: Turn) -> None:
        """Keep what was said in `turn`, once. What failed with nothing said stays on the page only."""
        turn.stop()
        with turn.keeping:
            if turn.kept:
                return
            if messages := turn.messages():
                first = len(self.conversation.messages) + 1
                self.conversation.add(turn.question, *messages)
                self.conversation.efforts |= turn.efforts(first)
                self.notice = self.keeper.keep(self.conversation, turn.model) or self.notice
            else:
                self.conversation.messages += self._taken
            self._taken, self._before = [], None
            turn.kept = True

    def stop(self) -> None:
        """End the answer that runs, if one does, and keep what there is of it."""
        if self.turn:
            self.end(self.turn)

    def shown(self) -> Shown:
        """Everything, the answer that runs included."""
        if self.turn is None:
            return self._with(None)
        with self.turn.keeping:
            return self._with(self.turn)

    def _with(self, turn: Turn | None) -> Shown:
        if self._before is None:
            self._before = shown(self.conversation.messages, self.conversation.efforts)
        made = Shown([*self._before.blocks], [*self._before.places])
        place = len(self.conversation.messages)
        if turn and not (turn.kept and turn.messages()):
            made.add(place, question_block(turn.question), *turn.blocks())
        elif turn and turn.trouble:
            made.add(place, trouble_block(turn.trouble))
        return made

    def question_at(self, block: int) -> tuple[int, str]:
        """The index of the message that a block shows, or of the question before it, and that question."""
        places = self.shown().places
        place = places[block] if 0 <= block < len(places) else len(self.conversation.messages)
        said = self.conversation.messages
        if place >= len(said):
            return len(said), self.turn.question if self.turn else ""
        while place and said[place]["role"] != "user":
            place -= 1
        return place, _text_of(said[place])

    def end_at(self, block: int) -> int:
        """How many messages there are when the answer that a block shows has ended."""
        places, said = self.shown().places, self.conversation.messages
        end = places[block] + 1 if 0 <= block < len(places) else len(said)
        while end < len(said) and said[end]["role"] != "user":
            end += 1
        return min(end, len(said))

    def _leave(self) -> None:
        self.stop()
        self.turn, self.notice, self.blank = None, "", False
        self._allowed, self._before, self._taken = set(), None, []


def _text_of(message: Message) -> str:
    content = message.get("content")
    return content if isinstance(content, str) else "".join(p.get("text", "") for p in content or ())
