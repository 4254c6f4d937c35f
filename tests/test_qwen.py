"""The Python API: all ways of asking give the same answer, share one batch, and end when nobody reads on."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

import mlx_qwen35
from mlx_qwen35.chat.reply import Gathering
from mlx_qwen35.errors import RequestError, UserError
from mlx_qwen35.qwen import Qwen

QUESTION = "How do I convert a model?"
QUESTIONS = [f"What is {i} + 4?" for i in range(8)]
ADD = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
PATIENCE = 30  # seconds until a row must be free; a step takes milliseconds


@pytest.fixture(scope="module")
def qwen() -> Iterator[Qwen]:
    with mlx_qwen35.load("demo") as loaded:
        yield loaded


@pytest.fixture
def endless(tiny_chat: Path) -> Iterator[Qwen]:
    """A model whose answers end at their limit only."""
    with mlx_qwen35.load(tiny_chat) as loaded:
        yield loaded


def gathered(events: Any) -> Gathering:
    gathering = Gathering()
    for event in events:
        gathering.take(event)
    return gathering


def rows_are_free(qwen: Qwen) -> bool:
    until = time.monotonic() + PATIENCE
    while qwen.stats().rows and time.monotonic() < until:
        time.sleep(0.01)
    return qwen.stats().rows == 0


def said(reply: mlx_qwen35.Reply) -> tuple[str, str, str]:
    return reply.content, reply.reasoning, reply.reason


def test_importing_takes_nothing_with_it() -> None:
    code = "import sys, mlx_qwen35; print([m for m in sys.modules if m.split('.')[0] in ('mlx', 'numpy', 'jinja2')])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_the_example_of_the_readme_runs(tmp_path: Path) -> None:
    _, _, after = (Path(__file__).parents[1] / "README.md").read_text().partition("```python\n")
    done = subprocess.run(
        [sys.executable, "-c", after.partition("```")[0]], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "Finished" in done.stdout
    assert (tmp_path / "talk.session").is_file()


def test_every_exported_name_is_there() -> None:
    for name in mlx_qwen35.__all__:
        assert getattr(mlx_qwen35, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'Kwen'"):
        _ = mlx_qwen35.Kwen  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize("think", [True, False])
def test_all_ways_of_asking_give_the_same_answer(qwen: Qwen, think: bool) -> None:
    options: Any = {"think": think, "temperature": 0, "max_tokens": 80}
    whole = qwen.chat(QUESTION, **options)
    streamed = gathered(qwen.stream([{"role": "user", "content": QUESTION}], **options)).reply()

    async def awaited() -> tuple[mlx_qwen35.Reply, mlx_qwen35.Reply]:
        gathering = Gathering()
        async for event in qwen.astream(QUESTION, **options):
            gathering.take(event)
        return await qwen.achat(QUESTION, **options), gathering.reply()

    assert whole.content
    assert bool(whole.reasoning) is think
    assert [said(reply) for reply in (streamed, *asyncio.run(awaited()))] == [said(whole)] * 3
    assert whole.usage.completion_tokens == streamed.usage.completion_tokens


def test_a_text_goes_on_without_a_template(qwen: Qwen) -> None:
    options: Any = {"temperature": 0, "max_tokens": 12}
    whole = qwen.generate("Once upon", **options)
    ids = qwen.runtime.tokenizer.encode("Once upon")
    assert whole.usage.prompt_tokens == len(ids)
    assert qwen.runtime.tokenizer.decode(whole.ids) == whole.text
    assert qwen.generate(ids, **options).text == whole.text
    assert gathered(qwen.stream_generate("Once upon", **options)).reply().content == whole.text

    async def awaited() -> tuple[str, str]:
        gathering = Gathering()
        async for event in qwen.astream_generate(ids, **options):
            gathering.take(event)
        return (await qwen.agenerate("Once upon", **options)).text, gathering.reply().content

    assert asyncio.run(awaited()) == (whole.text, whole.text)


def test_going_on_again_with_the_same_text_computes_one_token(qwen: Qwen) -> None:
    prompt = "A text to go on with, more than once"
    answers = [qwen.generate(prompt, temperature=3, top_k=0, top_p=1, seed=seed, max_tokens=8) for seed in (1, 1, 2)]
    assert answers[0].text == answers[1].text != answers[2].text
    assert [a.usage.cached_tokens for a in answers[1:]] == [answers[0].usage.prompt_tokens - 1] * 2


def test_tags_in_a_plain_text_stay_as_they_are(qwen: Qwen) -> None:
    """A chat's parser would take the think block out."""
    prompt = qwen.runtime.render(mlx_qwen35.ChatRequest([{"role": "user", "content": "What is 3 + 4?"}], None, True))
    assert "</think>" in qwen.generate(prompt, temperature=0, max_tokens=80).text


