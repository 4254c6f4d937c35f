"""Tools of MCP servers, through the official client (extra [mcp]). The only module that knows it.

Each server lives in one task of one event loop on a thread of its own. A server is not trusted: it may die, hang, or
answer with anything, and each of these becomes one line.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import threading
from collections.abc import Mapping
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlx_qwen35.errors import UserError
from mlx_qwen35.tools.mcp_config import ServerEntry, read_config
from mlx_qwen35.tools.tool import NAME, Tool, ToolError, error_line, without_tags

if TYPE_CHECKING:
    from mcp import ClientSession
    from mcp.types import Tool as ServerTool

START_SECONDS, CALL_SECONDS, CLOSE_SECONDS = 20.0, 60.0, 8.0
MAX_TOOLS, MAX_PAGES = 64, 16  # of one server
MAX_DESCRIPTION, MAX_SCHEMA = 2_000, 32_768  # characters


@dataclass
class _Server:
    """A server, from its start to its end."""

    entry: ServerEntry
    start_seconds: float
    call_seconds: float
    leave: asyncio.Event = field(default_factory=asyncio.Event)
    ready: Future[list[ServerTool]] = field(default_factory=Future)
    ended: Future[None] = field(default_factory=Future)
    session: ClientSession | None = None


class McpServers:
    """The servers of a config file, started; `tools` are all of theirs, `notes` say which are not there and why.

    Raises UserError for a file that is none, and where the client is not installed.
    """

    def __init__(
        self,
        path: Path,
        taken: frozenset[str] = frozenset(),
        start_seconds: float = START_SECONDS,
        call_seconds: float = CALL_SECONDS,
    ) -> None:
        """taken: names of other tools; a server's tool that has one of them is called SERVER_NAME"""
        entries, notes = read_config(path)
        _require_client()
        self.notes = notes
        self.tools: list[Tool] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="mcp", daemon=True)
        self._thread.start()
        self._servers = [_Server(entry, start_seconds, call_seconds) for entry in entries]
        for server in self._servers:
            asyncio.run_coroutine_threadsafe(_live(server), self._loop)
        try:
            for server in self._servers:
                self._take_tools(server, taken | {tool.name for tool in self.tools})
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End the servers; one that does not go is killed."""
        if self._loop.is_closed():
            return
        for server in self._servers:
            self._loop.call_soon_threadsafe(server.leave.set)
        for server in self._servers:
            with contextlib.suppress(FutureTimeout):
                server.ended.result(CLOSE_SECONDS)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(CLOSE_SECONDS)
        if not self._thread.is_alive():
            self._loop.close()

    def _take_tools(self, server: _Server, taken: frozenset[str] | set[str]) -> None:
        try:
            offered = server.ready.result(server.start_seconds + CLOSE_SECONDS)
        except (UserError, FutureTimeout) as error:
            self.notes.append(str(error) or f"MCP server {server.entry.name}: no answer")
            return
        names = set(taken)
        for tool in offered[:MAX_TOOLS]:
            try:
                made = self._tool(server, tool, names)
            except ToolError as error:
                self.notes.append(f"MCP server {server.entry.name}: {error}")
                continue
            names.add(made.name)
            self.tools.append(made)
        if len(offered) > MAX_TOOLS:
            self.notes.append(f"MCP server {server.entry.name}: {MAX_TOOLS} of its {len(offered)} tools are used")

    def _tool(self, server: _Server, offered: ServerTool, taken: set[str]) -> Tool:
        name = offered.name
        name = f"{server.entry.name}_{name}" if name in taken else name
        if not NAME.fullmatch(name) or name in taken:
            raise ToolError(f"its tool {offered.name!r:.80} is left out: the name cannot be used")
        schema = json.dumps(offered.input_schema)
        if len(schema) > MAX_SCHEMA:
            raise ToolError(f"its tool {name} is left out: its schema has {len(schema):,} characters")
        # Both come into the prompt.
        description = without_tags((offered.description or "")[:MAX_DESCRIPTION])
        parameters = json.loads(without_tags(schema))
        effect = offered.name not in server.entry.allowed
        return Tool(
            name, description, parameters, partial(self._call, server, offered.name), effect, server.call_seconds
        )

    def _call(self, server: _Server, name: str, arguments: Mapping[str, Any]) -> str:
        if server.ended.done():
            raise ToolError(f"the MCP server {server.entry.name} has ended")
        future = asyncio.run_coroutine_threadsafe(_call(server, name, dict(arguments)), self._loop)
        try:
            return future.result(server.call_seconds)
        except FutureTimeout:
            future.cancel()
            raise ToolError(f"the MCP server {server.entry.name}: no answer") from None


async def _live(server: _Server) -> None:
    """Start, say what there is, and stay until told to leave. Whatever happens, `ready` and `ended` come."""
    from mcp import ClientSession, StdioServerParameters, stdio_client

    entry = server.entry
    arguments, env = list(entry.args), dict(entry.env)
    parameters = StdioServerParameters(
        command=entry.command, args=arguments, env=env, cwd=entry.cwd, encoding_error_handler="replace"
    )
    try:
        # What it prints on stderr would stand in the midst of the conversation.
        with open(os.devnull, "w") as nowhere:
            async with stdio_client(parameters, nowhere) as (read, write), ClientSession(read, write) as session:
                async with asyncio.timeout(server.start_seconds):
                    await session.initialize()
                    tools = await _offered(session)
                server.session = session
                server.ready.set_result(tools)
                await server.leave.wait()
    except BaseException as error:
        if not server.ready.done():
            line = f"MCP server {entry.name} did not start: {_reason(error)}. Run its command by hand to see why."
            server.ready.set_exception(UserError(line))
        if isinstance(error, asyncio.CancelledError):
            raise
    finally:
        server.session = None
        server.ended.set_result(None)


async def _offered(session: ClientSession) -> list[ServerTool]:
    from mcp.types import PaginatedRequestParams

    tools: list[ServerTool] = []
    page = await session.list_tools()
    for _ in range(MAX_PAGES):
        tools += page.tools
        if not page.next_cursor:
            break
        page = await session.list_tools(params=PaginatedRequestParams(cursor=page.next_cursor))
    return tools


async def _call(server: _Server, name: str, arguments: dict[str, Any]) -> str:
    try:
        assert server.session is not None  # as long as the server has not ended
        result = await server.session.call_tool(name, arguments, read_timeout_seconds=server.call_seconds)
        text = _text(result.content)  # pyright: ignore[reportAttributeAccessIssue]
    except Exception as error:
        raise ToolError(f"the MCP server {server.entry.name}: {_reason(error)}") from None
    if result.is_error:  # pyright: ignore[reportAttributeAccessIssue]
        raise ToolError(text or "the tool failed without saying why")
    return text


def _text(content: list[Any]) -> str:
    """The text parts of a result; of others, that they are there."""
    parts = [part.text if part.type == "text" else f"[{part.type}, which is not shown]" for part in content]
    return "\n".join(parts) or "(no text)"


def _reason(error: BaseException) -> str:
    """The first cause in a group of errors, on one line."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, FileNotFoundError):
        return f"there is no {error.filename or 'such command'}"
    return error_line(str(error) or type(error).__name__)


def _require_client() -> None:
    try:
        import mcp  # noqa: F401
    except ImportError:
        raise UserError("MCP servers need the official client: pip install 'mlx-qwen35[mcp]'.") from None
    # It logs each malformed line with a traceback, on stderr where nobody set up logging.
    logging.getLogger("mcp").addHandler(logging.NullHandler())
