"""What a name stands for, and the line for a name that stands for nothing."""

from pathlib import Path

import pytest

import mlx_qwen35.demo_checkpoint
from mlx_qwen35.errors import CheckpointError
from mlx_qwen35.hub.names import FAMILY, resolve


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path


def checkpoint(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    return folder


@pytest.mark.parametrize("short", FAMILY)
def test_short_names(short: str) -> None:
    for spelt in (short, short.upper(), f" {short} ", f"Qwen3.5-{short}", f"qwen/qwen3.5-{short}"):
        located = resolve(spelt)
        assert located.hub_id == "Qwen/Qwen3.5-" + short.upper()
        assert located.entry is FAMILY[short]
        assert located.path is None


def test_thinking_is_off_by_default_in_the_two_smallest() -> None:
    assert [short for short, entry in FAMILY.items() if not entry.thinks_by_default] == ["0.8b", "2b"]


@pytest.mark.parametrize(
    "name", ["someone/My-Model.v2", "https://huggingface.co/someone/My-Model.v2/tree/main", "hf://someone/My-Model.v2"]
)
def test_hub_ids_and_addresses(name: str) -> None:
    assert resolve(name).hub_id == "someone/My-Model.v2"
    assert resolve(name).entry is None


def test_folders(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = checkpoint(elsewhere / "Qwen" / "Qwen3.5-4B")
    assert resolve(str(folder)).path == folder
    assert resolve("./Qwen/Qwen3.5-4B").path == Path("Qwen/Qwen3.5-4B")
    assert resolve("Qwen/Qwen3.5-4B").path == Path("Qwen/Qwen3.5-4B")  # what lies here wins over the hub
    monkeypatch.setenv("HOME", str(elsewhere))
    assert resolve("~/Qwen/Qwen3.5-4B").path == folder
    checkpoint(elsewhere / "27b")
    assert resolve("27b").hub_id == "Qwen/Qwen3.5-27B"
    assert resolve("./27b").path == Path("27b")


def test_the_demo_is_the_bundled_folder() -> None:
    bundled = Path(mlx_qwen35.demo_checkpoint.__path__[0])
    if not (bundled / "config.json").exists():
        with pytest.raises(CheckpointError, match="bundled demo is not complete"):
            resolve("demo")
        pytest.skip("SKIPPED LOUDLY: the demo checkpoint is not in this checkout")
    assert resolve("Demo").path == bundled


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("no/such/model", "There is no folder no/such/model. Give a model folder or a hub name"),
        ("./nothing", "There is no folder nothing"),
        ("/nothing", "There is no folder /nothing"),
        ("empty", "No config.json in empty. Give a model folder or a hub name such as Qwen/Qwen3.5-4B"),
        ("gguf", "gguf holds GGUF weights"),
        ("x.gguf", "x.gguf is a GGUF file"),
        ("/no/x.gguf", "is a GGUF file"),
        ("model.safetensors", "is one file of a checkpoint. Give its folder"),
        ("notes", "notes is a file, not a model folder"),
        ("bartowski/Qwen3.5-4B-GGUF", "holds GGUF weights"),
        ("25b", "'25b' is not a known model. Did you mean .*27b"),
        ("Qwen3.5-72B", "Did you mean"),
        ("gpt", "'gpt' is not a known model. Give a model folder.*demo, 0.8b, 2b"),
        ("", "'' is not a known model"),
        ("a b", "is not a known model"),
        ("-", "is not a known model"),
        ("x\ny", r"'x\\ny' is not a known model"),
    ],
)
def test_names_of_nothing_are_one_line(elsewhere: Path, name: str, line: str) -> None:
    (elsewhere / "empty").mkdir()
    (elsewhere / "gguf").mkdir()
    for file in ("gguf/model.gguf", "x.gguf", "model.safetensors", "notes"):
        (elsewhere / file).write_text("x")
    with pytest.raises(CheckpointError, match=line) as error:
        resolve(name)
    assert "\n" not in str(error.value)


def test_a_misspelt_name_finds_what_was_downloaded(elsewhere: Path) -> None:
    (elsewhere / "hub" / "models--someone--my-finetune").mkdir(parents=True)
    with pytest.raises(CheckpointError, match="Did you mean someone/my-finetune"):
        resolve("someone-my-finetun")
