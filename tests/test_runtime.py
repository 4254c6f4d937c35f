"""The boundary: a request in, typed events out, on a tiny random checkpoint that answers nonsense at once."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from mlx_qwen35.chat import presets
from mlx_qwen35.chat.answer import Answer
from mlx_qwen35.chat.events import Content, Event, Finished, PrefillProgress, Reasoning, ToolCallEnd
from mlx_qwen35.chat.parser import OutputParser
from mlx_qwen35.chat.reply import gathered
from mlx_qwen35.chat.stop import StopStrings
from mlx_qwen35.errors import ConfigError, MemoryPlanError, RequestError, UserError
from mlx_qwen35.hub.machine import Machine
from mlx_qwen35.models import fit
from mlx_qwen35.models.config import ModelConfig
from mlx_qwen35.options import GREEDY
from mlx_qwen35.runtime import ChatRequest, Runtime, released_size
from tests.support.tiny_chat import write_tiny_chat

IMAGE = {"type": "image_url", "image_url": {"url": "x"}}
HELLO = [{"role": "user", "content": "Hello"}]


@pytest.fixture(scope="module")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> Runtime:
    return Runtime.load(str(write_tiny_chat(tmp_path_factory.mktemp("model") / "tiny")))


def text_of(events: list[Event]) -> str:
    return "".join(e.text for e in events if isinstance(e, (Content, Reasoning)))


def test_an_answer_ends_with_counts(runtime: Runtime) -> None:
    events = list(runtime.chat(ChatRequest(HELLO, max_tokens=12, seed=1)))
    assert isinstance(events[0], PrefillProgress)
    assert isinstance(events[-1], Finished)
    usage = events[-1].usage
    assert usage.prompt_tokens == len(runtime.tokenizer.encode(runtime.render(ChatRequest(HELLO))))
    assert 1 <= usage.completion_tokens <= 12
    assert events[-1].reason == ("length" if usage.completion_tokens == 12 else "stop")


def test_the_same_seed_gives_the_same_answer(runtime: Runtime) -> None:
    def answer(seed: int) -> str:
        return text_of(list(runtime.chat(ChatRequest(HELLO, max_tokens=30, seed=seed))))

    assert answer(3) == answer(3)
    assert answer(3) != answer(4)


def test_thinking_on_begins_in_reasoning_and_off_in_content(runtime: Runtime) -> None:
    on = list(runtime.chat(ChatRequest(HELLO, enable_thinking=True, max_tokens=8, seed=1)))
    off = list(runtime.chat(ChatRequest(HELLO, enable_thinking=False, max_tokens=8, seed=1)))
    assert any(isinstance(e, Reasoning) for e in on)
    assert not any(isinstance(e, Content) for e in on)
    assert not any(isinstance(e, Reasoning) for e in off)
    finished = on[-1]
    assert isinstance(finished, Finished)
    assert finished.usage.reasoning_tokens > 0


def test_closing_the_answer_frees_the_runtime(runtime: Runtime) -> None:
    endless = runtime.chat(ChatRequest(HELLO, max_tokens=60_000, seed=1))
    next(endless)
    endless.close()  # pyright: ignore[reportAttributeAccessIssue]
    assert list(runtime.chat(ChatRequest(HELLO, max_tokens=1, seed=1)))


def test_two_readers_take_turns(runtime: Runtime) -> None:
    requests = [ChatRequest(HELLO, max_tokens=20, seed=s) for s in (1, 2)]
    alone = [text_of(list(runtime.chat(r))) for r in requests]
    both = [runtime.chat(r) for r in requests]
    assert [text_of(list(answer)) for answer in both] == alone


@pytest.mark.parametrize(
    ("request_", "word"),
    [
        (ChatRequest([]), "message"),
        (ChatRequest(HELLO, max_tokens=0), "max_tokens"),
        (ChatRequest(HELLO, preset="turbo"), "turbo"),
        (ChatRequest(HELLO, sampling={"temprature": 1.0}), "temprature"),
        (ChatRequest(HELLO, sampling={"top_p": 7.0}), "top_p"),
        (
            ChatRequest([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]),
            "later release",
        ),
        (ChatRequest([{"role": "user", "content": "word " * 200_000}]), "context"),
    ],
)
def test_a_request_that_cannot_run_is_one_line(runtime: Runtime, request_: ChatRequest, word: str) -> None:
    with pytest.raises(RequestError, match=word) as error:
        list(runtime.chat(request_))
    assert "\n" not in str(error.value)


def test_presets_follow_the_mode_and_may_be_overridden(runtime: Runtime) -> None:
    thinking = runtime.sampling(ChatRequest(HELLO, enable_thinking=True))
    plain = runtime.sampling(ChatRequest(HELLO, enable_thinking=False))
    assert (thinking.temperature, plain.temperature) == (1.0, 0.7)
    assert runtime.sampling(ChatRequest(HELLO, preset="thinking-coding", sampling={"top_k": 5})).top_k == 5


def test_a_checkpoint_may_ask_for_greedy(tmp_path: Path) -> None:
    folder = write_tiny_chat(tmp_path / "greedy")
    (folder / "generation_config.json").write_text('{"do_sample": false}')
    runtime = Runtime.load(str(folder))
    assert runtime.sampling(ChatRequest(HELLO)) == GREEDY
    assert runtime.sampling(ChatRequest(HELLO, preset="thinking")).temperature == 1.0


def test_a_model_too_large_for_this_machine_is_refused_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_tiny_chat(tmp_path / "large")
    monkeypatch.setattr(fit, "machine", lambda: Machine(1 << 20, 1 << 20, 1 << 20, "a very small one"))
    with pytest.raises(MemoryPlanError, match="--force"):
        Runtime.load(str(folder))


def test_a_context_that_nothing_reaches_is_refused_before_it_is_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="as far as YaRN takes it"):
        Runtime.load(str(write_tiny_chat(tmp_path / "tiny")), context=1 << 22)


def test_released_sizes_are_recognised(runtime: Runtime) -> None:
    assert released_size(runtime.config) is None
    a3b = {**runtime.config.__dict__, "hidden_size": 2048, "layer_types": ("linear_attention",) * 40, "num_heads": 16}
    assert released_size(ModelConfig(**a3b)) == "35b-a3b"
    assert released_size(ModelConfig(**{**a3b, "later_release": True})) in presets.BY_SIZE


CALL = "<tool_call>\n<function=add>\n<parameter=a>\n1\n</parameter>\n</function>\n</tool_call>"

TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}


def run_answer(pieces: list[str], stop: tuple[str, ...] = (), in_reasoning: bool = False) -> tuple[list[Event], Answer]:
    answer = Answer(OutputParser([TOOL], in_reasoning), StopStrings(stop))
    events: list[Event] = []
    for piece in pieces:
        answer.count()
        events += answer.feed(piece)
        if answer.stopped:
            break
    return [*events, *answer.finish("")], answer


def test_stop_strings_cut_content_and_not_reasoning() -> None:
    events, answer = run_answer(["I STOP to think", "</think>\n\nfirst ST", "OP second"], ("STOP",), in_reasoning=True)
    assert "".join(e.text for e in events if isinstance(e, Reasoning)) == "I STOP to think"
    assert "".join(e.text for e in events if isinstance(e, Content)) == "first "
    assert answer.stopped


def test_text_held_back_for_a_stop_string_comes_before_a_tool_call() -> None:
    events, answer = run_answer(["sure ST", CALL], ("STOP",))
    kinds = [type(e) for e in events]
    assert kinds.index(Content) < kinds.index(ToolCallEnd)
    assert "".join(e.text for e in events if isinstance(e, Content)).strip() == "sure ST"
    assert answer.called


def test_a_tokenizer_larger_than_the_vocabulary_is_refused(tmp_path: Path) -> None:
    """An id past the embedding's last row reads foreign memory."""
    folder = write_tiny_chat(tmp_path / "odd")
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config["text_config"]["vocab_size"] = 64
    path.write_text(json.dumps(config))
    with pytest.raises(UserError, match="tokens, but the network"):
        Runtime.load(str(folder))


def test_a_conversation_that_outgrows_its_limit_is_folded_and_what_was_computed_of_it_reused() -> None:
    demo, limit, usages = Runtime.load("demo"), 800, []
    messages: list[dict[str, Any]] = [{"role": "system", "content": "Be brief."}]
    for turn in range(14):
        messages.append({"role": "user", "content": f"What is {turn} plus 2? " + "Please tell me in one word. " * 5})
        request = ChatRequest(messages, enable_thinking=False, max_tokens=20, fold_at=limit, seed=turn)
        reply = gathered(demo.submit(demo.prepare(request)).events())
        usages.append(reply.usage)
        messages.append(reply.message)
    demo.close()
    sizes = [usage.prompt_tokens for usage in usages]
    assert max(sizes) <= limit
    assert 1 <= sum(b < a for a, b in pairwise(sizes)) <= 3
    # All but the last answer, which the template writes without its empty think block, and the new question.
    grown = [b for a, b in pairwise(usages) if b.prompt_tokens > a.prompt_tokens]
    assert all(usage.prompt_tokens - usage.cached_tokens < 150 for usage in grown)
