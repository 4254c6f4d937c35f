"""Grammars over one checkpoint's vocabulary, through llguidance: the one module that imports it.

A grammar is text of somebody who is not trusted: its size, its compilation and each step of it are bounded, and what
goes beyond ends in a RequestError of one line.
"""

from __future__ import annotations

import contextlib
import re
import signal
import subprocess
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import llguidance
import numpy as np

from mlx_qwen35.errors import RequestError
from mlx_qwen35.generation.guides import WORD, Guide, Mask

Kind = Literal["json schema", "regex", "grammar", "tool calls"]

MAX_CHARS = 1 << 20  # of one grammar
CACHED = 64  # compiled grammars
# At most some 20 ms of building, and 15 ms of one step, where such limits are reached at all.
LIMITS: dict[str, Any] = {"initial_lexer_fuel": 1_000_000, "step_lexer_fuel": 200_000, "step_max_items": 50_000}
LIMITS |= {"max_lexer_states": 50_000, "max_grammar_size": 200_000}
# JSON between its marks: as one line, or with line breaks and an indentation. Without an end, white space is what a
# model that has nothing left to say says for ever.
WHITESPACE = r" ?|\n[ \t]{0,40}"
# What all parts of an intersection have in common may take for ever to find out, and llguidance's limits do not end it.
# Where a grammar intersects, it is therefore tried first in a process that can be ended.
TRIAL = """import resource, sys, llguidance
resource.setrlimit(resource.RLIMIT_CPU, (int(sys.argv[1]), int(sys.argv[1]) + 1))
llguidance.LLMatcher.validate_grammar(sys.stdin.read())"""
TRIAL_SECONDS, TRIAL_WAIT = 10, 60  # of CPU time; and by the clock, which a busy machine must not decide
PICTURE = re.compile(r"\s*(\d+ \||\^*$)")  # a line of source in an explanation, or the mark under it


@dataclass(frozen=True)
class Grammar:
    """What an answer may be.

    text: a JSON schema, a regular expression (of the whole answer), or a grammar in llguidance's kind of Lark
    lenient: keywords of a schema that are not implemented are ignored, not refused
    """

    kind: Kind
    text: str
    lenient: bool = False


class Vocabulary:
    """A checkpoint's tokens as llguidance needs them. Building one takes seconds; it is then shared by all."""

    def __init__(
        self,
        pieces: Sequence[bytes],
        special: Collection[int],
        stop_ids: Collection[int],
        encode: Callable[[str], list[int]],
    ) -> None:
        """pieces: the bytes of every token, by id; none for ids without one   special: ids of tokens with a name

        stop_ids: may be empty; a grammar that is complete then ends the answer without one
        """
        self.pieces, self.special, self.stop_ids = pieces, frozenset(special), tuple(sorted(stop_ids))
        self.size = len(pieces)
        # llguidance cannot do without an end; where there is none, an id past the last one stands for it.
        ends = self.stop_ids or (self.size,)
        self.tokenizer = llguidance.LLTokenizer(_Tokens(self, ends, encode), eos_token=list(ends))  # pyright: ignore


class _Tokens:
    """What `LLTokenizer` looks for in a tokenizer."""

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, vocabulary: Vocabulary, ends: Sequence[int], encode: Callable[[str], list[int]]) -> None:
        self.tokens = [*vocabulary.pieces, *[b""] * (1 - len(vocabulary.stop_ids))]
        self.eos_token_id = ends[-1]
        self.special_token_ids = sorted({*vocabulary.special, *ends})
        self._encode = encode

    def __call__(self, text: str | bytes) -> list[int]:
        return self._encode(text.decode("utf-8", "replace") if isinstance(text, bytes) else text)


