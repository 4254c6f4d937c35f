"""The demo's data: nothing of the evaluation may leak into training, and every wanted answer must be right."""

from __future__ import annotations

import re
from itertools import islice
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from examples.demo_model.encoding import encode, tokenizer
from examples.demo_model.evaluate import Answer, is_right, thinks_rightly
from examples.demo_model.mixture import EVALUATIONS, evaluation_set, long_sample, short_sample, stream
from examples.demo_model.project_facts import INTENTS
from examples.demo_model.project_questions import paraphrases
from examples.demo_model.samples import render_completion, render_prompt
from examples.demo_model.tasks import add_trace, subtract_trace
from examples.demo_model.words import Words, is_unseen


def test_no_evaluation_prompt_occurs_in_training() -> None:
    """A small share of what `evaluate` compares, so that a leak shows in `make test`."""
    trained = {render_prompt(sample) for sample in islice(stream("0/short/0", short_sample), 3000)}
    for name in EVALUATIONS:
        assert not trained & {render_prompt(sample) for sample in evaluation_set(name, 40)}, name


def test_every_intent_keeps_wordings_for_the_evaluation() -> None:
    for intent in INTENTS:
        seen, unseen = paraphrases(intent, unseen=False), paraphrases(intent, unseen=True)
        assert seen, intent
        assert unseen, intent
        assert not set(seen) & set(unseen), intent


def test_no_question_has_two_answers() -> None:
    answers: dict[str, str] = {}
    for intent in INTENTS:
        for question in {*paraphrases(intent, unseen=False), *paraphrases(intent, unseen=True)}:
            assert answers.setdefault(question.lower(), intent.answer) == intent.answer, question


@pytest.mark.parametrize("unseen", [False, True])
def test_random_values_stay_in_their_world(unseen: bool) -> None:
    words = Words(Random(5), unseen)
    for _ in range(200):
        assert is_unseen(words.word()) == unseen
        assert is_unseen(words.code()) == unseen


def test_the_same_seed_gives_the_same_samples() -> None:
    first, second = ([render_prompt(s) for s in islice(stream("7", short_sample), 50)] for _ in range(2))
    assert first == second


@given(st.integers(0, 99), st.integers(0, 99))
def test_traces_are_right_digit_by_digit(a: int, b: int) -> None:
    for trace, result in ((add_trace(a, b), a + b), (subtract_trace(a, b), a - b)):
        assert trace.split()[-1] == str(result)
        for left, right in re.findall(r"(?<=[ :])([\d+-]+)=(\d+)", trace):
            assert eval(left) == int(right), trace  # digits, + and - only


@given(st.integers(0, 2**32))
def test_a_completion_is_one_turn_that_the_tokenizer_gives_back(seed: int) -> None:
    text = render_completion(short_sample(Random(seed)))
    assert text.endswith("<|im_end|>")
    assert text.count("<|im_end|>") == 1
    assert tokenizer().decode(tokenizer().encode(text).ids, skip_special_tokens=False) == text


def test_long_samples_reach_the_length_that_recall_is_judged_at() -> None:
    lengths = [len(encode(sample)) for sample in evaluation_set("recall at 1,000 tokens", 20)]
    assert sum(lengths) / len(lengths) > 950
    assert max(len(encode(long_sample(Random(i), 1100))) for i in range(40)) > 1000


def test_digits_are_single_tokens_and_added_tokens_stand_on_top() -> None:
    tokens = tokenizer().encode("1234 <tool_call>").tokens
    assert tokens[:4] == ["1", "2", "3", "4"]
    assert tokenizer().token_to_id("<|endoftext|>") == tokenizer().get_vocab_size() - 33


def test_scoring_accepts_the_wanted_answer_and_nothing_less() -> None:
    for name in EVALUATIONS:
        for sample in evaluation_set(name, 5):
            reasoning = sample.reasoning if sample.thinking else ""
            right = Answer(reasoning, sample.answer, [(n, dict(a)) for n, a in sample.calls], "stop")
            assert is_right(sample, right), name
            assert thinks_rightly(sample, right), name
            assert not is_right(sample, Answer(reasoning, "", [], "stop")), name
            assert not thinks_rightly(sample, Answer("" if sample.thinking else "hm", sample.answer, [], "stop")), name
