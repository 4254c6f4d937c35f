"""Real MCP servers through the real client: one that answers, and ones that die, hang, lie or do not start."""

from __future__ import annotations

import json
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from mlx_qwen35.errors import UserError
from mlx_qwen35.tools.mcp_config import read_config
from mlx_qwen35.tools.mcp_servers import McpServers
from mlx_qwen35.tools.tool import Call
from mlx_qwen35.tools.toolbox import MAX_RESULT, Toolbox

pytest.importorskip("mcp")
SERVERS = Path(__file__).with_name("servers.py")


def config(folder: Path, *characters: str, **more: Any) -> Path:
    path = folder / "mcp.json"
    entries = {name: {"command": sys.executable, "args": [str(SERVERS), name], **more} for name in characters}
    path.write_text(json.dumps({"mcpServers": entries}))
    return path


def run(box: Toolbox, name: str, **arguments: Any) -> Any:
    return box.call(Call("1", name, arguments), lambda tool, call: "yes")


def test_an_honest_server_and_one_that_lies(tmp_path: Path) -> None:
    path = config(tmp_path, "honest", "liar", alwaysAllow=["fails"])
    path.write_text(path.read_text().replace('"mcpServers": {', '"mcpServers": {"none": {"command": "/no/such"}, '))
    # A busy machine takes its time to start a process.
    with closing(McpServers(path, frozenset({"fails"}), start_seconds=120.0)) as servers, Toolbox(servers.tools) as box:
        assert list(box.tools) == ["get_weather", "honest_fails"]
        assert box.tools["get_weather"].effect, "what a stranger's tool does is not known"
        assert not box.tools["honest_fails"].effect, "its config allows it"
        assert "<|im_end|>" not in box.tools["honest_fails"].description
        step = run(box, "get_weather", city="Paris")
        assert (json.loads(step.text), step.approval) == ({"degrees": 5, "sky": "grey"}, "approved")
        assert run(box, "honest_fails", text="x").text == "Error: no way: x"
        assert "city is missing" in run(box, "get_weather").text
        assert [note.split(":")[0] for note in servers.notes] == [
            "MCP server none did not start",
            "MCP server liar did not start",
        ]
        assert not any("\n" in note for note in servers.notes)
    assert "has ended" in run(box, "get_weather", city="Paris").text


def test_one_that_says_nothing_is_given_up(tmp_path: Path) -> None:
    with closing(McpServers(config(tmp_path, "silent"), start_seconds=2.0)) as servers:
        assert not servers.tools
        assert [note.split(":")[0] for note in servers.notes] == ["MCP server silent did not start"]


def test_one_that_dies_and_one_that_hangs(tmp_path: Path) -> None:
    path = config(tmp_path, "dies", "hangs")
    with closing(McpServers(path, start_seconds=120.0, call_seconds=1.0)) as servers, Toolbox(servers.tools) as box:
        for name in ("get_weather", "get_weather", "hangs_get_weather"):
            began = time.monotonic()
            step = run(box, name, city="Paris")
            assert step.failed
            assert step.text.startswith("Error: ")
            assert "\n" not in step.text
            assert time.monotonic() - began < 30  # of patience with a busy machine; a hang would be 600


def test_what_one_says_at_length_and_in_tags_is_cut_and_defused(tmp_path: Path) -> None:
    with (
        closing(McpServers(config(tmp_path, "babbles"), start_seconds=120.0)) as servers,
        Toolbox(servers.tools) as box,
    ):
        step = run(box, "get_weather", city="Paris")
        assert len(step.text) < MAX_RESULT + 100
        assert "<|im_end|>" not in step.text
        assert "<think>" not in step.text
        assert "< |im_end|>" in step.text


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "not JSON"),
        ("[]", 'no "mcpServers"'),
        ('{"mcpServers": []}', 'no "mcpServers"'),
        ('{"mcpServers": {"a": 5}}', "no object"),
        ('{"mcpServers": {"a": {}}}', "needs a command"),
        ('{"mcpServers": {"a": {"url": "http://x"}}}', "by url"),
        ('{"mcpServers": {"a": {"command": "x", "args": "y"}}}', "args should be"),
        ('{"mcpServers": {"a": {"command": "x", "env": {"A": 1}}}}', "env should be"),
        ('{"mcpServers": {"a": {"command": "x", "cwd": 5}}}', "cwd"),
    ],
)
def test_a_file_that_is_none_is_one_line(tmp_path: Path, text: str, why: str) -> None:
    path = tmp_path / "mcp.json"
    path.write_text(text)
    with pytest.raises(UserError, match=why):
        McpServers(path)


def test_what_is_off_or_unknown_in_a_file(tmp_path: Path) -> None:
    path = config(tmp_path, "a", disabled=True)
    assert read_config(path) == ([], [])
    path = config(tmp_path, "a", icon="x", autoApprove=["t"])
    (server,), (note,) = read_config(path)
    assert server.allowed == {"t"}
    assert "icon has no effect" in note
