"""How many drafts pay: acceptance seen so far, against the seconds that steps of each depth took on this machine.

Plain decode is the measure. A depth is chosen where the tokens it is expected to bring per second are more than plain
decode's by a margin; otherwise none is, and now and then a few steps try again. What is expected may be wrong, so an
account is kept of what drafts really brought: once they have cost a small part of the time, they have to wait. Knows
no model and reads no clock.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from mlx_qwen35.options import MOST_DRAFTS

MARGIN = 1.08  # of the speed expected, over plain decode's, to begin; below, noise decides
STAYING = 1.02  # the same to go on
LOSS = 0.01  # of the time of decoding: what drafts may cost in the long run where they do not pay
CREDIT = 5.0  # plain steps' time: what drafts may cost at once, gains before it or not
SLOWEST = 3.0  # plain steps' time: what one step counts for at most. A first one pays for what is made once
DECAY = 0.95  # of what a sequence showed, per draft: some thirty drafts are remembered
PRIOR_WEIGHT = 3.0  # drafts that all sequences together count for at the beginning of one
FIRST_CHANCE = 0.6  # of a draft to be accepted, before any was
FIRST_COST = 0.1  # of a plain step's time, a draft, before any step was measured
MEASURED = 3  # steps before a depth's time is believed; the first is not counted, it pays for what is made once
REMEMBERED = 9  # steps whose lower quartile is a depth's time: what else the machine does only adds
PLAIN_EVERY = 32  # steps with drafts until a plain one measures again what it costs
PROBE_EVERY, PROBE_LATEST = 64, 1024  # plain steps until drafts are tried again; doubles while they do not pay
PROBE_STEPS = 4


class Record:
    """How often the first, second, ... draft of a sequence stayed, given that those before it did."""

    def __init__(self, prior: Record | None = None) -> None:
        self._prior = prior
        self._tries = [0.0] * MOST_DRAFTS
        self._hits = [0.0] * MOST_DRAFTS

    def saw(self, drafts: int, kept: int) -> None:
        """Of `drafts` drafts the first `kept` stayed."""
        for i in range(min(drafts, kept + 1)):
            self._tries[i] = DECAY * self._tries[i] + 1
            self._hits[i] = DECAY * self._hits[i] + (i < kept)
        if self._prior is not None:
            self._prior.saw(drafts, kept)

    def chance(self, i: int) -> float:
        """That draft number i (0, 1, ...) stays if those before it do."""
        before = FIRST_CHANCE if self._prior is None else self._prior.chance(i)
        return (self._hits[i] + PRIOR_WEIGHT * before) / (self._tries[i] + PRIOR_WEIGHT)

    def tokens(self, depth: int) -> float:
        """Expected of a step with `depth` drafts, the one that is drawn anyway counted."""
        total = reach = 1.0
        for i in range(depth):
            reach *= self.chance(i)
            total += reach
        return total


class Costs:
    """Seconds of decode steps, by the number of rows, what the drafts came from, and the deepest of them."""

    def __init__(self) -> None:
        self._steps: dict[tuple[int, str, int], deque[float]] = defaultdict(lambda: deque(maxlen=REMEMBERED))
        self._seen: set[tuple[int, str, int]] = set()
        self._measured: dict[tuple[int, str, int], float] = {}

    def observe(self, rows: int, kind: str, depth: int, seconds: float) -> None:
        key = _key(_bucket(rows), kind, depth)
        if key not in self._seen:
            self._seen.add(key)
            return
        steps = self._steps[key]
        steps.append(seconds)
        if len(steps) >= MEASURED - 1:
            self._measured[key] = sorted(steps)[len(steps) // 4]

    def measured(self, rows: int, kind: str, depth: int) -> float | None:
        """Seconds of such a step; None until a few were seen."""
        return self._measured.get(_key(_bucket(rows), kind, depth))

    def ratios(self, rows: int, kind: str, most: int) -> list[float]:
        """A step's time over that of one without drafts, with 0, 1, ... `most` of them; estimated where it was not
        measured. Only after some without.
        """
        known = self._known(_bucket(rows), kind) or self._of_other_rows(rows, kind)
        return [1.0, *(_estimated(known, depth) for depth in range(1, most + 1))]

    def _known(self, bucket: int, kind: str) -> dict[int, float]:
        """The ratios that were measured, by depth."""
        plain = self._measured.get(_key(bucket, kind, 0))
        times = ((d, self._measured.get(_key(bucket, kind, d))) for d in range(1, MOST_DRAFTS + 1))
        return {d: seconds / plain for d, seconds in times if seconds is not None} if plain else {}

    def _of_other_rows(self, rows: int, kind: str) -> dict[int, float]:
        """Those of the number of rows that is nearest to `rows`, until some were measured with so many."""
        here, found = _bucket(rows), {bucket for bucket, *_ in self._measured}
        nearest = sorted(found, key=lambda bucket: max(bucket, here) / min(bucket, here))
        return next((known for bucket in nearest if (known := self._known(bucket, kind))), {})


def _estimated(known: dict[int, float], depth: int) -> float:
    if depth in known:
        return known[depth]
    if not known:
        return 1 + FIRST_COST * depth
    nearest = min(known, key=lambda d: (abs(d - depth), -d))
    return max(1.0, 1 + (known[nearest] - 1) * depth / nearest)


class Account:
    """What drafts of one kind brought and cost, in seconds of plain decode."""

    def __init__(self) -> None:
        self._balance: float | None = None  # None before the first step
        self._drafted = False  # the step before

    def book(self, drafted: bool, rows: int, tokens: int, seconds: float, plain: float) -> None:
        """A step.   tokens: that came to stay, of all rows   plain: seconds of such a step without drafts"""
        most, counted = CREDIT * plain, min(seconds, SLOWEST * plain)
        # The step after drafts is theirs too: it replays what stayed.
        gained = plain * tokens / rows - counted if drafted or self._drafted else 0.0
        balance = (most if self._balance is None else self._balance) + LOSS * counted + gained
        self._balance = min(max(balance, -most), most)  # a good hour is not to decide for long
        self._drafted = drafted

    @property
    def allows(self) -> bool:
        """Whether drafts have not cost too much."""
        return self._balance is None or self._balance >= 0


def _key(bucket: int, kind: str, depth: int) -> tuple[int, str, int]:
    return bucket, kind if depth else "", depth


def _bucket(rows: int) -> int:
    """Numbers of rows that count as one: up to the next power of two."""
    return 1 << (rows - 1).bit_length()


@dataclass(frozen=True)
class Candidate:
    """A row that may draft: what it has shown, and how many drafts it could use now."""

    record: Record
    most: int


@dataclass(frozen=True)
class Choice:
    """Drafts for each row, and why, in words.   measures: whether the step is to be one without any drafts"""

    depths: tuple[int, ...]
    why: str
    measures: bool = False


@dataclass
class Gate:
    """Chooses depths, step by step, for all rows at once: what one row drafts, all wait for."""

    costs: Costs = field(default_factory=Costs)
    _on: bool = False
    _plain: int = 0  # steps without drafts since the last ones with
    _drafting: int = 0  # steps with drafts since the last one without
    _probing: int = 0  # steps of a trial that are left
    _wait: int = PROBE_EVERY

    def choose(self, rows: int, kind: str, candidates: Sequence[Candidate]) -> Choice:
        """rows: in the step, those that may not draft counted   kind: what the drafts would come from"""
        none = (0,) * len(candidates)
        most = max((c.most for c in candidates), default=0)
        if most == 0:
            return Choice(none, "nothing to draft from")
        if self.costs.measured(rows, kind, 0) is None:
            return Choice(none, "measuring a step without drafts", True)
        ratios = self.costs.ratios(rows, kind, most)
        depths = {depth: [_useful(rows, c, depth, ratios[depth]) for c in candidates] for depth in range(1, most + 1)}
        speeds = {depth: _speed(rows, candidates, found, ratios[depth]) for depth, found in depths.items()}
        best = max(speeds, key=lambda depth: speeds[depth])
        told = f"{best} {'draft' if best == 1 else 'drafts'}: {speeds[best]:.2f} times the speed of plain decode"
        self._on = speeds[best] > (STAYING if self._on else MARGIN)
        if self._on:
            self._plain, self._probing, self._wait = 0, 0, PROBE_EVERY
            self._drafting += 1
            if self._drafting % PLAIN_EVERY == 0:
                return Choice(none, f"measuring a step without drafts ({told})", True)
            return Choice(tuple(depths[best]), told)
        self._plain += 1
        if self._probing == 0 and self._plain >= self._wait:
            self._probing, self._plain, self._wait = PROBE_STEPS, 0, min(2 * self._wait, PROBE_LATEST)
        if self._probing:
            self._probing -= 1
            return Choice(tuple(min(1, c.most) for c in candidates), f"trying again ({told})")
        return Choice(none, f"off: {told}")

    def rest(self) -> None:
        """A step that may have no drafts, whatever they promise."""
        self._on, self._probing = False, 0
        self._plain += 1


def _speed(rows: int, candidates: Sequence[Candidate], depths: Sequence[int], ratio: float) -> float:
    """Expected tokens per second, over plain decode's.   ratio: of the step's time to that of a plain one"""
    tokens = sum(c.record.tokens(depth) for c, depth in zip(candidates, depths))
    return (tokens + rows - len(candidates)) / rows / ratio


def _useful(rows: int, candidate: Candidate, depth: int, ratio: float) -> int:
    """The depth up to which a row's drafts are worth their share of the step, where others go to `depth`."""
    share = max(0.0, ratio - 1) / depth if rows > 1 else 0.0
    reach = 1.0
    for i in range(min(depth, candidate.most)):
        reach *= candidate.record.chance(i)
        if reach < share:
            return i
    return min(depth, candidate.most)
