"""One request on its way: the engine's token ids in, events out, for readers that wait and for readers that await."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Generator, Iterable, Iterator
from dataclasses import dataclass, replace

from mlx_qwen35.chat.answer import Answer
from mlx_qwen35.chat.credits import Credits
from mlx_qwen35.chat.divergence import explain, rerendered
from mlx_qwen35.chat.events import Event, Finished, FinishReason, PrefillProgress, TokenLogprob, Usage
from mlx_qwen35.chat.reply import Gathering, Reply
from mlx_qwen35.chat.tokenizer import Tokenizer
from mlx_qwen35.chat.transcript import Prompt, Transcript
from mlx_qwen35.generation.request import Item, Line, Prefilled, Request, Reuse
from mlx_qwen35.generation.scores import Score
from mlx_qwen35.requests import ChatRequest


@dataclass(frozen=True)
class Prepared:
    """A request that was rendered and checked, ready for the engine.

    then: where this asks for the summary of a conversation that is too long: from that, what answers the conversation
    chat: as it was asked, where the conversation may go on from its answer
    """

    prompt: Prompt
    request: Request
    answer: Answer
    then: Callable[[Reply], Prepared] | None = None
    chat: ChatRequest | None = None


class Running:
    """Read it with `events` or `aevents`, one of them and once; either way, an end before the end cancels."""

    def __init__(
        self,
        transcript: Transcript,
        tokenizer: Tokenizer,
        prepared: Prepared,
        line: Line,
        on_end: Callable[[Reply], object] | None = None,
    ) -> None:
        """on_end: told of an answer that its reader has read to the end, and that calls no tools"""
        self.prompt, self.line = prepared.prompt, line
        self.sampled: list[int] = []
        self._transcript, self._tokenizer, self._answer = transcript, tokenizer, prepared.answer
        self._text = tokenizer.stream()
        scored = prepared.request.logprobs is not None
        self._credits = Credits(self._answer.in_reasoning) if scored else None
        self._reason: FinishReason = "length"
        self._on_end, self._gathering = on_end, Gathering() if on_end is not None else None

    def events(self) -> Generator[Event]:
        """The answer's events. Closing the iterator cancels within one step."""
        try:
            for item in self.line:
                yield from self._take(item)
                if self._answer.stopped:
                    break
            yield from self._finish()
        finally:
            self.close()

    async def aevents(self) -> AsyncGenerator[Event]:
        """The same on an event loop, without a thread. Cancelling the task that reads cancels within one step."""
        loop, arrived = asyncio.get_running_loop(), asyncio.Event()
        try:
            # Once the loop is closed this raises, which cancels too.
            self.line.listen(lambda: loop.call_soon_threadsafe(arrived.set))
            while not self._answer.stopped:
                try:
                    item = self.line.poll()
                except StopIteration:
                    break
                if item is None:
                    await arrived.wait()
                    arrived.clear()
                    continue
                for event in self._take(item):
                    yield event
            for event in self._finish():
                yield event
        finally:
            self.close()

    def close(self) -> None:
        """Let the engine go on with others, and remember how this answer was sampled."""
        self.line.cancel()
        self._transcript.remember(self.prompt, self.sampled)
        gathering, self._gathering = self._gathering, None
        if self._on_end is None or gathering is None or gathering.finished is None:
            return
        reply = gathering.reply()
        if reply.reason == "stop" or reply.content:  # one that was cut in its thoughts is no answer to write to
            self._on_end(reply)

    def _take(self, item: Item) -> Iterator[Event]:
        """The events that one item of the line makes certain."""
        if isinstance(item, Prefilled):
            yield PrefillProgress(item.done, item.total, item.cached)
            return
        token = item.token if isinstance(item, Score) else item
        self.sampled.append(token)
        self._answer.count()
        if token in self._tokenizer.stop_ids:
            self._reason = "stop"
            return
        text = self._text.add(token)
        if isinstance(item, Score) and self._credits is not None:
            self._credits.add(self._told(item), text)
        yield from self._credited(self._answer.feed(text))
        if self._answer.stopped:
            self._reason = "stop"

    def _finish(self) -> Iterator[Event]:
        """What remains, when the engine has nothing more to say or no more is wanted."""
        if self.line.ended is not None and self.line.ended.reason == "cancelled":
            self._reason = "cancelled"
        rest = self._text.finish()
        if self._credits is not None:
            self._credits.end(rest)
        yield from self._credited(self._answer.finish(rest))
        called = self._answer.called and self._reason == "stop"
        finished = Finished("tool_calls" if called else self._reason, self._usage(), self._answer.stop_string)
        if self._gathering is not None and finished.reason in ("stop", "length"):
            self._gathering.take(finished)
        yield finished

    def _credited(self, events: Iterable[Event]) -> Iterator[Event]:
        """The events, each with the tokens that it shows where those were asked for."""
        for event in events if self._credits is None else map(self._credits.credit, events):
            if self._gathering is not None:
                self._gathering.take(event)
            yield event

    def _told(self, score: Score) -> TokenLogprob:
        top = tuple(self._named(token, logprob) for token, logprob in score.top)
        return replace(self._named(score.token, score.logprob), top=top)

    def _named(self, token: int, logprob: float) -> TokenLogprob:
        raw = self._tokenizer.token_bytes(token)
        return TokenLogprob(token, raw.decode("utf-8", "replace"), raw, logprob)

    def _usage(self) -> Usage:
        reuse, ended = self.line.reuse, self.line.ended
        usage = self._answer.usage()
        note, again = self._compared(reuse)
        decoded = self.line.decoded
        return replace(
            usage,
            prompt_tokens=len(self.prompt.ids),
            cached_tokens=reuse.cached,
            rerendered_tokens=again,
            cache_note=note,
            queue_seconds=ended.queued if ended else reuse.queued,  # a stop string ends the answer before the line
            decode_steps=decoded.steps,
            drafted_tokens=decoded.drafted,
            accepted_tokens=decoded.accepted,
        )

    def _compared(self, reuse: Reuse) -> tuple[str, int]:
        """Why not more was reused, and how many tokens of earlier turns were computed again."""
        if reuse.common == 0:
            return "nothing in common with an earlier prompt", 0
        again = rerendered(self.prompt, self._transcript.read(reuse.nearest), reuse.common)
        if not again and reuse.common == reuse.cached:
            return "", 0
        note = explain(self.prompt, reuse.nearest, reuse.common, self._tokenizer)
        return note + ("; more was known, but had to make room" if reuse.lost else ""), again
