"""Answer, run the calls, go on: until the model makes no more calls, or has made enough.

with open_toolbox(["calc"]) as toolbox:
    talk = OverRequest(runtime, ChatRequest(messages, tools=toolbox.declarations()))
    for event in answer_with_tools(talk, toolbox, approve):
        ...  # the events of every answer, and a Step after each call
"""

from __future__ import annotations

from collections.abc import Generator, Iterable
from contextlib import closing
from dataclasses import replace
from typing import Any, Protocol, Unpack

from mlx_qwen35.asking import Options
from mlx_qwen35.chat.events import Event, Finished, ToolCallEnd
from mlx_qwen35.chat.reply import Gathering
from mlx_qwen35.requests import ChatRequest
from mlx_qwen35.session import Session
from mlx_qwen35.tools.tool import Call, Step
from mlx_qwen35.tools.toolbox import STOPPED, Approve, Stopped, Toolbox

ROUNDS = 8
Message = dict[str, Any]


class Talk(Protocol):
    """A conversation in which answers can be asked for, one after another."""

    def answer(self, last: bool) -> Generator[Event]:
        """The next answer's events. last: no calls may be made any more"""
        ...

    def add(self, step: Step) -> None:
        """Let the model read what came of a call of its last answer."""
        ...


class Answers(Protocol):
    """What requests are asked of: a `Runtime`, or something that passes them on."""

    def prepare(self, request: ChatRequest) -> Any: ...

    def submit(self, prepared: Any) -> Any: ...


class OverRequest:
    """A request, which holds the whole conversation: `messages` is what follows it."""

    def __init__(self, runtime: Answers, request: ChatRequest) -> None:
        self._runtime, self._request = runtime, request
        self._said = Said()

    def answer(self, last: bool) -> Generator[Event]:
        request = replace(self._request, messages=[*self._request.messages, *self._said.messages()])
        if last:
            request = replace(request, tool_choice="none")
        elif self._said.steps:  # a choice that compels a call is of the first answer, or there would be no end
            request = replace(request, tool_choice="auto")
        with closing(self._runtime.submit(self._runtime.prepare(request)).events()) as events:
            for event in events:
                self._said.take(event)
                yield event

    def add(self, step: Step) -> None:
        self._said.take(step)


class OverSession:
    """A question asked in a session, which keeps the conversation itself; its tools are the toolbox's."""

    def __init__(self, session: Session, question: str | Message, **options: Unpack[Options]) -> None:
        self._session, self._options = session, options
        self._question: str | Message | None = question

    def answer(self, last: bool) -> Generator[Event]:
        question, self._question = self._question, None
        options: Options = {**self._options}
        if last or question is None:
            options["tool_choice"] = "none" if last else "auto"
        yield from self._session.stream(question, **options)

    def add(self, step: Step) -> None:
        self._session.add_tool_result(step.call.id, step.text)


class Said:
    """Events and steps in, messages out: the answers, and after each what came of its calls.

    At any moment they are a conversation that can be gone on with: an answer that was stopped half-way is there as far
    as it came, and calls that nothing came of were stopped.
    """

    def __init__(self) -> None:
        self.steps: list[Step] = []
        self._answers: list[Gathering] = []

    def take(self, event: Event | Step) -> None:
        if isinstance(event, Step):
            self.steps.append(event)
            return
        if not self._answers or self._answers[-1].finished:
            self._answers.append(Gathering())
        self._answers[-1].take(event)

    def messages(self) -> list[Message]:
        """What was said, in OpenAI's form."""
        done = {step.call.id: step for step in self.steps}
        found: list[Message] = []
        for answer in self._answers:
            message = answer.reply().message
            if not (message["content"] or len(message) > 2):
                continue
            found.append(message)
            for made in message.get("tool_calls", ()):
                call = Call(made["id"], made["function"]["name"], made["function"]["arguments"])
                found.append(done.get(call.id, Step(call, STOPPED, True)).message())
        return found


def answer_with_tools(
    talk: Talk, toolbox: Toolbox, approve: Approve, *, rounds: int = ROUNDS, stopped: Stopped = lambda: False
) -> Generator[Event | Step]:
    """The events of each answer and, after an answer with calls, a step for each; the last event is a `Finished`.

    approve: is asked before a tool with an effect runs, on the thread that reads the events
    rounds: of calls; the answer after the last of them may make none
    stopped: looked at while tools run; then what is left of the calls is not run, and no answer follows
    Closing the iterator cancels. Calls of an answer that was cut off at its limit are not run.
    """
    for round in range(rounds + 1):
        calls: list[Call] = []
        reason = "cancelled"
        with closing(talk.answer(last=round == rounds)) as events:
            for event in events:
                if isinstance(event, ToolCallEnd):
                    calls.append(Call(event.id, event.name, event.arguments))
                elif isinstance(event, Finished):
                    reason = event.reason
                yield event
        if not calls:
            return
        yield from _steps(talk, calls, toolbox, approve, (lambda: True) if reason != "tool_calls" else stopped)
        if stopped() or reason != "tool_calls":
            return


def _steps(talk: Talk, calls: Iterable[Call], toolbox: Toolbox, approve: Approve, stopped: Stopped) -> Generator[Step]:
    """A step for each call; when this is closed or stopped half-way, those that are left have been stopped."""
    left = list(calls)
    try:
        while left:
            step = Step(left[0], STOPPED, True) if stopped() else toolbox.call(left[0], approve, stopped)
            talk.add(step)
            left.pop(0)
            yield step
    finally:
        for call in left:
            talk.add(Step(call, STOPPED, True))
