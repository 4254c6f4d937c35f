"""The one narrow boundary: messages in, typed events out. Every front end is a thin translation of this module.

runtime = Runtime.load("demo")
for event in runtime.chat(ChatRequest([{"role": "user", "content": "Hello"}])):
    if isinstance(event, Content):
        print(event.text, end="")
"""

from __future__ import annotations

import functools
import json
import threading
import warnings
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from pathlib import Path

from mlx_qwen35.caches.holds import Hold
from mlx_qwen35.chat import presets
from mlx_qwen35.chat.answer import Answer
from mlx_qwen35.chat.constraints import answer_form, thinking, tool_choice
from mlx_qwen35.chat.events import Event
from mlx_qwen35.chat.folding import Folding, Message, summary_tokens
from mlx_qwen35.chat.messages import normalise_messages, normalise_tools
from mlx_qwen35.chat.parser import OutputParser, PlainText
from mlx_qwen35.chat.reply import Reply
from mlx_qwen35.chat.room import require_few, require_few_arguments, require_room, require_room_for_tools, too_long
from mlx_qwen35.chat.stop import StopStrings
from mlx_qwen35.chat.template import ChatTemplate
from mlx_qwen35.chat.tokenizer import Tokenizer
from mlx_qwen35.chat.transcript import Prompt, Transcript
from mlx_qwen35.errors import CheckpointError, RequestError
from mlx_qwen35.folded import Answering, Folded
from mlx_qwen35.generation.mlx_thread import MLXThread
from mlx_qwen35.generation.prefixes import Prefixes
from mlx_qwen35.generation.request import Request
from mlx_qwen35.generation.sampling import check_sampling
from mlx_qwen35.generation.start import start_engine
from mlx_qwen35.generation.stats import Stats
from mlx_qwen35.guiding import Guidance, Guides
from mlx_qwen35.hub.family import FAMILY
from mlx_qwen35.hub.jsonfile import read_json
from mlx_qwen35.models.config import ModelConfig, read_config
from mlx_qwen35.models.fit import cache_bytes, fetch_if_it_fits
from mlx_qwen35.models.weights import LoadedModel, Progress, load_model
from mlx_qwen35.options import GREEDY, USUAL_CONTEXT, CacheOptions, Sampling
from mlx_qwen35.reading_ahead import ReadingAhead
from mlx_qwen35.requests import ChatRequest, TextRequest
from mlx_qwen35.running import Prepared, Running

USUAL_ANSWER = 32_768  # tokens; what the model cards advise for most questions


