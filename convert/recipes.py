"""Which format each matrix gets: as stock mlx-lm does it, by role, or from a file. Sizes are sizing.py's.

`balanced` follows what is known of the family's sensitive parts: the outputs of DeltaNet and attention, the head and
the shared experts are small, read for every token, and lose most at few bits; routers, decays and rates decide more
than they weigh, so that routers have 8 bits, and are kept as they are where everything else has 8. The bulk, routed
experts and feed-forwards, carries the asked-for bits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from mlx_qwen35.convert.options import listed
from mlx_qwen35.convert.packing import BITS, GROUP_SIZES, MODES, Packing
from mlx_qwen35.convert.roles import ROLES, Place
from mlx_qwen35.errors import CheckpointError, ConfigError
from mlx_qwen35.hub.jsonfile import read_json

HIGH = Packing(8, 64)
ROUTING = ("router", "shared_gate")
NEVER_LOW = {"router": 8, "shared_gate": 8, "delta_rates": 8}  # fewest bits that a file may ask for
NEVER_PACKED = ("small", "mtp_join", "vision")
# Steps above the asked-for bits, among 2, 3, 4, 5, 6, 8.
_STEPS = {
    "embedding": 1,
    "head": 2,
    "shared_expert": 2,
    "delta_out": 2,
    "attention_out": 2,
    "attention_in": 1,
}
LEAST_MTP_BITS = 4


@dataclass(frozen=True)
class Choice:
    """The format of a matrix, or None and why it is kept as it is."""

    packing: Packing | None
    why: str = ""


# path of the module, where it stands, the width of its rows -> its format
Formats = Callable[[str, Place, int], Choice]


def formats_of(recipe: str | Path, packing: Packing) -> Formats:
    """The formats of 'uniform', 'balanced' or a JSON file. Raises ConfigError for a file that is no recipe."""
    if recipe == "uniform":
        return lambda path, place, width: uniform(packing, path, place, width)
    if recipe == "balanced":
        return lambda path, place, width: balanced(packing, place, width)
    return RecipeFile.read(Path(recipe), packing).choose


def uniform(packing: Packing, path: str, place: Place, width: int) -> Choice:
    """What stock mlx-lm's conversion does: all alike, routers and shared-expert gates at 8 bits."""
    if path == "mtp.fc":
        return Choice(None, "kept, as in Qwen's own FP8 releases")
    if width % packing.group_size:
        return Choice(None, f"kept, rows of {width} are no multiple of {packing.group_size}")
    if place.role not in ROUTING:
        return Choice(packing)
    # Which experts run hangs on small differences of the router's outputs.
    return Choice(HIGH) if width % 64 == 0 else Choice(None, f"kept, rows of {width} are no multiple of 64")


def balanced(packing: Packing, place: Place, width: int) -> Choice:
    """By role, as the module says. Other modes than affine hold the bulk only."""
    role = place.role
    if role in NEVER_PACKED:
        return Choice(None, "kept, as in Qwen's own FP8 releases" if role == "mtp_join" else "")
    if role == "delta_rates":
        return Choice(None, "kept, they set how fast the state forgets")
    if role in ROUTING and (packing.mode, packing.bits) == (HIGH.mode, HIGH.bits):
        return Choice(None, "kept, they decide which experts run")  # among 8 bits theirs show, below they do not
    if role in (*ROUTING, "mtp"):
        return fitting(HIGH, width)
    group_size = packing.group_size if packing.mode == "affine" else 64
    if role == "mtp_experts":
        return fitting(Packing(max(LEAST_MTP_BITS, packing.bits), group_size), width)
    if steps := _STEPS.get(role):
        return fitting(Packing(more_bits(packing.bits, steps), group_size), width)
    return fitting(packing, width)


def more_bits(bits: int, steps: int) -> int:
    return BITS[min(len(BITS) - 1, BITS.index(bits) + steps)]


