"""Grammars over the family's real vocabulary: what masks allow, what drafts do to them, and what is refused."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mlx_qwen35.chat.tokenizer import Tokenizer
from mlx_qwen35.errors import RequestError
from mlx_qwen35.generation.grammars import CACHED, Either, Grammar, Grammars, Vocabulary
from mlx_qwen35.generation.guides import Guide, Mask, bits_of, constrain
from tests.support.real_grammars import real_grammars, real_tokenizer
from tests.support.wide import ROWS

SCHEMA = {
    "type": "object",
    "properties": {"a": {"type": "string", "maxLength": 9}, "b": {"type": "array", "items": {"enum": ["x", "yy"]}}},
    "required": ["a", "b"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return real_tokenizer()


@pytest.fixture(scope="module")
def grammars() -> Grammars:
    return real_grammars()


def schema(value: Any) -> Grammar:
    return Grammar("json schema", json.dumps(value))


def allowed(mask: Mask | None) -> np.ndarray:
    assert mask is not None
    return np.flatnonzero(np.unpackbits(mask.bits.view(np.uint8), bitorder="little"))


def answers(guide: Guide, seed: int, stop_ids: tuple[int, ...], most: int = 200) -> Iterator[int]:
    """Tokens drawn evenly from what is allowed, the last one included."""
    r = random.Random(seed)
    for _ in range(most):
        token = int(r.choice(allowed(guide.masks()[0])))
        guide.accept((token,))
        yield token
        if token in stop_ids:
            return


def same(masks: list[Mask | None], others: list[Mask | None]) -> bool:
    return len(masks) == len(others) and all((allowed(a) == allowed(b)).all() for a, b in zip(masks, others))


def test_only_tokens_with_a_text_are_allowed(grammars: Grammars, tokenizer: Tokenizer) -> None:
    guide = grammars.guide(Grammar("regex", "(?s:.*)"))
    ids = allowed(guide.masks()[0])
    assert ids.max() < tokenizer.vocab_size
    assert set(ids) & set(tokenizer.named_ids) == set(tokenizer.stop_ids)


@pytest.mark.parametrize("seed", range(6))
def test_looking_at_drafts_changes_nothing_and_sees_what_accepting_sees(
    grammars: Grammars, tokenizer: Tokenizer, seed: int
) -> None:
    tokens = list(answers(grammars.guide(schema(SCHEMA)), seed, tokenizer.stop_ids))
    guide = grammars.guide(schema(SCHEMA))
    for at in range(len(tokens)):
        drafts = tokens[at : at + 4]
        before = guide.masks()
        seen = guide.masks(drafts)
        assert len(seen) == len(drafts) + 1
        assert same(guide.masks(), before)
        other = guide.fork()
        for mask, token in zip(seen, drafts):
            assert same(other.masks(), [mask])
            other.accept((token,))
        guide.accept(tokens[at : at + 1])


def test_a_draft_that_is_not_allowed_ends_the_masks(grammars: Grammars, tokenizer: Tokenizer) -> None:
    guide = grammars.guide(schema(SCHEMA))
    sound, wrong = tokenizer.encode('{"a":"x"'), tokenizer.encode("]")
    assert len(guide.masks([*sound, *wrong, *sound])) == len(sound) + 1
    assert len(guide.masks(wrong)) == 1
    guide.accept(sound)


def test_a_draft_that_llguidance_allows_and_then_refuses_cannot_be_drawn(
    grammars: Grammars, tokenizer: Tokenizer
) -> None:
    guide = grammars.guide(Grammar("regex", "[a-z ]+"))
    first, refused = tokenizer.encode("word")[0], tokenizer.encode(" word")[0]

    class Refusing:
        """The real matcher, but for one token: none is known for which it always does so."""

        def __init__(self, matcher: Any) -> None:
            self._matcher = matcher

        def __getattr__(self, name: str) -> Any:
            return getattr(self._matcher, name)

        def try_consume_tokens(self, tokens: list[int]) -> int:
            return 0 if tokens == [refused] else self._matcher.try_consume_tokens(tokens)

    guide._matcher = Refusing(guide._matcher)  # pyright: ignore
    before = guide.masks()[0]
    masks = guide.masks([first, refused, first])
    assert len(masks) == 2
    assert before.allows(refused)
    assert not masks[1].allows(refused)
    assert masks[1].allows(first)
    assert guide.masks()[0].allows(refused)


def test_an_end_among_the_drafts_is_taken_back_like_any_token(grammars: Grammars, tokenizer: Tokenizer) -> None:
    guide, end = grammars.guide(Grammar("regex", "ab?")), tokenizer.stop_ids[0]
    a, b = tokenizer.encode("a"), tokenizer.encode("b")
    guide.accept(a)
    before = guide.masks()
    assert len(guide.masks([end])) == len(guide.masks([*b, end])) - 1 == 2
    assert same(guide.masks(), before)
    guide.accept(b)
    assert list(allowed(guide.masks()[0])) == list(tokenizer.stop_ids)


def test_the_two_ways_of_an_answer_stay_open_until_it_has_chosen(grammars: Grammars, tokenizer: Tokenizer) -> None:
    guide = Either([grammars.guide(Grammar("regex", "[ab]+c")), grammars.guide(Grammar("regex", "[ab]+d"))])
    ids = tokenizer.encode("a") + tokenizer.encode("b")
    c, d = (tokenizer.encode(letter)[0] for letter in "cd")
    last = guide.masks(ids)[2]
    assert last is not None
    assert last.allows(c)
    assert last.allows(d)
    guide.accept([*ids, d])
    assert list(allowed(guide.masks()[0])) == list(tokenizer.stop_ids)


def test_without_a_token_that_ends_answers_a_complete_one_is_done(tokenizer: Tokenizer) -> None:
    pieces = [b"a", b"b", b"", b"<x>"]
    guide = Grammars(Vocabulary(pieces, [3], (), lambda text: [ord(c) - 97 for c in text])).guide(
        Grammar("regex", "ab")
    )
    assert list(allowed(guide.masks()[0])) == [0]
    guide.accept([0])
    assert not guide.done
    guide.accept([1])
    assert guide.done


@pytest.mark.parametrize(
    ("grammar", "word"),
    [
        (Grammar("json schema", '{"type": "nothing"}'), "nothing"),
        (Grammar("json schema", '{"not": {}}'), "not"),
        (Grammar("json schema", "{"), "schema"),
        (Grammar("json schema", "[" * 100_000), "schema"),
        (Grammar("json schema", '{"$ref": "http://example.com/x"}'), "example"),
        (Grammar("json schema", '{"$ref": "#/nowhere"}'), "nowhere"),
        (Grammar("json schema", '{"type": "integer", "minimum": 5, "maximum": 3}'), "minimum"),
        (Grammar("json schema", json.dumps({"enum": list(range(100_000))})), "schema"),
        (Grammar("regex", "("), "unclosed"),
        (Grammar("regex", "a(?=b)"), "look-around"),
        (Grammar("grammar", "start: x"), "unknown name"),
        (Grammar("grammar", "start: <nobody>"), "nobody"),
        (Grammar("grammar", "x" * (2 << 20)), "characters"),
    ],
)
def test_what_cannot_be_compiled_is_one_line_that_names_it(grammars: Grammars, grammar: Grammar, word: str) -> None:
    with pytest.raises(RequestError, match=word) as caught:
        grammars.guide(grammar).masks()
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 320


def test_an_intersection_that_takes_for_ever_is_given_up(grammars: Grammars, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = [{"type": "string", "pattern": f".*{n}.*"} for n in range(40)]
    with monkeypatch.context() as patch:
        patch.setattr("mlx_qwen35.generation.grammars.TRIAL_SECONDS", 1)
        with pytest.raises(RequestError, match="allOf"):
            grammars.guide(schema({"allOf": parts}))
    grammars.guide(schema({"allOf": [{"type": "object"}, {"required": ["a"]}]}))


def test_lenient_schemas_ignore_what_is_not_implemented(grammars: Grammars) -> None:
    grammars.guide(Grammar("json schema", '{"type": "string", "not": {}}', lenient=True))


def test_compiled_grammars_are_kept_but_not_for_ever(grammars: Grammars, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[Grammar] = []
    compile_one = grammars._compile
    monkeypatch.setattr(grammars, "_compile", lambda grammar: compiled.append(grammar) or compile_one(grammar))
    kinds = [Grammar("regex", f"a{{{n}}}") for n in range(CACHED + 1)]
    for grammar in (kinds[0], kinds[0], *kinds[1:], kinds[0]):
        grammars.guide(grammar)
    assert compiled == [*kinds, kinds[0]]


def test_masks_leave_rows_without_one_as_they_are() -> None:
    logits = mx.random.normal((3, ROWS), key=mx.random.key(1))
    tokens = [0, 31, 32, 1000, 248_076]
    found = constrain(logits, [None, Mask(bits_of(tokens, 248_077)), None])
    assert mx.array_equal(found[0], logits[0])
    assert mx.array_equal(found[2], logits[2])
    kept = np.flatnonzero(np.isfinite(np.array(found[1])))
    assert list(kept) == tokens
    assert mx.array_equal(found[1, mx.array(tokens)], logits[1, mx.array(tokens)])


def test_moved_probability_arrives_and_leaves_nothing_behind() -> None:
    logits = mx.random.normal((2, 100), key=mx.random.key(1))
    before = mx.softmax(logits, axis=-1)
    mask = Mask(bits_of(set(range(100)) - {7, 9}, 100), moved=((7, 9), 50))
    after = mx.softmax(constrain(logits, [mask, None]), axis=-1)
    expected = np.array(before[0])
    expected[50] += expected[7] + expected[9]
    expected[[7, 9]] = 0
    assert np.allclose(np.array(after[0]), expected, atol=1e-7)  # float32 sums of a hundred
    assert mx.array_equal(after[1], before[1])
    assert mx.array_equal(mx.softmax(logits, axis=-1), before)
