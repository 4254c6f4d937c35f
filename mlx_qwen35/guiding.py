"""From what a request asks of its answer to the guide that sees to it: thinking, tool calls, structured output."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mlx_qwen35.chat.constraints import AnswerForm, ToolChoice
from mlx_qwen35.chat.reasoning import CALL, CLOSE, OPEN
from mlx_qwen35.chat.tokenizer import Tokenizer
from mlx_qwen35.chat.tool_grammar import Function, call_grammar, functions_of
from mlx_qwen35.errors import RequestError
from mlx_qwen35.generation.call_guide import CallsInText, FreeText
from mlx_qwen35.generation.grammars import WHITESPACE, Either, Grammar, Grammars, Matched, Vocabulary
from mlx_qwen35.generation.guides import Guide
from mlx_qwen35.generation.spelling import Spelling
from mlx_qwen35.generation.thinking import Thinking, ThinkTokens, leave_room

# What the family's makers put in where a budget is used up (Qwen3 technical report, "thinking budget").
CLOSING = (
    "\n\nConsidering the limited time by the user, I have to give the solution based on the thinking directly now."
)
AUTO = ToolChoice()
GAP = "\n\n"  # between the block and the answer, as the templates print it


@dataclass(frozen=True)
class Guidance:
    """What is asked of one answer.

    in_reasoning: the prompt ends inside the think block   budget: of thinking, in tokens   form: of the answer
    tools, tool_choice, parallel: what may be called, whether, and whether several times
    """

    in_reasoning: bool = False
    budget: int | None = None
    form: AnswerForm | None = None
    tools: Sequence[Mapping[str, Any]] | None = None
    tool_choice: ToolChoice = AUTO
    parallel: bool = True


class Guides:
    """Makes guides for one checkpoint. What takes long is made when first needed, and kept. Any thread may ask."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._begin, self._end, self._call = (tokenizer.token_id(tag) for tag in (OPEN, CLOSE, CALL))
        self._pieces: Sequence[bytes] = ()
        self._grammars: Grammars | None = None
        self._spellings: dict[str, Spelling] = {}
        self._lock = threading.RLock()

    def get_ready(self) -> None:
        """Begin to make, on another thread, what takes long. Python's other threads may stand still meanwhile."""
        # No daemon: a process that ends meanwhile waits for it, since it cannot be stopped inside llguidance.
        threading.Thread(target=self._make_all, name="guides").start()

    def _make_all(self) -> None:
        with contextlib.suppress(Exception):  # whoever asks for it is told
            for tag, token in ((CLOSE, self._end), (CALL, self._call)):
                if token is not None:
                    self._spelling(tag, token)
            self._compiler()

    def guide(self, asked: Guidance, max_tokens: int) -> Guide | None:
        """The guide of one answer; None where everything is allowed. max_tokens: that it can have at most

        Raises RequestError for what cannot be compiled, in milliseconds mostly; the first grammar of a process takes
        seconds where nobody called `get_ready`.
        """
        answer = self._answer(asked)
        if not asked.in_reasoning or self._end is None:
            return answer
        tokens = self._think_tokens(asked, answer, self._end)
        return Thinking(tokens, leave_room(asked.budget, max_tokens, len(tokens.closing)), answer)

    def grammar(self, form: AnswerForm) -> Matched:
        """A guide of an answer that is all `form`. Raises RequestError."""
        return self._compiler().guide(Grammar(form.kind, form.text, form.lenient))

    def _answer(self, asked: Guidance) -> Guide | None:
        calls = self._calls(asked)
        if asked.form is not None:
            form = self.grammar(asked.form)
            return form if calls is None else calls if asked.tool_choice.mode == "required" else Either([form, calls])
        if asked.tool_choice.mode == "required":
            return calls
        if not asked.tools or self._call is None:
            return None
        begin = (self._begin,) if self._begin is not None else ()
        return CallsInText(FreeText(self._call, self._spelling(CALL, self._call), begin, self._size), calls)

    def _calls(self, asked: Guidance) -> Matched | None:
        """The grammar of calls, where there may be any."""
        if not asked.tools or asked.tool_choice.mode == "none":
            return None
        if self._call is None:
            if asked.tool_choice.mode == "required":
                raise RequestError("This checkpoint has no token for tool calls, so they cannot be required.")
            return None
        functions = functions_of(asked.tools)
        if asked.tool_choice.name is not None:
            functions = [function for function in functions if function.name == asked.tool_choice.name][:1]
        with contextlib.suppress(RequestError):
            return self._guide_of(functions, asked.parallel)
        followable = [self._followable(function) for function in functions]
        with contextlib.suppress(RequestError):  # each may be followed, and all together be too much
            return self._guide_of(followable, asked.parallel)
        return self._guide_of([replace(f, plain=not f.strict) for f in followable], asked.parallel)

    def _guide_of(self, functions: Sequence[Function], parallel: bool) -> Matched:
        return self._compiler().guide(Grammar("tool calls", call_grammar(functions, parallel, WHITESPACE)))

    def _followable(self, function: Function) -> Function:
        """The function as far as its calls can be followed. RequestError for a strict one that cannot."""
        try:
            self._guide_of([function], False)
        except RequestError as problem:
            if function.strict:
                told = f"The tool {function.name!r:.60} is strict, but its parameters cannot be: {problem}"
                raise RequestError(told) from None
            return replace(function, plain=True)
        return function

    def _compiler(self) -> Grammars:
        with self._lock:
            if self._grammars is None:
                tokenizer = self._tokenizer
                named = tokenizer.named_ids
                vocabulary = Vocabulary(self._all_pieces(), named, tokenizer.stop_ids, tokenizer.encode)
                self._grammars = Grammars(vocabulary)
            return self._grammars

    def _spelling(self, tag: str, token: int) -> Spelling:
        with self._lock:
            if tag not in self._spellings:
                self._spellings[tag] = Spelling(tag.encode(), token, self._all_pieces())
            return self._spellings[tag]

    def _all_pieces(self) -> Sequence[bytes]:
        self._pieces = self._pieces or self._tokenizer.pieces()
        return self._pieces

    @property
    def _size(self) -> int:
        return self._tokenizer.vocab_size

    def _think_tokens(self, asked: Guidance, answer: Guide | None, end: int) -> ThinkTokens:
        calls = bool(asked.tools) and asked.tool_choice.mode != "none" and self._call is not None
        refused = [self._begin, self._call if asked.tools and not calls else None]
        tags = [(CLOSE, end)] + ([(CALL, self._call)] if asked.tools and self._call is not None else [])
        gap = tuple(self._tokenizer.encode(GAP))
        closing = (*self._tokenizer.encode(CLOSING), end, *gap)
        stop_ids = self._tokenizer.stop_ids
        spelled = tuple(self._spelling(tag, token) for tag, token in tags)
        follows = gap if isinstance(answer, (Matched, Either)) else ()
        call = self._call if calls else None
        never = tuple(token for token in refused if token is not None)
        return ThinkTokens(end, stop_ids, never, closing, follows, self._size, spelled, call)