def fitting(packing: Packing, width: int) -> Choice:
    """The packing, with smaller groups where the rows are no multiple of its own."""
    if width % packing.group_size == 0:
        return Choice(packing)
    smaller = [g for g in GROUP_SIZES if g < packing.group_size and width % g == 0]
    if packing.mode != "affine" or not smaller:
        return Choice(None, f"kept, rows of {width} are no multiple of {packing.group_size}")
    return Choice(Packing(packing.bits, max(smaller)))


@dataclass(frozen=True)
class RecipeFile:
    """A JSON file: {"base": {...}, "roles": {role: ...}, "tensors": {pattern: ...}}; all three may be absent.

    What stands behind a role or a pattern is a number of bits, {"bits", "group_size", "mode"}, or "keep". A pattern
    such as "*.layers.3.*" is matched with the module's path, the last one that matches wins, and beats the role.
    Roles that are not named are as in `balanced`.
    """

    base: Packing
    roles: Mapping[str, Packing | None] = field(default_factory=dict)
    tensors: Mapping[str, Packing | None] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path, packing: Packing) -> RecipeFile:
        """Raises ConfigError, one line, naming the entry that is wrong."""
        try:
            content = read_json(path)
        except CheckpointError as error:
            raise ConfigError(f"{error} A recipe is 'uniform', 'balanced' or a JSON file.") from None
        if unknown := sorted(set(content) - {"base", "roles", "tensors"}):
            raise ConfigError(f"{path}: {unknown[0]!r} is unknown; a recipe has base, roles and tensors.")
        base = _packing(content.get("base", {}), packing, f"{path}: base") or packing
        parts = {}
        for part in ("roles", "tensors"):
            entries = content.get(part, {})
            if not isinstance(entries, dict):
                raise ConfigError(f"{path}: {part} should be an object.")
            parts[part] = {k: _packing(v, base, f"{path}: {part}: {k}") for k, v in entries.items()}
        if unknown := sorted(set(parts["roles"]) - set(ROLES)):
            raise ConfigError(f"{path}: role {unknown[0]!r} is unknown; known are {listed(ROLES, 'and')}.")
        for role, chosen in parts["roles"].items():
            if chosen and (role in NEVER_PACKED or chosen.bits < NEVER_LOW.get(role, 0)):
                raise ConfigError(
                    f"{path}: {role} at {chosen}: too few; {ROLES[role]} need at least {NEVER_LOW[role]} bits."
                    if role in NEVER_LOW
                    else f"{path}: {role} is never packed; leave it out."
                )
        return cls(base, parts["roles"], parts["tensors"])

    def choose(self, path: str, place: Place, width: int) -> Choice:
        usual = balanced(self.base, place, width)
        matching = [v for pattern, v in self.tensors.items() if fnmatchcase(path, pattern)]
        if place.role in NEVER_PACKED or (not matching and place.role not in self.roles):
            return usual
        chosen = matching[-1] if matching else self.roles[place.role]
        if chosen is None:
            return Choice(None, "kept, as the recipe says")
        if chosen.bits < NEVER_LOW.get(place.role, 0):
            return usual
        return fitting(chosen, width)


def _packing(value: Any, base: Packing, where: str) -> Packing | None:
    if value == "keep":
        return None
    if type(value) is int:
        value = {"bits": value}
    if not isinstance(value, dict) or set(value) - {"bits", "group_size", "mode"}:
        raise ConfigError(f"{where}: give a number of bits, 'keep', or an object of bits, group_size and mode.")
    mode = value.get("mode", base.mode if "bits" not in value else "affine")
    if mode not in MODES:
        raise ConfigError(f"{where}: mode {mode!r} is unknown; known are {listed(MODES, 'and')}.")
    usual = base if mode == base.mode else Packing(*MODES[mode], mode)
    found = Packing(value.get("bits", usual.bits), value.get("group_size", usual.group_size), mode)
    allowed = found.bits in BITS and found.group_size in GROUP_SIZES
    if mode != "affine":
        allowed = (found.bits, found.group_size) == tuple(MODES[mode])
    if not allowed or isinstance(found.bits, bool):
        raise ConfigError(f"{where}: MLX has no {mode} packing of {found.bits} bits in groups of {found.group_size}.")
    return found
