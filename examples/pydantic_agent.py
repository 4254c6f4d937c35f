"""Pydantic AI on `mlx-qwen35 serve`: an agent of another framework, over OpenAI's protocol.

pip install 'pydantic-ai-slim[openai]'
mlx-qwen35 serve &
python -m examples.pydantic_agent "What is the weather in Paris?" [http://127.0.0.1:8080/v1]
"""

from __future__ import annotations

import sys

from pydantic_ai import Agent
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider


def agent(url: str, model: str = "demo") -> Agent:
    """url: of the server, with /v1   model: the name under which it serves"""
    provider = OpenAIProvider(base_url=url, api_key="none")
    made = Agent(OpenAIChatModel(model, provider=provider), model_settings={"temperature": 0})

    @made.tool_plain
    def get_weather(city: str) -> dict[str, str | int]:
        """Current weather of a city."""
        return {"degrees": 7 + len(city), "sky": "clear"}

    return made


if __name__ == "__main__":
    base = sys.argv[2] if len(sys.argv) > 2 else "http://127.0.0.1:8080/v1"
    print(agent(base).run_sync(sys.argv[1]).output)
