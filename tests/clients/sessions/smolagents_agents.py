"""smolagents: its model class, and its tool-calling agent."""

import checks
from checks import counted, same, same_text, whole_and_streamed
from smolagents import OpenAIModel, Tool, ToolCallingAgent
from smolagents.models import agglomerate_stream_deltas

called = []
THINKS = {"extra_body": {"chat_template_kwargs": {"enable_thinking": True}}}


class GetWeather(Tool):
    name, description = "get_weather", checks.DESCRIPTION
    inputs = {"city": {"type": "string", "description": "A city."}}  # noqa: RUF012
    output_type = "string"

    def forward(self, city: str) -> str:
        called.append({"city": city})
        return checks.RESULT


def model(**options):
    return OpenAIModel(checks.MODEL, api_base=checks.V1, api_key="none", temperature=0, max_tokens=200, **options)


def ask(stream, question, **options):
    """The message, put together by smolagents where it was streamed."""
    messages = [{"role": "user", "content": [{"type": "text", "text": question}]}]
    if not stream:
        return model(**options).generate(messages)
    return agglomerate_stream_deltas(list(model(**options).generate_stream(messages)))


@whole_and_streamed
def chat(stream):
    same_text(ask(stream, checks.QUESTION).content, checks.ANSWER)


@whole_and_streamed
def thinking(stream):
    """It has no place for reasoning; the answer must not have it either."""
    same_text(ask(stream, checks.SUM, **THINKS).content, checks.SUM_ANSWER)


@whole_and_streamed
def usage(stream):
    used = ask(stream, checks.QUESTION).token_usage
    return counted(used.input_tokens, used.output_tokens)


@whole_and_streamed
def tools(stream):
    """The agent asks for a call in every step, and ends when the model calls final_answer: here after one."""
    called.clear()
    agent = ToolCallingAgent([GetWeather()], model(), max_steps=1, stream_outputs=stream, verbosity_level=0)
    agent.run(checks.WEATHER)
    # Its system message is longer than the demo model follows: which city is not the protocol's business.
    same("called with", [list(arguments) for arguments in called], [["city"]])
