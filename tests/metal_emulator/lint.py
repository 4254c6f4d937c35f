"""What clang accepts and the Metal compiler refuses, found in the text. No substitute for that compiler."""

from __future__ import annotations

import re

VECTOR = r"(?:float|half|bfloat|int|uint|short|ushort|char|uchar|long|ulong|bool)[234]"
SCALARS = [
    "float",
    "half",
    "bfloat",
    "bfloat16_t",
    "float16_t",
    "u?int",
    "u?short",
    "u?char",
    "u?long",
    "bool",
    "u?int(?:8|16|32|64)_t",
    "size_t",
]
ADDRESS_SPACES = r"\b(?:device|constant|threadgroup|thread|return|using|typedef)\b"


def complaints(header: str, source: str) -> list[str]:
    """One line a finding; `source` is the kernel's body, `header` what stands before it."""
    found = _in_one(header, "header") + _in_one(source, "source")
    for match in re.finditer(r"\bthreadgroup\s+[\w:<>, ]+?\s+\w+\s*(?:\[[^\]]*\]\s*)*;", _bare(header)):
        found.append(
            f"header:{_line(header, match.start())}: threadgroup memory may be declared in the kernel itself only "
            f"(pass a pointer): {match.group().strip()}"
        )
    return found


def _in_one(text: str, where: str) -> list[str]:
    bare, found = _bare(text), []
    own = set(re.findall(r"\b(?:typename|class|struct)\s+(\w+)", bare)) | {"auto"}
    types = "|".join([*SCALARS, VECTOR, *sorted(own)])
    pointer = rf"(?:^|[;{{}}(,])\s*((?:\w+\s+)*?)({types})\s*(?:const\s*)?[*&]+\s*(?:const\s+)?\w+\s*(?=[=;,)\[])"
    for match in re.finditer(pointer, bare):
        if not re.search(ADDRESS_SPACES, match.group(1)):
            what = match.group().strip(" ;{}(,\n")
            line = _line(bare, match.start(2))
            found.append(f"{where}:{line}: pointer or reference without an address space: {what}")
    for match in re.finditer(r"\bdouble\b", bare):
        found.append(f"{where}:{_line(bare, match.start())}: double does not exist in Metal")
    return found


def _bare(text: str) -> str:
    """Without comments, lines kept."""
    return re.sub(r"//[^\n]*|/\*.*?\*/", lambda m: re.sub(r"[^\n]", " ", m.group()), text, flags=re.DOTALL)


def _line(text: str, at: int) -> int:
    return text.count("\n", 0, at) + 1
