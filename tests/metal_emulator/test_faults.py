"""Each fault the emulator promises to find, planted in a kernel of a few lines: found, and named."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import pytest

from tests.metal_emulator import SCHEDULES, CompileError, KernelFault, Options, emulated_metal
from tests.metal_emulator.options import Schedule
from tests.metal_emulator.support import PLACE, run

BARRIER = "threadgroup_barrier(mem_flags::mem_threadgroup);"
PLANTED = {
    "load past the end": ("o[i] = a[i + 1];", "out-of-bounds load: 4 bytes at byte 256 of 'a'"),
    "load before the start": ("o[i] = a[int(i) - 1];", "out-of-bounds load: 4 bytes at byte -4 of 'a'"),
    "store past the end": ("o[i + 1] = a[i]; if (i == 0) o[0] = 0;", "out-of-bounds store: 4 bytes at byte 256 of 'o'"),
    "store far away": ("o[size_t(i) << 40] = a[i];", "wild pointer"),
    "index past a thread's own array": ("float x[4] = {1, 2, 3, 4}; o[i] = x[t / 8];", "array index out of bounds"),
    "integer division by zero": ("o[i] = 64 / int(t);", "integer division by zero"),
    "misaligned vector load": ("o[i] = (*(const device float4*)(a + t % 60 + 1)).x;", "misaligned access: 16 bytes"),
    "store into an input": ("((device float*)a)[i] = 1; o[i] = 0;", "store to a const buffer"),
    "unwritten output": ("if (i % 2) o[i] = a[i];", "output left unwritten: 32 elements of 'o'"),
    "read of an unwritten output": ("o[i] += a[i];", "read of an unwritten output"),
    "read of another thread's output": (
        f"o[i] = a[i]; {BARRIER} float x = o[63 - t]; {BARRIER} o[i] = x;",
        "device data race",
    ),
    "uninitialised threadgroup memory": (
        f"threadgroup float b[64]; if (t < 63) b[t] = a[i]; {BARRIER} o[i] = b[t ^ 1];",
        "uninitialised threadgroup read",
    ),
    "threadgroup array overflow": (
        "threadgroup float b[64]; threadgroup float* p = b + 1; p[t] = a[i]; o[i] = 0;",
        "threadgroup memory out of bounds",
    ),
    "index past a threadgroup array": (
        "threadgroup float b[64]; b[t + 1] = a[i]; o[i] = 0;",
        "array index out of bounds",
    ),
    "too much threadgroup memory": (
        "threadgroup float b[8200]; b[t] = a[i]; o[i] = b[t];",
        "threadgroup memory over 32 KiB: 32800 bytes",
    ),
    "far too much threadgroup memory": (
        "threadgroup float b[80000]; b[t] = a[i]; o[i] = b[t];",
        "threadgroup memory over 32 KiB: 320000 bytes",
    ),
    "missing barrier": ("threadgroup float b[64]; b[t] = a[i]; o[i] = b[63 - t];", "threadgroup data race"),
    "barrier that orders no memory": (
        "threadgroup float b[64]; b[t] = a[i]; threadgroup_barrier(mem_flags::mem_none); o[i] = b[63 - t];",
        "threadgroup data race",
    ),
    "write after another's read": (
        f"threadgroup float b[64]; b[t] = a[i]; {BARRIER} o[i] = b[63 - t]; b[t] = 0;",
        "threadgroup data race",
    ),
    "missing simdgroup barrier": (
        "threadgroup float b[64]; b[t] = a[i]; o[i] = b[t ^ 1];",
        "data race inside a simdgroup",
    ),
    "barriers in both arms of a branch": (
        f"if (t < 32) {{ {BARRIER} }} else {{ threadgroup_barrier(mem_flags::mem_device); }} o[i] = a[i];",
        "threadgroup_barrier reached at different sites",
    ),
    "barrier in one arm of a branch": (
        f"o[i] = a[i]; if (t < 32) {{ {BARRIER} }}",
        "threadgroup_barrier after some threads returned",
    ),
    "barrier after a return": (
        f"o[i] = a[i]; if (t == 5) return; {BARRIER}",
        "threadgroup_barrier after some threads returned",
    ),
    "shuffle from an inactive lane": (
        "o[i] = 0; if (t % 32 < 16) o[i] = simd_shuffle(a[i], 20);",
        "shuffle reads an inactive lane",
    ),
    "matrix product by half a simdgroup": (
        "o[i] = 0; simdgroup_float8x8 m(1); if (t % 32 < 16) simdgroup_multiply(m, m, m);",
        "matrix operation with lanes missing",
    ),
}


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("planted", PLANTED)
def test_planted_fault_is_found_in_every_order_of_threads(planted: str, schedule: Schedule) -> None:
    source, said = PLANTED[planted]
    with pytest.raises(KernelFault) as caught:
        run(PLACE + source, options=Options(schedule=schedule))
    assert said in str(caught.value)


def test_race_between_threadgroups_is_found() -> None:
    with pytest.raises(KernelFault, match="device data race"):
        run(PLACE + "o[i] = a[i]; o[i] = i ? o[i - 1] : 0;", threads=128, threadgroup=32)


def test_a_view_keeps_its_misalignment() -> None:
    whole = mx.zeros(72, dtype=mx.float16)
    source = PLACE + "o[i] = (*(const device half4*)a).x;"
    run(source, whole[4:], ensure_row_contiguous=False)
    with pytest.raises(KernelFault, match="misaligned access: 8 bytes at byte 0 of 'a'"):
        run(source, whole[3:], ensure_row_contiguous=False)


def test_a_local_that_nobody_set_is_nan() -> None:
    out, _ = run(PLACE + "float x[2]; if (t % 2) x[1] = a[i]; o[i] = x[1];")
    assert mx.array_equal(mx.isnan(out), mx.arange(64) % 2 == 0)


def test_message_names_the_line_the_thread_and_the_source() -> None:
    with pytest.raises(KernelFault) as caught:
        run(PLACE + "float x = a[i];\no[i + 1] = x;\nif (i == 0) o[0] = 0;")
    assert "by thread (63, 0, 0) in threadgroup (0, 0, 0)" in str(caught.value)
    assert "at t.source:3: o[i + 1] = x;" in str(caught.value)


REFUSED = {
    "device memory through a thread pointer": ("thread const float* p = a; o[i] = p[i];", "", "cannot initialize"),
    "threadgroup memory passed as device": (
        "threadgroup float b[64]; b[t] = a[i]; o[i] = first(b);",
        "float first(const device float* p) { return p[0]; }",
        "no matching function",
    ),
    "store through const": ("a[i] = 1; o[i] = 0;", "", "read-only"),
    "pointer without address space": ("float x[2]; float* p = x; o[i] = p[0];", "", "without an address space"),
    "reference without address space": (
        "o[i] = first(a[i]);",
        "struct Pair { float x; }; float x_of(Pair& p) { return p.x; } float first(float x) { return x; }",
        "without an address space",
    ),
    "threadgroup memory declared outside the kernel": (
        "o[i] = first(a[i]);",
        "float first(float x) { threadgroup float b[4]; return x; }",
        "may be declared in the kernel itself only",
    ),
    "double": ("double x = a[i]; o[i] = x;", "", "double does not exist"),
    "unknown function": ("o[i] = of_another_api(a[i]);", "", "undeclared"),
}


@pytest.mark.parametrize("refused", REFUSED)
def test_what_the_metal_compiler_refuses_is_refused(refused: str) -> None:
    source, header, said = REFUSED[refused]
    with pytest.raises(CompileError) as caught:
        run(PLACE + source, header=header)
    assert said in str(caught.value)


def test_implicit_conversion_to_bfloat_is_refused() -> None:
    source = PLACE + "o[i] = (float)a[i] * 1.1f;"
    with pytest.raises(CompileError, match="implicit conversion to bfloat"):
        run(source, mx.arange(64).astype(mx.bfloat16), dtype=mx.bfloat16)


def test_more_than_31_buffers_are_refused() -> None:
    names = [f"x{n}" for n in range(31)]
    common = {"grid": (1, 1, 1), "threadgroup": (1, 1, 1), "output_shapes": [(1,)], "output_dtypes": [mx.float32]}
    with emulated_metal():
        kernel: Any = mx.fast.metal_kernel(name="t", input_names=names, output_names=["o"], source="o[0] = x0[0];")
        with pytest.raises(CompileError, match="31 buffers"):
            kernel(inputs=[mx.zeros(8)] * len(names), **common)


def test_legal_but_doubtful_is_a_warning() -> None:
    out, session = run(PLACE + "o[i] = 0; if (t % 32 < 16) o[i] = simd_sum(a[i]);")
    assert [w.kind for w in session.last.warnings] == ["simdgroup operation with lanes missing"]
    assert out[0].item() == sum(range(16))
    _, session = run(PLACE + "o[i / 2] = a[i]; o[32 + i / 2] = a[i];")
    assert {w.kind for w in session.last.warnings} == {"device location written by two threads"}


def test_faults_can_be_kept_instead_of_raised() -> None:
    out, session = run(PLACE + "o[i] = a[i + 1];", options=Options(on_fault="keep"))
    assert [f.kind for f in session.last.faults] == ["out-of-bounds load"]
    assert out[0].item() == 1
