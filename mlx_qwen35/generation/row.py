"""One sequence in the engine: its ids, its caches, and where it stands.

Made on the thread that asks, without any array; from then on it lives on the MLX thread.
"""

from __future__ import annotations

import time

import mlx.core as mx

from mlx_qwen35.caches.prefix_tree import Node
from mlx_qwen35.caches.rows import SequenceCache, recurrent_layers
from mlx_qwen35.generation.depth import Record
from mlx_qwen35.generation.ngram import NGrams
from mlx_qwen35.generation.request import Ended, EndReason, Line, Prefilled, Request, Reuse
from mlx_qwen35.generation.sampling import Sampler
from mlx_qwen35.generation.scores import Score
from mlx_qwen35.models.windows import Window, commit

UNREAD = 64  # tokens a slow reader may leave waiting before its sequence pauses


class Row:
    """From a request's arrival to its end.

    `ids` are the prompt and what is drawn so far; the caches hold the first `fed` of them. While a step runs, the
    token it will draw is `token`, not yet read.
    """

    def __init__(self, request: Request, line: Line) -> None:
        self.request, self.line = request, line
        self.ids = list(request.ids)
        self.prompt_tokens = len(self.ids)
        self.arrived = time.perf_counter()
        self.started = self.first_token = 0.0
        self.cache: SequenceCache | None = None
        self.node: Node | None = None  # the last checkpoint of this very text; pinned
        self.sampler: Sampler | None = None
        self.guide = request.guide and request.guide.fork()
        # Ids, since `enter`. Not here, where requests come from any thread: MLX gives each one that computes (mx.zeros
        # is enough) a stream, and on a CPU that a thread which never ends, at the latest with the next clear_cache.
        self.prompt: mx.array
        self.answer: mx.array
        self.fed = 0
        self.target = self.prompt_tokens  # to prefill before the first draw
        self.drawn = 0  # tokens asked for, read or not
        self.token: mx.array | None = None
        self.stops: list[int] = []  # positions where prefill windows end, ascending
        self.done = False
        self.is_tight = False  # memory holds this text once only: no checkpoints before its end
        self._full_since = 0.0
        self.records: dict[str, Record] = {}  # how drafts fared, by what they came from
        self.ngrams = NGrams()

    # Before and during prefill

    def enter(self, cache: SequenceCache, sampler: Sampler, node: Node, reuse: Reuse, stride: int) -> None:
        """Take a place in the batch, with caches that hold what is reused. node: on this text, at or before that"""
        self.started = self.started or time.perf_counter()
        self.cache, self.sampler, self.node = cache, sampler, node
        if not self.answered:
            self.line.reuse = reuse
        self.fed, self.target, self.is_tight = reuse.cached, len(self.ids), False
        self.drawn = self.answered
        self.prompt = mx.array(self.ids[: self.prompt_tokens], mx.uint32)
        self.answer = mx.array(self.ids[self.prompt_tokens :], mx.uint32)
        boundaries = {p for p in self.request.checkpoints if self.fed < p < self.target}
        # In windows of a stride, so that a prompt that changes in its middle finds something to go on from.
        boundaries.update(range((self.fed // stride + 1) * stride, self.target, stride))
        self.stops = [*sorted(boundaries), self.target]

    def pass_by(self, tokens: int) -> None:
        """No checkpoints within the next `tokens`: each of them is a step more before the first token."""
        self.stops = [stop for stop in self.stops[:-1] if stop > self.fed + tokens] + self.stops[-1:]

    @property
    def landmarks(self) -> list[Node]:
        """The nodes of this text that the next turn may go on from: where this one began, branches, and ended."""
        assert self.node is not None
        wanted = {self.line.reuse.cached, self.node.end, *self.request.checkpoints}
        return [node for node in self.node.path() if node.end in wanted]

    def leave(self) -> None:
        """Give the place up, to enter again later: what is known so far is then prefilled as one text."""
        self.token = None

    @property
    def answered(self) -> int:
        """Tokens of the answer that were read."""
        return len(self.ids) - self.prompt_tokens

    @property
    def prefilling(self) -> bool:
        return self.fed < self.target

    @property
    def remaining(self) -> int:
        return self.target - self.fed

    def next_window(self, room: int) -> int:
        """Tokens of the next prefill window: up to `room`, and not past the next checkpoint."""
        return min(room, self.stops[0] - self.fed)

    def prefill(self, tokens: int) -> Window:
        assert self.cache is not None
        window = Window(mx.array(self.ids[self.fed : self.fed + tokens], mx.int32), self.cache)
        self.fed += tokens
        return window

    @property
    def at_checkpoint(self) -> bool:
        """Whether the prefill stands where a checkpoint is wanted. The end of the prompt is none: the answer's is."""
        if self.stops and self.fed == self.stops[0]:
            self.stops.pop(0)
            return bool(self.stops)
        return False

    # Decode

    @property
    def waits_for_token(self) -> bool:
        """Whether what it may draw next depends on a token that is not read yet."""
        return self.guide is not None and self.unread > 0 and not self.guide.steady

    @property
    def is_full(self) -> bool:
        """Whether its reader is too far behind to be given more."""
        return self.line.waiting >= UNREAD

    def paused_for(self, now: float) -> float:
        """Seconds since its reader fell too far behind."""
        self._full_since = (self._full_since or now) if self.is_full else 0.0
        return now - self._full_since if self._full_since else 0.0

    @property
    def decoding(self) -> bool:
        """Whether it takes part in the next step with the token that the last one draws."""
        return self.token is not None and self.drawn < self.request.max_tokens and not self.is_full

    def part(self) -> None:
        """The next step goes on without it."""
        for layer in recurrent_layers(self.cache or []):
            layer.part()

    @property
    def next_token(self) -> mx.array:
        """[1], drawn and not in the caches yet."""
        assert self.token is not None
        return self.token

    @property
    def unread(self) -> int:
        """Tokens of the answer that are drawn and not known yet."""
        return self.drawn - self.answered

    def decode(self, drafts: mx.array | None = None) -> Window:
        """The next token, and drafts [depth] of those after it, of which `keep` says how many stay."""
        assert self.cache is not None
        if drafts is None:
            self.fed += 1
            return Window(self.next_token.astype(mx.int32), self.cache)
        ids = mx.concatenate([self.next_token.astype(mx.int32), drafts.astype(mx.int32)])
        return Window(ids, self.cache, draft=True)

    def draws(self, token: mx.array) -> None:
        """The step in flight draws `token`, [1]."""
        assert self.sampler is not None
        self.token = token
        self.drawn += 1
        self.sampler.spend(1)
        if self.sampler.counts_tokens:
            self.answer = mx.concatenate([self.answer, token.astype(mx.uint32)])

    def keep(self, window: int, tokens: list[int]) -> None:
        """Of a window with drafts, which was `window` tokens long, so many stay as it brought new `tokens`; maybe none.

        The last of them is in the caches no more than the one that plain decode draws.
        """
        assert self.cache is not None
        assert self.sampler is not None
        commit(self.cache, window, len(tokens))
        self.fed += len(tokens)
        self.drawn += len(tokens)
        self.sampler.spend(len(tokens))
        if tokens:
            self.token = mx.array(tokens[-1:], mx.uint32)
            if self.sampler.counts_tokens:
                self.answer = mx.concatenate([self.answer, mx.array(tokens, mx.uint32)])

    def ending(self, tokens: list[int]) -> int:
        """How many of the tokens that come next belong to the answer: up to its end, if that is among them."""
        if self.guide is None or self.request.stop_ids:
            return next((i + 1 for i, token in enumerate(tokens) if token in self.request.stop_ids), len(tokens))
        guide = self.guide.fork()  # only it knows
        for i, token in enumerate(tokens):
            guide.accept((token,))
            if guide.done:
                return i + 1
        return len(tokens)

    def reads(self, token: int, score: Score | None = None) -> EndReason | None:
        """A drawn token has become known. Says why the answer ends, if it does."""
        item = token if score is None else score
        if not self.first_token:  # what somebody waits for
            self.first_token = time.perf_counter()
            self.line.put(item)
        else:
            self.line.hold(item)
        self.ids.append(token)
        if self.guide is not None:
            self.guide.accept((token,))
        if token in self.request.stop_ids or (self.guide is not None and self.guide.done):
            return "stop"
        return "length" if self.answered >= self.request.max_tokens else None

    # The end

    def progress(self, done: int) -> None:
        # A reader who is that far behind is shown the later ones; tokens are what may make it pause.
        if not self.answered and self.line.waiting < UNREAD // 2:
            self.line.put(Prefilled(done, self.prompt_tokens, self.line.reuse.cached))

    def end(self, reason: EndReason) -> None:
        now = time.perf_counter()
        started = self.started or now
        first = self.first_token or now
        self.done = True
        self.line.put(Ended(reason, started - self.arrived, first - started, now - first))

    def fail(self, error: BaseException) -> None:
        self.done = True
        self.line.put(error)
