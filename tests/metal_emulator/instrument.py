"""LLVM IR in, LLVM IR out: before each load and store a call of the runtime's check, and FLOPs counted a basic block.

Memory that only the thread itself can reach (its stack) is left alone, and so are the mtlop_ functions, which stand
for what the hardware does.
"""

from __future__ import annotations

import re

from tests.metal_emulator.rewrite import balanced, split_commas

SIZES = dict(i1=1, i8=1, i16=2, half=2, bfloat=2, i32=4, float=4, i64=8, double=8, ptr=8, i128=16)  # noqa: C408
DECLARATIONS = """
declare void @mtl_ld(ptr, i64, i64)
declare void @mtl_st(ptr, i64, i64)
@mtl_flops = external global i64
@mtl_special = external global i64
"""
MEMORY_INTRINSIC = re.compile(
    r"@llvm\.(?:memcpy|memmove|memset)[\w.]*\(ptr [^%@]*(%[\w.]+|@[\w.$]+), "
    r"(?:ptr [^%@]*(%[\w.]+|@[\w.$]+)|i8 [^,]+), i64 (%?[\w.]+)"
)
ARITHMETIC = re.compile(r"(?:fadd|fsub|fmul|fdiv|frem)(.*)")
FUNCTION = re.compile(
    r"call [^@]*@(llvm\.(?:fmuladd|fma|sqrt|exp2?|log2?|log10|sin|cos|pow|minnum|maxnum)[\w.]*"
    r"|\w*(?:exp|log|sin|cos|tan|pow)\w*f)\("
)
FAST_FLAGS = r"\s*(?:(?:fast|nnan|ninf|nsz|arcp|contract|afn|reassoc)\s+)*"
ENDS_BLOCK = re.compile(r"(?:br|ret|switch|unreachable|indirectbr)\b")


def instrument(module: str) -> str:
    """The module with checks."""
    out: list[str] = []
    counter = _Counter()
    private: set[str] = set()
    skip = False
    for line in module.split("\n"):
        if line.startswith("define "):
            skip = "mtlop_" in line.split("(")[0]
            private = set()
            counter.clear()
        if not skip and line.startswith("  "):
            result, operation = _operation(line.strip())
            if _is_private(operation, private):
                private.add(result)
            debug = re.search(r", !dbg !\d+", line)
            for check in _checks(operation, private):
                out.append(f"  call void {check}{debug.group() if debug else ''}")
            counter.see(operation)
            if ENDS_BLOCK.match(operation):
                out += counter.flush()
        out.append(line)
    return "\n".join(out) + DECLARATIONS


def _operation(text: str) -> tuple[str, str]:
    """The name it defines, if any, and the operation itself."""
    if text.startswith("%") and " = " in text:
        result, operation = text.split(" = ", 1)
        return result, operation
    return "", text


def _is_private(operation: str, private: set[str]) -> bool:
    """Does it make a pointer into the thread's own stack?"""
    if operation.startswith("alloca "):
        return True
    base = operation.startswith("getelementptr ") and re.search(r", ptr (%[\w.\"]+)", operation)
    return bool(base) and base.group(1) in private


def _checks(operation: str, private: set[str]) -> list[str]:
    """The checks that belong before it, as calls."""
    if operation.startswith(("load ", "store ")):
        body = re.sub(r"^(?:(?:load|store|volatile|atomic) )+", "", operation)
        size, _ = _type(body)
        after = body[body.rfind(", ptr ") + 6 :]
        match = re.match(r"%[\w.\"]+|@[\w.\"$]+|.*?(?=, align|, !|$)", after)
        pointer = match.group() if match else ""
        if not size or pointer in private or pointer.startswith("@"):
            return []
        align = re.search(r", align (\d+)", after)
        check = "ld" if operation.startswith("load") else "st"
        return [f"@mtl_{check}(ptr {pointer}, i64 {size}, i64 {align.group(1) if align else 1})"]
    if "@llvm.mem" in operation and (match := MEMORY_INTRINSIC.search(operation)):
        to, source, size = match.groups()
        checks = [] if to in private else [f"@mtl_st(ptr {to}, i64 {size}, i64 1)"]
        if source and source not in private and not source.startswith("@"):
            checks.append(f"@mtl_ld(ptr {source}, i64 {size}, i64 1)")
        return checks
    return []


def _type(text: str) -> tuple[int, str]:
    """Size in bytes of the type at the start of the text, and the rest of it."""
    if match := re.match(r"<(\d+) x (\w+)>", text):
        count, element = int(match.group(1)), match.group(2)
        return (count + 7) // 8 if element == "i1" else count * SIZES[element], text[match.end() :]
    if match := re.match(r"\[(\d+) x ", text):
        end = balanced(text, 0, "[", "]")
        return int(match.group(1)) * _type(text[match.end() : end])[0], text[end + 1 :]
    if text[0] == "{":
        end = balanced(text, 0, "{", "}")
        return sum(_type(part.strip())[0] for part in split_commas(text[1:end])), text[end + 1 :]
    match = re.match(r"[\w%.\"]+", text)
    return (SIZES.get(match.group(), 0), text[match.end() :]) if match else (0, text)


class _Counter:
    """FLOPs and special functions of the basic block being read."""

    def __init__(self) -> None:
        self.names = 0
        self.clear()

    def clear(self) -> None:
        self.flops = self.special = 0

    def see(self, operation: str) -> None:
        if match := ARITHMETIC.match(operation):
            lanes = re.match(FAST_FLAGS + r"<(\d+) x", match.group(1))
            self.flops += int(lanes.group(1)) if lanes else 1
        elif match := FUNCTION.search(operation):
            name = match.group(1)
            vector = re.search(r"\.v(\d+)f", name)
            lanes = int(vector.group(1)) if vector else 1
            if name.startswith(("llvm.fmuladd", "llvm.fma")):
                self.flops += 2 * lanes
            elif "num" in name:
                self.flops += lanes
            else:
                self.special += lanes

    def flush(self) -> list[str]:
        """Additions to the runtime's counters, before the block ends."""
        added = []
        for name, count in (("flops", self.flops), ("special", self.special)):
            if count:
                self.names += 1
                old, new = f"%mtl_old.{self.names}", f"%mtl_new.{self.names}"
                added += [
                    f"  {old} = load i64, ptr @mtl_{name}, align 8",
                    f"  {new} = add i64 {old}, {count}",
                    f"  store i64 {new}, ptr @mtl_{name}, align 8",
                ]
        self.clear()
        return added
