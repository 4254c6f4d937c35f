"""The openai client on /v1/responses."""

import json

import checks
from checks import counted, same, same_text, whole_and_streamed
from openai import OpenAI

client = OpenAI(base_url=checks.V1)
TOOLS = [{"type": "function", "name": "get_weather", "description": checks.DESCRIPTION, "parameters": checks.SCHEMA}]


def ask(stream, given, **options):
    """The response, put together by the client where it was streamed."""
    options = {"model": checks.MODEL, "input": given, "temperature": 0, "max_output_tokens": 200, **options}
    if not stream:
        response = client.responses.create(**options)
    else:
        with client.responses.stream(**options) as events:
            response = events.get_final_response()
    same("status", response.status, "completed")
    return response


@whole_and_streamed
def chat(stream):
    same_text(ask(stream, checks.QUESTION).output_text, checks.ANSWER)


@whole_and_streamed
def tools(stream):
    given = [{"role": "user", "content": checks.WEATHER}]
    [call] = ask(stream, given, tools=TOOLS, tool_choice="required").output
    same("call", (call.name, json.loads(call.arguments)), ("get_weather", checks.ARGUMENTS))
    given += [call.to_dict(), {"type": "function_call_output", "call_id": call.call_id, "output": checks.RESULT}]
    same_text(ask(stream, given, tools=TOOLS).output_text, checks.REPORT)


@whole_and_streamed
def thinking(stream):
    response = ask(stream, checks.SUM, reasoning={"effort": "low"})
    thought, _ = response.output
    same_text(thought.content[0].text, checks.THOUGHT)
    same_text(response.output_text, checks.SUM_ANSWER)
    same("reasoning tokens", response.usage.output_tokens_details.reasoning_tokens > 0, True)


@whole_and_streamed
def usage(stream):
    used = ask(stream, checks.QUESTION).usage
    return counted(used.input_tokens, used.output_tokens)
