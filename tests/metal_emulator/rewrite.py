"""From Metal to "C++ for OpenCL": the few places where the two differ in grammar, rewritten in preprocessed text.

Lines stay where they are, so that messages name the line of the source.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from tests.metal_emulator.errors import CompileError
from tests.metal_emulator.lint import VECTOR

Constant = bool | int | float
THREADGROUP_VARIABLE = re.compile(
    r"(?<![\w(,])(?:alignas\(\w+\)\s*)?threadgroup\s+"
    r"((?:(?:typename|volatile|const)\s+)*[\w:]+(?:<[^;{}()=]*?>)?(?:::\w+)*)\s+"
    r"(\w+\s*(?:\[[^;]*?\])?(?:\s*,\s*\w+\s*(?:\[[^;]*?\])?)*)\s*;"
)
FUNCTION_CONSTANT = re.compile(
    r"\bconstant\s+([\w:]+)\s+(\w+)\s*\[\[\s*function_constant\(\(?(\d+)(?:\s*\+\s*(\d+))?\)?\)\s*\]\]\s*;"
)
# Constructors, and conversions below: their `thread` qualifier is dropped, since temporaries are generic by default.
THREAD_CONSTRUCTOR = re.compile(
    r"((?:[;{}>]|\bMETAL_FUNC|\bconstexpr|\bexplicit|\binline)\s*\w+\s*\([^(){};]*\)\s*)\bthread\b(?=\s*[:{;])"
)
THREAD_CONVERSION = re.compile(r"(\boperator\s+[\w:]+(?:<[^<>;{}()]*>)?\s*\(\s*\)\s*const\s*)\bthread\b")
# May bind to a temporary, which has no address space yet.
THREAD_CONST_REFERENCE = re.compile(
    r"\b(?:const thread|thread const)\s+(u?(?:short|int|char|long)|half|float|bool|bfloat|size_t)\s*&"
)
MATMUL_DESCRIPTOR = re.compile(
    r"constexpr\s+auto\s+(\w+)\s*=\s*(?:mpp::tensor_ops::)?matmul2d_descriptor\(([^;]*)\)\s*;"
)
# After vec<T, N>, a pair of empty brackets may be a conversion operator's instead.
VEC_CALL = re.compile(r"\s*\((?!\s*\))|\s*\(\s*\)(?!\s*(?:const|thread|device|constant|threadgroup|\{))")
VECTOR_CALL = re.compile(r"\s*\((?!\s*[*&])")
VECTOR_TYPE = re.compile(rf"\b(?:metal::)?(?:vec\s*(?=<)|{VECTOR}(?=\s*\())")


def balanced(text: str, start: int, opening: str, closing: str) -> int:
    """The index of the bracket that closes the one at or after `start`."""
    depth = 0
    for i in range(start, len(text)):
        depth += (text[i] == opening) - (text[i] == closing)
        if depth == 0:
            return i
    raise CompileError(f"unbalanced {opening} in: {text[start : start + 80]}")


def split_commas(text: str) -> list[str]:
    """Split where a comma stands outside all brackets, template brackets included."""
    parts, depth, part = [], 0, ""
    for i, char in enumerate(text):
        if char in "([{" or (char == "<" and i and (text[i - 1].isalnum() or text[i - 1] == "_")):
            depth += 1
        elif char in ")]}" or (char == ">" and depth and text[i - 1] not in "-="):
            depth -= 1
        if char == "," and depth == 0:
            parts.append(part)
            part = ""
        else:
            part += char
    return [*parts, part] if part.strip() else parts


def rewrite(text: str, constants: Mapping[int, Constant]) -> str:
    """The preprocessed text, with function constants given their values by index."""
    text = _threadgroup_variables(text)
    text = FUNCTION_CONSTANT.sub(lambda m: _function_constant(m, constants), text)
    text = re.sub(r"\bis_function_constant_defined\((\w+)\)", r"mtl_defined_\1", text)
    text = THREAD_CONSTRUCTOR.sub(r"\1", text)
    text = THREAD_CONST_REFERENCE.sub(r"const \1&", text)
    text = THREAD_CONVERSION.sub(r"\1", text)
    text = re.sub(r"\btemplate\s*(?:\[\[[^\]]*\]\]\s*)+", "template ", text)
    text = MATMUL_DESCRIPTOR.sub(r"using \1 = mpp::tensor_ops::mtl_desc<\2>;", text)
    return _vector_constructors(text)


def _threadgroup_variables(text: str) -> str:
    """`threadgroup T name[N];` becomes a reference into the threadgroup memory of the machine, by number."""
    numbers = iter(range(1, 1 << 20))

    def one(match: re.Match[str]) -> str:
        declared = []
        for part in split_commas(match.group(2)):
            name = re.match(r"\s*(\w+)\s*((?:\[.*\])?)\s*$", part, re.DOTALL)
            if not name:
                return match.group()
            kind = match.group(1) + name.group(2)
            declared.append(f"threadgroup auto& {name.group(1)} = mtl_tg<{kind}, {next(numbers)}>();")
        return " ".join(declared) + "\n" * match.group().count("\n")

    return THREADGROUP_VARIABLE.sub(one, text)


def _function_constant(match: re.Match[str], constants: Mapping[int, Constant]) -> str:
    kind, name = match.group(1), match.group(2)
    index = int(match.group(3)) + int(match.group(4) or 0)
    value = constants.get(index)
    shown = "{}" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    defined = str(index in constants).lower()
    return f"constant constexpr bool mtl_defined_{name} = {defined}; constant constexpr {kind} {name} = {shown};"


def _vector_constructors(text: str) -> str:
    """float4(a, b) and vec<T, 4>(a, b) become mtl_mk<...>(a, b): clang's vectors have no such constructor."""
    out, at = [], 0
    while match := VECTOR_TYPE.search(text, at):
        start, end = match.span()
        if match.group().rstrip().endswith("vec"):
            end = balanced(text, end, "<", ">") + 1
            call = VEC_CALL
        else:
            call = VECTOR_CALL
        before = text[max(0, start - 24) : start].rstrip()
        if call.match(text, end) and not before.endswith(("operator", "::")):
            out += [text[at:start], "mtl_mk<", text[start:end], ">"]
        else:
            out.append(text[at:end])
        at = end
    return "".join(out) + text[at:]
