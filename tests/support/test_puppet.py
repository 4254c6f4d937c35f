"""The puppet says its script, and only while every cache remembers what it should."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.utils import load_model as load_stock_model

from mlx_qwen35.chat.tokenizer import Tokenizer
from tests.support import real_tokenizer
from tests.support.puppet import LAST_TOKEN, OPENINGS, Script, Voice
from tests.support.puppet_weights import write_puppet

TEMPLATE = Path(__file__).parents[2] / "mlx_qwen35" / "demo_checkpoint" / "chat_template.jinja"
# Where a name is forgotten, the lowest id is said; that is none of the names that a test expects.
TOPICS, NAMES = ("turtle", "salmon", "wolf"), ("Ada", "Grace", "Alan")
VOICES = (
    Voice("briefly", "I recall where the {topic} lives.", "Near water, dear {name}, is where a {topic} feels well."),
    Voice(
        "proceed", "One search will tell.", "<tool_call>\n<function=look>\n<parameter=at>\nthe {topic}\n</parameter>\n"
    ),
)
BEFORE = (
    "<|im_start|>system\nYou help Grace, not the wolf.<|im_end|>\n<|im_start|>user\nPlease proceed.<|im_end|>\n"
    "<|im_start|>user\nThe salmon, briefly.<|im_end|>\n"
)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_folder(real_tokenizer.folder())


@pytest.fixture(scope="module")
def stock(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The puppet in stock mlx-lm's network: an outside reading of the weights."""
    folder = tmp_path_factory.mktemp("puppet")
    write_puppet(folder, Script(tokenizer, VOICES, TOPICS, NAMES), real_tokenizer.folder(), TEMPLATE)
    model, _ = load_stock_model(folder, strict=True)
    return model


def said(
    model: Any, prompt: list[int], count: int, harm: Callable[[list[Any]], None] = lambda caches: None
) -> list[int]:
    """The greedy answer of `count` tokens; `harm` is done to the caches before the prompt's last token."""
    caches = model.make_cache()
    model(mx.array([prompt[:-1]]), cache=caches)
    harm(caches)
    tokens = [prompt[-1]]
    for _ in range(count):
        logits = model(mx.array([tokens[-1:]]), cache=caches)[0, -1]
        tokens.append(int(np.array(mx.argmax(logits))))
    return tokens[1:]


@pytest.mark.parametrize("thinking", [True, False])
def test_the_weights_say_the_script(stock: Any, tokenizer: Tokenizer, thinking: bool) -> None:
    expected = Script(tokenizer, VOICES, TOPICS, NAMES).reply("briefly", "salmon", "Grace", thinking)
    assert tokenizer.decode(expected[-1:]) == LAST_TOKEN
    assert said(stock, tokenizer.encode(BEFORE + OPENINGS[thinking]), len(expected)) == expected


def _without_tail(caches: list[Any]) -> None:
    caches[0][0] = mx.zeros_like(caches[0][0])


def _without_state(layer: int) -> Callable[[list[Any]], None]:
    def harm(caches: list[Any]) -> None:
        caches[layer][1] = mx.zeros_like(caches[layer][1])

    return harm


def _without_values(caches: list[Any]) -> None:
    caches[3].values = mx.zeros_like(caches[3].values)


@pytest.mark.parametrize(
    "harm",
    [_without_tail, _without_state(1), _without_state(2), _without_values],
    ids=["tail of layer 0", "state of layer 1", "state of layer 2", "values of layer 3"],
)
def test_a_cache_that_forgets_says_something_else(
    stock: Any, tokenizer: Tokenizer, harm: Callable[[list[Any]], None]
) -> None:
    expected = Script(tokenizer, VOICES, TOPICS, NAMES).reply("briefly", "salmon", "Grace", True)
    assert said(stock, tokenizer.encode(BEFORE + OPENINGS[True]), len(expected), harm) != expected


def test_a_context_that_goes_on_in_two_ways_is_refused(tokenizer: Tokenizer) -> None:
    twice = Voice("briefly", "So.", "I see one two three four five and one two three four six")
    with pytest.raises(ValueError, match="two ways"):
        Script(tokenizer, [twice], TOPICS, NAMES)


def test_a_slot_that_opens_a_line_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(ValueError, match="without a space"):
        Script(tokenizer, [Voice("briefly", "{name} asks.", "Yes.")], TOPICS, NAMES)


def test_a_respelled_word_is_the_same_text_in_other_tokens(tokenizer: Tokenizer) -> None:
    plain = Script(tokenizer, [Voice("briefly", "So.", "Quiet valleys.")], TOPICS, NAMES)
    spelled = Script(tokenizer, [Voice("briefly", "So.", "Quiet valleys.", (" val", "leys"))], TOPICS, NAMES)
    replies = [script.reply("briefly", "wolf", "Ada", False) for script in (plain, spelled)]
    assert tokenizer.decode(replies[0]) == tokenizer.decode(replies[1])
    assert len(replies[1]) == len(replies[0]) + 1


def test_words_of_several_tokens_are_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(ValueError, match="2 tokens"):
        Script(tokenizer, VOICES, ["heron"], NAMES)