class Runtime:
    """A loaded checkpoint that answers chat requests from any thread, many at a time."""

    def __init__(
        self,
        folder: Path,
        loaded: LoadedModel,
        tokenizer: Tokenizer,
        thread: MLXThread,
        name: str,
        cache_bytes: int,
        caches: CacheOptions,
        warn: Callable[[str], None],
        guides: Guides,
    ) -> None:
        self.folder, self.name = folder, name
        self.config = loaded.config
        self.caches = caches
        self.tokenizer = tokenizer
        self.template = ChatTemplate.from_folder(folder)
        self.transcript = Transcript(self.tokenizer, self.template)
        self._folding = Folding()
        self._guides = guides
        self.notes = loaded.notes  # what people should know of how it was loaded
        self._thread, self._closing = thread, threading.RLock()
        self._engine = thread.call(lambda: start_engine(loaded.model, thread, folder, cache_bytes, caches, warn))
        self.prefixes = Prefixes(self._engine, caches.kv_bits)
        self._ahead = ReadingAhead(self._engine, caches.kv_bits, self.prompt) if caches.read_ahead else None
        self.warn = warn
        self._size = released_size(loaded.config)
        self._greedy_by_default = _asks_for_greedy(folder)

    @classmethod
    def load(
        cls,
        name: str,
        *,
        context: int = USUAL_CONTEXT,
        force: bool = False,
        offline: bool = False,
        progress: Progress | None = None,
        caches: CacheOptions = CacheOptions(),  # noqa: B008 (frozen)
        warn: Callable[[str], None] = warnings.warn,
        guided: bool = False,
    ) -> Runtime:
        """Load a checkpoint by folder, hub id or short name, downloading it if need be.

        context: tokens that the memory plan counts; more than the native ones turn YaRN on (see models/context.py)
        force: load even what does not fit
        caches: what is remembered between requests   warn: takes a line for people, from any thread
        guided: tools or structured output will be asked for: get ready while weights are read, not at the first request
        Raises UserError: one line that says what is wrong and what to do.
        """
        folder, plan = fetch_if_it_fits(name, context, force, offline, caches.kv_bits)
        tokenizer = _read_tokenizer(folder)
        guides, thread = Guides(tokenizer), MLXThread()
        if guided:
            guides.get_ready()
        try:
            loaded = thread.call(lambda: load_model(folder, progress, context=context))
            return cls(folder, loaded, tokenizer, thread, name, cache_bytes(plan), caches, warn, guides)
        except BaseException:
            thread.close()
            raise

    def close(self) -> None:
        """Cancel what runs, save what is to outlive the process, and end the runtime's thread."""
        with self._closing:
            if not self._thread.closing:  # else it was all done before
                self._engine.close()
                self._thread.close()
                if self._ahead is not None:
                    self._ahead.close()

    @property
    def is_open(self) -> bool:
        """Whether requests are taken."""
        return not self._thread.closing

    @property
    def context(self) -> int:
        """Tokens that a conversation may have, answers included."""
        return self.config.max_context

    def stats(self) -> Stats:
        """Speeds, reuse, memory."""
        return self._engine.stats()

    def sampling(self, request: ChatRequest | TextRequest) -> Sampling:
        """The numbers that would shape the answer to `request`. RequestError for unknown names and values."""
        known = {f.name for f in fields(Sampling)}
        if unknown := sorted(set(request.sampling) - known):
            raise RequestError(f"Unknown sampling option {unknown[0]!r}; known are {', '.join(sorted(known))}.")
        if request.preset is None and self._greedy_by_default:
            base = GREEDY
        else:
            thinks = isinstance(request, ChatRequest) and self.thinks(request)
            base = presets.choose(request.preset, thinks, self._size)
        sampling = replace(base, **request.sampling)
        check_sampling(sampling)
        return sampling

    def thinks(self, request: ChatRequest) -> bool:
        """Whether the answer to `request` begins with a think block. RequestError for a budget that is none."""
        asked, _ = thinking(request.enable_thinking, request.thinking_budget, request.reasoning_effort)
        return self.template.thinking_by_default if asked is None else asked

    def render(self, request: ChatRequest) -> str:
        """The prompt as text: the checkpoint's own chat template applied to the request."""
        enable, _ = thinking(request.enable_thinking, request.thinking_budget, request.reasoning_effort)
        context, tools = self.config.max_context, normalise_tools(request.tools)
        require_few(request.messages, context)
        require_room_for_tools(tools, context, self.tokenizer.encode)
        messages = normalise_messages(request.messages)
        require_few_arguments(messages, context)
        return self.template.render(messages, tools=tools, enable_thinking=enable)

    def prompt(self, request: ChatRequest) -> Prompt:
        """The prompt as token ids, answers of this runtime in it as they were sampled.

        Raises TooLongError only where it is so much longer than the context that counting would take long.
        """
        return self._tokenised(self.render(request))

    def _tokenised(self, text: str) -> Prompt:
        """The same of a text, if it is not far too long: that takes time, and then is refused."""
        require_room(text, self.config.max_context, self.tokenizer.encode)
        return self.transcript.prompt(text)

    def chat(self, request: ChatRequest) -> Iterator[Event]:
        """Answer. The last event is `Finished`; closing the iterator cancels within one step.

        Raises RequestError before the first event when the request cannot be rendered or run.
        """
        yield from self.submit(self.prepare(request)).events()

    def prepare(self, request: ChatRequest, hold: Hold | None = None) -> Prepared:
        """Render and check a request. For callers with a loop of their own, or a session; all others use `chat`.

        Takes milliseconds, for long conversations more. Raises RequestError when it cannot be rendered or run.
        """
        if request.fold_at is not None:
            return self._folded(request, request.fold_at, hold)
        text, tools = self.render(request), normalise_tools(request.tools)
        in_reasoning, choice = self.template.opens_thinking(text), tool_choice(request.tool_choice, tools)
        asked = Guidance(
            in_reasoning,
            thinking(request.enable_thinking, request.thinking_budget, request.reasoning_effort)[1],
            answer_form(request.response_format, request.regex, request.choices, request.grammar),
            tools,
            choice,
            request.parallel_tool_calls,
        )
        parser = OutputParser(None if choice.mode == "none" else tools, in_reasoning)
        prepared = self._prepared(request, self._tokenised(text), self.sampling(request), parser, hold, asked)
        # The list is the caller's, who may add the answer to it.
        return replace(prepared, chat=replace(request, messages=tuple(request.messages)))

    def _folded(self, request: ChatRequest, limit: int, hold: Hold | None) -> Prepared:
        """With older turns summarised where it is longer than `limit` tokens; see chat/folding.py. Where a summary is
        missing, the question for it, and `then` the same again."""
        request = replace(request, fold_at=None)
        self.sampling(request)  # what is wrong with it is said before anything is summarised

        def prompt_tokens(messages: list[Message]) -> int:
            return len(self.transcript.prompt(self.render(replace(request, messages=messages))).ids)

        def message_tokens(message: Message) -> int:
            return len(self.tokenizer.encode(json.dumps(message, ensure_ascii=False, default=str)))

        said = normalise_messages(request.messages)
        messages, fold = self._folding.apply(said, limit, prompt_tokens, message_tokens)
        shorter = replace(request, messages=messages)
        if fold is None:
            return self.prepare(shorter, hold)

        def then(summary: Reply) -> Prepared:
            self._folding.remember(fold, summary.content)
            return self._folded(shorter, limit, hold)

        # The same tools, so that the prompt begins as the conversation's own, which was computed before.
        asked = ChatRequest(
            fold.question(),
            request.tools,
            False,
            sampling={"temperature": 0.0},
            max_tokens=summary_tokens(limit),
            tool_choice="none",
        )
        return replace(self.prepare(asked), then=then, chat=None)

    def prepare_text(self, request: TextRequest) -> Prepared:
        """The same for a text to go on with. Raises RequestError."""
        given = request.prompt
        if len(given) >= self.config.max_context and not isinstance(given, str):
            raise too_long(self.config.max_context)
        prompt = self._tokenised(given) if isinstance(given, str) else self.transcript.read(given)
        # One text is often gone on with several times: only its last token is computed again.
        prompt = replace(prompt, pivots=(*prompt.pivots, len(prompt.ids) - 1))
        form = answer_form(request.response_format, request.regex, request.choices, request.grammar)
        return self._prepared(request, prompt, self.sampling(request), PlainText(), None, Guidance(form=form))

    def _prepared(
        self,
        request: ChatRequest | TextRequest,
        prompt: Prompt,
        sampling: Sampling,
        parser: OutputParser | PlainText,
        hold: Hold | None,
        guidance: Guidance,
    ) -> Prepared:
        max_tokens = USUAL_ANSWER if request.max_tokens is None else request.max_tokens
        if max_tokens < 1:
            raise RequestError(f"max_tokens is {max_tokens}; it should be at least 1.")
        asked = Request(
            prompt.ids,
            self.tokenizer.vocab_size,
            max_tokens,
            sampling,
            frozenset(self.tokenizer.stop_ids),
            request.seed,
            request.logit_bias,
            prompt.pivots,
            self.caches.kv_bits,
            hold,
            request.draft,
            guide=self._guides.guide(guidance, min(max_tokens, self.config.max_context - len(prompt.ids))),
            logprobs=request.logprobs,
        )
        return Prepared(prompt, asked, Answer(parser, StopStrings(request.stop)))

    def submit(self, prepared: Prepared) -> Answering:
        """Hand a request to the engine; returns at once. Raises RequestError when too many are waiting."""
        return Folded(self._begin, prepared) if prepared.then else self._begin(prepared)

    def _begin(self, prepared: Prepared) -> Running:
        on_end = None
        if self._ahead is not None and prepared.chat is not None:
            on_end = functools.partial(self._ahead.wish, prepared.chat, prepared.request.hold)
        return Running(self.transcript, self.tokenizer, prepared, self._engine.submit(prepared.request), on_end)


def released_size(config: ModelConfig) -> str | None:
    """The name by which `chat.presets` knows the released size with these dimensions; None if none has them."""
    for entry in FAMILY.values():
        if (entry.hidden, entry.layers, entry.heads) == (config.hidden_size, len(config.layer_types), config.num_heads):
            return f"3.6-{entry.short}" if config.later_release else entry.short
    return None


def _read_tokenizer(folder: Path) -> Tokenizer:
    """Refuse, before weights are read, one with ids past the embedding's rows: their look-up reads foreign memory."""
    tokenizer, rows = Tokenizer.from_folder(folder), read_config(folder).vocab_size
    if (ids := tokenizer.vocab_size) > rows:
        raise CheckpointError(f"The tokenizer in {folder} has {ids} tokens, but the network's vocabulary {rows} rows.")
    return tokenizer


def _asks_for_greedy(folder: Path) -> bool:
    """Whether the checkpoint's generation_config.json switches sampling off."""
    path = folder / "generation_config.json"
    return path.is_file() and read_json(path).get("do_sample") is False
