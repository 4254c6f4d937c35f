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


@whole_and_streamed
def tools(stream):
    called.clear()
    model = llm.get_model("local")
    chain = model.chain(checks.WEATHER, tools=[get_weather], stream=stream, options={"temperature": 0})
    text = "".join(chain)
    same("called with", called, [checks.ARGUMENTS])
    same_text(text, checks.REPORT)


@whole_and_streamed
def usage(stream):
    response = llm.get_model("local").prompt(checks.QUESTION, stream=stream, temperature=0)
    used = response.usage()
    return counted(used.input, used.output)
