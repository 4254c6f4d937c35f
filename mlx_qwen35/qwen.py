"""The Python API: load a model, then ask it from any thread or task; all who ask share one batch.

    import mlx_qwen35

    with mlx_qwen35.load("demo") as qwen:
        reply = qwen.chat([{"role": "user", "content": "How do I convert a model?"}])
        print(reply.content)

Thin over runtime.py. Everything that is wrong for a reason the caller can mend is a `UserError` of one line.
"""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import AsyncGenerator, Callable, Generator, Sequence
from contextlib import aclosing
from pathlib import Path
from types import NoneType
from typing import Unpack

from mlx_qwen35.asking import Messages, Options, Tools, chat_request, text_request
from mlx_qwen35.chat.events import Event
from mlx_qwen35.chat.messages import normalise_messages
from mlx_qwen35.chat.reply import Completion, Reply, agathered, gathered
from mlx_qwen35.errors import RequestError
from mlx_qwen35.folded import Answering
from mlx_qwen35.generation.stats import Stats
from mlx_qwen35.hub.cache import prefix_folder
from mlx_qwen35.models.weights import Progress
from mlx_qwen35.options import DRAFT_VALUES, KV_BITS, PLAIN, USUAL_CONTEXT, CacheOptions, Draft, is_draft
from mlx_qwen35.running import Prepared
from mlx_qwen35.runtime import Runtime, TextRequest
from mlx_qwen35.session import Session

USUAL_TEXT = 256  # tokens of a text that was not told how long to become


def load(
    name: str | Path = "demo",
    *,
    kv_bits: int = PLAIN,
    disk: Path | str | None = None,
    disk_bytes: int = CacheOptions.disk_bytes,
    prefix_bytes: int | None = None,
    max_sequences: int = CacheOptions.max_sequences,
    draft: Draft = CacheOptions.draft,
    exact: bool = False,
    read_ahead: bool = True,
    context: int = USUAL_CONTEXT,
    force: bool = False,
    offline: bool = False,
    progress: Progress | None = None,
    warn: Callable[[str], None] = warnings.warn,
) -> Qwen:
    """Load a checkpoint by folder, hub id or short name ("27b", "demo"), downloading it if need be.

    kv_bits: of the KV cache: 16, 8 or 4
    disk: where what was computed of texts outlives the process; "auto" is the user's cache folder, None is nowhere
    prefix_bytes: memory for the same, open sessions aside; None takes half of what caches may have, up to 8 GiB
    max_sequences: answered at the same time   context: tokens the memory plan counts   force: load what does not fit
    draft: tokens guessed ahead and checked together, by the checkpoint's MTP layer or from what repeats: "auto" finds
    out how many pay, 1 to 4 is a fixed number, "off" none; answers stay the same
    exact: answers the same to the last bit of every number, whoever shares the batch; slower, see models/exact.py
    read_ahead: compute what a conversation's next prompt will begin with, while nobody asks; see reading_ahead.py
    progress: called with bytes done and in all   warn: takes one line for people, from any thread
    Raises UserError.
    """
    if kv_bits not in KV_BITS:
        raise RequestError(f"kv_bits is {kv_bits!r:.40}; it should be one of {', '.join(map(str, KV_BITS))}.")
    whole = {"max_sequences": (max_sequences, 1), "context": (context, 1), "disk_bytes": (disk_bytes, 0)}
    for option, (value, least) in {**whole, "prefix_bytes": (prefix_bytes or 0, 0)}.items():
        if type(value) is not int or value < least:
            raise RequestError(f"{option} is {value!r:.40}; it should be a whole number, at least {least}.")
    for option, switch in {"exact": exact, "read_ahead": read_ahead}.items():
        if not isinstance(switch, bool):
            raise RequestError(f"{option} is {switch!r:.40}; it should be True or False.")
    if not is_draft(draft):
        raise RequestError(f"draft is {draft!r:.40}; it should be {DRAFT_VALUES}.")
    if not isinstance(disk, (str, Path, NoneType)):
        raise RequestError(f'disk is {disk!r:.40}; it should be a folder, or "auto".')
    folder = prefix_folder() if disk == "auto" else Path(disk).expanduser() if disk is not None else None
    caches = CacheOptions(
        kv_bits,
        prefix_bytes,
        folder,
        disk_bytes,
        max_sequences=max_sequences,
        draft=draft,
        exact=exact,
        read_ahead=read_ahead,
    )
    return Qwen(
        Runtime.load(
            str(name), context=context, force=force, offline=offline, progress=progress, caches=caches, warn=warn
        )
    )


