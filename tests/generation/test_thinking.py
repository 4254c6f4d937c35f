"""The think block under a guide, over a vocabulary of letters: always closed, once, and never longer than allowed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_qwen35.generation.grammars import Grammar, Grammars, Vocabulary
from mlx_qwen35.generation.guides import Guide, Mask
from mlx_qwen35.generation.spelling import Spelling
from mlx_qwen35.generation.thinking import Thinking, ThinkTokens, leave_room

LETTERS = "abcdefghijklmnopqrstuvwxyz<>/_\n"
PIECES = [letter.encode() for letter in LETTERS] + [b"</th", b"ink>", b"nk> x"]
NAMES = ["<think>", "</think>", "<tool_call>", "<|im_end|>", "<|endoftext|>"]
PIECES += [name.encode() for name in NAMES]
BEGIN, CLOSE, CALL, END, END_OF_TEXT = range(len(PIECES) - 5, len(PIECES))
STOPS = (END, END_OF_TEXT)
GAP = (LETTERS.index("\n"),) * 2
CLOSING = (*(LETTERS.index(letter) for letter in "enough\n"), CLOSE, *GAP)


def encode(text: str) -> list[int]:
    return [LETTERS.index(letter) for letter in text]


def text_of(tokens: list[int]) -> str:
    return b"".join(PIECES[token] for token in tokens).decode()


VOCABULARY = Vocabulary(PIECES, range(BEGIN, len(PIECES)), STOPS, encode)
GRAMMARS = Grammars(VOCABULARY)


def guide(budget: int | None, regex: str | None = None, call: bool = False) -> Thinking:
    spelled = Spelling(b"</think>", CLOSE, PIECES)
    answer = None if regex is None else GRAMMARS.guide(Grammar("grammar", regex) if call else Grammar("regex", regex))
    gap = () if regex is None else GAP
    tokens = ThinkTokens(CLOSE, STOPS, (BEGIN,), CLOSING, gap, len(PIECES), (spelled,), CALL if call else None)
    return Thinking(tokens, budget, answer)


def draw(mask: Mask | None, wish: int) -> int:
    """What a sampler does whose model wants `wish`: that token, or where it counts, or the nearest that is allowed."""
    assert mask is not None
    if mask.moved is not None and wish in mask.moved[0]:
        wish = mask.moved[1]
    allowed = np.flatnonzero(np.unpackbits(mask.bits.view(np.uint8), bitorder="little"))
    return int(allowed[np.abs(allowed - wish).argmin()])


def said(guide: Guide, wishes: list[int], window: int = 1) -> list[int]:
    """What comes of a model's wishes, in windows whose drafts are the wishes themselves."""
    tokens: list[int] = []
    while len(tokens) < len(wishes):
        drafts = wishes[len(tokens) + 1 : len(tokens) + window]
        drafts = [draw(guide.masks()[0], wishes[len(tokens)]), *drafts]
        masks = guide.masks(drafts)
        new: list[int] = []
        for mask, draft, wish in zip(masks, drafts, wishes[len(tokens) :]):
            new.append(draw(mask, wish))
            if new[-1] != draft or new[-1] in STOPS:
                break
        guide.accept(new)
        tokens += new
        if tokens[-1] in STOPS:
            break
    return tokens


ids = st.lists(st.sampled_from([*range(len(PIECES)), *[CLOSE, END, BEGIN, CALL] * 3]), min_size=80, max_size=120)


@given(ids, st.integers(0, 40), st.integers(1, 5), st.booleans())
def test_the_block_is_closed_once_within_its_budget_and_the_answer_follows(
    wishes: list[int], budget: int, window: int, constrained: bool
) -> None:
    tokens = said(guide(budget, "[xy]{1,3}" if constrained else None), wishes, window)
    end = tokens.index(CLOSE)
    block = tokens[: end + 1]
    closed_early = not (len(block) > budget and tuple(block[budget:]) == CLOSING[: CLOSING.index(CLOSE) + 1])
    assert end <= budget if closed_early else end == budget + CLOSING.index(CLOSE)
    assert BEGIN not in tokens
    assert text_of(block).count("</think>") == 1
    assert not set(block) & set(STOPS)
    assert len(tokens) > end + 1
    if constrained:
        answer = tokens[end + 1 :]
        assert tuple(answer[:2]) == GAP
        assert set(text_of(answer[2:]).removesuffix("<|im_end|>").removesuffix("<|endoftext|>")) <= set("xy")


@given(ids, st.integers(0, 40) | st.none(), st.integers(2, 5))
def test_windows_of_any_length_say_the_same(wishes: list[int], budget: int | None, window: int) -> None:
    alone = said(guide(budget, "[xy]{1,3}"), wishes)
    assert said(guide(budget, "[xy]{1,3}"), wishes, window)[: len(alone)] == alone[: len(alone)]


def test_a_wish_to_end_inside_the_block_closes_it() -> None:
    assert said(guide(None), [*encode("abc"), END, *encode("de"), END]) == [*encode("abc"), CLOSE, *encode("de"), END]


@pytest.mark.parametrize("window", [1, 2, 6])
def test_a_tool_call_closes_the_block_and_its_grammar_takes_over(window: int) -> None:
    wishes = [*encode("abc"), CALL, *encode("xyxzzz")]
    tokens = said(guide(None, 'start: <tool_call> "xy" "x"*', call=True), wishes, window)
    assert tokens[:6] == [*encode("abc"), CALL, *encode("xy")]


def test_the_end_spelled_out_is_not_written() -> None:
    for wishes in (encode("a</think>"), [PIECES.index(b"</th"), PIECES.index(b"ink>")], [*encode("</thi"), 33]):
        assert "</think>" not in text_of(said(guide(None), wishes))


def test_what_must_come_is_told_ahead() -> None:
    thinking = guide(2, "x")
    thinking.accept(encode("a"))
    assert thinking.forced() == ()
    thinking.accept(encode("b"))
    assert thinking.forced() == CLOSING
    thinking.accept(CLOSING[:4])
    assert thinking.forced() == CLOSING[4:]


def test_a_fork_goes_its_own_way() -> None:
    thinking = guide(2, "x")
    thinking.accept(encode("a"))
    other = thinking.fork()
    other.accept([CLOSE])
    assert thinking.is_open
    assert not other.is_open
    thinking.accept(encode("b"))
    assert thinking.forced() == CLOSING


def test_only_a_free_answer_needs_no_look_at_its_tokens() -> None:
    thinking = guide(None)
    assert not thinking.steady
    thinking.accept([CLOSE])
    assert thinking.steady
    assert not guide(None, "x").steady


@pytest.mark.parametrize(("budget", "most", "left"), [(100, 1000, 100), (1000, 1000, 730), (50, 40, 10), (5, 1, 0)])
def test_a_budget_leaves_room_for_an_answer(budget: int, most: int, left: int) -> None:
    assert leave_room(budget, most, 20) == left
    assert leave_room(None, most, 20) is None
