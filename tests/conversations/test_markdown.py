"""What is exported as Markdown is whole, and nothing in it can end the block it stands in."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_qwen35.conversations.conversation import Conversation
from mlx_qwen35.conversations.markdown import as_markdown, export, fenced, quoted
from mlx_qwen35.conversations.settings import Settings
from mlx_qwen35.errors import UserError

CALL = {"id": "1", "type": "function", "function": {"name": "add", "arguments": {"a": 4, "text": "```"}}}


def test_a_conversation_reads_as_it_went() -> None:
    conversation = Conversation(Settings("Be brief.\nAnd kind."), title="Sums *and* more")
    conversation.add(
        "4 + 5?", {"role": "assistant", "content": "", "reasoning_content": "hm\nadd", "tool_calls": [CALL]}
    )
    conversation.messages.append({"role": "tool", "tool_call_id": "1", "content": "9"})
    conversation.messages.append({"role": "assistant", "content": "It is **9**."})
    assert as_markdown(conversation, "demo") == (
        "# Sums \\*and\\* more\n\n*demo*\n\n## System\n\n> Be brief.\n> And kind.\n\n## You\n\n4 + 5?\n\n"
        "## Assistant\n\n> **Thinking**\n>\n> hm\n> add\n\nCalls add:\n\n"
        '````json\n{\n  "a": 4,\n  "text": "```"\n}\n````\n\n'
        "## Tool result\n\n```\n9\n```\n\n## Assistant\n\nIt is **9**.\n"
    )


def test_an_empty_conversation_has_a_title_alone() -> None:
    assert as_markdown(Conversation(), "") == "# untitled\n"


@given(st.text())
def test_nothing_closes_its_block(text: str) -> None:
    lines = fenced(text).split("\n")
    longest = max((len(run) for run in re.findall("`+", "\n".join(lines[1:-1]))), default=0)
    assert len(lines[-1]) > longest
    assert all(line.startswith(">") for line in quoted(text).split("\n"))


def test_the_end_of_the_name_says_the_format(tmp_path: Path) -> None:
    conversation = Conversation()
    conversation.add("Hi", {"role": "assistant", "content": "Ho"})
    export(conversation, tmp_path / "a.MD", "demo")
    export(conversation, tmp_path / "a.json", "demo")
    assert (tmp_path / "a.MD").read_text() == as_markdown(conversation, "demo")
    assert Conversation.load(tmp_path / "a.json") == conversation
    for name, expected in (("a.MD", "exists"), ("a.txt", "neither .md"), ("none/a.md", "no folder")):
        with pytest.raises(UserError, match=expected):
            export(conversation, tmp_path / name, "demo")
