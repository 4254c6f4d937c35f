"""Bits for every matrix under two budgets: bytes of the files, and bytes read for one token.

Greedy: all start at the fewest bits their role allows, then whichever matrix loses most error for its price gets
more, until the budgets are spent; how much a byte a token costs beside a byte on disk is tried out. The error of a
matrix counts by its role, from what is known of the family's sensitive parts, and by what rounding at so many bits
leaves of it: both are priors, not measurements of this checkpoint. Knows shapes and roles, no weights.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from mlx_qwen35.convert.packing import BITS, Packing
from mlx_qwen35.convert.parameters import Parameter
from mlx_qwen35.convert.recipes import Choice, Formats, balanced, fitting
from mlx_qwen35.convert.roles import Place, token_share
from mlx_qwen35.errors import ConfigError
from mlx_qwen35.hub.machine import GIB
from mlx_qwen35.hub.memory import DEFAULT_CONTEXT
from mlx_qwen35.hub.progress import gigabytes
from mlx_qwen35.hub.text_sizes import TextSizes
from mlx_qwen35.models.config import ModelConfig

# Relative squared error of a gaussian matrix after refitted rounding in groups of 64.
_ERROR = {2: 0.15, 3: 0.042, 4: 0.0069, 5: 0.0017, 6: 0.00042, 8: 0.00003}
# How much an error counts (a layer is one of many, head and embedding touch everything), and the fewest bits. Roles
# that are not here have the format of `balanced`.
_WEIGHT_AND_FLOOR = {
    "experts_in": (1.0, 2),
    "experts_down": (1.5, 2),
    "feed_forward_in": (1.0, 2),
    "feed_forward_down": (1.5, 2),
    "delta_in": (2.0, 3),
    "attention_in": (3.0, 4),
    "attention_out": (4.0, 4),
    "delta_out": (6.0, 4),
    "shared_expert": (4.0, 4),
    "head": (30.0, 4),
    "embedding": (8.0, 3),
    "mtp": (0.5, 4),
    "mtp_experts": (0.25, 3),
}
_EDGE = 1.5  # the first and the last eighth of the layers count more
# Of a mixture of experts, the bytes a token may read beyond those of equal bits everywhere: 8 bits on all that is
# always active would be half again as much.
TOKEN_MARGIN = 1.2
_TOKEN_PRICES = (0.0, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
USABLE = 0.75  # of a Mac's memory, by the GPU


@dataclass(frozen=True)
class Budget:
    """Bytes. file_bytes: of all weight files   token_bytes: read for one token, None for no limit"""

    file_bytes: int
    token_bytes: int | None = None


def memory_for_weights(text_config: dict, memory: int, context: int = DEFAULT_CONTEXT) -> int:
    """Bytes left for weights on a Mac with `memory` bytes, beside one conversation of `context` tokens."""
    sizes = TextSizes.from_config(text_config)
    caches = context * sizes.kv_bytes_per_token() + sizes.recurrent_state_bytes + sizes.conv_tail_bytes()
    left = int(memory * USABLE) - caches - sizes.workspace_bytes(sizes.prefill_window(context), context)
    if left <= 0:
        raise ConfigError(f"A memory of {memory / GIB:.0f} GiB holds no model beside a context of {context:,} tokens.")
    return left


def formats_within(
    parameters: Sequence[Parameter], config: ModelConfig, budget: Budget, group_size: int = 64
) -> Formats:
    """A format for every matrix so that both budgets are kept. Raises ConfigError where the fewest bits need more."""
    share = chosen_share(config)
    layers = len(config.layer_types)
    units = [_Unit(p, token_share(p.place, share, config.tie_embeddings), layers, group_size) for p in parameters]
    token_limit = budget.token_bytes
    if token_limit is None and config.experts:
        usual = _usual_token_bytes(parameters, config, budget.file_bytes, group_size)
        token_limit = max(usual, TOKEN_MARGIN * sum(unit.nbytes * unit.share for unit in units))
    _spend_well(units, budget.file_bytes, token_limit)
    chosen = {unit.parameter.path: unit.choice for unit in units}

    def choose(path: str, place: Place, width: int) -> Choice:
        return chosen[path]

    return choose


def chosen_share(config: ModelConfig) -> float:
    return config.experts.chosen / config.experts.count if config.experts else 1.0


class _Unit:
    """One parameter and the bits it has so far."""

    def __init__(self, parameter: Parameter, share: float, layers: int, group_size: int) -> None:
        self.parameter, self.share, self.group_size = parameter, share, group_size
        role, layer = parameter.place.role, parameter.place.layer
        at_edge = layer is not None and not parameter.place.mtp and min(layer, layers - 1 - layer) < max(1, layers // 8)
        weight, floor = _WEIGHT_AND_FLOOR.get(role, (0.0, 0))
        self.weight = weight * (_EDGE if at_edge else 1.0)
        self.floor = self.bits = floor if parameter.packable else 0
        self.choice = self._choice(self.bits)

    def _choice(self, bits: int) -> Choice:
        parameter = self.parameter
        if not parameter.packable:
            return Choice(None)
        if not bits:
            return balanced(Packing(4, self.group_size), parameter.place, parameter.width)
        return fitting(Packing(bits, self.group_size), parameter.width)

    @property
    def nbytes(self) -> int:
        return choice_bytes(self.parameter, self.choice)

    @property
    def next_bits(self) -> int | None:
        """None where more bits change nothing."""
        if not self.bits or self.bits == BITS[-1] or self.choice.packing is None:
            return None
        return BITS[BITS.index(self.bits) + 1]

    @property
    def error(self) -> float:
        return self.weight * _ERROR[self.bits] if self.bits else 0.0

    def step(self) -> tuple[float, int]:
        """Error lost by the next number of bits, and the bytes it takes."""
        assert self.next_bits is not None
        more = choice_bytes(self.parameter, self._choice(self.next_bits)) - self.nbytes
        return self.weight * (_ERROR[self.bits] - _ERROR[self.next_bits]), max(1, more)

    def start(self) -> None:
        """Back to the fewest bits."""
        self.bits = self.floor
        self.choice = self._choice(self.bits)

    def raise_bits(self) -> None:
        assert self.next_bits is not None
        self.bits = self.next_bits
        self.choice = self._choice(self.bits)


def choice_bytes(parameter: Parameter, choice: Choice) -> int:
    """Bytes of a parameter in this format, where the network's dtype has 16 bits."""
    values = parameter.rows * parameter.width
    item = 4 if parameter.dtype in ("F32", "U32") else 1 if parameter.dtype == "U8" else 2
    return round(values * choice.packing.bits_per_weight / 8) if choice.packing else values * item


