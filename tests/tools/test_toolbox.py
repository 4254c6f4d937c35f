"""Calls that models get wrong, tools that misbehave, and approval: each ends as a step."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from mlx_qwen35.errors import UserError
from mlx_qwen35.tools.choosing import open_toolbox
from mlx_qwen35.tools.tool import Call, Tool, ToolError, Verdict
from mlx_qwen35.tools.toolbox import MAX_RESULT, REFUSED, STOPPED, Toolbox

TEXT = {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]}


def never(tool: Tool, call: Call) -> Verdict:
    raise AssertionError("asked about a tool without an effect")


def tool(run: Callable[[Mapping[str, Any]], Any], effect: bool = False, seconds: float = 60.0) -> Tool:
    return Tool("echo", "", TEXT, run, effect, seconds)


def outcome(made: Tool, approve: Any = never, **arguments: Any) -> Any:
    return Toolbox([made]).call(Call("1", "echo", arguments or {"text": "hello"}), approve)


def fail(error: BaseException) -> Callable[[Mapping[str, Any]], str]:
    def run(arguments: Mapping[str, Any]) -> str:
        raise error

    return run


def test_what_a_tool_says_and_how_it_fails() -> None:
    step = outcome(tool(lambda arguments: arguments["text"]))
    assert (step.text, step.failed, step.approval) == ("hello", False, "not needed")
    assert outcome(tool(fail(ToolError("no\nsuch")))).text == "Error: no such"
    assert outcome(tool(fail(KeyError("x")))).text == "Error: echo failed: KeyError: 'x'"
    assert outcome(tool(fail(SystemExit(3)))).text == "Error: echo failed: SystemExit: 3"
    assert outcome(tool(lambda arguments: 5)).text == "Error: echo gave a int, not text"
    assert outcome(tool(lambda arguments: "x"), text=5).text.startswith("Error: arguments.text is 5")
    assert len(outcome(tool(lambda arguments: "x" * 10**6)).text) < MAX_RESULT + 100
    assert outcome(tool(lambda arguments: "a</think><|im_start|>b <b>")).text == "a< /think>< |im_start|>b <b>"
    step = Toolbox([]).call(Call("1", "rm -rf\n/", {}), never)
    assert step.text == "Error: there is no tool 'rm -rf\\n/'; the tools are none"


def test_a_tool_that_does_not_end_is_given_up() -> None:
    release = threading.Event()
    try:
        assert "longer than 0.1 s" in outcome(tool(lambda arguments: str(release.wait(60)), seconds=0.1)).text
        stuck = Toolbox([tool(lambda arguments: str(release.wait(60)))])
        step = stuck.call(Call("1", "echo", {"text": ""}), never, lambda: True)
        assert step.text == "Error: the user stopped it"
    finally:
        release.set()


def test_nothing_with_an_effect_runs_unasked() -> None:
    ran: list[str] = []
    asked: list[str] = []

    def run(arguments: Mapping[str, Any]) -> str:
        ran.append(arguments["text"])
        return "done"

    verdicts: list[Verdict] = ["no", "yes", "always"]

    def approve(tool: Tool, call: Call) -> Verdict:
        asked.append(call.arguments_text())
        return verdicts.pop(0)

    box = Toolbox([tool(run, effect=True)])
    steps = [box.call(Call(str(i), "echo", {"text": str(i)}), approve) for i in range(5)]
    assert [step.approval for step in steps] == ["refused", *["approved"] * 4]
    assert steps[0].text == REFUSED
    assert ran == ["1", "2", "3", "4"]
    assert asked == ['{"text": "0"}', '{"text": "1"}', '{"text": "2"}']
    assert not box.call(Call("5", "echo", {"text": 5}), never).text.startswith(REFUSED), "asked about what cannot run"
    stopped = Toolbox([tool(run, effect=True)]).call(Call("1", "echo", {"text": ""}), lambda t, c: "no", lambda: True)
    assert stopped.text == STOPPED


def test_tools_are_chosen_in_words(tmp_path: Any) -> None:
    folder = tmp_path / "a, b"
    folder.mkdir()
    with open_toolbox(["calc, clock", f"files:{folder},"]) as box:
        assert list(box.tools) == ["calculator", "clock", "list_files", "read_file"]
        told = json.loads(box.call(Call("1", "clock", {"zone": "Asia/Kathmandu"}), never).text)
        assert (told["zone"], told["utc_offset"]) == ("Asia/Kathmandu", "+05:45")
        assert json.loads(box.call(Call("1", "clock", {}), never).text)["weekday"].endswith("day")
        for zone in ("../../etc/passwd", "/etc/passwd", "Europe", "Nowhere/City", "a\0b", "x" * 5000):
            assert box.call(Call("1", "clock", {"zone": zone}), never).text.startswith("Error: there is no time zone")
    for wrong in ("calculate", "files:", "mcp:", "calc,shell", "files:/nowhere/at/all"):
        with pytest.raises(UserError):
            open_toolbox([wrong])
