"""One question and all that follows it on the page: answers, calls of tools that the person is asked about.

Knows no Gradio: it is told what to ask, tells when something is worth painting, and keeps what was said.
"""

from __future__ import annotations

import threading
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from mlx_qwen35.app.conversation import Answer, Block, Message, trouble_block
from mlx_qwen35.app.desk import Backend, Desk
from mlx_qwen35.app.pulse import Pulse
from mlx_qwen35.chat.events import Finished
from mlx_qwen35.conversations.efforts import Effort, Efforts
from mlx_qwen35.errors import UserError
from mlx_qwen35.requests import ChatRequest
from mlx_qwen35.tools.loop import OverRequest, Said, answer_with_tools
from mlx_qwen35.tools.pump import EventPump
from mlx_qwen35.tools.tool import Call, Step, Tool, Verdict
from mlx_qwen35.tools.toolbox import Toolbox

IDLE = 1.0  # seconds between two repaints where nothing changes, so that a page that was left is noticed
APPROVAL_SECONDS = 600.0  # what nobody answers is refused
DEFECT = "The program failed at this; its terminal shows where. The conversation goes on without it."


@dataclass(frozen=True)
class Approval:
    """A question among the events: may this call run?"""

    call: Call


class Turn:
    """Run it with `run`, once; read `blocks`, `asked` and `answer` while it runs; `stop` it from any thread.

    trouble: one line, where it failed   asked: the call that waits for `reply`
    kept: what was said stands in the conversation now, which changes under `keeping`
    allowed: names of tools that are not asked about; "always" adds to it
    pulse: to be told when the page looks at the figures
    """

    def __init__(self, desk: Desk, request: ChatRequest, question: str, with_tools: bool, allowed: set[str]) -> None:
        self.question, self.trouble = question, ""
        self.answers: list[Answer] = []
        self.asked: Call | None = None
        self.pulse = Pulse()
        self.model, self.kept = desk.runtime.name, False
        self.keeping = threading.Lock()
        self._desk, self._allowed = desk, allowed
        self._said, self._characters = Said(), 0
        self._asked_at = 0.0
        self._lock = threading.Lock()
        self._ended = False
        self._pump = EventPump(lambda: self._events(desk.runtime, request, desk.toolbox if with_tools else None))

    @property
    def answer(self) -> Answer:
        """The newest one."""
        return self.answers[-1] if self.answers else Answer()

    def run(self) -> Iterator[None]:
        """Until the last event, yielding when there is something to paint. Closing it stops the answer."""
        painted, changed = float("-inf"), False
        try:
            for event in self._pump:
                now = time.monotonic()
                if event is not None:
                    self._take(event, now)
                    changed = True
                elif self.asked and now - self._asked_at > APPROVAL_SECONDS:
                    self.reply("no")
                seen = self._characters + self.answer.characters
                if now - painted >= (self.pulse.rest(painted, seen) if changed else IDLE):
                    painted, changed = now, False
                    yield
        except UserError as error:
            self.trouble = str(error)
        except Exception:
            # A defect of this program: Gradio would cover the page with a bare "Error".
            traceback.print_exc()
            self.trouble = DEFECT
        finally:
            self.stop()

    def stop(self) -> None:
        """End it now. What was said so far stays said."""
        with self._lock:
            if self._ended:
                return
            self._ended = True
            self._pump.stop()
            self.asked = None
            for answer in self.answers:
                answer.stop()

    @property
    def running(self) -> bool:
        return not self._ended

    def reply(self, verdict: Verdict) -> None:
        """Answer what is `asked`; without effect where nothing is."""
        with self._lock:
            call, self.asked = self.asked, None
        if call is not None:
            if verdict == "always":
                self._allowed.add(call.name)
            self._pump.reply(verdict)

    def messages(self) -> list[Message]:
        """What was said, as the model shall remember it; none when nothing was."""
        return self._said.messages()

    def efforts(self, first: int) -> Efforts:
        """Of what was said. first: the index of the first of `messages` in the conversation"""
        found: Efforts = {}
        thoughts = [a.thought for a in self.answers if a.reasoning or a.content or a.calls]
        spoken = [i for i, m in enumerate(self.messages(), first) if m["role"] == "assistant"]
        found |= {i: thought for i, thought in zip(spoken, thoughts) if thought}
        return found | {step.call.id: Effort(step.seconds) for step in self._said.steps}

    def blocks(self) -> list[Block]:
        """All answers so far."""
        made = [block for answer in self.answers or [Answer()] * self.running for block in answer.blocks()]
        return [*made, trouble_block(self.trouble)] if self.trouble else made

    def _events(self, runtime: Backend, request: ChatRequest, toolbox: Toolbox | None) -> Iterator[Any]:
        if toolbox is None:
            return runtime.chat(request)
        talk = OverRequest(runtime, request)
        # A toolbox of its own: one serves one thread, and what is always allowed is this conversation's.
        own = Toolbox(toolbox.tools.values())
        return answer_with_tools(talk, own, self._approve, stopped=lambda: self._pump.stopped)

    def _approve(self, tool: Tool, call: Call) -> Verdict:
        """On the thread that makes events."""
        return "yes" if tool.name in self._allowed else self._pump.ask(Approval(call)) or "no"

    def _take(self, event: Any, now: float) -> None:
        with self._lock:
            if self._ended:
                return
            if isinstance(event, Approval):
                self.asked, self._asked_at = event.call, now
                return
            self._said.take(event)
            if not self.answers or (self.answer.reason is not None and not isinstance(event, Step)):
                self._characters += self.answer.characters
                self.answers.append(Answer())
            self.answer.take(event)
        if isinstance(event, Finished):
            self._desk.record(event.usage, event.reason, self.model)
