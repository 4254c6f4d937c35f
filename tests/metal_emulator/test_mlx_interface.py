"""mx.fast.metal_kernel as MLX has it, traps included: a kernel that passes here must not meet them on a Mac first."""

from __future__ import annotations

import functools
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from tests.metal_emulator import CompileError, Options, emulated_metal
from tests.metal_emulator.support import PLACE, run

COPY = PLACE + "o[i] = a[i];"


def test_an_input_of_fewer_than_8_elements_is_in_the_constant_address_space() -> None:
    header = "float first(const device float* p) { return p[0]; }"
    source = PLACE + "o[i] = first(a);"
    run(source, mx.zeros(8), header=header)
    with pytest.raises(CompileError, match="no matching function"):
        run(source, mx.zeros(7), header=header)


def test_an_input_without_dimensions_arrives_by_reference() -> None:
    out, _ = run(PLACE + "o[i] = a + b[0];", mx.array(2.0), mx.array([3.0]))
    assert out[0].item() == 5
    with pytest.raises(CompileError):
        run(PLACE + "o[i] = a[0];", mx.array(2.0))


def test_an_input_that_is_not_row_contiguous_is_copied_at_every_launch() -> None:
    x = mx.arange(64).astype(mx.float32).reshape(8, 8)
    for given, copied in ((x, ()), (x.T, ("a",)), (x[:, 2:4], ("a",)), (x[2:4], ()), (x[:, None].T[:, 0].T, ())):
        out, session = run(COPY, given, threads=given.size)
        assert session.last.copied == copied
        assert session.total_launches() == 1 + len(copied)
        assert mx.array_equal(out, given.reshape(-1))
    _, session = run(COPY, mx.broadcast_to(x[:1], (8, 8)))
    assert session.last.copied == ("a",)


def test_without_ensure_row_contiguous_the_strides_are_the_kernels_business() -> None:
    x = mx.arange(24).reshape(4, 6).astype(mx.bfloat16).T
    source = PLACE + "o[i] = a[elem_to_loc(i, a_shape, a_strides, a_ndim)];"
    out, session = run(source, x, threads=24, dtype=mx.bfloat16, ensure_row_contiguous=False)
    assert session.last.copied == ()
    assert mx.array_equal(out, x.reshape(-1))


def test_a_view_into_a_larger_array_begins_at_its_offset_and_ends_at_its_end() -> None:
    x = mx.arange(128).astype(mx.float32)[32:96]
    out, _ = run(COPY, x, ensure_row_contiguous=False)
    assert mx.array_equal(out, x)
    with pytest.raises(RuntimeError, match="out-of-bounds load"):
        run(PLACE + "o[i] = a[i + 1];", x, ensure_row_contiguous=False)


def test_shapes_and_strides_exist_only_if_the_source_names_them() -> None:
    out, _ = run(PLACE + "o[i] = a_shape[1] * 10 + a_ndim;", mx.zeros((4, 16)))
    assert out[0].item() == 162
    with pytest.raises(CompileError, match="undeclared"):
        run(PLACE + "o[i] = rows(a);", mx.zeros((4, 16)), header="inline int rows(float x) { return a_shape[0]; }")


def test_init_value_costs_a_launch_and_allows_reading() -> None:
    out, session = run(PLACE + "if (i % 2) o[i] += a[i];", init_value=1.0)
    assert session.last.filled == 1
    assert session.total_launches() == 2
    assert out.tolist() == [1 + i if i % 2 else 1 for i in range(64)]
    out, _ = run(PLACE + "if (i % 2) o[i] = 3;", init_value=1.5, dtype=mx.bfloat16)
    assert out.tolist() == [3 if i % 2 else 1.5 for i in range(64)]


def test_template_arguments_are_types_numbers_and_flags() -> None:
    with emulated_metal():
        kernel: Any = mx.fast.metal_kernel(
            name="t", input_names=["a"], output_names=["o"], source="o[0] = T(N) + (F ? T(0.5f) : T(0));"
        )
        for dtype in (mx.float32, mx.float16, mx.bfloat16):
            for flag in (True, False):
                template = [("T", dtype), ("N", 7), ("F", flag)]
                arguments = {"inputs": [mx.zeros(8)], "grid": (1, 1, 1), "threadgroup": (1, 1, 1)}
                out = kernel(**arguments, template=template, output_shapes=[(1,)], output_dtypes=[dtype])[0]
                assert out.dtype == dtype
                assert out.item() == 7.5 - 0.5 * (not flag)


