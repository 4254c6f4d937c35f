"""`/v1/chat/completions` and `/v1/completions` as OpenAI's own client uses them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from mlx_qwen35.runtime import ChatRequest, Runtime
from tests.server.conftest import RunningServer

SUM: Any = [{"role": "user", "content": "What is 3 + 4?"}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Weather in a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


@pytest.fixture(scope="module")
def client(demo_server: RunningServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{demo_server.url}/v1", api_key="any", max_retries=0, timeout=60) as client:
        yield client


def ask(client: openai.OpenAI, messages: Any = None, **options: Any) -> Any:
    options = {"model": "demo", "temperature": 0, **options}
    return client.chat.completions.create(messages=messages or SUM, **options)


def test_an_answer_is_the_runtime_s(client: openai.OpenAI, demo_runtime: Runtime) -> None:
    answer = ask(client)
    events = demo_runtime.chat(ChatRequest(SUM, sampling={"temperature": 0}))
    assert answer.choices[0].message.content == "".join(getattr(event, "text", "") for event in events)
    assert answer.choices[0].finish_reason == "stop"
    assert answer.object == "chat.completion"
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


@pytest.mark.parametrize("options", [{}, {"extra_body": {"enable_thinking": True}}])
def test_streamed_pieces_join_to_the_whole_answer(client: openai.OpenAI, options: Any) -> None:
    whole = ask(client, **options).choices[0]
    chunks = list(ask(client, stream=True, stream_options={"include_usage": True}, **options))
    deltas = [chunk.choices[0].delta for chunk in chunks if chunk.choices]
    assert [delta.role for delta in deltas if delta.role] == ["assistant"]
    assert "".join(delta.content or "" for delta in deltas) == whole.message.content
    thoughts = "".join(getattr(delta, "reasoning_content", "") for delta in deltas)
    assert thoughts == getattr(whole.message, "reasoning_content", "")
    assert bool(thoughts) == bool(options)
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == whole.finish_reason
    assert {chunk.id for chunk in chunks} == {chunks[0].id}
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}
    assert [chunk.usage is not None for chunk in chunks] == [False] * (len(chunks) - 1) + [True]


def test_usage_counts_reasoning_and_what_was_reused(client: openai.OpenAI) -> None:
    ask(client, extra_body={"enable_thinking": True})
    usage = ask(client, extra_body={"enable_thinking": True}).usage
    assert 0 < usage.completion_tokens_details.reasoning_tokens < usage.completion_tokens
    assert 0 < usage.prompt_tokens_details.cached_tokens <= usage.prompt_tokens
    assert usage.cache["reused_tokens"] == usage.prompt_tokens_details.cached_tokens


def test_notes_on_the_cache_do_not_quote_other_prompts(client: openai.OpenAI) -> None:
    ask(client, [{"role": "user", "content": "The password is swordfish"}], max_tokens=1)
    usage = ask(client, [{"role": "user", "content": "The password is what?"}], max_tokens=1).usage
    assert "differs from an earlier prompt at token" in usage.cache["note"]
    assert "swordfish" not in usage.model_dump_json()


def test_tool_calls_arrive_in_pieces_that_join_to_arguments(client: openai.OpenAI) -> None:
    question = [{"role": "user", "content": "What is the weather in Paris?"}]
    call = ask(client, question, tools=[WEATHER]).choices[0].message.tool_calls[0]
    pieces = [
        piece
        for chunk in ask(client, question, tools=[WEATHER], stream=True)
        for piece in chunk.choices[0].delta.tool_calls or []
    ]
    assert json.loads(call.function.arguments) == {"city": "Paris"}
    assert json.loads("".join(piece.function.arguments for piece in pieces)) == {"city": "Paris"}
    assert [piece.function.name for piece in pieces if piece.function.name] == ["get_weather"]
    assert len(pieces) > 3


def test_a_tool_loop_comes_to_an_answer(client: openai.OpenAI) -> None:
    messages: list[Any] = [{"role": "user", "content": "What is the weather in Paris?"}]
    answer = ask(client, messages, tools=[WEATHER]).choices[0]
    assert answer.finish_reason == "tool_calls"
    messages += [answer.message, {"role": "tool", "tool_call_id": answer.message.tool_calls[0].id, "content": "sunny"}]
    final = ask(client, messages, tools=[WEATHER])
    assert final.choices[0].finish_reason == "stop"
    assert final.choices[0].message.content
    assert final.usage.prompt_tokens_details.cached_tokens > 0


@pytest.mark.parametrize("stream", [True, False])
def test_the_choice_of_tool_is_obeyed(client: openai.OpenAI, stream: bool) -> None:
    def called(text: str, **options: Any) -> list[str]:
        answer = ask(client, [{"role": "user", "content": text}], stream=stream, max_tokens=200, **options)
        if not stream:
            return [call.function.name for call in answer.choices[0].message.tool_calls or []]
        deltas = [chunk.choices[0].delta for chunk in answer]
        return [call.function.name for delta in deltas for call in delta.tool_calls or [] if call.function.name]

    weather = "What is the weather in Paris?"
    other = {"type": "function", "function": {"name": "get_time", "parameters": {"type": "object", "properties": {}}}}
    assert called(weather, tools=[WEATHER], tool_choice="none") == []
    assert called("Hello", tools=[WEATHER], tool_choice="required")[0] == "get_weather"
    named = {"type": "function", "function": {"name": "get_time"}}
    assert called(weather, tools=[WEATHER, other], tool_choice=named)[0] == "get_time"
    assert len(called(weather, tools=[WEATHER], parallel_tool_calls=False)) == 1


@pytest.mark.parametrize("thinking", [True, False])
def test_the_answer_s_form_is_obeyed(client: openai.OpenAI, thinking: bool) -> None:
    schema = {
        "type": "object",
        "properties": {"sum": {"type": "integer", "maximum": 99}, "even": {"type": "boolean"}},
        "required": ["sum", "even"],
        "additionalProperties": False,
    }
    extra = {"extra_body": {"enable_thinking": thinking}}
    form = {"type": "json_schema", "json_schema": {"name": "sum", "schema": schema, "strict": True}}
    message = ask(client, response_format=form, max_tokens=200, **extra).choices[0].message
    found = json.loads(message.content)
    assert set(found) == {"sum", "even"}
    assert bool(getattr(message, "reasoning_content", "")) == thinking
    with pytest.raises(openai.BadRequestError):
        ask(client, response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": 5}}})


def test_thinking_ends_at_its_budget(client: openai.OpenAI) -> None:
    def thoughts(**options: Any) -> str:
        return getattr(ask(client, max_tokens=300, **options).choices[0].message, "reasoning_content", "")

    free = thoughts(extra_body={"enable_thinking": True})
    cut = thoughts(extra_body={"enable_thinking": True, "thinking_budget": 3})
    assert cut[:2] == free[:2]
    assert free[6:] not in cut  # it was brought to another end
    assert thoughts(reasoning_effort="none") == thoughts(extra_body={"thinking_budget": 0}) == ""
    assert thoughts(reasoning_effort="low") == free


def test_choices_are_numbered_and_a_seed_repeats_them(client: openai.OpenAI) -> None:
    options = {"n": 3, "seed": 5, "temperature": 2, "max_tokens": 12, "extra_body": {"top_k": 0, "top_p": 1}}
    first, second = ask(client, **options), ask(client, **options)
    texts = [choice.message.content for choice in first.choices]
    assert texts == [choice.message.content for choice in second.choices]
    assert len(set(texts)) > 1
    assert [choice.index for choice in first.choices] == [0, 1, 2]
    streamed = ["", "", ""]
    for chunk in ask(client, stream=True, **options):
        streamed[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert streamed == texts


def test_limits_and_biases_reach_the_model(client: openai.OpenAI, demo_runtime: Runtime) -> None:
    token = demo_runtime.tokenizer.encode("x")[0]
    cut = ask(client, max_tokens=5, logit_bias={str(token): 100}).choices[0]
    assert (cut.message.content, cut.finish_reason) == ("xxxxx", "length")
    stopped = ask(client, max_completion_tokens=9, logit_bias={str(token): 100}, stop="xxx").choices[0]
    assert (stopped.message.content, stopped.finish_reason) == ("", "stop")


def test_null_is_as_if_left_out(demo_server: RunningServer) -> None:
    fields = ["temperature", "top_p", "max_tokens", "stop", "n", "seed", "tools", "tool_choice", "response_format"]
    fields += ["stream", "stream_options", "logit_bias", "logprobs", "reasoning_effort", "parallel_tool_calls"]
    body = {"messages": SUM, **dict.fromkeys(fields)}
    assert demo_server.post("/v1/chat/completions", body).status == 200


def test_histories_that_agents_really_send_are_answered(client: openai.OpenAI) -> None:
    def call(arguments: Any) -> Any:
        return {"id": "a", "type": "function", "function": {"name": "get_weather", "arguments": arguments}}

    for messages in (
        [{"role": "developer", "content": "Be brief."}, *SUM],
        [{"role": "system", "content": "A"}, {"role": "system", "content": "B"}, *SUM],
        [*SUM, {"role": "assistant", "content": "7"}, {"role": "system", "content": "Be brief."}, *SUM],
        [*SUM, {"role": "assistant", "content": None, "tool_calls": [call("{broken")]},
         {"role": "tool", "tool_call_id": "a", "content": [{"type": "text", "text": "sunny"}]}],
        [*SUM, {"role": "assistant", "content": "", "tool_calls": [call("")]}, *SUM],
        [{"role": "tool", "tool_call_id": "nobody", "content": "x"}],
        [{"role": "assistant", "content": "Once"}],
    ):  # fmt: skip
        assert ask(client, messages, max_tokens=4).choices[0].finish_reason


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"extra_body": {"functions": []}}, "functions"),
        ({"modalities": ["audio"]}, "modalities"),
        ({"extra_body": {"chat_template_kwargs": {"chat_template": "x"}}}, "chat_template_kwargs.chat_template"),
    ],
)
def test_what_is_not_obeyed_is_refused_by_name(client: openai.OpenAI, options: Any, field: str) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        ask(client, **options)
    assert refused.value.param == field
    assert refused.value.code == "unsupported_parameter"


def test_errors_are_those_that_the_client_knows(client: openai.OpenAI, demo_server: RunningServer) -> None:
    with pytest.raises(openai.NotFoundError) as refused:
        ask(client, model="gpt-4o")
    assert refused.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as refused:
        ask(client, [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}]}])
    assert refused.value.code == "unsupported_media"
    assert refused.value.param == "messages[0].content[0]"
    with pytest.raises(openai.BadRequestError) as refused:
        ask(client, [{"role": "user", "content": "a b " * 40_000}])
    assert refused.value.code == "context_length_exceeded"
    assert ask(client, model="demo-alias").model == "demo-alias"
    assert [model.id for model in client.models.list()] == ["demo", "demo-alias"]
    assert client.models.retrieve("demo").id == "demo"


def test_completions_go_on_with_texts_and_ids(client: openai.OpenAI, demo_runtime: Runtime) -> None:
    options: Any = {"model": "demo", "temperature": 0, "max_tokens": 6}
    one = client.completions.create(prompt="To convert a", **options).choices[0].text
    several = client.completions.create(prompt=["To convert a", "The demo"], n=2, **options).choices
    assert [choice.index for choice in several] == [0, 1, 2, 3]
    assert [choice.text for choice in several[:2]] == [one, one]
    ids = demo_runtime.tokenizer.encode("To convert a")
    assert client.completions.create(prompt=ids, **options).choices[0].text == one
    assert (
        client.completions.create(prompt="To convert a", echo=True, **options).choices[0].text == "To convert a" + one
    )
    chunks = client.completions.create(prompt="To convert a", stream=True, **options)
    assert "".join(chunk.choices[0].text for chunk in chunks) == one


def test_the_client_s_own_gathering_of_a_stream_works(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(model="demo", messages=SUM, temperature=0) as stream:  # pyright: ignore
        for _ in stream:
            pass
        gathered = stream.get_final_completion().choices[0].message.content
    assert gathered == ask(client).choices[0].message.content


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/v1/messages", "/v1/responses"])
def test_every_protocol_says_what_was_reused_and_why_not_more(demo_server: RunningServer, path: str) -> None:
    def usage(text: str, stream: bool) -> Any:
        said: dict[str, Any] = {"messages": [{"role": "user", "content": text}], "max_tokens": 4}
        said = {"/v1/completions": {"prompt": text, "max_tokens": 4}, "/v1/responses": {"input": text}}.get(path, said)
        said |= {"model": "demo", "stream": stream}
        if stream and "completions" in path:
            said["stream_options"] = {"include_usage": True}
        answer = demo_server.post(path, said)
        assert answer.status == 200, answer.body
        if not stream:
            return answer.json["usage"]
        found = [data.get("usage") or (data.get("response") or {}).get("usage") for _, data in answer.events[:-1]]
        found += [data["response"]["usage"] for kind, data in answer.events[-1:] if kind == "response.completed"]
        return [one for one in found if one][-1]

    first = usage("Salmon swim up a long river of many stones. Then it ended so.", False)
    for stream in (False, True):
        again = usage(f"Salmon swim up a long river of many stones. Then it went on {stream}.", stream)
        assert set(again["cache"]) == {"reused_tokens", "rerendered_tokens", "note"} == set(first["cache"])
        cached = again.get("cache_read_input_tokens")
        for details in ("prompt_tokens_details", "input_tokens_details"):
            cached = again[details]["cached_tokens"] if details in again else cached
        assert again["cache"]["reused_tokens"] == cached
        assert again["cache"]["note"]
        assert "almon" not in again["cache"]["note"]  # nothing of what others said
