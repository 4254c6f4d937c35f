"""pydantic-ai: its agent calls the tool and goes on, over each of the three protocols."""

import asyncio

import checks
from checks import counted, same, same_text, whole_and_streamed
from pydantic_ai import Agent
from pydantic_ai.messages import ThinkingPart
from pydantic_ai.models.anthropic import AnthropicModel
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.anthropic import AnthropicProvider
from pydantic_ai.providers.openai import OpenAIProvider

OPENAI = OpenAIProvider(base_url=checks.V1, api_key="none")
COMPLETIONS = OpenAIChatModel(checks.MODEL, provider=OPENAI)
RESPONSES = OpenAIResponsesModel(checks.MODEL, provider=OPENAI)
ANTHROPIC = AnthropicModel(checks.MODEL, provider=AnthropicProvider(base_url=checks.URL, api_key="none"))
THINKS = {"extra_body": {"chat_template_kwargs": {"enable_thinking": True}}}
called = []


def get_weather(city: str) -> str:
    """Get the weather."""
    called.append({"city": city})
    return checks.RESULT


def ask(stream, question, model=COMPLETIONS, tools=(), settings=None):
    """The text, what was thought, and the usage."""

    async def run():
        agent = Agent(model, tools=list(tools), model_settings={"max_tokens": 2000, **(settings or {})})
        if not stream:
            result = await agent.run(question)
            return result.output, result.all_messages(), result.usage
        async with agent.run_stream(question) as result:
            text = "".join([piece async for piece in result.stream_text(delta=True, debounce_by=None)])
            return text, result.all_messages(), result.usage

    called.clear()
    text, messages, usage = asyncio.run(run())
    thoughts = [part.content for message in messages for part in message.parts if isinstance(part, ThinkingPart)]
    usage = usage() if callable(usage) else usage
    return text, "".join(thoughts), counted(usage.input_tokens, usage.output_tokens)


def all_of_it(stream, model, thinks):
    """Tools, thinking and usage over one protocol."""
    text, _, first = ask(stream, checks.WEATHER, model, [get_weather])
    same("called with", called, [checks.ARGUMENTS])
    same_text(text, checks.REPORT)
    text, thought, second = ask(stream, checks.SUM, model, settings=thinks)
    same_text(thought, checks.THOUGHT)
    same_text(text, checks.SUM_ANSWER)
    return first, second


@whole_and_streamed
def chat(stream):
    same_text(ask(stream, checks.QUESTION)[0], checks.ANSWER)


@whole_and_streamed
def tools(stream):
    text, _, _ = ask(stream, checks.WEATHER, tools=[get_weather])
    same("called with", called, [checks.ARGUMENTS])
    same_text(text, checks.REPORT)


@whole_and_streamed
def thinking(stream):
    text, thought, _ = ask(stream, checks.SUM, settings=THINKS)
    same_text(thought, checks.THOUGHT)
    same_text(text, checks.SUM_ANSWER)


@whole_and_streamed
def usage(stream):
    return ask(stream, checks.QUESTION)[2]


@whole_and_streamed
def responses(stream):
    return all_of_it(stream, RESPONSES, {"openai_reasoning_effort": "low", "openai_reasoning_summary": "auto"})


@whole_and_streamed
def anthropic(stream):
    return all_of_it(stream, ANTHROPIC, {"anthropic_thinking": {"type": "enabled", "budget_tokens": 1024}})