@pytest.mark.parametrize(
    "dtype",
    [mx.bool_, mx.uint8, mx.int8, mx.uint16, mx.int16, mx.uint32, mx.int32, mx.uint64, mx.int64, mx.float16],
    ids=str,
)
def test_every_dtype_passes_through_unchanged(dtype: mx.Dtype) -> None:
    x = (mx.arange(64) % 2 if dtype == mx.bool_ else mx.arange(64)).astype(dtype)
    out, _ = run(COPY, x, dtype=dtype)
    assert out.dtype == dtype
    assert mx.array_equal(out, x)


def test_python_numbers_are_inputs_too() -> None:
    with emulated_metal() as session:
        source = "o[thread_position_in_grid.x] = a + b;"
        kernel: Any = mx.fast.metal_kernel(name="t", input_names=["a", "b"], output_names=["o"], source=source)
        common = {"grid": (2, 1, 1), "threadgroup": (1, 1, 1), "output_shapes": [(2,)], "output_dtypes": [mx.float32]}
        assert kernel(inputs=[1.5, 2], **common)[0].tolist() == [3.5, 3.5]
        assert session.last.inputs == (("a", mx.float32, ()), ("b", mx.int32, ()))
        with pytest.raises(ValueError, match="Expected `inputs` to have size 2 but got size 1"):
            kernel(inputs=[1.5], **common)


def test_threadgroup_sides_longer_than_the_grid_are_clipped() -> None:
    _, session = run(COPY, threads=16, threadgroup=256)
    assert session.last.threadgroup == (16, 1, 1)


def test_threadgroups_of_more_than_1024_threads_are_refused() -> None:
    with pytest.raises(RuntimeError, match="more than 1024 threads"):
        run(COPY, threads=2048, threadgroup=2048)


def test_verbose_prints_the_generated_source(capsys: pytest.CaptureFixture[str]) -> None:
    with emulated_metal():
        kernel: Any = mx.fast.metal_kernel(name="shown", input_names=["a"], output_names=["o"], source="o[0] = a[0];")
        kernel(
            inputs=[mx.zeros(8)],
            grid=(1, 1, 1),
            threadgroup=(1, 1, 1),
            verbose=True,
            output_shapes=[(1,)],
            output_dtypes=[mx.float32],
        )
    said = capsys.readouterr().out
    assert "[[kernel]] void custom_kernel_shown_float_float(" in said
    assert "const device float* a [[buffer(0)]]" in said


def test_a_kernel_kept_from_one_session_runs_in_the_next_and_nowhere_else() -> None:
    @functools.cache
    def kernel() -> Any:
        return mx.fast.metal_kernel(name="t", input_names=["a"], output_names=["o"], source=COPY)

    def call() -> mx.array:
        common = {"grid": (8, 1, 1), "threadgroup": (8, 1, 1), "output_shapes": [(8,)], "output_dtypes": [mx.float32]}
        return kernel()(inputs=[mx.ones(8)], **common)[0]

    with emulated_metal() as first:
        call()
    with emulated_metal(Options(schedule="reverse")) as second:
        call()
        call()
    assert (len(first.launches), len(second.launches)) == (1, 2)
    with pytest.raises(RuntimeError, match="outside"):
        call()


def test_one_name_for_two_sources_is_recorded_because_mlx_compiles_again_each_time() -> None:
    with emulated_metal() as session:
        for source in ("o[0] = a[0];", "o[0] = 2 * a[0];", "o[0] = a[0];"):
            kernel: Any = mx.fast.metal_kernel(name="t", input_names=["a"], output_names=["o"], source=source)
            common = {"grid": (1, 1, 1), "threadgroup": (1, 1, 1), "output_shapes": [(1,)]}
            kernel(inputs=[mx.ones(8)], output_dtypes=[mx.float32], **common)
    assert session.recompiled == ["custom_kernel_t_float_float"] * 2


def test_compiled_functions_that_launch_kernels_run_inside() -> None:
    @mx.compile
    def double(x: mx.array) -> mx.array:
        kernel: Any = mx.fast.metal_kernel(name="t", input_names=["a"], output_names=["o"], source=COPY)
        common = {"grid": (8, 1, 1), "threadgroup": (8, 1, 1), "output_shapes": [(8,)], "output_dtypes": [mx.float32]}
        return kernel(inputs=[x * 2], **common)[0] + 1

    with emulated_metal():
        assert np.array_equal(np.array(double(mx.ones(8))), np.full(8, 3.0))


def test_the_machine_pretends_to_be_a_mac_only_inside() -> None:
    before = mx.fast.metal_kernel
    with emulated_metal():
        assert mx.metal.is_available()
        assert mx.default_device() == mx.gpu
        with emulated_metal(pretend_gpu=False):
            assert mx.metal.is_available()
    assert mx.fast.metal_kernel is before
    assert not mx.metal.is_available()
    with emulated_metal(pretend_gpu=False):
        assert not mx.metal.is_available()
