"""One question and all that follows it: an answer, calls of tools that the person is asked about, another answer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mlx_qwen35.chat.events import Finished
from mlx_qwen35.terminal.answering import Answer
from mlx_qwen35.terminal.commands import ChatState
from mlx_qwen35.terminal.safe_text import one_line, safe
from mlx_qwen35.terminal.views import View
from mlx_qwen35.tools.loop import OverRequest, Said, answer_with_tools
from mlx_qwen35.tools.pump import EventPump
from mlx_qwen35.tools.tool import Call, Step, Verdict

SHOWN_LINES = 12  # of a tool's result; the model reads all of it
VERDICTS: dict[str, Verdict] = {"y": "yes", "yes": "yes", "a": "always", "always": "always"}


@dataclass(frozen=True)
class Approval:
    """A question among the events: may this call run?"""

    call: Call


class Turn:
    """Pulls the events and shows them: each answer in a view of its own, each call with its result below.

    answer: the last one   pump: to stop it by
    """

    def __init__(
        self, state: ChatState, question: str, new_view: Callable[[], View], say: Callable[[str, str], None]
    ) -> None:
        """say: prints lines for the person, in a style"""
        self._state, self._question, self._new_view, self._say = state, question, new_view, say
        self._said = Said()
        self._ended = False  # the last answer has; another may follow
        self.answer, self._view = Answer(), new_view()
        request, toolbox = state.request(question), state.toolbox
        if toolbox is None:
            self.pump = EventPump(lambda: state.runtime.chat(request))
        else:
            talk = OverRequest(state.runtime, request)
            self.pump = EventPump(
                lambda: answer_with_tools(talk, toolbox, self._approve, stopped=lambda: self.pump.stopped)
            )

    @property
    def begun(self) -> bool:
        """Whether there is anything to keep."""
        return bool(self._said.messages())

    def run(self, confirm: Callable[[str], str]) -> None:
        """Until the last event. confirm: asks the person, who types a line; Ctrl-C raises KeyboardInterrupt"""
        try:
            for event in self.pump:
                if isinstance(event, Approval):
                    self.pump.reply(self._asked(event.call, confirm))
                elif event is None:
                    if not self._ended:
                        self._view.tick(self.answer)
                else:
                    self._show(event)
        finally:
            if not self._ended:
                self._end()

    def keep(self) -> bool:
        """Make what was said part of the conversation; False where nothing was."""
        if messages := self._said.messages():
            self._state.conversation.add(self._question, *messages)
        return bool(messages)

    def _approve(self, tool: Any, call: Call) -> Verdict:
        return self.pump.ask(Approval(call)) or "no"

    def _asked(self, call: Call, confirm: Callable[[str], str]) -> Verdict:
        try:
            typed = confirm(f"Run {call.name} {one_line(call.arguments_text(), 300)}? y, n or always > ")
        except KeyboardInterrupt:
            return "no"
        return VERDICTS.get(typed.lower(), "no")

    def _show(self, event: Any) -> None:
        self._said.take(event)
        if isinstance(event, Step):
            self._say(_step_text(event), "error" if event.failed else "dim")
            return
        if self._ended:
            self._ended, self.answer, self._view = False, Answer(), self._new_view()
        self.answer.take(event)
        self._view.show(event, self.answer)
        if isinstance(event, Finished):
            self._end()

    def _end(self) -> None:
        self._ended = True
        self._view.finish(self.answer)
        self._state.count(self.answer)


def _step_text(step: Step) -> str:
    """What came of a call, for the person: its result, or the end of it."""
    lines = safe(step.text).splitlines()
    if step.approval == "refused":
        lines = ["refused"]
    more = len(lines) - SHOWN_LINES
    shown = [one_line(line, 400) for line in lines[:SHOWN_LINES]] + ([f"({more:,} more lines)"] if more > 0 else [])
    head = f"{one_line(step.call.name, 80)}, {step.seconds:.1f} s:"
    return f"{head} {shown[0]}" if len(shown) == 1 else "\n  ".join([head, *shown])
