"""Tokens guessed ahead of those that are drawn: by the checkpoint's MTP layer, or from what repeats in the text.

Guesses cost time only: acceptance.py says which stay. Who drafts, from what and how deep is decided for all rows of a
step together (depth.py), since what one drafts all wait for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import mlx.core as mx

from mlx_qwen35.caches.draft_memory import DraftKV
from mlx_qwen35.caches.rows import draft_kv
from mlx_qwen35.errors import RequestError
from mlx_qwen35.generation.acceptance import accepted
from mlx_qwen35.generation.depth import Account, Candidate, Costs, Gate, Record
from mlx_qwen35.generation.guides import Mask, constrain
from mlx_qwen35.generation.row import Row
from mlx_qwen35.generation.sampling import Place, draw
from mlx_qwen35.models.model import Model
from mlx_qwen35.models.windows import Window
from mlx_qwen35.options import MOST_DRAFTS, Draft

MTP, NGRAM = "mtp", "ngram"
KINDS = (MTP, NGRAM)


@dataclass
class Drafts:
    """One row's drafts in a step.   kind: where they come from   tokens: [depth], perhaps not computed yet
    asked: whether the request wants so many, whatever they cost
    """

    kind: str
    depth: int
    tokens: mx.array | None = None
    asked: bool = False


class Offer(NamedTuple):
    """Drafts that a row could have.   depth: so many   tokens: of what repeats; the MTP layer's are not made yet"""

    kind: str
    depth: int
    tokens: Sequence[int] = ()

    def taken(self, depth: int, asked: bool = False) -> Drafts:
        """The first `depth` of them."""
        tokens = mx.array([*self.tokens[:depth]], mx.uint32) if self.tokens else None
        return Drafts(self.kind, depth, tokens, asked)


