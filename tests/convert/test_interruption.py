"""A conversion that dies leaves nothing that looks complete, and the next run takes it up. Memory stays bounded."""

import hashlib
import json
import signal
import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import pytest
from mlx_lm.utils import load_model as load_stock_model

from mlx_qwen35.convert import convert, plan, stream, verify
from mlx_qwen35.convert.conversion import MARKER
from mlx_qwen35.convert.plan import plan_conversion
from mlx_qwen35.errors import CheckpointError, UserError
from mlx_qwen35.hub.headers import read_checkpoint
from mlx_qwen35.models.weights import load_model
from tests.convert.support import write_source

# Small files and slabs, so that a tiny checkpoint takes several of each; then says when so many bytes are written.
RUN = """
import sys, time
from pathlib import Path
from mlx_qwen35.convert import convert, plan, stream
from mlx_qwen35.errors import UserError

plan.SHARD_BYTES, stream.SLAB_WEIGHTS = 200_000, 4_000
source, out, pause_at = Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3])

def progress(done, total):
    if done >= pause_at * total:
        print("now", flush=True)
        time.sleep(60)

try:
    convert(source, out, progress=progress)
except UserError as error:
    print("refused:", error, flush=True)
    sys.exit(2)
"""


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_source("moe", tmp_path_factory.mktemp("source") / "moe")


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "SHARD_BYTES", 200_000)
    monkeypatch.setattr(stream, "SLAB_WEIGHTS", 4_000)