def test_tasks_and_threads_share_the_batch_and_do_not_disturb_each_other(qwen: Qwen) -> None:
    options: Any = {"think": False, "temperature": 0, "max_tokens": 30}
    alone = [qwen.chat(question, **options).content for question in QUESTIONS]
    most = 0

    async def together() -> list[str]:
        nonlocal most

        async def one(question: str) -> str:
            nonlocal most
            gathering = Gathering()
            async for event in qwen.astream(question, **options):
                most = max(most, qwen.stats().rows)
                gathering.take(event)
            return gathering.reply().content

        return await asyncio.gather(*map(one, QUESTIONS))

    before = threading.active_count()
    assert asyncio.run(together()) == alone
    assert most > 1
    assert threading.active_count() <= before + 8  # the pool that renders prompts may live on; streams have no thread
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda question: qwen.chat(question, **options).content, QUESTIONS)) == alone


def test_a_cancelled_task_frees_its_row(endless: Qwen) -> None:
    async def give_up() -> None:
        task = asyncio.create_task(endless.achat("hello", max_tokens=30_000))
        while not endless.stats().rows:
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(give_up())
    assert rows_are_free(endless)


@pytest.mark.parametrize("close", [True, False])
def test_a_stream_that_is_left_early_frees_its_row(endless: Qwen, close: bool) -> None:
    async def leave() -> None:
        stream = endless.astream("hello", max_tokens=30_000)
        async with aclosing(stream) if close else asyncio.timeout(None):
            async for event in stream:
                if isinstance(event, mlx_qwen35.Content | mlx_qwen35.Reasoning):
                    break

    asyncio.run(leave())
    assert rows_are_free(endless)
    for event in endless.stream("hello", max_tokens=30_000):
        if isinstance(event, mlx_qwen35.Content | mlx_qwen35.Reasoning):
            break
    assert rows_are_free(endless)
    assert endless.chat("hello", max_tokens=3).usage.completion_tokens == 3


def test_a_loop_that_dies_does_not_disturb_others(endless: Qwen) -> None:
    """The engine tells a listener of each token; the listener's loop may be closed by then."""
    other = endless.stream("hello", max_tokens=400, seed=1)
    next(other)
    loop = asyncio.new_event_loop()
    stream = endless.astream("hello", max_tokens=30_000)
    loop.run_until_complete(anext(stream))
    loop.close()
    assert gathered(other).reply().usage.completion_tokens == 400
    assert rows_are_free(endless)
    del stream


def test_a_stream_that_is_never_read_takes_no_place(endless: Qwen) -> None:
    stream = endless.stream("hello")
    assert endless.stats().rows == endless.stats().waiting == 0
    stream.close()


def test_a_stop_string_ends_the_answer_and_frees_its_row(endless: Qwen) -> None:
    first = endless.chat("hello", max_tokens=60, seed=3, think=False).content
    stop = first[5:8]
    cut = endless.chat("hello", max_tokens=30_000, seed=3, think=False, stop=stop)
    assert (cut.content, cut.reason) == (first[: first.index(stop)], "stop")
    assert rows_are_free(endless)

    async def awaited() -> mlx_qwen35.Reply:
        return await endless.achat("hello", max_tokens=30_000, seed=3, think=False, stop=[stop])

    assert asyncio.run(awaited()).content == cut.content
    assert rows_are_free(endless)


def test_an_answer_that_a_stop_string_ends_knows_how_long_it_waited(tiny_chat: Path) -> None:
    with mlx_qwen35.load(tiny_chat, max_sequences=1) as qwen:
        stop = qwen.chat("hello", max_tokens=60, seed=3, think=False).content[5:8]
        first = qwen.stream("first", max_tokens=30_000, think=False)
        next(first)
        with ThreadPoolExecutor() as pool:
            waits = pool.submit(qwen.chat, "hello", max_tokens=30_000, seed=3, think=False, stop=stop)
            while not qwen.stats().waiting:
                next(first)  # who does not read would have to give way
            until = time.monotonic() + 0.1
            while time.monotonic() < until:
                next(first)
            first.close()
            reply = waits.result()
        assert reply.reason == "stop"
        assert reply.usage.queue_seconds >= 0.1


