"""Structured output over the real vocabulary: what a network that says noise is made to say, and whom it disturbs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from examples.benchmarks.random_json import judge
from mlx_qwen35.chat.events import Content, Event, Finished, Reasoning
from mlx_qwen35.errors import RequestError
from mlx_qwen35.generation.guides import Mask
from mlx_qwen35.options import CacheOptions
from mlx_qwen35.runtime import ChatRequest, Runtime, TextRequest
from tests.support.random_schemas import random_schema
from tests.support.wide import write_wide

SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 20}, "size": {"enum": ["s", "m", "l"]}},
    "required": ["name", "size"],
    "additionalProperties": False,
}
FORMAT = {"type": "json_schema", "json_schema": {"schema": SCHEMA}}
HELLO = [{"role": "user", "content": "Hello"}]
HOT = {"temperature": 1.5, "top_k": 0, "top_p": 1.0, "presence_penalty": 0.0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_wide(tmp_path_factory.mktemp("wide") / "model")


@pytest.fixture(scope="module")
def runtime(folder: Path) -> Iterator[Runtime]:
    runtime = Runtime.load(str(folder), caches=CacheOptions(draft="off"))
    yield runtime
    runtime.close()


@pytest.fixture(scope="module")
def drafting(folder: Path, runtime: Runtime) -> Iterator[Runtime]:
    """The same network with a draft of its MTP layer in every window."""
    drafting = Runtime.load(str(folder), caches=CacheOptions(draft=1))
    drafting._guides = runtime._guides  # the same vocabulary, which takes seconds to read
    yield drafting
    drafting.close()


def text_of(events: list[Event], kind: type[Content] | type[Reasoning] = Content) -> str:
    return "".join(event.text for event in events if isinstance(event, kind))


def finished(events: list[Event]) -> Finished:
    assert isinstance(events[-1], Finished)
    return events[-1]


def sound(text: str) -> bool:
    return jsonschema.Draft202012Validator(SCHEMA).is_valid(json.loads(text))


@pytest.mark.parametrize("drafts", [False, True])
def test_random_schemas_are_answered_with_what_they_ask_for(runtime: Runtime, drafting: Runtime, drafts: bool) -> None:
    """A hundred; examples/benchmarks/random_json.py has two thousand, half of them drafted. Drafts cost draws here."""
    seeds = range(75, 100) if drafts else range(75)
    schemas = {seed: random_schema(seed, 2 if seed % 10 == 0 else 1, width=1 + seed % 2) for seed in seeds}
    found = list(judge(drafting if drafts else runtime, schemas))
    assert not [judged for judged in found if judged.wrong]
    assert sum(judged.finished for judged in found) >= 0.95 * len(found)
    assert (sum(judged.drafted for judged in found) > 0) == drafts


def test_thinking_is_free_and_the_answer_is_not(runtime: Runtime) -> None:
    request = ChatRequest(HELLO, enable_thinking=True, thinking_budget=20, sampling=HOT, seed=4, response_format=FORMAT)
    events = list(runtime.chat(request))
    assert sound(text_of(events))
    assert text_of(events, Reasoning)
    assert "{" not in text_of(events, Reasoning)[:1]
    assert finished(events).reason == "stop"


def test_rows_with_and_without_a_guide_do_not_disturb_each_other(runtime: Runtime) -> None:
    def asked(seed: int) -> Any:
        form = (FORMAT, None, None)[seed % 3]
        regex = "[a-z]{5,40}" if seed % 3 == 1 else None
        return TextRequest(f"{seed}", sampling=HOT, seed=seed, max_tokens=12, response_format=form, regex=regex)

    alone = [runtime.submit(runtime.prepare_text(asked(seed))) for seed in range(6)]
    expected = []
    for running in alone[:]:
        expected.append(list(running.events()) and list(running.sampled))
    for seed in range(6):  # one after the other
        running = runtime.submit(runtime.prepare_text(asked(seed)))
        assert list(running.events())
        assert running.sampled == expected[seed]


def test_a_guide_that_cannot_follow_ends_its_row_alone(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    free = runtime.submit(runtime.prepare_text(TextRequest("a", sampling=HOT, seed=1, max_tokens=30)))
    prepared = runtime.prepare_text(TextRequest("b", sampling=HOT, seed=1, max_tokens=30, response_format=FORMAT))
    bad = runtime.submit(prepared)

    def masks(self: object, drafts: object = ()) -> list[Mask | None]:
        raise RequestError("too complex")

    monkeypatch.setattr("mlx_qwen35.generation.grammars.Matched.masks", masks)
    with pytest.raises(RequestError, match="complex"):
        list(bad.events())
    assert finished(list(free.events())).reason == "length"
    assert len(free.sampled) == 30


def test_a_stop_string_ends_a_constrained_answer(runtime: Runtime) -> None:
    events = list(runtime.chat(ChatRequest(HELLO, sampling=HOT, seed=1, regex="[ab]{6}stop[ab]{6}", stop=["stop"])))
    assert len(text_of(events)) == 6
    assert finished(events).reason == "stop"


def test_closing_a_constrained_stream_cancels_it(runtime: Runtime) -> None:
    running = runtime.submit(runtime.prepare(ChatRequest(HELLO, sampling=HOT, seed=1, regex="[a-z]*", max_tokens=9999)))
    stream = running.events()
    while not isinstance(next(stream), Content):
        pass
    stream.close()
    for _ in running.line:
        pass
    assert running.line.ended is not None
    assert running.line.ended.reason == "cancelled"


def test_an_answer_that_is_cut_says_so(runtime: Runtime) -> None:
    events = list(runtime.chat(ChatRequest(HELLO, sampling=HOT, seed=1, max_tokens=3, response_format=FORMAT)))
    assert finished(events).reason == "length"


def test_greedy_windows_with_drafts_say_what_single_tokens_say(runtime: Runtime, drafting: Runtime) -> None:
    cold = {"temperature": 0.0}
    for n in range(2):
        request = TextRequest(f"{n}", sampling=cold, max_tokens=60, response_format=FORMAT)
        texts = [text_of(list(r.submit(r.prepare_text(request)).events())) for r in (runtime, drafting)]
        assert texts[0] == texts[1]
        assert sound(texts[0])
