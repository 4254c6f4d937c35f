"""The one narrow boundary: messages in, typed events out. Every front end is a thin translation of this module.

runtime = Runtime.load("demo")
for event in runtime.chat(ChatRequest([{"role": "user", "content": "Hello"}])):
    if isinstance(event, Content):
        print(event.text, end="")
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from mlx_qwen35.chat import presets
from mlx_qwen35.chat.events import (
    Content,
    Event,
    Finished,
    FinishReason,
    ParsedEvent,
    PrefillProgress,
    Reasoning,
    ToolCallEnd,
    Usage,
)
from mlx_qwen35.chat.messages import normalise_messages, normalise_tools
from mlx_qwen35.chat.parser import OutputParser
from mlx_qwen35.chat.stop import StopStrings
from mlx_qwen35.chat.template import ChatTemplate
from mlx_qwen35.chat.tokenizer import Tokenizer
from mlx_qwen35.errors import CheckpointError, RequestError
from mlx_qwen35.generation.generate import generate
from mlx_qwen35.generation.mlx_thread import MLXThread
from mlx_qwen35.generation.sampling import Sampler, check_sampling
from mlx_qwen35.hub.family import FAMILY
from mlx_qwen35.hub.jsonfile import read_json
from mlx_qwen35.models.config import ModelConfig, read_config
from mlx_qwen35.models.fit import fetch_if_it_fits
from mlx_qwen35.models.weights import LoadedModel, Progress, load_model
from mlx_qwen35.options import GREEDY, Sampling

USUAL_ANSWER = 32_768  # tokens; what the model cards advise for most questions
USUAL_CONTEXT = 8_192  # tokens the memory plan counts when the user names no context


@dataclass(frozen=True)
class ChatRequest:
    """One question to the model, with the conversation before it.

    messages: OpenAI form, `{"role": ..., "content": ...}`   tools: OpenAI form
    enable_thinking: None leaves it to the checkpoint's template
    preset: a name of `chat.presets`; by default the one that fits thinking on or off
    sampling: what to change of it, by the names of `options.Sampling`
    max_tokens: of the answer, thinking included; by default 32,768 or what the context has room for
    stop: strings that end the answer (in content, not in reasoning)
    """

    messages: Sequence[Mapping[str, Any]]
    tools: Sequence[Mapping[str, Any]] | None = None
    enable_thinking: bool | None = None
    preset: str | None = None
    sampling: Mapping[str, float] = field(default_factory=dict)
    max_tokens: int | None = None
    stop: Sequence[str] = ()
    seed: int | None = None
    logit_bias: Mapping[int, float] = field(default_factory=dict)


class Runtime:
    """A loaded checkpoint that answers chat requests, one after another, from any thread."""

    def __init__(self, folder: Path, loaded: LoadedModel, thread: MLXThread, name: str) -> None:
        self.folder, self.name = folder, name
        self.config = loaded.config
        self.tokenizer = Tokenizer.from_folder(folder)
        self.template = ChatTemplate.from_folder(folder)
        self.notes = loaded.notes  # what people should know of how it was loaded
        self._model, self._thread = loaded.model, thread
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
    ) -> Runtime:
        """Load a checkpoint by folder, hub id or short name, downloading it if need be.

        context: tokens that the memory plan counts   force: load even what does not fit
        Raises UserError: one line that says what is wrong and what to do.
        """
        folder = fetch_if_it_fits(name, context, force, offline)
        _check_vocabulary(folder)
        thread = MLXThread()
        try:
            return cls(folder, thread.call(lambda: load_model(folder, progress)), thread, name)
        except BaseException:
            thread.close()
            raise

    def close(self) -> None:
        """Cancel what runs, and end the runtime's thread. It answers nothing after."""
        self._thread.close()

    def sampling(self, request: ChatRequest) -> Sampling:
        """The numbers that would shape the answer to `request`. RequestError for unknown names and values."""
        known = {f.name for f in fields(Sampling)}
        if unknown := sorted(set(request.sampling) - known):
            raise RequestError(f"Unknown sampling option {unknown[0]!r}; known are {', '.join(sorted(known))}.")
        if request.preset is None and self._greedy_by_default:
            base = GREEDY
        else:
            base = presets.choose(request.preset, self.thinks(request), self._size)
        sampling = replace(base, **request.sampling)
        check_sampling(sampling)
        return sampling

    def thinks(self, request: ChatRequest) -> bool:
        """Whether the answer to `request` begins with a think block."""
        asked = request.enable_thinking
        return self.template.thinking_by_default if asked is None else asked

    def render(self, request: ChatRequest) -> str:
        """The prompt as text: the checkpoint's own chat template applied to the request."""
        return self.template.render(
            normalise_messages(request.messages),
            tools=normalise_tools(request.tools),
            enable_thinking=request.enable_thinking,
        )

    def chat(self, request: ChatRequest) -> Iterator[Event]:
        """Answer. The last event is `Finished`; closing the iterator cancels within one token.

        Raises RequestError before the first event when the request cannot be rendered or run.
        """
        prompt = self.render(request)
        ids = self.tokenizer.encode(prompt)
        sampling = self.sampling(request)
        max_tokens = USUAL_ANSWER if request.max_tokens is None else request.max_tokens
        if max_tokens < 1:
            raise RequestError(f"max_tokens is {max_tokens}; it should be at least 1.")
        answer = _Answer(
            OutputParser(normalise_tools(request.tools), self.template.opens_thinking(prompt)),
            StopStrings(request.stop),
            Usage(prompt_tokens=len(ids)),
        )

        def tokens() -> Iterator[int | PrefillProgress]:
            # The sampler is made on the MLX thread, which owns its random key.
            sampler = Sampler(sampling, self.tokenizer.vocab_size, request.seed, request.logit_bias)
            yield from generate(self._model, ids, sampler, max_tokens, self._report)

        return self._events(answer, tokens)

    def _report(self, done: int, total: int) -> None:
        """Called by the prefill after each window. Ends it there when the request was cancelled."""
        self._thread.emit(PrefillProgress(done, total))

    def _events(self, answer: _Answer, tokens: Callable[[], Iterator[int | PrefillProgress]]) -> Iterator[Event]:
        text = self.tokenizer.stream()
        reason: FinishReason = "length"
        stream = self._thread.stream(tokens)
        try:
            for token in stream:
                if isinstance(token, PrefillProgress):
                    yield token
                    continue
                answer.count()
                if token in self.tokenizer.stop_ids:
                    reason = "stop"
                    break
                yield from answer.feed(text.add(token))
                if answer.stopped:
                    reason = "stop"
                    break
        finally:
            stream.close()
        yield from answer.finish(text.finish())
        yield Finished("tool_calls" if answer.called and reason == "stop" else reason, answer.usage())