def test_tool_calls_come_whole_and_go_back(qwen: Qwen) -> None:
    messages: list[dict[str, Any]] = [{"role": "user", "content": "What is the weather in Paris?"}]
    reply = qwen.chat(messages, tools=[ADD], think=False, temperature=0, max_tokens=100)
    assert reply.reason == "tool_calls", reply
    (call,) = reply.tool_calls
    assert call["function"]["name"] == "get_weather"
    assert "Paris" in str(call["function"]["arguments"])
    messages += [reply.message, {"role": "tool", "tool_call_id": call["id"], "content": "Sunny, 21 degrees."}]
    again = qwen.chat(messages, tools=[ADD], think=False, temperature=0, max_tokens=60)
    assert again.content
    assert again.usage.rerendered_tokens == 0, again.usage.cache_note


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"temprature": 0.5}, "'temprature'.*'temperature'"),
        ({"maximum": 5}, "'maximum'"),
        ({"temperature": "hot"}, "temperature is 'hot'"),
        ({"temperature": -1}, "temperature"),
        ({"max_tokens": 0}, "max_tokens is 0"),
        ({"max_tokens": 2.5}, "max_tokens is 2.5"),
        ({"think": "yes"}, "think is 'yes'"),
        ({"stop": [3]}, "stop"),
        ({"stop": 5}, "stop is 5"),
        ({"logit_bias": {"a": 1}}, "logit_bias"),
        ({"preset": "turbo"}, "turbo"),
    ],
)
def test_what_cannot_be_asked_is_said_in_one_line(qwen: Qwen, options: Any, words: str) -> None:
    with pytest.raises(RequestError, match=words) as error:
        qwen.chat(QUESTION, **options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("prompt", [5, None, b"ab", ["a"], [True], [-1], {1: 2}])
def test_what_is_no_text_cannot_be_gone_on_with(qwen: Qwen, prompt: Any) -> None:
    with pytest.raises(RequestError, match="text or a list of token ids"):
        qwen.generate(prompt)


def test_unknown_options_are_refused_before_anything_is_read(qwen: Qwen) -> None:
    for ask in (qwen.stream, qwen.astream, qwen.stream_generate, qwen.astream_generate, qwen.session):
        with pytest.raises(RequestError, match="tempo"):
            ask("hello", tempo=1)  # pyright: ignore[reportCallIssue]


@pytest.mark.parametrize(
    "options",
    [
        {"kv_bits": 5},
        {"max_sequences": 0},
        {"max_sequences": "4"},
        {"prefix_bytes": -1},
        {"prefix_bytes": "1"},
        {"disk_bytes": 0.5},
        {"context": None},
        {"disk": 5},
    ],
)
def test_what_cannot_be_loaded_is_said_in_one_line(tiny_chat: Path, options: Any) -> None:
    with pytest.raises(UserError, match=f"^{next(iter(options))} is "):
        mlx_qwen35.load(tiny_chat, **options)


def test_none_leaves_an_option_to_the_model(qwen: Qwen) -> None:
    assert qwen.chat(QUESTION, temperature=None, top_p=None, seed=1, max_tokens=5) is not None


def test_closing_ends_running_answers_and_refuses_new_ones(tiny_chat: Path) -> None:
    qwen = mlx_qwen35.load(tiny_chat)
    stream = qwen.stream("hello", max_tokens=30_000)
    next(stream)
    qwen.close()
    finished = gathered(stream).finished
    assert finished is not None
    assert finished.reason == "cancelled"
    with pytest.raises(RequestError, match="closed"):
        qwen.chat("hello")


def test_closing_again_does_nothing(tiny_chat: Path) -> None:
    with mlx_qwen35.load(tiny_chat) as qwen:
        with ThreadPoolExecutor() as pool:
            for closed in [pool.submit(qwen.close) for _ in range(3)]:
                closed.result()
        qwen.close()


def test_prefixes_on_disk_serve_the_next_process(tiny_chat: Path, tmp_path: Path) -> None:
    asked = "A long question. " * 30
    with mlx_qwen35.load(tiny_chat, disk=tmp_path / "prefixes", kv_bits=8) as qwen:
        first = qwen.generate(asked, max_tokens=5, temperature=0)
    with mlx_qwen35.load(tiny_chat, disk=tmp_path / "prefixes", kv_bits=8) as qwen:
        more = qwen.generate([*qwen.runtime.tokenizer.encode(asked), *first.ids], max_tokens=5, temperature=0)
    assert more.usage.cached_tokens == first.usage.prompt_tokens + 4  # the last token drawn was never fed
