"""The doctor finds nothing wrong where nothing is, and each planted fault where it was planted, there only."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from mlx_qwen35.caches.delta_state import DeltaState
from mlx_qwen35.caches.quantized_kv import QuantizedKVCache
from mlx_qwen35.cli import main
from mlx_qwen35.doctor import examination as examination_module
from mlx_qwen35.doctor import network
from mlx_qwen35.doctor.examination import FILES, MACHINE, NETWORK, WEIGHTS, examination
from mlx_qwen35.doctor.findings import BAD, GOOD, NOT_RUN
from mlx_qwen35.generation import speculation
from mlx_qwen35.hub.names import demo_folder
from mlx_qwen35.metal_kernels import operations
from mlx_qwen35.models.model import Model

ALL = [*MACHINE, *FILES, WEIGHTS, *NETWORK]


@pytest.fixture(autouse=True)
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same examinations of shorter texts."""
    for name, tokens in (("PROMPT", 90), ("ANSWER", 12), ("LONG", 256)):
        monkeypatch.setattr(network, name, tokens)


@pytest.fixture
def demo(tmp_path: Path) -> Path:
    """A copy of the demo that may be broken."""
    return Path(shutil.copytree(demo_folder(), tmp_path / "demo", ignore=shutil.ignore_patterns("*.py", "__pycache__")))


def verdicts(folder: Path) -> dict[str, str]:
    return {finding.name: finding.verdict for finding in examination(folder)}


def red(folder: Path) -> list[str]:
    return [name for name, verdict in verdicts(folder).items() if verdict == BAD]


def test_a_healthy_checkpoint_is_green() -> None:
    found = verdicts(demo_folder())
    assert list(found) == ALL
    assert found.pop("checksums") == NOT_RUN  # the bundled files are nobody's download
    assert set(found.values()) == {GOOD}


def _scaled_norm(monkeypatch: pytest.MonkeyPatch) -> None:
    right = operations.ADD_RMS_NORM.off_metal

    def wrong(*arguments: Any) -> tuple[mx.array, mx.array]:
        total, normed = right.call(*arguments)
        return total, 1.5 * normed

    candidates = list(operations.ADD_RMS_NORM.candidates)
    candidates[1] = replace(right, call=wrong)
    monkeypatch.setattr(operations, "ADD_RMS_NORM", replace(operations.ADD_RMS_NORM, candidates=tuple(candidates)))


def _restores_another_state(monkeypatch: pytest.MonkeyPatch) -> None:
    right = DeltaState.restore

    def wrong(self: DeltaState, snapshot: Any, length: int) -> None:
        tail, delta = snapshot
        right(self, (tail, -delta), length)

    monkeypatch.setattr(DeltaState, "restore", wrong)


def _leaks_between_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    right = Model.step

    def wrong(self: Model, windows: Any) -> mx.array:
        hidden = right(self, windows)
        return hidden if len(windows) < 2 else hidden[::-1]

    monkeypatch.setattr(Model, "step", wrong)


def _accepts_every_draft(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speculation, "accepted", lambda drafts, drawn: len(drafts))


def _forgets_values_in_8_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    right = QuantizedKVCache.append
    monkeypatch.setattr(QuantizedKVCache, "append", lambda self, k, v: right(self, k, -v))


@pytest.mark.parametrize(
    ("plant", "line"),
    [
        (_scaled_norm, "kernels == definitions"),
        (_restores_another_state, "restored == cold"),
        (_leaks_between_rows, "batch == single"),
        (_accepts_every_draft, "drafts == plain"),
        (_forgets_values_in_8_bits, "8-bit KV agrees"),
    ],
)
def test_a_fault_turns_its_own_line_red(
    plant: Callable[[pytest.MonkeyPatch], None], line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch)
    assert red(demo_folder()) == [line]


@pytest.mark.slow
def test_a_template_of_another_family_turns_its_line_red(demo: Path) -> None:
    (demo / "chat_template.jinja").write_text("{% for m in messages %}[INST] {{ m.content }} [/INST]{% endfor %}")
    assert red(demo) == ["chat template"]


@pytest.mark.slow
def test_a_tokenizer_that_splits_the_marks_turns_its_line_red(demo: Path) -> None:
    path = demo / "tokenizer.json"
    path.write_text(path.read_text().replace("<|im_start|>", "<|begin|>"))
    assert red(demo) == ["tokenizer"]


def test_a_weight_that_is_no_number_turns_its_line_red_and_nothing_is_built_on_it(demo: Path) -> None:
    path = next(demo.glob("*.safetensors"))
    tensors = mx.load(str(path))
    assert isinstance(tensors, dict)
    name = next(n for n, t in tensors.items() if t.ndim == 2)
    tensors[name] = mx.full(tensors[name].shape, float("nan")).astype(tensors[name].dtype)
    mx.save_safetensors(str(path), tensors, {"format": "pt"})
    found = verdicts(demo)
    assert [n for n, v in found.items() if v == BAD] == [WEIGHTS]
    assert {found[name] for name in NETWORK} == {NOT_RUN}


def test_a_file_that_was_cut_short_turns_its_line_red(demo: Path) -> None:
    path = next(demo.glob("*.safetensors"))
    path.write_bytes(path.read_bytes()[:-1000])
    assert red(demo) == ["files complete"]


def test_a_download_with_one_flipped_bit_turns_its_line_red(demo: Path) -> None:
    path = next(demo.glob("*.safetensors"))
    data = bytearray(path.read_bytes())
    blob = demo / sha256(data).hexdigest()
    data[-5] ^= 1
    path.unlink()
    blob.write_bytes(data)
    path.symlink_to(blob)  # as the hub's cache keeps files
    assert red(demo) == ["checksums"]


def test_the_command_in_json_and_its_exit_status(
    demo: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(examination_module, "NETWORK", {})  # which has its own tests
    (demo / "chat_template.jinja").write_text("nothing")
    report, named = demo.parent / "report.txt", [*MACHINE, *FILES, WEIGHTS]
    assert main(["doctor", str(demo), "--json", "--report", str(report)]) == 2
    out, err = capsys.readouterr()
    assert [f["name"] for f in json.loads(out)["findings"]] == named
    assert err.splitlines()[-1].endswith("found something wrong: chat template.")
    written = report.read_text()
    assert str(demo) not in written
    assert all(name in written for name in named)


def test_what_is_no_model_is_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    assert main(["doctor", str(tmp_path)]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
