"""The examples for users do what they say, on the demo model or on a puppet; against the server where they need one."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import mlx_qwen35
from examples import extraction, forks, long_document, tool_agent
from mlx_qwen35.chat.tokenizer import Tokenizer
from mlx_qwen35.runtime import ChatRequest
from mlx_qwen35.server.settings import Settings
from tests.server.conftest import running
from tests.support import real_tokenizer
from tests.support.puppet import Script, Voice
from tests.support.puppet_weights import write_puppet
from tests.support.scripted import NAMES, TEMPLATE, TOPICS

WEATHER_SERVER = Path(__file__).parent / "weather_server.py"
QUESTION = "What is the weather in Paris?"
TURN_PAGE = "<tool_call>\n<function=next_page>\n</function>\n</tool_call>"
READER = (
    Voice("briefly", "I recall where the {topic} lives.", "Near water, dear {name}, is where a {topic} feels well."),
    Voice("proceed", "One more page about the {topic}.", TURN_PAGE),
)


@pytest.fixture(scope="module")
def demo() -> Iterator[mlx_qwen35.Qwen]:
    with mlx_qwen35.load("demo") as qwen:
        yield qwen


def test_the_agent_calls_its_tool_and_tells_the_result(demo: mlx_qwen35.Qwen) -> None:
    asked: list[str] = []

    def get_weather(city: str) -> dict[str, int | str]:
        asked.append(city)
        return {"degrees": 31, "sky": "clear"}

    assert "31" in tool_agent.run(demo, QUESTION, {"get_weather": get_weather})
    assert asked == ["Paris"]


def test_the_agent_is_forty_lines() -> None:
    lines = Path(tool_agent.__file__).read_text().splitlines()
    assert len([line for line in lines if line.strip()]) <= 40


def test_texts_become_records(demo: mlx_qwen35.Qwen) -> None:
    texts = ["Ana orders 12 lamps for 340 euros.", "We sold 7 books to Tom for 55 euros."]
    assert asyncio.run(extraction.extract(demo, texts, extraction.ORDER)) == [
        {"name": "Ana", "count": 12, "item": "lamps", "price": 340},
        {"name": "Tom", "count": 7, "item": "books", "price": 55},
    ]


def test_forks_read_their_beginning_once(demo: mlx_qwen35.Qwen) -> None:
    with demo.session("Be brief and friendly. " * 10) as session:
        session.chat("My name is Ana.", temperature=0)
        said = session.messages
        answers = forks.ask_all(session, ["What is my name?", "Is MLX a library?"])
        assert session.messages == said
    assert "Ana" in answers[0].content
    assert "Ana" not in answers[1].content
    for answer in answers:
        assert answer.usage.cached_tokens > answer.usage.prompt_tokens // 2


@pytest.mark.slow
def test_an_mcp_server_s_tool_is_called() -> None:
    pytest.importorskip("mcp")
    from mcp import StdioServerParameters

    from examples import mcp_agent

    server = StdioServerParameters(command=sys.executable, args=[str(WEATHER_SERVER)])
    with mlx_qwen35.load("demo") as qwen:
        answer = asyncio.run(mcp_agent.run(qwen, QUESTION, server))
    assert "5" in answer  # the letters of Paris
    assert "grey" in answer


@pytest.mark.slow
def test_pydantic_ai_s_agent_calls_its_tool_through_the_server(demo: mlx_qwen35.Qwen) -> None:
    pytest.importorskip("pydantic_ai")
    from examples import pydantic_agent

    with running(demo.runtime, Settings()) as server:
        answer = pydantic_agent.agent(f"{server.url}/v1").run_sync(QUESTION).output
    assert "12" in answer


@pytest.mark.slow
def test_a_document_longer_than_the_limit_is_read_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = real_tokenizer.folder()
    script = Script(Tokenizer.from_folder(tokenizer), READER, TOPICS, NAMES)
    folder = write_puppet(tmp_path / "reader", script, tokenizer, TEMPLATE)
    filler = "the wind was from the north and the sight good. " * 24
    pages = [f"Page {i} of the salmon. {filler}Please proceed." for i in range(4)]
    with mlx_qwen35.load(folder) as qwen:
        lengths: list[int] = []
        prepare = qwen.runtime.prepare

        def noted(request: ChatRequest, hold: object = None):
            prepared = prepare(request, None)
            lengths.append(len(prepared.prompt.ids))
            return prepared

        monkeypatch.setattr(qwen.runtime, "prepare", noted)
        question = "Where does a salmon live, asks Ada? Please proceed."
        answer = long_document.read(qwen, [*pages, "The end. Say it briefly: the salmon."], question, 600, think=True)
    assert answer == "Near water, dear Ada, is where a salmon feels well."
    assert len(lengths) > len(pages) + 2  # summaries were asked for, too
    assert max(lengths) < len(script.tokenizer.encode("".join(pages)))
