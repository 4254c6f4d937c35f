"""A tiny MCP server over stdio, with one tool that the demo model knows how to call."""

from __future__ import annotations

from mcp.server import MCPServer

server = MCPServer("weather")


@server.tool()
def get_weather(city: str) -> dict[str, str | int]:
    """Current weather of a city."""
    return {"degrees": len(city), "sky": "grey"}


if __name__ == "__main__":
    server.run("stdio")
