"""llm, configured as its users do it: a file that names models of a server."""

import os
import pathlib

import checks
import llm
from checks import counted, same, same_text, whole_and_streamed

folder = pathlib.Path(os.environ["HOME"]) / "llm"
folder.mkdir()
os.environ["LLM_USER_PATH"] = str(folder)
(folder / "extra-openai-models.yaml").write_text(f"""
- model_id: local
  model_name: {checks.MODEL}
  api_base: {checks.V1}
  supports_tools: true
- model_id: responses
  model_name: {checks.MODEL}
  api_base: {checks.V1}
  supports_tools: true
  responses: true
  reasoning: true
""")
called = []


def get_weather(city: str) -> str:
    """Get the weather."""
    called.append({"city": city})
    return checks.RESULT


@whole_and_streamed
def chat(stream):
    response = llm.get_model("local").prompt(checks.QUESTION, stream=stream, temperature=0)
    same_text("".join(response), checks.ANSWER)


def calls_a_tool(stream, model, **options):
    called.clear()
    chain = llm.get_model(model).chain(checks.WEATHER, tools=[get_weather], stream=stream, options=options)
    text = "".join(chain)
    same("called with", called, [checks.ARGUMENTS])
    same_text(text, checks.REPORT)


@whole_and_streamed
def tools(stream):
    calls_a_tool(stream, "local", temperature=0)


@whole_and_streamed
def usage(stream):
    response = llm.get_model("local").prompt(checks.QUESTION, stream=stream, temperature=0)
    used = response.usage()
    return counted(used.input, used.output)


@whole_and_streamed
def responses(stream):
    """The one of its two protocols in which it has a place for reasoning."""
    calls_a_tool(stream, "responses")
    response = llm.get_model("responses").prompt(checks.SUM, stream=stream, reasoning_effort="low")
    events = list(response.stream_events())
    same_text("".join(event.chunk for event in events if event.type == "reasoning"), checks.THOUGHT)
    same_text("".join(event.chunk for event in events if event.type == "text"), checks.SUM_ANSWER)