class Grammars:
    """Compiled grammars of one vocabulary, the last used kept. Any thread may ask."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary
        self._compiled: OrderedDict[Grammar, llguidance.LLMatcher] = OrderedDict()
        self._lock = threading.Lock()

    def guide(self, grammar: Grammar) -> Matched:
        """A guide at the beginning of an answer. Raises RequestError naming what is wrong with the grammar."""
        with self._lock:
            matcher = self._compiled.get(grammar)
            if matcher is not None:
                self._compiled.move_to_end(grammar)
                return Matched(matcher.deep_copy(), self.vocabulary)
        matcher = self._compile(grammar)
        with self._lock:
            self._compiled[grammar] = matcher
            while len(self._compiled) > CACHED:
                self._compiled.popitem(last=False)
        return Matched(matcher.deep_copy(), self.vocabulary)

    def _compile(self, grammar: Grammar) -> llguidance.LLMatcher:
        if len(grammar.text) > MAX_CHARS:
            raise RequestError(f"The {grammar.kind} has {len(grammar.text):,} characters; at most {MAX_CHARS:,} fit.")
        limits = llguidance.LLParserLimits(**LIMITS, verbose_errors=False)
        try:
            source = _source(grammar)
            if _intersects(grammar):
                _try_out(source, grammar)
            matcher = llguidance.LLMatcher(self.vocabulary.tokenizer, source, log_level=0, limits=limits)
        except ValueError as error:
            raise RequestError(f"The {grammar.kind} cannot be used: {_one_line(str(error))}") from None
        if matcher.is_error():
            raise RequestError(f"The {grammar.kind} cannot be used: {_one_line(matcher.get_error())}")
        return matcher


def _source(grammar: Grammar) -> str:
    matcher = llguidance.LLMatcher
    if grammar.kind == "json schema":
        options = {"whitespace_pattern": WHITESPACE, "lenient": grammar.lenient}
        return matcher.grammar_from_json_schema(grammar.text, overrides=options)  # pyright: ignore
    return (
        matcher.grammar_from_regex(grammar.text) if grammar.kind == "regex" else matcher.grammar_from_lark(grammar.text)
    )


def _intersects(grammar: Grammar) -> bool:
    """Whether it may ask for what is several things at once. (Tool calls do so themselves, in a way that is known.)"""
    text = grammar.text
    if grammar.kind == "grammar" and ("&" in text or "~" in text):
        return True
    return "allOf" in text or ("$ref" in text and "pattern" in text)


def _try_out(source: str, grammar: Grammar) -> None:
    command = [sys.executable, "-c", TRIAL, str(TRIAL_SECONDS)]
    with contextlib.suppress(subprocess.TimeoutExpired):
        done = subprocess.run(
            command, input=source.encode(), timeout=TRIAL_WAIT, check=False, stderr=subprocess.DEVNULL
        )
        if done.returncode not in (-signal.SIGXCPU, -signal.SIGKILL):
            return
    raise RequestError(
        f"The {grammar.kind} could not be compiled in {TRIAL_SECONDS} s; ask for less at once (allOf, &, ~)."
    )


class Matched:
    """The guide of an answer that a grammar describes from its first token to its last."""

    def __init__(self, matcher: llguidance.LLMatcher, vocabulary: Vocabulary) -> None:
        self._matcher, self._vocabulary = matcher, vocabulary
        self._ended = False

    def masks(self, drafts: Sequence[int] = ()) -> list[Mask | None]:
        masks: list[Mask | None] = [self._mask()]
        taken = 0
        try:
            for token in drafts:
                if not masks[-1].allows(token):  # pyright: ignore[reportOptionalMemberAccess]
                    break
                # The end is not taken: once there, nothing follows, and llguidance does not roll it back.
                if token not in self._vocabulary.stop_ids:
                    if not self._matcher.try_consume_tokens([token]):
                        self._check()
                        masks[-1] = _without(masks[-1], token)
                        break
                    taken += 1
                masks.append(self._mask())
        finally:
            if taken and not self._matcher.rollback(taken):
                self._check()
        return masks

    def accept(self, tokens: Sequence[int]) -> None:
        for token in tokens:
            if token in self._vocabulary.stop_ids:
                self._ended = True
            elif not self._ended:
                self._take(token)

    def allows(self, token: int) -> bool:
        """Whether `token` may be next."""
        return not self._ended and self._mask().allows(token)

    def forced(self) -> Sequence[int]:
        return ()

    def fork(self) -> Matched:
        other = Matched(self._matcher.deep_copy(), self._vocabulary)
        other._ended = self._ended
        return other

    @property
    def steady(self) -> bool:
        return self._ended

    @property
    def done(self) -> bool:
        return self._ended or (not self._vocabulary.stop_ids and self._matcher.is_stopped())

    def _mask(self) -> Mask:
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint32)
        if not bits.any():
            self._check()
        return Mask(bits)

    def _take(self, token: int) -> None:
        if not self._matcher.consume_token(token):
            self._check()
            raise RequestError(f"The grammar does not allow token {token} here.")

    def _check(self) -> None:
        if self._matcher.is_error():
            raise RequestError(f"The grammar is too complex to follow: {_one_line(self._matcher.get_error())}")


def _without(mask: Mask | None, token: int) -> Mask:
    """llguidance's masks now and then allow a token that it then refuses (guidance-ai/llguidance#366)."""
    assert mask is not None
    bits = mask.bits.copy()
    bits[token // WORD] &= ~np.uint32(1 << token % WORD)
    return Mask(bits)


class Either:
    """Several guides of which any may describe the answer; those that what was said rules out are left behind."""

    def __init__(self, guides: Sequence[Matched]) -> None:
        self._alive = list(guides)

    def masks(self, drafts: Sequence[int] = ()) -> list[Mask | None]:
        found = [guide.masks(drafts) for guide in self._alive]
        together: list[Mask | None] = []
        for at in range(max(map(len, found))):
            here = [mask.bits for masks in found if at < len(masks) and (mask := masks[at]) is not None]
            together.append(Mask(np.bitwise_or.reduce(here)))
        return together

    def accept(self, tokens: Sequence[int]) -> None:
        for token in tokens:
            if len(self._alive) > 1:
                self._alive = [guide for guide in self._alive if guide.allows(token)] or self._alive[:1]
            for guide in self._alive:
                guide.accept((token,))

    def forced(self) -> Sequence[int]:
        return ()

    def fork(self) -> Guide:
        return Either([guide.fork() for guide in self._alive])

    @property
    def steady(self) -> bool:
        return False

    @property
    def done(self) -> bool:
        return all(guide.done for guide in self._alive)


def _one_line(text: str) -> str:
    """llguidance explains in several lines, with a picture of the place."""
    lines = [line.strip() for line in text.splitlines() if not PICTURE.match(line)]
    line = " ".join("".join(c if c.isprintable() else " " for c in " ".join(lines)[:1000]).split())
    return (line if len(line) <= 240 else line[:237] + "...").rstrip(".") + "."
