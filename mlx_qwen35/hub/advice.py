"""What to tell someone who runs the demo: the checkpoint of the family that suits this machine."""

from __future__ import annotations

from mlx_qwen35.hub.machine import this_machine
from mlx_qwen35.hub.memory import best_for


def real_checkpoint(command: str = "chat", mark: str = "") -> str:
    """One line: a real model, and the commands that get it and start `command` on it.

    mark: what stands around a command, such as a backtick in Markdown
    """

    def shown(words: str) -> str:
        return f"{mark}mlx-qwen35 {words}{mark}"

    best = best_for(this_machine().budget)
    if best is None:
        return f"No real one of the family fits the memory that is free here; {shown('models')} lists them."
    entry, bits = best
    if bits == 16:
        return f"A real one that fits this machine: {shown(f'{command} {entry.short}')}"
    made = f"./{entry.name}-{bits}bit"
    convert = shown(f"convert {entry.short} --bits {bits} --out {made}")
    return f"A real one that fits this machine at {bits} bits: {convert}, then {shown(f'{command} {made}')}"
