"""The choice between implementations: slow, wrong, crashing and NaN-giving ones, as fakes with a clock of their own."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import pytest

from mlx_qwen35.errors import ConfigError
from mlx_qwen35.metal_kernels.choices import MOST_MACHINES, VERSION, ChoiceFile, Known
from mlx_qwen35.metal_kernels.operations import OPERATIONS, override, selection, using
from mlx_qwen35.metal_kernels.override import Override, parse_override
from mlx_qwen35.metal_kernels.selection import Candidate, Operation, Selection, seeded, shapes_of

MACHINE = "Apple M9 | 30.1 | MLX 1.0"


class Bench:
    """A clock that only candidates move, and a count of their calls."""

    def __init__(self) -> None:
        self.now, self.calls, self.warnings = 0.0, [], []

    def candidate(
        self, name: str, seconds: float, call: Callable = mx.square, fits: Callable = lambda *_: True
    ) -> Candidate:
        def counted(x: mx.array) -> mx.array:
            self.calls.append(name)
            self.now += seconds
            return call(x)

        return Candidate(name, counted, True, fits)

    def operation(self, *candidates: Candidate) -> Operation:
        return Operation("square", (self.candidate("reference", 9), self.candidate("fast", 3), *candidates))

    def selection(self, path: Path | None = None, asked: str = "", machine: str = MACHINE) -> Selection:
        wanted = parse_override(asked, {"square": ["reference", "fast", "metal"]})
        file = ChoiceFile(path, lambda: machine) if path else None
        return Selection(wanted, file, self.warnings.append, lambda: self.now)


def crash(x: mx.array) -> mx.array:
    raise RuntimeError("[metal::Device] Unable to build metal library from source\nprogram_source:3: error")


BROKEN = {
    "crashing": (crash, "RuntimeError: [metal::Device] Unable to build metal library from source program_source:3"),
    "wrong": (lambda x: mx.square(x) * 1.001, "differs from the reference by 1.0e-03"),
    "nan": (lambda x: mx.where(x == x[0], mx.nan, mx.square(x)), "NaN"),
    "misshaped": (lambda x: mx.square(x)[None], "other shapes or dtypes"),
    "half": (lambda x: mx.square(x).astype(mx.float16), "other shapes or dtypes"),
}
X = mx.array([1.0, 2.0, 3.0])


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.setattr(mx.metal, "is_available", lambda: True)
    return Bench()


@pytest.mark.parametrize(("seconds", "chosen"), [(1, "metal"), (5, "fast")])
def test_the_fastest_correct_one_is_kept_and_measured_once(bench: Bench, seconds: float, chosen: str) -> None:
    operation, choice = bench.operation(bench.candidate("metal", seconds)), bench.selection()
    assert choice.choose(operation, (X,)).name == chosen
    assert choice.measuring == bench.now > 0
    bench.calls.clear()
    assert mx.array_equal(choice.run(operation, (X,)), X * X)
    assert bench.calls == [chosen]
    assert bench.warnings == []


@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_candidate_is_named_once_and_never_used_again(bench: Bench, tmp_path: Path, fault: str) -> None:
    call, told = BROKEN[fault]
    operation = bench.operation(bench.candidate("metal", 0.1, call))
    choice = bench.selection(tmp_path / "kernels.json")
    for shape in (3, 3, 500):
        assert choice.choose(operation, (mx.ones(shape),)).name == "fast"
    assert len(bench.warnings) == 1
    assert "square=metal" in bench.warnings[0]
    assert told in bench.warnings[0]
    assert "\n" not in bench.warnings[0]
    later = bench.selection(tmp_path / "kernels.json")
    bench.calls.clear()
    assert later.choose(operation, (mx.ones(9000),)).name == "fast"
    assert "metal" not in bench.calls
    assert len(bench.warnings) == 1
    assert set(later.rejected()) == {"square=metal"}


def test_where_all_are_broken_the_reference_runs(bench: Bench) -> None:
    operation = Operation("square", (bench.candidate("reference", 9), bench.candidate("fast", 1, crash)))
    assert mx.array_equal(bench.selection().run(operation, (X,)), X * X)


def test_one_that_does_not_take_the_arguments_is_not_at_fault(bench: Bench) -> None:
    operation = bench.operation(bench.candidate("metal", 1, crash, fits=lambda x: x.size > 5))
    assert bench.selection().choose(operation, (X,)).name == "fast"
    assert bench.warnings == []


def test_what_is_too_large_for_the_choice_of_its_class_runs_anywhere(bench: Bench) -> None:
    operation = bench.operation(bench.candidate("metal", 1, fits=lambda x: x.size <= 12))
    choice = bench.selection()
    assert choice.choose(operation, (mx.ones(12),)).name == "metal"
    assert choice.choose(operation, (mx.ones(13),)).name == "fast"
    assert choice.choose(operation, (mx.ones(12),)).name == "metal"


def test_one_that_fails_later_is_dropped_and_generation_goes_on(bench: Bench) -> None:
    def fails_at_seven(x: mx.array) -> mx.array:
        return crash(x) if x.size == 7 else mx.square(x)

    operation, choice = bench.operation(bench.candidate("metal", 1, fails_at_seven)), bench.selection()
    eight, seven = mx.ones(16), mx.ones(7)
    assert choice.choose(operation, (eight,)).name == "metal"
    choice._chosen["square 7float32"] = operation.named("metal")  # as a file of another day might say
    assert mx.array_equal(choice.run(operation, (seven,)), seven)
    assert choice.choose(operation, (eight,)).name == "fast"
    assert len(bench.warnings) == 1


def test_wrong_arguments_are_the_callers_fault(bench: Bench) -> None:
    """A candidate must not be banned for what the reference refuses too."""

    def strict(x: mx.array) -> mx.array:
        if x.ndim != 1:
            raise ValueError("[square] one dimension is needed")
        return mx.square(x)

    operation = Operation("square", (bench.candidate("reference", 9, strict), bench.candidate("fast", 1, strict)))
    choice = bench.selection()
    choice._chosen["square 1x1float32"] = operation.named("fast")
    with pytest.raises(ValueError, match="one dimension"):
        choice.run(operation, (mx.ones((1, 1)),))
    assert choice.rejected() == {}


def test_off_metal_nothing_is_measured(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mx.metal, "is_available", lambda: False)
    bench.selection().run(bench.operation(bench.candidate("metal", 0)), (X,))
    assert bench.calls == ["fast"]


def test_lengths_share_a_choice_up_to_the_next_power_of_two() -> None:
    assert shapes_of(mx.zeros((1, 9, 64))) == shapes_of(mx.zeros((1, 16, 64))) != shapes_of(mx.zeros((1, 17, 64)))
    assert len({shapes_of(mx.zeros(n)) for n in range(1, 9)}) == 8
    assert shapes_of(mx.zeros(4, mx.bfloat16), None) != shapes_of(mx.zeros(4), None)


def test_measuring_draws_from_nobodys_random_numbers() -> None:
    mx.random.seed(3)
    before = mx.random.normal((4,))
    mx.random.seed(3)
    first, second = seeded(X), seeded(X)
    assert mx.array_equal(mx.random.normal((4,)), before)
    assert mx.array_equal(first[0], second[0])


# The file.


def test_a_choice_outlives_the_process_on_this_machine_alone(bench: Bench, tmp_path: Path) -> None:
    path, operation = tmp_path / "deep" / "kernels.json", bench.operation(bench.candidate("metal", 1))
    bench.selection(path).choose(operation, (X,))
    bench.calls.clear()
    assert bench.selection(path).choose(operation, (X,)).name == "metal"
    assert bench.calls == []
    bench.selection(path, machine="another MLX").choose(operation, (X,))
    assert "metal" in bench.calls
    assert set(json.loads(path.read_text())["machines"]) == {MACHINE, "another MLX"}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff\x00",
        b"[]",
        b"[" * 100_000,
        json.dumps({"version": VERSION + 1, "machines": {MACHINE: {"chosen": {"square 3float32": "metal"}}}}).encode(),
        json.dumps({"version": VERSION, "machines": [1]}).encode(),
        json.dumps({"version": VERSION, "machines": {MACHINE: 7}}).encode(),
        json.dumps({"version": VERSION, "machines": {MACHINE: {"chosen": {"square 3float32": 7}}}}).encode(),
        json.dumps({"version": VERSION, "machines": {MACHINE: {"chosen": {"square 3float32": "gone"}}}}).encode(),
    ],
)
def test_a_damaged_or_foreign_file_is_measured_anew(bench: Bench, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "kernels.json"
    path.write_bytes(content)
    assert bench.selection(path).choose(bench.operation(bench.candidate("metal", 4)), (X,)).name == "fast"
    assert ChoiceFile(path, lambda: MACHINE).load().chosen == {"square 3float32": "fast"}
    assert bench.warnings == []


def test_a_rejected_choice_in_the_file_is_not_taken(bench: Bench, tmp_path: Path) -> None:
    path = tmp_path / "kernels.json"
    ChoiceFile(path, lambda: MACHINE).save(Known({"square 3float32": "metal"}, {"square=metal": "NaN"}))
    assert bench.selection(path).choose(bench.operation(bench.candidate("metal", 1)), (X,)).name == "fast"


def test_a_folder_that_cannot_be_written_is_told_once(bench: Bench, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    choice, operation = bench.selection(tmp_path / "file" / "kernels.json"), bench.operation()
    assert choice.choose(operation, (X,)).name == choice.choose(operation, (mx.ones(9),)).name == "fast"
    assert len(bench.warnings) == 1
    assert "measured at every start" in bench.warnings[0]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_file_is_read(bench: Bench, tmp_path: Path) -> None:
    path = tmp_path / "kernels.json"
    ChoiceFile(path, lambda: MACHINE).save(Known({"square 3float32": "fast"}))
    tmp_path.chmod(0o500)
    assert bench.selection(path).choose(bench.operation(bench.candidate("metal", 1)), (X,)).name == "fast"


def test_old_machines_are_forgotten(tmp_path: Path) -> None:
    path = tmp_path / "kernels.json"
    for i in range(MOST_MACHINES + 3):
        ChoiceFile(path, lambda i=i: f"machine {i}").save(Known({"a": "b"}))
    assert len(json.loads(path.read_text())["machines"]) == MOST_MACHINES
    assert ChoiceFile(path, lambda: "machine 0").load() == Known()


def test_processes_that_write_at_once_keep_what_each_of_them_knows(tmp_path: Path) -> None:
    path = tmp_path / "kernels.json"
    program = (
        "import sys; from pathlib import Path\n"
        "from mlx_qwen35.metal_kernels.choices import ChoiceFile, Known\n"
        "for i in range(30): ChoiceFile(Path(sys.argv[1]), lambda: 'm').save(Known({f'{sys.argv[2]} {i}': 'fast'}))"
    )
    writers = [subprocess.Popen([sys.executable, "-c", program, str(path), name]) for name in "ab"]
    assert [w.wait(60) for w in writers] == [0, 0]
    known = ChoiceFile(path, lambda: "m").load()
    assert set(known.chosen) == {f"{name} {i}" for name in "ab" for i in range(30)}


# What people ask for.


def test_asking_beats_measuring(bench: Bench) -> None:
    operation = bench.operation(bench.candidate("metal", 1, crash))
    assert bench.selection(asked="reference").choose(operation, (X,)).name == "reference"
    assert bench.selection(asked="square=fast,reference").choose(operation, (X,)).name == "fast"
    with pytest.raises(RuntimeError):  # it was asked for by name
        bench.selection(asked="square=metal").run(operation, (X,))


def test_a_kernel_asked_for_where_there_is_no_metal_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench()
    monkeypatch.setattr(mx.metal, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="square=metal needs Metal"):
        bench.selection(asked="square=metal").run(bench.operation(bench.candidate("metal", 1)), (X,))


@pytest.mark.parametrize(
    ("text", "told"),
    [("fastest", "'fastest' is unknown"), ("sqare=fast", "'sqare'"), ("gated_delta=cuda", "'cuda'; it has reference")],
)
def test_unknown_names_are_refused_in_one_line(text: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told) as error:
        override(text)
    assert "\n" not in str(error.value)


def test_auto_and_nothing_are_the_same() -> None:
    assert override("auto") == override(" ") == Override()


# The operations themselves.


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda o: o.name)
def test_the_first_is_the_definition_and_the_second_runs_anywhere(operation: Operation) -> None:
    assert operation.reference.name == "reference"
    assert not operation.off_metal.needs_metal
    assert not operation.reference.needs_metal


@pytest.mark.metal
def test_a_wrong_kernel_inside_the_network_is_rejected_and_named(
    metal: object, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """On a Mac, or emulated: the kernel with its epsilon squared, so to speak."""
    from mlx_qwen35.metal_kernels import operations, rms_norm

    def wrong(x: mx.array, residual: mx.array, weight: mx.array, eps: float) -> tuple[mx.array, mx.array]:
        return rms_norm.add_rms_norm_metal(x, residual, weight + 0.01, eps)

    operation = operations.ADD_RMS_NORM
    candidates = (*operation.candidates[:2], Candidate("metal", wrong, True))
    monkeypatch.setattr(operations, "ADD_RMS_NORM", Operation(operation.name, candidates))
    x, weight = mx.random.normal((2, 64)), mx.ones(64)
    with caplog.at_level(logging.WARNING), using(Selection(Override())):
        total, _ = operations.add_rms_norm(x, x, weight, 1e-6)
        assert mx.array_equal(total, x + x)
        assert set(selection().rejected()) == {"add_rms_norm=metal"}
    assert "add_rms_norm=metal" in caplog.text