class Speculation:
    """Drafts for the engine's rows; learns what pays."""

    def __init__(self, model: Model, default: Draft = "auto") -> None:
        """default: for requests that do not say"""
        self._model, self._default = model, default
        self._costs = Costs()
        self._gates = {kind: Gate(self._costs) for kind in KINDS}
        self._accounts = {kind: Account() for kind in KINDS}
        # What sequences have shown, where a new one begins; those whose tokens are drawn by lot apart from others.
        self._all = {(kind, by_lot): Record() for kind in KINDS for by_lot in (False, True)}
        self.depth, self.why = 0, "nothing was drafted yet"

    # Who drafts

    def propose(self, rows: Sequence[Row]) -> list[Drafts | None]:
        """For each row of the next step its drafts; those of the MTP layer are computed by `draft`."""
        chosen = [self._fixed(row) for row in rows]
        allowed = [kind for kind in KINDS if self._accounts[kind].allows]
        for kind in KINDS:
            if kind not in allowed:
                self._gates[kind].rest()
                self.why = f"{kind}, off: such drafts have cost time"
        if allowed:
            self._choose(rows, allowed, chosen)
        self.depth = max((d.depth for d in chosen if d is not None), default=0)
        return chosen

    def _choose(self, rows: Sequence[Row], kinds: Sequence[str], chosen: list[Drafts | None]) -> None:
        """Drafts of these kinds for rows that leave it to us."""
        free = {i: room for i, row in enumerate(rows) if self._wanted(row) == "auto" and (room := self._room(row)) > 0}
        repeated = {i: found for i, room in free.items() if (found := self._repeated(rows[i], room)) is not None}
        for kind in kinds:
            offers = repeated
            if kind == MTP:
                # A row may draft from what repeats beside others that draft with the MTP layer.
                guessed = {i: Offer(MTP, room) for i, room in free.items() if self._has_mtp(rows[i])}
                offers = repeated | {i: self._better(rows[i], repeated.get(i), mine) for i, mine in guessed.items()}
            if not any(offer.kind == kind for offer in offers.values()):
                continue
            candidates = [Candidate(self._record(rows[i], offer.kind), offer.depth) for i, offer in offers.items()]
            choice = self._gates[kind].choose(len(rows), kind, candidates)
            self.why = f"{kind}, {choice.why}"
            for (i, offer), depth in zip(offers.items(), choice.depths):
                if depth:
                    chosen[i] = offer.taken(depth)
            if any(choice.depths) or choice.measures:
                break

    def _wanted(self, row: Row) -> Draft:
        """What the request asks for."""
        asked: Draft | None = row.request.draft
        if asked is None or self._default == "off":  # then nothing is kept for drafts
            return self._default
        return asked

    def _room(self, row: Row) -> int:
        """How many drafts the answer and the context have room for."""
        context = self._model.config.max_context - (row.fed + 1)
        return min(MOST_DRAFTS, row.request.max_tokens - row.drawn - 1, context - 1)

    def _fixed(self, row: Row) -> Drafts | None:
        wanted = self._wanted(row)
        if not isinstance(wanted, int) or (depth := min(wanted, self._room(row))) <= 0:
            return None
        if self._has_mtp(row):
            return Drafts(MTP, depth, asked=True)
        found = self._repeated(row, depth)
        return None if found is None else found.taken(found.depth, asked=True)

    def _better(self, row: Row, repeated: Offer | None, guessed: Offer) -> Offer:
        """Whichever promises more."""
        if repeated is None:
            return guessed
        tokens = {offer.kind: self._record(row, offer.kind).tokens(offer.depth) for offer in (guessed, repeated)}
        return repeated if tokens[NGRAM] >= tokens[MTP] else guessed

    def _repeated(self, row: Row, most: int) -> Offer | None:
        forced = row.guide.forced() if row.guide is not None and not row.unread else ()
        found = [*forced[:most]] or row.ngrams.drafts(row.ids, most, row.unread)
        return Offer(NGRAM, len(found), found) if found else None

    @staticmethod
    def _has_mtp(row: Row) -> bool:
        return row.cache is not None and draft_kv(row.cache) is not None

    def _record(self, row: Row, kind: str) -> Record:
        known = row.records.get(kind)
        if known is None:
            by_lot = row.request.sampling.temperature > 0
            known = row.records[kind] = Record(self._all[kind, by_lot])
        return known

    # Drafting

    def draft(self, rows: Sequence[Row], proposals: Sequence[Drafts | None]) -> None:
        """Run the MTP layer for those that draft with it, one pass for all a draft; nothing is read back."""
        found = [(row, d) for row, d in zip(rows, proposals) if d is not None and d.tokens is None]
        if not found:
            return
        found.sort(key=lambda pair: -pair[1].depth)
        rows, depths = [row for row, _ in found], [d.depth for _, d in found]
        hidden, drafts = self._first_pass(rows), [[] for _ in rows]
        memories = [_memory(row) for row in rows]
        for i in range(depths[0]):
            n = sum(depth > i for depth in depths)
            places = [_place(row, told) for row, told in zip(rows[:n], drafts)]
            logits = self._model.logits(hidden[:n])
            if i == 0:  # what is allowed after a draft is known only when that was read
                logits = constrain(logits, [_allowed(row) for row in rows[:n]])
            tokens = draw(places, logits)
            for told, j in zip(drafts[:n], range(n)):
                told.append(tokens[j : j + 1])
            if (n := sum(depth > i + 1 for depth in depths)) > 0:
                embeddings = self._model.embed(tokens[:n])
                windows = [Window.of_embeddings(embeddings[j : j + 1], m.kv) for j, m in enumerate(memories[:n])]
                hidden = self._model.mtp.packed(hidden[:n], windows)
        for memory, (_, d), told in zip(memories, found, drafts):
            memory.take_back(d.depth - 1)
            d.tokens = told[0] if len(told) == 1 else mx.concatenate(told)

    def _first_pass(self, rows: Sequence[Row]) -> mx.array:
        """All that waits for the layer, and each row's next token; what the first drafts come from, [rows, C]."""
        embeddings = self._model.embed(mx.concatenate([row.next_token for row in rows]))
        hidden, windows, ends = [], [], []
        for i, row in enumerate(rows):
            memory = _memory(row)
            before, after = memory.lend(embeddings[i : i + 1])
            hidden.append(before)
            windows.append(Window.of_embeddings(after, memory.kv))
            ends.append((ends[-1] if ends else -1) + after.shape[0])
        made = self._model.mtp.packed(mx.concatenate(hidden), windows)
        return made if len(rows) == made.shape[0] else made[mx.array(ends)]

    # What came of it

    def accept(self, row: Row, drafts: Drafts, told: Sequence[int], drawn: Sequence[int]) -> int:
        """How many of the drafts stay.   told: the drafts   drawn: the window's tokens, one more"""
        kept = accepted(told, drawn)
        self._record(row, drafts.kind).saw(drafts.depth, kept)
        return kept

    def stepped(self, proposals: Sequence[Drafts | None], tokens: int, seconds: float) -> None:
        """A step without prefill took `seconds` and brought `tokens`, of all rows."""
        made = [d for d in proposals if d is not None]
        kind = MTP if any(d.kind == MTP for d in made) else NGRAM
        rows, depth = len(proposals), max((d.depth for d in made), default=0)
        self._costs.observe(rows, kind, depth, seconds)
        plain = self._costs.measured(rows, kind, 0)
        if plain is not None and not any(d.asked for d in made):
            for account in [self._accounts[kind]] if made else self._accounts.values():
                account.book(depth > 0, rows, tokens, seconds, plain)


def _memory(row: Row) -> DraftKV:
    memory = draft_kv(row.cache or [])
    assert memory is not None
    return memory


def _allowed(row: Row) -> Mask | None:
    try:
        return None if row.guide is None else row.guide.masks()[0]
    except RequestError:  # said when the step itself asks
        return None


def _place(row: Row, told: Sequence[mx.array]) -> Place:
    """Where the row's next draft is drawn, after those in `told`."""
    assert row.sampler is not None
    sampler, answer = row.sampler, row.answer
    if told and sampler.counts_tokens:
        answer = mx.concatenate([answer, *(token.astype(mx.uint32) for token in told)])
    return Place(sampler, row.prompt, answer, sampler.lots(len(told) + 1)[-1])
