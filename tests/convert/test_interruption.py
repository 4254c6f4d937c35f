"""A conversion that dies leaves nothing that looks complete, and the next run takes it up."""

import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from mlx_lm.utils import load_model as load_stock_model

from mlx_qwen35.convert import Options, convert, layout, stream
from mlx_qwen35.convert.journal import JOURNAL, Journal
from mlx_qwen35.convert.plan import plan_conversion
from mlx_qwen35.errors import CheckpointError, UserError
from mlx_qwen35.models.weights import load_model
from tests.convert.support import write_source
from tests.reference import write_checkpoint

# Small files, groups and blocks, so that a tiny checkpoint takes several of each; then says when so much is written.
RUN = """
import signal, sys, time
from pathlib import Path
from mlx_qwen35.convert import Options, convert, layout, stream
from mlx_qwen35.errors import UserError

layout.SHARD_BYTES, stream.GROUP_BYTES, stream.BYTES_A_WEIGHT = 200_000, 20_000, 256
source, out, pause_at = Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3])
texts = {"calibration": sys.argv[5]} if len(sys.argv) > 5 else {}
options = Options(4, 32, quality=sys.argv[4], check_drafts=False, block_bytes=1 << 20, **texts)

def progress(done, total):
    if done >= pause_at * total:
        print("now", flush=True)
        time.sleep(60)

signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job inherits that it is ignored
print("begin", flush=True)
try:
    convert(source, out, options, progress=progress)
except UserError as error:
    print("refused:", error, flush=True)
    sys.exit(2)
"""
NEVER = 2.0


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_source("moe", tmp_path_factory.mktemp("source") / "moe")


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "SHARD_BYTES", 200_000)
    monkeypatch.setattr(stream, "GROUP_BYTES", 20_000)
    monkeypatch.setattr(stream, "BYTES_A_WEIGHT", 256)


@pytest.fixture(scope="module")
def uninterrupted(source: Path) -> dict[str, dict[str, str]]:
    """Hashes of every file of a conversion that nobody disturbed, by quality."""
    found = {}
    for quality in ("stock", "fast"):
        out = source.parent / f"at once {quality}"
        process = start(source, out, NEVER, quality)
        assert process.wait(120) == 0
        found[quality] = hashes(out)
    return found


def hashes(folder: Path) -> dict[str, str]:
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def start(source: Path, out: Path, pause_at: float, quality: str = "stock", before: str = "") -> subprocess.Popen[str]:
    command = [sys.executable, "-c", before + RUN, str(source), str(out), str(pause_at), quality]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert said(process) == "begin"
    return process


