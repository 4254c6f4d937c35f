"""Which runs a bench makes, in turn A B A B, and the medians that come of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from statistics import median

from mlx_qwen35.benching.contenders import Contender, Run, made_up
from mlx_qwen35.benching.energy import Meter

PROMPTS = (128, 512, 2_048, 8_192, 32_768)
LONG = 131_072  # where it is asked for: minutes on most Macs
BATCHES = (1, 4, 8)
BATCH_PROMPT = 128


@dataclass(frozen=True)
class Case:
    """`batch` prompts of `length` tokens at once, `tokens` of answer each."""

    length: int
    batch: int
    tokens: int


@dataclass(frozen=True)
class Measure:
    """Of one contender in one case, medians. first: seconds to the first token of the last answer to begin
    prefill, decode: tokens a second, of all sequences together   prefill_cpu, decode_cpu: tokens a CPU second; 0 where
    another process computes   watts: of the whole chip meanwhile, 0 where nothing counts them
    """

    contender: str
    case: Case
    first: float
    prefill: float
    decode: float
    prefill_cpu: float = 0.0
    decode_cpu: float = 0.0
    watts: float = 0.0


def cases(prompts: Sequence[int], batches: Sequence[int], tokens: int) -> list[Case]:
    """Prompts of each length alone, then several short ones at once."""
    return [*(Case(n, 1, tokens) for n in prompts), *(Case(BATCH_PROMPT, n, tokens) for n in batches if n > 1)]


def measure(
    contenders: Sequence[Contender],
    case: Case,
    known: int,
    rounds: int,
    tell: Callable[[str], None],
    meter: Meter | None = None,
) -> Iterator[Measure]:
    """All contenders in turn, `rounds` times; prompts are new in each round, and the same for all in a round."""
    able = [c for c in contenders if case.batch == 1 or c.batches]
    runs: dict[str, list[Run]] = {contender.name: [] for contender in able}
    watts: dict[str, list[float]] = {contender.name: [] for contender in able}
    for number in range(rounds):
        prompts = made_up(case.batch, case.length, known, seed=1000 * case.length + 10 * case.batch + number)
        for contender in able:
            tell(f"{contender.name}: {case.batch} x {case.length:,} tokens, round {number + 1} of {rounds}")
            before = meter.joules() if meter else None
            runs[contender.name].append(run := contender.run(prompts, case.tokens))
            if meter and before is not None and (after := meter.joules()) is not None:
                watts[contender.name].append((after - before) / (run.first + run.rest))
    for name, found in runs.items():
        read, first = case.batch * case.length, median(run.first for run in found)
        prefill_cpu = _speed((read, run.first_cpu) for run in found)
        decode = _speed((run.tokens, run.rest) for run in found)
        decode_cpu = _speed((run.tokens, run.rest_cpu) for run in found)
        power = median(watts[name]) if watts[name] else 0.0
        yield Measure(name, case, first, read / first, decode, prefill_cpu, decode_cpu, power)


def _speed(runs: Iterable[tuple[int, float]]) -> float:
    """The median of tokens a second, 0 where no time is known."""
    speeds = [tokens / seconds for tokens, seconds in runs if seconds > 0]
    return median(speeds) if speeds else 0.0


def cached_first(contender: Contender, length: int, known: int) -> tuple[float, float]:
    """Seconds to the first token of a prompt that is new, and of the same prompt again."""
    prompts = made_up(1, length, known, seed=7)
    return contender.run(prompts, 2).first, contender.run(prompts, 2).first
