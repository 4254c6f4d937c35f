"""How much memory this machine can give a model. Knows nothing of models."""

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

GIB = 1 << 30
MACS = (8, 16, 18, 24, 32, 36, 48, 64, 96, 128, 192, 256, 512)  # GiB of memory, of those with Apple's chips


@dataclass(frozen=True)
class Machine:
    """Memory in bytes: all there is, free now, and what a model may use."""

    total: int
    available: int
    budget: int
    note: str = ""


def this_machine(working_set: int | None = None) -> Machine:
    """Ask the operating system.

    On a Mac the budget is what the GPU may wire: `working_set` where the caller knows it (MLX reports
    max_recommended_working_set_size), else the limit set by hand (sysctl iogpu.wired_limit_mb), else three
    quarters of memory, which is about what macOS allows. Elsewhere it is what is free now, since nothing is
    swapped out in time for a model, within the limit of a container.
    """
    import psutil

    memory = psutil.virtual_memory()
    if sys.platform == "darwin":
        budget = working_set or _wired_limit() or memory.total * 3 // 4
        return Machine(memory.total, memory.available, budget, "what macOS lets the GPU use")
    limit = _container_limit()
    if limit is not None and limit < memory.available:
        return Machine(min(memory.total, limit), limit, limit, "the container's limit")
    return Machine(memory.total, memory.available, working_set or memory.available, "free now")


def _wired_limit() -> int:
    """Bytes set in iogpu.wired_limit_mb; 0 when it is unset or unreadable. Read, never written."""
    try:
        command = ["/usr/sbin/sysctl", "-n", "iogpu.wired_limit_mb"]
        answer = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True)
        return int(answer.stdout) << 20
    except (OSError, ValueError, subprocess.SubprocessError):
        return 0


def _container_limit(root: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Bytes that the control group leaves free, or None without a limit."""
    try:
        limit = int((root / "memory.max").read_text())
        return max(0, limit - int((root / "memory.current").read_text()))
    except (OSError, ValueError):  # no control groups, or "max"
        return None