def said(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def end(process: subprocess.Popen[str], how: signal.Signals = signal.SIGKILL) -> None:
    process.send_signal(how)
    process.wait(120)
    assert process.stdout is not None
    process.stdout.close()


def resumed(source: Path, out: Path, quality: str) -> list[int]:
    """Finish an interrupted conversion; the bytes done after each block."""
    done: list[int] = []
    options = Options(4, 32, quality=quality, check_drafts=False, block_bytes=1 << 20)
    convert(source, out, options, progress=lambda now, total: done.append(now))
    return done


@pytest.mark.parametrize(
    ("pause_at", "how"), [*((at, signal.SIGKILL) for at in (0.0, 0.4, 0.8, 1.0)), (0.6, signal.SIGINT)]
)
def test_killed_at_any_point(source: Path, uninterrupted, tmp_path: Path, pause_at: float, how: signal.Signals) -> None:
    out, quality = tmp_path / "out", "fast" if how == signal.SIGKILL else "stock"
    process = start(source, out, pause_at, quality)
    assert said(process) == "now"
    end(process, how)

    assert not (out / "config.json").exists()
    with pytest.raises(UserError):
        load_model(out)
    with pytest.raises(FileNotFoundError):
        load_stock_model(out)
    whole = {p: p.stat().st_mtime_ns for p in out.glob("*.safetensors")}
    finished = len((out / JOURNAL).read_text().splitlines()) - 1
    assert bool(whole) == bool(finished) == (pause_at > 0)

    done = resumed(source, out, quality)
    assert {p: p.stat().st_mtime_ns for p in whole} == whole  # what was whole is not written again
    total = plan_conversion(source, Options(4, 32, quality=quality)).nbytes
    largest = 100_000  # of a group: what may be lost, beside what one block adds
    assert not done or done[0] >= pause_at * total - largest
    assert hashes(out) == uninterrupted[quality]
    assert len(list(out.glob("model-*.safetensors"))) > 3


def kill_at_random_moments(source: Path, root: Path, expected: dict[str, str], kills: int, seed: int) -> None:
    """Each time killed once more while it goes on, until it is through; every end must be the same."""
    chance = random.Random(seed)
    for i in range(kills):
        out = root / f"out-{i}"
        for _ in range(chance.choice((1, 1, 2))):
            process = start(source, out, NEVER, "fast")
            time.sleep(chance.uniform(0, 1.2))
            end(process)
            if not (out / "config.json").exists():
                assert not list(out.glob("model.safetensors.index.json")) or (out / JOURNAL).exists()
        if not (out / "config.json").exists() or (out / JOURNAL).exists():
            resumed(source, out, "fast")
        assert hashes(out) == expected, f"kill {i}"


def test_killed_at_two_random_moments(source: Path, uninterrupted, tmp_path: Path) -> None:
    kill_at_random_moments(source, tmp_path, uninterrupted["fast"], 2, seed=1)


@pytest.mark.slow
def test_killed_at_twenty_random_moments(source: Path, uninterrupted, tmp_path: Path) -> None:
    kill_at_random_moments(source, tmp_path, uninterrupted["fast"], 20, seed=2)


def test_a_calibrated_conversion_is_taken_up_in_either_stage(tmp_path: Path) -> None:
    """Killed once while it calibrates, and once more while it writes; `good` rounds routers as `best` does."""
    source, out, texts = write_checkpoint("moe", tmp_path / "moe"), tmp_path / "out", tmp_path / "texts.txt"
    texts.write_text("\n\n".join("".join(chr(97 + i * j % 26) for j in range(80)) for i in range(1, 20)))
    options = Options(4, 32, quality="good", check_drafts=False, block_bytes=1 << 20, calibration=str(texts))
    expected = convert(source, tmp_path / "expected", options).out
    before = f"import sys; sys.argv.append({str(texts)!r})\n"
    process = start(source, out, NEVER, "good", before)
    while not list(out.glob("calibration-in-progress/state-[1-4]*")):
        assert process.poll() is None
        time.sleep(0.01)
    end(process)
    assert not list(out.glob("*.safetensors*"))
    process = start(source, out, 0.5, "good", before)
    assert said(process) == "now"
    end(process)
    assert (out / "calibration-in-progress").exists()
    convert(source, out, options)
    assert hashes(out) == hashes(expected)


class TestTheJournal:
    @pytest.fixture(scope="class")
    def killed(self, source: Path) -> Path:
        out = source.parent / "killed"
        process = start(source, out, 0.6)
        assert said(process) == "now"
        end(process)
        return out

    @pytest.fixture
    def stopped(self, killed: Path, tmp_path: Path) -> Path:
        """A copy for each test of one conversion that was killed."""
        return shutil.copytree(killed, tmp_path / "out")

    def test_is_not_taken_up_in_another_format(self, source: Path, stopped: Path) -> None:
        for options in (Options(8, 32, quality="stock"), Options(4, 32, quality="fast", recipe="uniform")):
            with pytest.raises(CheckpointError, match="another source or format"):
                convert(source, stopped, options)

    @pytest.mark.parametrize("cut", [1, 7, 60])
    def test_a_line_cut_short_costs_its_job_only(self, source: Path, uninterrupted, stopped: Path, cut: int) -> None:
        journal = stopped / JOURNAL
        os.truncate(journal, journal.stat().st_size - cut)
        resumed(source, stopped, "stock")
        assert hashes(stopped) == uninterrupted["stock"]

    def test_what_follows_a_line_cut_short_is_read_again(self, source: Path, stopped: Path) -> None:
        os.truncate(stopped / JOURNAL, (stopped / JOURNAL).stat().st_size - 7)
        plan = plan_conversion(source, Options(4, 32, quality="stock", block_bytes=1 << 20))
        first = Journal(plan, stopped)
        first.finished([("after the cut", None)])
        first.close()
        second = Journal(plan, stopped)
        assert second.done == first.done
        second.close()

    def test_a_file_that_is_gone_is_written_again(self, source: Path, uninterrupted, stopped: Path) -> None:
        for file in (*stopped.glob("model-00001*"), next(stopped.glob("*.part"))):
            file.unlink()
        resumed(source, stopped, "stock")
        assert hashes(stopped) == uninterrupted["stock"]

    def test_two_conversions_do_not_write_into_one_folder(self, source: Path, stopped: Path) -> None:
        held = Journal(plan_conversion(source, Options(4, 32, quality="stock", block_bytes=1 << 20)), stopped)
        with pytest.raises(CheckpointError, match="Another process"):
            resumed(source, stopped, "stock")
        held.close()
        resumed(source, stopped, "stock")

    def test_that_is_not_ours_is_not_overwritten(self, source: Path, tmp_path: Path) -> None:
        out = tmp_path / "out"
        out.mkdir()
        (out / JOURNAL).write_text('{"plan": "12')
        (out / "letter.txt").write_text("dear")
        with pytest.raises(CheckpointError, match="not empty"):
            convert(source, out)
        assert sorted(p.name for p in out.iterdir()) == [JOURNAL, "letter.txt"]


class TestAFullDisk:
    def test_files_that_the_system_refuses_are_one_line(self, source: Path, tmp_path: Path) -> None:
        limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        process = start(source, tmp_path / "out", NEVER, before=limit)
        assert said(process).startswith("refused: ")
        assert process.wait(120) == 2
        end(process)
        assert not (tmp_path / "out" / "config.json").exists()

    def test_is_one_line_and_continues(self, source: Path, uninterrupted, tmp_path: Path) -> None:
        """A file system of 70 MB that something else fills up while the conversion runs."""
        disk = tmp_path / "disk"
        disk.mkdir()
        if subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=70m", "none", str(disk)], capture_output=True
        ).returncode:
            pytest.skip("mounting a small disk needs root")
        try:
            process = start(source, disk / "out", 0.3)
            assert said(process) == "now"
            end(process)
            (disk / "other").write_bytes(bytes(int(os.statvfs(disk).f_bavail * 4096 - 65_536)))
            quiet = f"import mlx_qwen35.convert.conversion as c; c.SPARE_DISK_BYTES = -{1 << 30}\n"
            process = start(source, disk / "out", NEVER, before=quiet)
            line = said(process)
            assert line.startswith("refused: ")
            assert "is full" in line
            assert "run the same command again" in line
            assert process.wait(120) == 2
            end(process)
            (disk / "other").unlink()
            resumed(source, disk / "out", "stock")
            assert hashes(disk / "out") == uninterrupted["stock"]
        finally:
            subprocess.run(["umount", "-l", str(disk)], check=True)
