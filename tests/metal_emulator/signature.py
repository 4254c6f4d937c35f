"""What a kernel's parameters are bound to: buffers, thread attributes, threadgroup memory given at launch."""

from __future__ import annotations

import re
from dataclasses import dataclass

from tests.metal_emulator.errors import CompileError
from tests.metal_emulator.rewrite import balanced, split_commas

ATTRIBUTE_KINDS = {
    "thread_position_in_grid": 1000,
    "thread_position_in_threadgroup": 1001,
    "threadgroup_position_in_grid": 1002,
    "threads_per_threadgroup": 1003,
    "dispatch_threads_per_threadgroup": 1004,
    "threadgroups_per_grid": 1005,
    "threads_per_grid": 1006,
    "grid_size": 1006,
    "grid_origin": 1007,
    "thread_index_in_threadgroup": 1010,
    "thread_index_in_simdgroup": 1011,
    "simdgroup_index_in_threadgroup": 1012,
    "simdgroups_per_threadgroup": 1013,
    "threads_per_simdgroup": 1014,
    "thread_execution_width": 1014,
    "dispatch_simdgroups_per_threadgroup": 1015,
    "thread_index_in_quadgroup": 1016,
    "quadgroup_index_in_threadgroup": 1017,
    "quadgroups_per_threadgroup": 1018,
    "dispatch_quadgroups_per_threadgroup": 1019,
}
THREADGROUP = 2000  # + its index
LAST_BUFFER = 30


@dataclass(frozen=True)
class Parameter:
    """kind: a buffer's index, an attribute (1000 and more), or THREADGROUP + index."""

    name: str
    kind: int
    const: bool

    @property
    def is_buffer(self) -> bool:
        return self.kind <= LAST_BUFFER


def parameters(text: str, kernel: str) -> list[Parameter]:
    """Of the kernel's definition in the rewritten text, in order."""
    head = r"(?:\[\[\s*kernel\b[^\]]*\]\]|\bkernel)(?:\s*\[\[[^\]]*\]\])?\s+void\s+" + re.escape(kernel) + r"\s*\("
    match = re.search(head, text)
    if not match:
        raise CompileError(f"no kernel named {kernel} in the source")
    rest = re.sub(r"(?m)^#.*$", "", text[match.end() - 1 : match.end() + 50_000])
    found: list[Parameter] = []
    next_buffer = 0
    for part in split_commas(rest[1 : balanced(rest, 0, "(", ")")]):
        parameter = _parameter(part, next_buffer)
        found.append(parameter)
        if parameter.is_buffer:
            next_buffer = parameter.kind + 1
    return found


def _parameter(text: str, next_buffer: int) -> Parameter:
    attributes = " ".join(re.findall(r"\[\[(.*?)\]\]", text, re.DOTALL))
    declared = re.sub(r"\[\[.*?\]\]", "", text, flags=re.DOTALL).strip()
    name = re.search(r"(\w+)\s*(?:\[\w*\])?$", declared)
    if name is None:
        raise CompileError(f"cannot read the kernel parameter: {text.strip()}")
    const = bool(re.search(r"\bconst\b|\bconstant\b", declared))
    if buffer := re.search(r"\bbuffer\((\d+)\)", attributes):
        kind = int(buffer.group(1))
        if kind > LAST_BUFFER:
            raise CompileError(f"Metal has 31 buffers a kernel, 0 to 30; {name.group(1)} is number {kind}")
    elif memory := re.search(r"\bthreadgroup\((\d+)\)", attributes):
        kind = THREADGROUP + int(memory.group(1))
    elif known := [v for k, v in ATTRIBUTE_KINDS.items() if re.search(rf"\b{k}\b", attributes)]:
        kind = known[0]
    elif "*" in declared or "&" in declared:
        kind = next_buffer
    else:
        raise CompileError(f"the kernel parameter has no attribute: {text.strip()}")
    return Parameter(name.group(1), kind, const)