class Qwen:
    """A loaded model. Requests that run at the same time are computed together; each as if it were alone."""

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime

    def chat(
        self, messages: Messages, *, tools: Tools | None = None, think: bool | None = None, **options: Unpack[Options]
    ) -> Reply:
        """Answer a conversation. `reply.message` is what to append to it.

        messages: OpenAI form, or one question   tools: OpenAI form   think: None leaves it to the model's template
        options: `asking.Options`
        """
        return gathered(self.stream(messages, tools=tools, think=think, **options))

    def stream(
        self, messages: Messages, *, tools: Tools | None = None, think: bool | None = None, **options: Unpack[Options]
    ) -> Generator[Event]:
        """`chat`, event by event; the last is `Finished`. Closing the iterator cancels within one step."""
        request = chat_request(messages, tools, think, **options)
        return self._stream(lambda: self.runtime.prepare(request))

    async def achat(
        self, messages: Messages, *, tools: Tools | None = None, think: bool | None = None, **options: Unpack[Options]
    ) -> Reply:
        """`chat` for event loops. Cancelling the task cancels the answer within one step."""
        return await agathered(self.astream(messages, tools=tools, think=think, **options))

    def astream(
        self, messages: Messages, *, tools: Tools | None = None, think: bool | None = None, **options: Unpack[Options]
    ) -> AsyncGenerator[Event]:
        """`stream` for event loops. Where a loop over it is left early, `contextlib.aclosing` cancels at once."""
        request = chat_request(messages, tools, think, **options)
        return self._astream(lambda: self.runtime.prepare(request))

    def generate(self, prompt: str | Sequence[int], **options: Unpack[Options]) -> Completion:
        """Go on with a text, or with token ids, as they stand, without a template; 256 tokens if not told."""
        running = self._submit_text(prompt, options)
        return _completed(running, gathered(running.events()))

    def stream_generate(self, prompt: str | Sequence[int], **options: Unpack[Options]) -> Generator[Event]:
        """`generate`, event by event: `Content` with pieces of text, at the end `Finished`."""
        request = _text(prompt, options)
        return self._stream(lambda: self.runtime.prepare_text(request))

    async def agenerate(self, prompt: str | Sequence[int], **options: Unpack[Options]) -> Completion:
        """`generate` for event loops."""
        request = _text(prompt, options)
        running = self.runtime.submit(await asyncio.to_thread(self.runtime.prepare_text, request))
        return _completed(running, await agathered(running.aevents()))

    def astream_generate(self, prompt: str | Sequence[int], **options: Unpack[Options]) -> AsyncGenerator[Event]:
        """`stream_generate` for event loops."""
        request = _text(prompt, options)
        return self._astream(lambda: self.runtime.prepare_text(request))

    def session(
        self,
        system: str | None = None,
        *,
        tools: Tools | None = None,
        think: bool | None = None,
        messages: Messages = (),
        **options: Unpack[Options],
    ) -> Session:
        """A conversation that keeps its messages, and what was computed of it. options: of all its answers"""
        said = chat_request(messages).messages
        if said:
            normalise_messages(said)
        if system is not None:
            said = [{"role": "system", "content": system}, *said]
        return Session(self.runtime, said, tools, think, options)

    def load_session(self, path: str | Path, trusted: bool = True) -> Session:
        """The session that `Session.save` wrote, perhaps with another model: then it is computed again.

        A file is data, not code, but its numbers are what the model goes on from, for whoever writes the same text.
        trusted: False keeps them to this session and its forks, and refuses a file whose numbers are of no use here
        Raises SessionError.
        """
        return Session.load(self.runtime, Path(path).expanduser(), trusted)

    def stats(self) -> Stats:
        """Speeds, batch, reuse, memory."""
        return self.runtime.stats()

    def close(self) -> None:
        """End all answers, as cancelled, and free the model's memory as far as Python knows nobody who uses it."""
        self.runtime.close()

    def __enter__(self) -> Qwen:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _submit_text(self, prompt: str | Sequence[int], options: Options) -> Answering:
        return self.runtime.submit(self.runtime.prepare_text(_text(prompt, options)))

    def _stream(self, prepare: Callable[[], Prepared]) -> Generator[Event]:
        # Nothing runs before somebody reads: an iterator that is never begun would hold its place for ever.
        yield from self.runtime.submit(prepare()).events()

    async def _astream(self, prepare: Callable[[], Prepared]) -> AsyncGenerator[Event]:
        running = self.runtime.submit(await asyncio.to_thread(prepare))
        async with aclosing(running.aevents()) as events:
            async for event in events:
                yield event


def _text(prompt: str | Sequence[int], options: Options) -> TextRequest:
    limited: Options = {"max_tokens": USUAL_TEXT, **options}
    return text_request(prompt, **limited)


def _completed(running: Answering, reply: Reply) -> Completion:
    return Completion(reply.content, tuple(running.sampled), reply.usage, reply.reason, reply.logprobs)
