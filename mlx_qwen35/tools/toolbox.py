"""The tools of a conversation: a call in, a step out. Whatever a call does wrong becomes one line for the model.

Knows nothing of models. A tool that runs out of time is left behind on a thread of its own: Python cannot end it, so
a tool should be bounded by what it is.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from typing import Any

from mlx_qwen35.errors import UserError
from mlx_qwen35.tools.arguments import check_arguments
from mlx_qwen35.tools.tool import NAME, Approval, Call, Step, Tool, ToolError, Verdict, error_line, without_tags

MAX_RESULT = 20_000  # characters; some five thousand tokens
LOOK_SECONDS = 0.05  # how soon a running tool is left behind when the person stops it
REFUSED = "The user refused this call. Do not try it again; say what you would have done, or ask."
STOPPED = "The user stopped this before it was done."

Approve = Callable[[Tool, Call], Verdict]
Stopped = Callable[[], bool]


class Toolbox:
    """Tools by name, and the right to run them.

    What `Approve` answers with "always" is not asked again while the toolbox lives. Call from one thread at a time.
    """

    def __init__(self, tools: Iterable[Tool], notes: Iterable[str] = (), resources: ExitStack | None = None) -> None:
        """notes: lines for the person, of what is not there   resources: what `close` lets go of"""
        self.tools: dict[str, Tool] = {}
        self.notes = tuple(notes)
        self._always: set[str] = set()
        self._resources = resources or ExitStack()
        for tool in tools:
            if not NAME.fullmatch(tool.name):
                raise UserError(f"{tool.name!r:.80} cannot be a tool's name; letters, digits, _ and - can.")
            if tool.name in self.tools:
                raise UserError(f"Two tools are called {tool.name}; a name is one tool's.")
            self.tools[tool.name] = tool

    def declarations(self) -> list[dict[str, Any]]:
        """The tools in OpenAI's form."""
        return [tool.declaration() for tool in self.tools.values()]

    def call(self, call: Call, approve: Approve, stopped: Stopped = lambda: False) -> Step:
        """Check, ask if need be, run. Raises nothing that the call could be the cause of.

        approve: asked about tools with an effect   stopped: looked at while the tool runs
        """
        approval: Approval = "not needed"
        began = time.monotonic()
        try:
            tool = self._tool(call.name)
            check_arguments(call.arguments, tool.parameters)
            if tool.effect and not self._approved(tool, call, approve):
                return Step(call, STOPPED if stopped() else REFUSED, True, 0.0, "refused")
            approval = "approved" if tool.effect else "not needed"
            began = time.monotonic()
            text = _run(tool, call.arguments, stopped)
        except ToolError as error:
            text = f"Error: {error_line(error)}"
            return Step(call, without_tags(text), True, time.monotonic() - began, approval)
        return Step(call, without_tags(_cut(text)), False, time.monotonic() - began, approval)

    def close(self) -> None:
        """Let go of folders and servers."""
        self._resources.close()

    def __enter__(self) -> Toolbox:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _tool(self, name: str) -> Tool:
        if tool := self.tools.get(name):
            return tool
        raise ToolError(f"there is no tool {name!r:.80}; the tools are {', '.join(self.tools) or 'none'}")

    def _approved(self, tool: Tool, call: Call, approve: Approve) -> bool:
        if tool.name in self._always:
            return True
        verdict = approve(tool, call)
        if verdict == "always":
            self._always.add(tool.name)
        return verdict in ("yes", "always")


def _run(tool: Tool, arguments: Mapping[str, Any], stopped: Stopped) -> str:
    """The tool's result, waited for as long as it may take. Raises ToolError."""
    results: list[str | BaseException] = []
    done = threading.Event()

    def work() -> None:
        try:
            results.append(tool.run(arguments))
        except BaseException as error:
            results.append(error)
        done.set()

    threading.Thread(target=work, name=f"tool {tool.name}", daemon=True).start()
    end = time.monotonic() + tool.seconds
    while not done.wait(LOOK_SECONDS):
        if stopped():
            raise ToolError("the user stopped it")
        if time.monotonic() > end:
            raise ToolError(f"{tool.name} took longer than {tool.seconds:g} s and was given up")
    result = results[0]
    if isinstance(result, ToolError):
        raise result
    if isinstance(result, BaseException):
        raise ToolError(f"{tool.name} failed: {type(result).__name__}: {result}")
    if not isinstance(result, str):
        raise ToolError(f"{tool.name} gave a {type(result).__name__}, not text")
    return result


def _cut(text: str) -> str:
    if len(text) <= MAX_RESULT:
        return text
    return f"{text[:MAX_RESULT]}\n[cut: {MAX_RESULT:,} of {len(text):,} characters]"
