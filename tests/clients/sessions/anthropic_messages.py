"""The anthropic client on /v1/messages."""

import checks
from anthropic import Anthropic
from checks import counted, same, same_text, whole_and_streamed

client = Anthropic(base_url=checks.URL)
TOOLS = [{"name": "get_weather", "description": checks.DESCRIPTION, "input_schema": checks.SCHEMA}]


def ask(stream, messages, **options):
    """The message, put together by the client where it was streamed."""
    options = {"model": checks.MODEL, "messages": messages, "max_tokens": 200, **options}
    if not stream:
        return client.messages.create(**options)
    with client.messages.stream(**options) as events:
        return events.get_final_message()


def user(content):
    return {"role": "user", "content": content}


@whole_and_streamed
def chat(stream):
    message = ask(stream, [user(checks.QUESTION)])
    same("stop_reason", message.stop_reason, "end_turn")
    [block] = message.content
    same_text(block.text, checks.ANSWER)


@whole_and_streamed
def tools(stream):
    messages = [user(checks.WEATHER)]
    message = ask(stream, messages, tools=TOOLS, tool_choice={"type": "any"})
    same("stop_reason", message.stop_reason, "tool_use")
    [call] = message.content
    same("call", (call.name, call.input), ("get_weather", checks.ARGUMENTS))
    result = {"type": "tool_result", "tool_use_id": call.id, "content": checks.RESULT}
    messages += [{"role": "assistant", "content": message.content}, user([result])]
    [block] = ask(stream, messages, tools=TOOLS).content
    same_text(block.text, checks.REPORT)


@whole_and_streamed
def thinking(stream):
    budget = {"type": "enabled", "budget_tokens": 1024}
    thought, block = ask(stream, [user(checks.SUM)], thinking=budget, max_tokens=2000).content
    same_text(thought.thinking, checks.THOUGHT)
    same_text(block.text, checks.SUM_ANSWER)


@whole_and_streamed
def usage(stream):
    messages = [user(checks.QUESTION)]
    used = ask(stream, messages).usage
    prompt = used.input_tokens + (used.cache_read_input_tokens or 0)
    same("count_tokens", client.messages.count_tokens(model=checks.MODEL, messages=messages).input_tokens, prompt)
    return counted(prompt, used.output_tokens)
