"""What is downloaded, what was used last, and where huggingface_hub keeps its cache."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mlx_qwen35.errors import CheckpointError, DownloadError
from mlx_qwen35.hub import catalog
from mlx_qwen35.hub.cache import RepoCache, cache_folder
from mlx_qwen35.hub.catalog import downloaded, last_used, remember_last, state_folder
from mlx_qwen35.hub.download import download, ensure_local
from mlx_qwen35.hub.http import Hub
from tests.hub.conftest import BIG, ID, QUICK, repository
from tests.support.fake_hub import FakeHub, Fault, sha256


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    for name in ("HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "XDG_CACHE_HOME", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def test_downloads_are_listed_with_their_size(fake: FakeHub, hub: Hub) -> None:
    assert downloaded(hub.cache) == []
    folder = download(ID, hub=hub, progress=lambda progress: None, retry=QUICK)
    (model,) = downloaded(hub.cache)
    assert (model.hub_id, model.folder, model.complete, model.entry) == (ID, folder, True, None)
    assert model.nbytes == sum(path.stat().st_size for path in folder.rglob("*"))


def test_an_unfinished_download_is_listed_as_such(fake: FakeHub, hub: Hub) -> None:
    fake.faults[BIG] = Fault(cut=30_000)
    with pytest.raises(DownloadError):
        download(ID, hub=hub, progress=lambda progress: None, retry=QUICK)
    (model,) = downloaded(hub.cache)
    assert not model.complete
    assert model.nbytes > 100_000


def test_other_models_and_rubbish_in_the_cache_are_passed_over(fake: FakeHub, hub: Hub) -> None:
    fake.repositories["other/llama"] = repository() | {"config.json": b'{"model_type": "llama"}'}
    download("other/llama", hub=hub, progress=lambda progress: None, retry=QUICK)
    for name in ("models--a--b", "models----", "models--x--y/snapshots/z", "models--x--w/refs"):
        (hub.cache / name).mkdir(parents=True)
    (hub.cache / "models--x--w" / "refs" / "main").write_text("../../../etc")
    (hub.cache / "models--f--g").write_text("a file")
    assert downloaded(hub.cache) == []
    assert downloaded(hub.cache / "absent") == []


def test_the_last_model_is_remembered(home: Path) -> None:
    assert last_used() is None
    remember_last("27b")
    assert last_used() == "27b"
    folder = home / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    remember_last(os.path.relpath(folder))
    assert last_used() == str(folder)
    (folder / "config.json").unlink()
    assert last_used() is None


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"model": 5}', b'{"model": "no/such/model"}', b"\xff"])
def test_a_damaged_memory_is_no_memory(content: bytes) -> None:
    remember_last("27b")
    (state_folder() / "last.json").write_bytes(content)
    assert last_used() is None


def test_a_home_that_cannot_be_written_keeps_nobody_from_chatting(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / "file").write_text("x")
    monkeypatch.setenv("XDG_STATE_HOME", str(home / "file"))
    remember_last("27b")
    assert last_used() is None


def test_the_state_folder_of_each_system(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog.sys, "platform", "linux")
    assert state_folder() == home / "state" / "mlx-qwen35"
    monkeypatch.delenv("XDG_STATE_HOME")
    assert state_folder() == home / ".local" / "state" / "mlx-qwen35"
    monkeypatch.setattr(catalog.sys, "platform", "darwin")
    assert state_folder() == home / "Library" / "Application Support" / "mlx-qwen35"


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"HF_HOME": "/data/hf"},
        {"HF_HOME": "~/hf"},
        {"XDG_CACHE_HOME": "/var/xdg"},
        {"HUGGINGFACE_HUB_CACHE": "/old/hub", "HF_HOME": "/data/hf"},
        {"HF_HUB_CACHE": "$HOME/new", "HUGGINGFACE_HUB_CACHE": "/old/hub"},
    ],
)
def test_the_cache_is_where_huggingface_hub_has_it(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    code = "from huggingface_hub import constants; print(constants.HF_HUB_CACHE)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert cache_folder() == Path(done.stdout.strip())


def test_a_model_by_name_is_local_after_one_call(fake: FakeHub, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake.repositories = {"Qwen/Qwen3.5-0.8B": repository()}
    monkeypatch.setenv("HF_ENDPOINT", fake.endpoint + "/")
    monkeypatch.setenv("HF_HOME", str(home / "hf"))
    quiet = lambda progress: None  # noqa: E731
    folder = ensure_local("0.8B", progress=quiet)
    assert folder.is_relative_to(home / "hf" / "hub")
    assert ensure_local(str(folder)) == folder
    fake.requests.clear()
    assert ensure_local("0.8b", progress=quiet) == folder
    assert ensure_local("0.8b", offline=True) == folder
    assert not fake.requests  # complete, so nobody is asked
    ensure_local("0.8b", update=True, progress=quiet)
    assert len(fake.requests) == 1
    blob = RepoCache("Qwen/Qwen3.5-0.8B", cache_folder()).folder / "blobs" / sha256(repository()[BIG])
    os.truncate(blob, 12)
    assert ensure_local("0.8b", progress=quiet) == folder
    assert (folder / BIG).read_bytes() == repository()[BIG]
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(DownloadError, match=r"Qwen/Qwen3.5-9B is not downloaded, and offline mode is on"):
        ensure_local("9b")
    with pytest.raises(CheckpointError):
        ensure_local("no/such/model")
