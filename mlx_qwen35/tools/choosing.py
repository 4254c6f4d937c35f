"""Which tools a person chose, in words such as `calc,clock,files:FOLDER,mcp:FILE`, and the toolbox of them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from mlx_qwen35.errors import UserError
from mlx_qwen35.tools.calculator import calculator
from mlx_qwen35.tools.clock import clock
from mlx_qwen35.tools.files import Folder
from mlx_qwen35.tools.mcp_servers import McpServers
from mlx_qwen35.tools.tool import Tool
from mlx_qwen35.tools.toolbox import Toolbox

KINDS = "calc, clock, files:FOLDER, mcp:FILE"
# A comma within the name of a folder separates nothing.
_COMMA = re.compile(r",\s*(?=(?:calc|clock)\s*(?:,|$)|files:|mcp:|$)")


def open_toolbox(chosen: Sequence[str]) -> Toolbox:
    """A toolbox; close it after use. Raises UserError, one line, for words that name no tool.

    MCP servers that do not start are among the notes, not an error: the others serve.
    """
    tools: list[Tool] = []
    notes: list[str] = []
    words = [word.strip() for text in chosen for word in _COMMA.split(text) if word.strip()]
    with ExitStack() as opened:
        # Servers last, so that a tool of theirs never takes the name of one of ours.
        for word in sorted(dict.fromkeys(words), key=lambda word: word.startswith("mcp:")):
            kind, _, place = word.partition(":")
            if word == "calc":
                tools.append(calculator())
            elif word == "clock":
                tools.append(clock())
            elif kind == "files" and place:
                folder = Folder(place)
                opened.callback(folder.close)
                tools += folder.tools()
            elif kind == "mcp" and place:
                servers = McpServers(Path(place).expanduser(), frozenset(tool.name for tool in tools))
                opened.callback(servers.close)
                tools += servers.tools
                notes += servers.notes
            else:
                raise UserError(f"There is no tool {word!r:.80}; there are {KINDS}.")
        return Toolbox(tools, notes, opened.pop_all())