class _Answer:
    """One answer in the making: parsed, cut at stop strings, counted and timed."""

    def __init__(self, parser: OutputParser, stops: StopStrings, usage: Usage) -> None:
        self._parser, self._stops, self._usage = parser, stops, usage
        self._started = time.perf_counter()
        self._first: float | None = None
        self._tokens = self._reasoning_tokens = 0
        self.called = False

    @property
    def stopped(self) -> bool:
        return self._stops.stopped

    def count(self) -> None:
        self._first = self._first or time.perf_counter()
        self._tokens += 1

    def feed(self, text: str) -> Iterator[ParsedEvent]:
        events = self._parser.feed(text)
        for i, event in enumerate(events):
            if isinstance(event, Reasoning):
                self._reasoning_tokens = self._tokens
                events[i] = replace(event, tokens=self._tokens)
        return self._cut(events)

    def finish(self, text: str) -> Iterator[ParsedEvent]:
        if not self.stopped:
            yield from self._cut([*self._parser.feed(text), *self._parser.finish()])
            if rest := self._stops.finish():
                yield Content(rest)

    def _cut(self, events: Sequence[ParsedEvent]) -> Iterator[ParsedEvent]:
        for event in events:
            if self.stopped:
                return
            if isinstance(event, Content):
                if shown := self._stops.feed(event.text):
                    yield Content(shown)
                continue
            if rest := self._stops.finish():
                yield Content(rest)
            self.called = self.called or isinstance(event, ToolCallEnd)
            yield event

    def usage(self) -> Usage:
        now = time.perf_counter()
        first = self._first or now
        return replace(
            self._usage,
            completion_tokens=self._tokens,
            reasoning_tokens=self._reasoning_tokens,
            prefill_seconds=first - self._started,
            decode_seconds=now - first,
        )


def released_size(config: ModelConfig) -> str | None:
    """The name by which `chat.presets` knows the released size with these dimensions; None if none has them."""
    for entry in FAMILY.values():
        if (entry.hidden, entry.layers, entry.heads) == (config.hidden_size, len(config.layer_types), config.num_heads):
            return f"3.6-{entry.short}" if config.later_release else entry.short
    return None


def _check_vocabulary(folder: Path) -> None:
    """Refuse a tokenizer with ids past the embedding's rows: looking one up would read foreign memory."""
    ids, rows = Tokenizer.from_folder(folder).vocab_size, read_config(folder).vocab_size
    if ids > rows:
        raise CheckpointError(f"The tokenizer in {folder} has {ids} tokens, but the network's vocabulary {rows} rows.")


def _asks_for_greedy(folder: Path) -> bool:
    """Whether the checkpoint's generation_config.json switches sampling off."""
    path = folder / "generation_config.json"
    return path.is_file() and read_json(path).get("do_sample") is False
