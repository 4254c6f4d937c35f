"""Our side of the prefix benchmark, on scripts of a few turns rendered by the real template."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from examples.benchmarks import reuse_scripts
from examples.benchmarks.prefix_reuse import restart
from examples.benchmarks.reuse_run import our_runtime, run, write_checkpoint
from examples.benchmarks.reuse_scripts import Script
from examples.benchmarks.reuse_truth import BAR, total
from mlx_qwen35.runtime import Runtime
from tests.support import puppet

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def says(tmp_path_factory: pytest.TempPathFactory) -> tuple[puppet.Script, Path]:
    folder = tmp_path_factory.mktemp("puppet")
    return write_checkpoint(folder), folder


@pytest.fixture(scope="module")
def runtime(says: tuple[puppet.Script, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runtime]:
    with our_runtime(says[1], tmp_path_factory.mktemp("prefixes")) as loaded:
        yield loaded


@pytest.mark.parametrize(
    "script",
    [reuse_scripts.tool_loop(4), reuse_scripts.questions(5), reuse_scripts.mixed(3, 2)],
    ids=lambda script: script.key,
)
def test_little_more_is_prefilled_than_is_new(
    runtime: Runtime, says: tuple[puppet.Script, Path], script: Script
) -> None:
    report, _ = run(runtime, None, script, says[0], [])
    assert [turn.note for turn in report.ours] == [""] * len(script.turns)
    sums = total(report.ours)
    assert sums.ratio <= BAR
    # The first turn is new as a whole; without it the rest must hold too.
    assert sums.ratio_after_first <= BAR


def test_a_new_process_goes_on_where_the_old_one_stopped(says: tuple[puppet.Script, Path], tmp_path: Path) -> None:
    disk = tmp_path / "prefixes"
    with our_runtime(says[1], disk) as first:
        report, conversation = run(first, None, reuse_scripts.questions(2), says[0], [])
    reused = restart(says[1], disk, conversation, tmp_path / "resume.json")
    assert reused >= report.ours[-1].prompt * 0.8
