"""What can be wrong with a kernel, in words."""

from __future__ import annotations

from dataclasses import dataclass

# By the codes of runtime/machine.h.
KINDS = {
    1: "out-of-bounds load",
    2: "out-of-bounds store",
    3: "store to a const buffer",
    4: "uninitialised threadgroup read",
    5: "threadgroup data race",
    6: "threadgroup_barrier reached at different sites",
    7: "simdgroup operation with lanes missing",
    8: "shuffle reads an inactive lane",
    9: "device data race",
    10: "device location written by two threads",
    11: "read of an unwritten output",
    12: "threadgroup memory out of bounds",
    13: "threadgroup memory over 32 KiB",
    14: "wild pointer",
    15: "threadgroup_barrier after some threads returned",
    16: "data race inside a simdgroup",
    17: "matrix operation with lanes missing",
    18: "misaligned access",
    19: "array index out of bounds",
    20: "integer division by zero",
}
# Legal in Metal, and seldom meant: the operation uses the active lanes; the last write wins, or all write the same.
WARNINGS = {7, 10}
WITH_OFFSET = {4, 5, 12, 16, 18}
WITHOUT_PLACE = {13}
NO_BUFFER, READ_CONFLICT = 99, 1 << 16


class CompileError(RuntimeError):
    """The Metal compiler would refuse this kernel; the message holds what clang or the checks of the text said."""


class KernelFault(RuntimeError):
    """A launch did what no launch may; the message holds one line a fault."""


@dataclass(frozen=True)
class Fault:
    """One kind of fault at one place of the source, however often."""

    kind: str
    message: str
    warning: bool

    def __str__(self) -> str:
        return self.message


@dataclass(frozen=True)
class Record:
    """A fault as the runtime counts it."""

    code: int
    buffer: str | None
    offset: int
    size: int
    other: int
    thread: tuple[int, ...]
    threadgroup: tuple[int, ...]
    count: int

    def fault(self, place: str, buffer_bytes: int | None) -> Fault:
        """In words; `place` is the line of the source."""
        words = [KINDS[self.code] + ":"]
        if self.code == 13:
            words.append(f"{self.size} bytes in all")
        elif self.size:
            words.append(f"{self.size} bytes")
        if self.buffer is not None:
            words.append(
                f"at byte {self.offset} of '{self.buffer}'" + (f" ({buffer_bytes} bytes)" if buffer_bytes else "")
            )
        elif self.code in WITH_OFFSET:
            words.append(f"at byte {self.offset} of threadgroup memory")
        if self.code not in WITHOUT_PLACE:
            words.append(f"by thread {self.thread} in threadgroup {self.threadgroup}")
            words.append(self._against())
            words.append(f"({self.count}x) at {place}")
        return Fault(KINDS[self.code], " ".join(w for w in words if w), self.code in WARNINGS)

    def _against(self) -> str:
        if self.code in (5, 16):
            if self.other & READ_CONFLICT:
                return f"against a read by simdgroup {self.other & ~READ_CONFLICT}"
            return f"against a write by thread {self.other} of the threadgroup"
        if self.code in (9, 10):
            return f"against a write by thread {self.other} of its threadgroup"
        if self.code == 8:
            return f"from lane {self.other}"
        if self.code == 18:
            return f"where the type needs a multiple of {self.other}"
        if self.code == 19:
            return f"with index {self.other}"
        if self.code in (7, 17):
            return f"with lanes {self.other:#010x} only"
        return ""
