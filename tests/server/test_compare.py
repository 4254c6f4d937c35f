"""`mlx-qwen35 cache diff`: two saved bodies of any protocol, compared as the prompts they become."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mlx_qwen35.chat.canonical import RULES
from mlx_qwen35.cli import main
from mlx_qwen35.server.compare import is_anthropic, read_any, report

SCHEMA = {"type": "object", "properties": {"at": {"type": "string"}}}


def anthropic(turn: int) -> dict[str, Any]:
    system = f"x-anthropic-billing-header: cch={turn};\nYou help.\nCurrent time: 2026-11-22 10:0{turn}"
    messages: list[Any] = [{"role": "user", "content": "Hello"}]
    if turn > 1:
        messages += [{"role": "assistant", "content": "Hi"}, {"role": "user", "content": "So?"}]
    tools = [{"name": name, "input_schema": SCHEMA} for name in ("look", "ask")[:: 1 if turn == 1 else -1]]
    return {"model": "m", "max_tokens": 9, "system": system, "messages": messages, "tools": tools}


def responses(turn: int) -> dict[str, Any]:
    body = anthropic(turn)
    tools = [{"type": "function", "name": tool["name"], "parameters": SCHEMA} for tool in body["tools"]]
    return {"model": "m", "instructions": body["system"], "input": body["messages"], "tools": tools}


def chat(turn: int) -> dict[str, Any]:
    body = anthropic(turn)
    tools = [{"type": "function", "function": {"name": t["name"], "parameters": SCHEMA}} for t in body["tools"]]
    system = {"role": "system", "content": body["system"]}
    return {"model": "m", "messages": [system, *body["messages"]], "tools": tools}


@pytest.fixture(params=[anthropic, responses, chat], ids=lambda make: make.__name__)
def saved(request: Any, tmp_path: Path) -> tuple[Path, Path]:
    paths = tmp_path / "one.json", tmp_path / "two.json"
    for turn, path in enumerate(paths, 1):
        path.write_text(json.dumps(request.param(turn)))
    return paths


def test_the_rules_make_the_second_turn_continue_the_first(saved: tuple[Path, Path]) -> None:
    lines = report(*saved, "demo", RULES)
    # All but the new turn; the first one's opening, which the template writes otherwise, is computed again.
    assert "(88%)" in lines[1]
    assert "in message 3 (assistant)" in lines[2]
    assert lines[3].startswith("As sent, ")
    assert int(lines[3].split()[2]) > 100


def test_the_place_of_the_difference_is_told(saved: tuple[Path, Path]) -> None:
    lines = report(*saved, "demo", ())
    assert len(lines) == 3
    assert "differs from" in lines[2]
    assert str(saved[0]) in lines[2]
    assert "in the tool definitions" in lines[2]


def test_the_protocols_are_told_apart() -> None:
    assert is_anthropic(anthropic(1))
    assert not is_anthropic(chat(1))
    rendered = [read_any(make(1)).messages for make in (anthropic, responses, chat)]
    assert rendered[0] == rendered[1] == rendered[2]


@pytest.mark.parametrize("text", ["[]", "{", '{"messages": 5}', '{"input": 5}', '{"system": 5, "messages": []}', "{}"])
def test_what_is_no_request_is_one_line(tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.json"
    path.write_text(text)
    assert main(["cache", "diff", str(path), str(path), "--model", "demo"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_the_command(saved: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cache", "diff", str(saved[0]), str(saved[1]), "--model", "demo", "--as-sent", "tool-order"]) == 0
    assert "tokens" in capsys.readouterr().out
    assert main(["cache", "diff", str(saved[0]), "/nowhere.json", "--model", "demo"]) == 2
    assert "Cannot read" in capsys.readouterr().err
