"""langchain-openai's ChatOpenAI, and a langgraph agent around it."""

import checks
from checks import counted, same, same_text, whole_and_streamed
from langchain_core.messages import AIMessageChunk
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from langgraph.prebuilt import create_react_agent

called = []
THINKS = {"chat_template_kwargs": {"enable_thinking": True}}


@tool
def get_weather(city: str) -> str:
    """Get the weather."""
    called.append({"city": city})
    return checks.RESULT


def model(**options):
    return ChatOpenAI(
        model=checks.MODEL, base_url=checks.V1, temperature=0, max_tokens=200, stream_usage=True, **options
    )


def ask(stream, messages, chosen):
    """The message, summed up from its chunks where it was streamed."""
    if not stream:
        return chosen.invoke(messages)
    message = AIMessageChunk(content="")
    for chunk in chosen.stream(messages):
        message += chunk
    return message


@whole_and_streamed
def chat(stream):
    same_text(ask(stream, checks.QUESTION, model()).text, checks.ANSWER)


@whole_and_streamed
def tools(stream):
    called.clear()
    chosen = model().bind_tools([get_weather])
    message = ask(stream, checks.WEATHER, model().bind_tools([get_weather], tool_choice="any"))
    [call] = message.tool_calls
    messages = [("user", checks.WEATHER), message, get_weather.invoke(call)]
    same("called with", called, [checks.ARGUMENTS])
    same_text(ask(stream, messages, chosen).text, checks.REPORT)


@whole_and_streamed
def usage(stream):
    used = ask(stream, checks.QUESTION, model()).usage_metadata
    return counted(used["input_tokens"], used["output_tokens"])


@whole_and_streamed
def responses(stream):
    """The one of its two protocols in which it has a place for reasoning."""
    message = ask(stream, checks.SUM, model(use_responses_api=True, reasoning={"effort": "low", "summary": "auto"}))
    [thought] = [block for block in message.content_blocks if block["type"] == "reasoning"]
    same_text(thought["reasoning"], checks.THOUGHT)
    same_text(message.text, checks.SUM_ANSWER)
    return message.usage_metadata["output_token_details"]["reasoning"]


@whole_and_streamed
def graph(stream):
    called.clear()
    agent = create_react_agent(model(extra_body=THINKS), [get_weather])
    asked = {"messages": [("user", checks.WEATHER)]}
    if stream:
        pieces = [
            chunk for chunk, _ in agent.stream(asked, stream_mode="messages") if isinstance(chunk, AIMessageChunk)
        ]
        text = "".join(piece.text for piece in pieces)
    else:
        text = agent.invoke(asked)["messages"][-1].text
    same("called with", called, [checks.ARGUMENTS])
    same_text(text, checks.REPORT)