def hashes(folder: Path) -> dict[str, str]:
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def start(source: Path, out: Path, pause_at: float, before: str = "") -> subprocess.Popen[str]:
    command = [sys.executable, "-c", before + RUN, str(source), str(out), str(pause_at)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def say(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


@pytest.mark.parametrize("pause_at", [0.0, 0.4, 0.8, 1.0])
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_killed_at_any_point(source: Path, tmp_path: Path, small_pieces, pause_at: float, how: signal.Signals) -> None:
    out = tmp_path / "out"
    process = start(source, out, pause_at)
    assert say(process) == "now"
    process.send_signal(how)
    process.wait(120)
    process.stdout.close()  # pyright: ignore[reportOptionalMemberAccess]

    assert not (out / "config.json").exists()
    with pytest.raises(UserError):
        load_model(out)
    with pytest.raises(FileNotFoundError):
        load_stock_model(out)
    whole = {p: p.stat().st_mtime_ns for p in out.glob("*.safetensors")}
    assert bool(whole) == (pause_at > 0)

    convert(source, out)
    assert {p: p.stat().st_mtime_ns for p in whole} == whole  # what was whole is not written again
    convert(source, tmp_path / "at once")
    assert hashes(out) == hashes(tmp_path / "at once")
    assert len(list(out.glob("model-*.safetensors"))) > 3


def test_an_interrupted_conversion_is_not_taken_up_in_another_format(source: Path, tmp_path: Path) -> None:
    process = start(source, tmp_path / "out", 0.5)
    assert say(process) == "now"
    process.kill()
    process.wait(120)
    process.stdout.close()  # pyright: ignore[reportOptionalMemberAccess]
    with pytest.raises(CheckpointError, match="another source or format"):
        convert(source, tmp_path / "out", bits=8)


def test_a_full_disk_is_one_line(source: Path, tmp_path: Path) -> None:
    """A limit on the size of files makes the system itself refuse to write on."""
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
    process = start(source, tmp_path / "out", 2, before=limit)
    assert say(process).startswith("refused: ")
    assert process.wait(120) == 2
    process.stdout.close()  # pyright: ignore[reportOptionalMemberAccess]
    assert not (tmp_path / "out" / "config.json").exists()


def test_a_marker_cut_short_is_not_ours_to_overwrite(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / MARKER).write_text('{"plan": "12')
    (out / "letter.txt").write_text("dear")
    with pytest.raises(CheckpointError, match="another source or format"):
        convert(source, out)


class TestVerify:
    """Damage after writing is found before the folder is declared complete."""

    @pytest.fixture
    def written(self, source: Path, tmp_path: Path):
        planned = plan_conversion(source)
        stream.write_files(planned, tmp_path)
        assert verify.check_tensors(planned, tmp_path)
        return planned, tmp_path

    @pytest.mark.parametrize(
        ("name", "content"),
        [
            ("language_model.model.layers.0.mlp.switch_mlp.up_proj.scales", b"\x80\x7f"),  # infinity
            ("language_model.model.layers.3.self_attn.q_proj.biases", b"\xff\xff"),  # not a number
            ("language_model.model.layers.3.self_attn.q_norm.weight", b"\x00\x00"),
            ("language_model.model.layers.1.linear_attn.A_log", b"\x00\x00\x00\x00"),
        ],
    )
    def test_one_value(self, written, name: str, content: bytes) -> None:
        planned, out = written
        entry = read_checkpoint(out).tensors[name]
        with entry.file.open("r+b") as file:
            file.seek(entry.begin)
            file.write(content)
        with pytest.raises(CheckpointError, match=name):
            verify.check_tensors(planned, out)

    def test_packed_rows_of_another_matrix(self, written) -> None:
        planned, out = written
        entries = read_checkpoint(out).tensors
        ours, other = (entries[f"language_model.model.layers.{i}.linear_attn.out_proj.weight"] for i in (0, 1))
        with ours.file.open("r+b") as file:
            file.seek(other.begin)
            content = file.read(other.nbytes)
            file.seek(ours.begin)
            file.write(content)
        with pytest.raises(CheckpointError, match=r"layers\.0\.linear_attn\.out_proj"):
            verify.check_tensors(planned, out)

    def test_a_missing_file(self, written) -> None:
        planned, out = written
        (out / "mtp" / "model.safetensors").unlink()
        with pytest.raises(CheckpointError, match=r"mtp.*missing"):
            verify.check_tensors(planned, out)


def test_memory_is_bounded_by_the_slab_not_by_the_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """11 MB of weights with slabs of 16,384 weights; whole tensors would take 1 MB and more at once."""
    source = write_wide(tmp_path / "wide")
    monkeypatch.setattr(stream, "SLAB_WEIGHTS", 1 << 14)
    planned = plan_conversion(source)
    source_bytes = sum(entry.nbytes for entry in planned.source.files.tensors.values())
    mx.clear_cache()
    start_bytes = mx.get_active_memory()
    mx.reset_peak_memory()
    stream.write_files(planned, tmp_path)
    peak = mx.get_peak_memory() - start_bytes
    assert source_bytes > 10_000_000
    assert peak < 500_000  # 12 bytes a weight of a slab, and room for MLX's own
    verify.check_tensors(planned, tmp_path)


def write_wide(folder: Path) -> Path:
    """The tiny mixture with 128 experts, all tensors the same random bytes."""
    write_source("moe", folder)
    config = json.loads((folder / "config.json").read_text())
    count = config["text_config"]["num_experts"]
    config["text_config"]["num_experts"] = 128
    entries = read_checkpoint(folder).tensors
    (folder / "config.json").write_text(json.dumps(config))
    tensors = {}
    for name, entry in entries.items():
        shape = list(entry.shape)
        if (".mlp.experts." in name and "mtp." not in name) or name.endswith("mlp.gate.weight"):
            shape[0] = shape[0] * 128 // count
        values = mx.random.normal(shape) * 0.1
        tensors[name] = values.astype(mx.float32 if entry.dtype == "F32" else mx.bfloat16)
    for expert in range(128):
        for part in ("gate_proj", "up_proj", "down_proj"):
            at = "mtp.layers.0.mlp.experts"
            tensors[f"{at}.{expert}.{part}.weight"] = tensors[f"{at}.0.{part}.weight"]
    for file in folder.glob("*.safetensors*"):
        file.unlink()
    mx.save_safetensors(str(folder / "model.safetensors"), tensors, {"format": "pt"})
    return folder
