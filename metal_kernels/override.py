"""MLX_QWEN35_KERNELS read once, at the door: `reference`, `auto`, or `name=candidate,...`. Knows nothing of MLX."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from mlx_qwen35.errors import ConfigError

VARIABLE = "MLX_QWEN35_KERNELS"
AUTO, REFERENCE = "auto", "reference"


@dataclass(frozen=True)
class Override:
    """mode: AUTO measures, REFERENCE takes the definitions   fixed: operation -> candidate, which beats the mode"""

    mode: str = AUTO
    fixed: Mapping[str, str] = field(default_factory=dict)

    def wanted(self, operation: str) -> str | None:
        """The candidate that was asked for by name, or None where measurement decides."""
        return self.fixed.get(operation, REFERENCE if self.mode == REFERENCE else None)


def parse_override(text: str, known: Mapping[str, Iterable[str]]) -> Override:
    """known: the candidates of each operation. Raises ConfigError, one line, for a name that is none of them."""
    mode, fixed = AUTO, {}
    for part in filter(None, (p.strip() for p in text.split(","))):
        name, equals, candidate = (p.strip() for p in part.partition("="))
        if not equals:
            if part not in (AUTO, REFERENCE):
                raise ConfigError(f"{VARIABLE}: {part!r} is unknown; give {REFERENCE}, {AUTO} or operation=candidate.")
            mode = part
        elif name not in known:
            raise ConfigError(f"{VARIABLE}: no operation is called {name!r}; known are {', '.join(sorted(known))}.")
        elif candidate not in known[name]:
            raise ConfigError(f"{VARIABLE}: {name} has no candidate {candidate!r}; it has {', '.join(known[name])}.")
        else:
            fixed[name] = candidate
    return Override(mode, fixed)
