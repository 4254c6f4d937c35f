"""openai-agents: its runner calls the tool and goes on, over chat completions and over Responses."""

import asyncio

import checks
from agents import (
    Agent,
    ModelSettings,
    OpenAIChatCompletionsModel,
    OpenAIResponsesModel,
    Runner,
    function_tool,
    set_tracing_disabled,
)
from agents.items import ReasoningItem
from checks import counted, same, same_text, whole_and_streamed
from openai import AsyncOpenAI
from openai.types.shared import Reasoning

set_tracing_disabled(True)
THINKS = {"chat_template_kwargs": {"enable_thinking": True}}
called = []


@function_tool(description_override=checks.DESCRIPTION)
def get_weather(city: str) -> str:
    called.append({"city": city})
    return checks.RESULT


def ask(stream, question, model=OpenAIChatCompletionsModel, tools=(), **settings):
    """The finished run."""

    async def run():
        chosen = model(checks.MODEL, AsyncOpenAI(base_url=checks.V1))
        settings_ = ModelSettings(temperature=0, max_tokens=200, include_usage=True, **settings)
        agent = Agent("helper", model=chosen, tools=list(tools), model_settings=settings_)
        if not stream:
            return await Runner.run(agent, question)
        running = Runner.run_streamed(agent, question)
        async for _ in running.stream_events():
            pass
        return running

    called.clear()
    return asyncio.run(run())


def thought(run):
    """What the client holds as reasoning, in full or as a summary."""
    [item] = [item.raw_item for item in run.new_items if isinstance(item, ReasoningItem)]
    return "".join(part.text for part in item.content or item.summary)


@whole_and_streamed
def chat(stream):
    same_text(ask(stream, checks.QUESTION).final_output, checks.ANSWER)


@whole_and_streamed
def tools(stream):
    run = ask(stream, checks.WEATHER, tools=[get_weather])
    same("called with", called, [checks.ARGUMENTS])
    same_text(run.final_output, checks.REPORT)


@whole_and_streamed
def thinking(stream):
    run = ask(stream, checks.SUM, extra_body=THINKS)
    same_text(thought(run), checks.THOUGHT)
    same_text(run.final_output, checks.SUM_ANSWER)


@whole_and_streamed
def usage(stream):
    used = ask(stream, checks.QUESTION).context_wrapper.usage
    return counted(used.input_tokens, used.output_tokens)


@whole_and_streamed
def responses(stream):
    run = ask(stream, checks.WEATHER, OpenAIResponsesModel, [get_weather])
    same("called with", called, [checks.ARGUMENTS])
    same_text(run.final_output, checks.REPORT)
    run = ask(stream, checks.SUM, OpenAIResponsesModel, reasoning=Reasoning(effort="low"))
    same_text(thought(run), checks.THOUGHT)
    same_text(run.final_output, checks.SUM_ANSWER)
    used = run.context_wrapper.usage
    return counted(used.input_tokens, used.output_tokens)