def _spend_well(units: list[_Unit], file_limit: int, token_limit: float | None) -> None:
    """Leave the units at the bits of the lowest total error. Raises ConfigError where even the fewest are too many."""
    files = sum(unit.nbytes for unit in units)
    tokens = sum(unit.nbytes * unit.share for unit in units)
    if files > file_limit or (token_limit is not None and tokens > token_limit):
        raise ConfigError(
            f"At the fewest bits that its parts bear, this model has {gigabytes(files)} and reads {gigabytes(tokens)} "
            "a token. Give a larger size, leave out --mtp or --vision parts, or take a smaller model."
        )
    found: list[tuple[float, float]] = []
    for price in _TOKEN_PRICES if token_limit is not None else (0.0,):
        _spend(units, file_limit, token_limit, price)
        found.append((sum(unit.error for unit in units), price))
    _spend(units, file_limit, token_limit, min(found)[1])


def _spend(units: list[_Unit], file_limit: int, token_limit: float | None, price: float) -> None:
    """price: of all bytes a token may read, against all bytes of the files."""

    def worth(unit: _Unit) -> float:
        lost, more = unit.step()
        return lost / (more / file_limit + (price * more * unit.share / token_limit if token_limit else 0.0))

    for unit in units:
        unit.start()
    files, tokens = sum(unit.nbytes for unit in units), sum(unit.nbytes * unit.share for unit in units)
    queue = [(-worth(unit), i) for i, unit in enumerate(units) if unit.next_bits]
    heapq.heapify(queue)
    while queue:
        _, i = heapq.heappop(queue)
        unit = units[i]
        more = unit.step()[1]
        too_much = token_limit is not None and tokens + more * unit.share > token_limit
        if files + more > file_limit or too_much:
            continue  # a smaller one may still fit
        unit.raise_bits()
        files, tokens = files + more, tokens + more * unit.share
        if unit.next_bits:
            heapq.heappush(queue, (-worth(unit), i))


def _usual_token_bytes(parameters: Iterable[Parameter], config: ModelConfig, file_bytes: int, group: int) -> int:
    """What a token may read: a little more than with the most bits that fit everywhere."""
    share = chosen_share(config)
    everything = list(parameters)
    for bits in reversed(BITS):
        choices = [fitting(Packing(bits, group), p.width) if p.packable else Choice(None) for p in everything]
        sizes = [choice_bytes(p, c) for p, c in zip(everything, choices)]
        if sum(sizes) <= file_bytes:
            shares = [token_share(p.place, share, config.tie_embeddings) for p in everything]
            return round(TOKEN_MARGIN * sum(size * s for size, s in zip(sizes, shares)))
    return 0
