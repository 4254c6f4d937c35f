"""The openai client on /v1/chat/completions."""

import json

import checks
from checks import counted, same, same_text, whole_and_streamed
from openai import OpenAI

client = OpenAI(base_url=checks.V1)
FUNCTION = {"name": "get_weather", "description": checks.DESCRIPTION, "parameters": checks.SCHEMA}
TOOLS = [{"type": "function", "function": FUNCTION}]


def ask(stream, messages, **options):
    """The completion, put together by the client where it was streamed."""
    options = {"model": checks.MODEL, "messages": messages, "temperature": 0, "max_tokens": 200, **options}
    if not stream:
        return client.chat.completions.create(**options)
    with client.chat.completions.stream(**options, stream_options={"include_usage": True}) as events:
        return events.get_final_completion()


def user(text):
    return {"role": "user", "content": text}


@whole_and_streamed
def chat(stream):
    [choice] = ask(stream, [user(checks.QUESTION)]).choices
    same_text(choice.message.content, checks.ANSWER)
    same("finish_reason", choice.finish_reason, "stop")


@whole_and_streamed
def tools(stream):
    messages = [user(checks.WEATHER)]
    [choice] = ask(stream, messages, tools=TOOLS, tool_choice="required").choices
    same("finish_reason", choice.finish_reason, "tool_calls")
    [call] = choice.message.tool_calls
    same("call", (call.function.name, json.loads(call.function.arguments)), ("get_weather", checks.ARGUMENTS))
    messages += [choice.message, {"role": "tool", "tool_call_id": call.id, "content": checks.RESULT}]
    [choice] = ask(stream, messages, tools=TOOLS).choices
    same_text(choice.message.content, checks.REPORT)


@whole_and_streamed
def thinking(stream):
    thinks = {"chat_template_kwargs": {"enable_thinking": True}}
    message = ask(stream, [user(checks.SUM)], extra_body=thinks).choices[0].message
    # The client has no field of its own; agents read either of the two in use.
    thought = getattr(message, "reasoning_content", None) or message.reasoning
    same_text(thought, checks.THOUGHT)
    same_text(message.content, checks.SUM_ANSWER)


@whole_and_streamed
def usage(stream):
    used = ask(stream, [user(checks.QUESTION)]).usage
    return counted(used.prompt_tokens, used.completion_tokens)
