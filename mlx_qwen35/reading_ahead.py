"""Reading the next turn ahead, while nobody waits: which text that is, and when.

The chat template writes an answer otherwise into the next prompt than the model wrote it: without what it thought, from
the last question on. So all of that would be computed anew when the person writes again. What stands before the new
question is known as soon as the answer has ended; here it is rendered and given to the engine, which computes it while
the person reads and types, and remembers it like any other prefix.

Not at once: whoever asks in turn, as a script does, does not wait for work that serves nobody. Knows no mlx.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from mlx_qwen35.caches.holds import Hold
from mlx_qwen35.chat.reply import Reply
from mlx_qwen35.chat.transcript import Prompt
from mlx_qwen35.generation.engine import Engine
from mlx_qwen35.requests import ChatRequest

QUIET_SECONDS = 0.25  # without any request, before anything is read: people and agents' users take longer, scripts less
MOST_WISHES = 16  # conversations whose next turn is read; older ones fall out
FAREWELL_SECONDS = 5.0  # for a text that is being rendered when the runtime closes
QUESTION = {"role": "user", "content": "a"}  # stands for any: what is read ends before it

log = logging.getLogger(__name__)


@dataclass
class Wish:
    """A conversation with the answer that has just ended. ids: what its next prompt begins with, once that is known"""

    request: ChatRequest
    reply: Reply
    hold: Hold | None
    ids: Sequence[int] | None = None


class ReadingAhead:
    """Takes wishes from any thread and sees to them on one of its own, which lives only while there are some."""

    def __init__(
        self, engine: Engine, kv_bits: int, prompt: Callable[[ChatRequest], Prompt], quiet: float = QUIET_SECONDS
    ) -> None:
        """prompt: renders a request; may raise   quiet: seconds"""
        self._engine, self._kv_bits, self._prompt, self._quiet = engine, kv_bits, prompt, quiet
        self._wishes: deque[Wish] = deque(maxlen=MOST_WISHES)  # the newest last
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._closed = False

    def wish(self, request: ChatRequest, hold: Hold | None, reply: Reply) -> None:
        """An answer has ended, and its conversation may go on. Returns at once."""
        with self._changed:
            if self._closed:
                return
            self._wishes.append(Wish(request, reply, hold))
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="reading-ahead", daemon=True)
                self._thread.start()

    def close(self) -> None:
        """No more of it; after the engine was closed, so that nothing is being read."""
        with self._changed:
            self._closed = True
            self._wishes.clear()
            self._changed.notify_all()
            thread = self._thread
        if thread is not None:
            thread.join(FAREWELL_SECONDS)

    def _run(self) -> None:
        while (wish := self._next()) is not None:
            try:
                if not self._read(wish):
                    self._again(wish)
            except Exception as error:  # nobody asked for it, so nobody hears of it
                log.debug("A conversation could not be read ahead: %s", error)

    def _next(self) -> Wish | None:
        """The newest wish, when it has been quiet for long enough; None when there are no more."""
        with self._changed:
            while self._wishes:
                left = self._quiet - self._engine.quiet_seconds
                if left <= 0:
                    return self._wishes.pop()
                self._changed.wait(left)
            self._thread = None
            return None

    def _again(self, wish: Wish) -> None:
        """Later: somebody else came. Newer wishes go first."""
        with self._changed:
            if not self._closed and len(self._wishes) < MOST_WISHES:
                self._wishes.appendleft(wish)

    def _read(self, wish: Wish) -> bool:
        """Whether it is done with."""
        if wish.ids is None:
            wish.ids = self._beginning(wish)
        if not wish.ids:
            return True
        line = self._engine.read_ahead(wish.ids, self._kv_bits, wish.hold)
        for _ in line:
            pass
        return line.ended is not None and line.ended.reason != "cancelled"

    def _beginning(self, wish: Wish) -> Sequence[int]:
        """What the next prompt begins with, and the first token of its question; () where that cannot be told."""
        messages = [*wish.request.messages, wish.reply.message, QUESTION]
        prompt = self._prompt(replace(wish.request, messages=messages))
        asked = [turn for turn in prompt.turns if turn.role == QUESTION["role"]]
        # Up to its `<|im_start|>`, which stands for itself whatever is beside it.
        return prompt.ids[: asked[-1].start + 1] if asked else ()
