"""Trouble on the disk, seen from the engine: answers stay the cold ones, one line is said, and service goes on."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mlx_qwen35.caches.blobs import Layouts
from mlx_qwen35.caches.disk_tree import DiskTree
from mlx_qwen35.caches.prefix_store import PrefixStore
from mlx_qwen35.generation.request import Request
from tests.caches.disk_nodes import MB, files_of, open_store
from tests.caches.test_disk_faults import small_disk  # noqa: F401
from tests.support.cranked import Cranked, cranked
from tests.support.networks import known_tokens, network, random_ids
from tests.support.plain import assert_plain

NAME = "dense"
TEXT = random_ids(1, 70)
CHECKPOINTS = [20, 50]
PROMPT = [*TEXT, *random_ids(2, 5)]


def served_from(folder: Path, warnings: list[str], **options: float) -> Cranked:
    def open_disk(fingerprint: str, layouts: Layouts) -> DiskTree:
        limits = {"byte_budget": 100 * MB} | options
        return DiskTree(open_store(folder, warnings, fingerprint, **limits), layouts)

    return cranked(network(NAME), open_disk=open_disk)


def asked(ids: list[int]) -> Request:
    return Request(ids, known_tokens(NAME), 4, checkpoints=CHECKPOINTS)


def answer(served: Cranked, ids: list[int]) -> int:
    """Asks, checks the answer against plain decoding; how many tokens came from the cache."""
    tokens, line = served.answer(asked(ids))
    assert len(tokens) == 4
    assert_plain(network(NAME), asked(ids), tokens)
    served.assert_at_rest()
    return line.reuse.cached


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """One with the prefixes of a text: three nodes before the answer's, each with a checkpoint."""
    folder = tmp_path / "cache"
    served = served_from(folder, [])
    assert answer(served, TEXT) == 0
    assert answer(served, PROMPT) == 50  # the answer, drawn after TEXT, is another one than PROMPT goes on with
    served.engine.close()
    return folder


def kind(name: str) -> Callable[[Path], bool]:
    return lambda path: f".{name}." in path.name


def truncate(path: Path) -> None:
    with path.open("rb+") as file:
        file.truncate(path.stat().st_size // 2)


def flip(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[-5] ^= 16
    path.write_bytes(raw)


def exchange(path: Path) -> None:
    """Another file of the store under this name."""
    other = next(p for p in sorted(path.parent.iterdir()) if p.suffix == path.suffix and p != path)
    shutil.copyfile(other, path)


MORE = [pytest.param(damage, marks=pytest.mark.slow) for damage in (truncate, exchange)]


@pytest.mark.parametrize("damage", [flip, Path.unlink, *MORE])
@pytest.mark.parametrize("part", ["segment", "checkpoint"])
@pytest.mark.parametrize("held", [True, False], ids=["held by a tree", "before the start"])
def test_damaged_files_are_computed_again(folder: Path, damage: Callable, part: str, held: bool) -> None:
    warnings: list[str] = []
    served = served_from(folder, warnings)
    if held:
        served.engine.sizes(16)  # the tree knows by now what is on disk
    for path in [p for p in files_of(folder) if kind(part)(p)]:
        damage(path)
    assert answer(served, PROMPT) == 0
    assert answer(served, [*PROMPT, 1, 2]) == 50
    assert all("\n" not in line for line in warnings)
    served.engine.close()
    # What was computed again is on disk again; where a damaged file still had its place, as soon as it was read.
    for _ in range(3):
        served = served_from(folder, warnings)
        reused = answer(served, PROMPT)
        served.engine.close()
    assert reused == 50


def test_one_damaged_file_costs_what_hangs_on_it_and_no_more(folder: Path) -> None:
    """Of each file in turn; the answers stay right, and the most that is lost is the text's own."""
    pristine = folder.with_name("pristine")
    shutil.copytree(folder, pristine)
    reused = []
    for name in [path.relative_to(folder) for path in files_of(folder)]:
        shutil.rmtree(folder)
        shutil.copytree(pristine, folder)
        served = served_from(folder, [])
        served.engine.sizes(16)
        flip(folder / name)
        reused.append(answer(served, [*PROMPT, 3]))
        assert answer(served, [*PROMPT, 3, 4]) >= reused[-1]
        served.engine.close()
    assert set(reused) == {0, 20, 50}


def test_files_that_vanish_between_match_and_restore(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    served = served_from(folder, [])
    match = PrefixStore.match

    def match_and_lose(store, root, ids):
        found = match(store, root, ids)
        assert found.length == 50
        shutil.rmtree(folder)
        return found

    with monkeypatch.context() as patched:
        patched.setattr(PrefixStore, "match", match_and_lose)
        assert answer(served, [*PROMPT, 3]) == 0
    assert answer(served, [*PROMPT, 3, 4]) == 50


@pytest.mark.parametrize("options", [{"byte_budget": 5_000}, {"byte_budget": 300_000}, {"daily_write_budget": 100_000}])
def test_budgets_too_small_cost_prefixes_and_nothing_else(tmp_path: Path, options: dict[str, int]) -> None:
    warnings: list[str] = []
    for _ in range(2):
        served = served_from(tmp_path / "cache", warnings, **options)
        for i in range(3):
            answer(served, random_ids(i, 60))
            answer(served, random_ids(i, 70))
            served.store.shrink(0)
        served.engine.close()
    assert len(warnings) <= 2


def test_a_disk_that_is_full(small_disk: Path) -> None:  # noqa: F811
    warnings: list[str] = []
    served = served_from(small_disk, warnings)
    for i in range(6):
        answer(served, random_ids(i, 100))
        answer(served, random_ids(i, 110))
    served.engine.close()
    assert len(warnings) == 1
    assert "no space left" in warnings[0]
    answer(served_from(small_disk, warnings), random_ids(0, 110))


def test_a_folder_that_cannot_be_written_to(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    warnings: list[str] = []
    served = served_from(tmp_path / "file" / "cache", warnings)
    answer(served, TEXT)
    assert answer(served, PROMPT) == 50
    served.engine.close()
    assert len(warnings) == 1


WRITER = """
import sys
from pathlib import Path
from tests.generation.test_faults import *
served = served_from(Path(sys.argv[1]), [])
for i in range(10_000):
    answer(served, random_ids(i % 50, 70 + i // 50))
    print(i, flush=True)
"""


def test_kill_9_while_writing_leaves_what_is_whole(tmp_path: Path, clean_environment: dict[str, str]) -> None:
    folder = tmp_path / "cache"
    for answers in (2, 4):
        command = [sys.executable, "-c", WRITER, str(folder)]
        process = subprocess.Popen(command, env=clean_environment, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        for _ in range(answers):
            assert process.stdout.readline()
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()
    warnings: list[str] = []
    served = served_from(folder, warnings)
    reused = [answer(served, random_ids(i, 90)) for i in range(4)]
    assert max(reused) >= 50
    assert not warnings
    served.engine.close()
