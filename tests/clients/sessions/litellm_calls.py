"""litellm's completion(), over chat completions and, as another provider, over Anthropic's messages."""

import json

import checks
import litellm
from checks import counted, same, same_text, whole_and_streamed

OPENAI = {"model": f"openai/{checks.MODEL}", "api_base": checks.V1, "api_key": "none"}
ANTHROPIC = {"model": f"anthropic/{checks.MODEL}", "api_base": checks.URL, "api_key": "none"}
FUNCTION = {"name": "get_weather", "description": checks.DESCRIPTION, "parameters": checks.SCHEMA}
TOOLS = [{"type": "function", "function": FUNCTION}]


def ask(stream, messages, where=OPENAI, **options):
    """The completion, put together by litellm where it was streamed."""
    options = {"temperature": 0, "max_tokens": 2000, **where, **options}
    if not stream:
        return litellm.completion(messages=messages, **options)
    chunks = list(litellm.completion(messages=messages, stream=True, stream_options={"include_usage": True}, **options))
    return litellm.stream_chunk_builder(chunks, messages=messages)


def user(text):
    return {"role": "user", "content": text}


def calls_a_tool(stream, where):
    messages = [user(checks.WEATHER)]
    choice = ask(stream, messages, where, tools=TOOLS).choices[0]
    same("finish_reason", choice.finish_reason, "tool_calls")
    [call] = choice.message.tool_calls
    same("call", (call.function.name, json.loads(call.function.arguments)), ("get_weather", checks.ARGUMENTS))
    messages += [choice.message.model_dump(), {"role": "tool", "tool_call_id": call.id, "content": checks.RESULT}]
    same_text(ask(stream, messages, where, tools=TOOLS).choices[0].message.content, checks.REPORT)


def thinks(stream, where, **options):
    message = ask(stream, [user(checks.SUM)], where, **options).choices[0].message
    same_text(message.reasoning_content, checks.THOUGHT)
    same_text(message.content, checks.SUM_ANSWER)


@whole_and_streamed
def chat(stream):
    same_text(ask(stream, [user(checks.QUESTION)]).choices[0].message.content, checks.ANSWER)


@whole_and_streamed
def tools(stream):
    calls_a_tool(stream, OPENAI)


@whole_and_streamed
def thinking(stream):
    thinks(stream, OPENAI, extra_body={"chat_template_kwargs": {"enable_thinking": True}})


@whole_and_streamed
def usage(stream):
    used = ask(stream, [user(checks.QUESTION)]).usage
    return counted(used.prompt_tokens, used.completion_tokens)


@whole_and_streamed
def anthropic(stream):
    calls_a_tool(stream, ANTHROPIC)
    # litellm knows Claude's names only; any other model's parameters have to be let through.
    budget = {"thinking": {"type": "enabled", "budget_tokens": 1024}, "allowed_openai_params": ["thinking"]}
    thinks(stream, ANTHROPIC, temperature=1, **budget)
