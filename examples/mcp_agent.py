"""Tools of an MCP server, through the official client: the model calls, the server does.

pip install 'mlx-qwen35[mcp]'
python -m examples.mcp_agent "What is the weather in Paris?" python my_mcp_server.py
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any

from mcp import ClientSession, StdioServerParameters, stdio_client
from mcp.types import TextContent

import mlx_qwen35


async def run(qwen: mlx_qwen35.Qwen, question: str, server: StdioServerParameters, rounds: int = 10) -> str:
    """The answer, once the model makes no more calls to the server's tools."""
    async with stdio_client(server) as (read, write), ClientSession(read, write) as client:
        await client.initialize()
        tools = [
            {
                "type": "function",
                "function": {"name": t.name, "description": t.description or "", "parameters": t.input_schema},
            }
            for t in (await client.list_tools()).tools
        ]
        messages: list[dict[str, Any]] = [{"role": "user", "content": question}]
        for _ in range(rounds):
            reply = await qwen.achat(messages, tools=tools, temperature=0)
            messages.append(reply.message)
            if not reply.tool_calls:
                return reply.content
            for call in reply.tool_calls:
                result = await client.call_tool(call["function"]["name"], call["function"]["arguments"])
                text = "\n".join(part.text for part in result.content if isinstance(part, TextContent))
                messages.append({"role": "tool", "tool_call_id": call["id"], "content": text})
    raise RuntimeError(f"no answer after {rounds} rounds of tool calls")


if __name__ == "__main__":
    _, asked, command, *arguments = sys.argv
    with mlx_qwen35.load() as model:
        print(asyncio.run(run(model, asked, StdioServerParameters(command=command, args=arguments))))
