"""What a launch may be told; the defaults check everything."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Schedule = Literal["forward", "reverse", "random"]
SCHEDULES: tuple[Schedule, ...] = ("forward", "reverse", "random")


@dataclass(frozen=True)
class Options:
    """How kernels are compiled (the first four) and run."""

    # Without: no bounds, races, bytes or FLOPs, and 2 to 4 times faster.
    check: bool = True
    # Refuse what clang accepts and the Metal compiler does not. Off for MLX's own headers.
    strict: bool = True
    # The M5's matrix units round float32 operands to 10 mantissa bits where a kernel asks for relaxed precision.
    tf32: bool = False
    # Of a * b + c into one rounding, within an expression, as the Metal compiler does. "off" rounds twice.
    contract: Literal["on", "off", "fast"] = "on"
    schedule: Schedule = "forward"
    # Of the random schedule.
    seed: int = 1
    # "keep" lets the launch end, and leaves its faults in the record.
    on_fault: Literal["raise", "keep"] = "raise"
