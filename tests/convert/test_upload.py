"""To the hub: refused before the work where it cannot succeed, complete, and taken up where it stopped."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from mlx_qwen35.cli import main
from mlx_qwen35.convert.journal import JOURNAL
from mlx_qwen35.convert.upload import UploadError, upload
from mlx_qwen35.errors import CheckpointError
from tests.convert.support import write_source
from tests.convert.upload_hub import UploadHub

ID = "me/Tiny-4bit"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[UploadHub]:
    """The library reads its environment when it is imported, which other tests may have done before."""
    with UploadHub() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
        yield hub


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_source("moe", tmp_path_factory.mktemp("source") / "moe")


def converted(source: Path, out: Path, *more: str) -> int:
    return main(["convert", str(source), "--group-size", "32", "--out", str(out), *more])


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_every_file_of_a_conversion_arrives(
    hub: UploadHub, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert converted(source, tmp_path / "out", "--upload", ID) == 0
    assert hub.files == {n: c for n, c in contents(tmp_path / "out").items() if ".cache" not in n}
    assert "mtp/model.safetensors" in hub.files
    told = capsys.readouterr()
    assert "hf_secret" not in told.out + told.err
    assert f"{hub.endpoint}/{ID}" in told.err
    assert told.out.strip() == str(tmp_path / "out")


@pytest.mark.parametrize(
    ("who", "told"),
    [
        ({"name": "me", "auth": {"accessToken": {"role": "read"}}}, "may only read"),
        (
            {"name": "you", "orgs": [{"name": "them"}], "auth": {"accessToken": {"role": "write"}}},
            "you, them, not to me",
        ),
    ],
)
def test_a_login_that_may_not_write_there_is_refused_before_the_work(
    hub: UploadHub, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], who: dict, told: str
) -> None:
    hub.who = who
    assert converted(source, tmp_path / "out", "--upload", ID) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert told in lines[0]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("role", ["fineGrained", None])
def test_a_token_that_does_not_say_what_it_may_write_to_is_tried(
    hub: UploadHub, source: Path, tmp_path: Path, role: str | None
) -> None:
    hub.who = {"name": "you", "auth": {"accessToken": {"role": role}}}
    assert converted(source, tmp_path / "out", "--upload", ID) == 0
    assert hub.files


@pytest.mark.parametrize("place", ["/api/repos/create", f"/api/models/{ID}/preupload", f"/api/models/{ID}/commit"])
def test_an_upload_that_fails_is_one_line_and_the_next_one_sends_what_is_missing(
    hub: UploadHub, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], place: str
) -> None:
    hub.refuse = {place: 403}
    assert converted(source, tmp_path / "out", "--upload", ID) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("mlx-qwen35: ")
    assert "is complete, but could not be uploaded" in last
    assert f"hf upload {ID}" in last
    assert (tmp_path / "out" / "config.json").exists()
    assert not hub.files

    hub.refuse, before = {}, hub.sent
    upload(tmp_path / "out", ID)
    assert set(hub.files) == {n for n in contents(tmp_path / "out") if ".cache" not in n}
    large = sum(len(content) for content in hub.stored.values())
    assert hub.sent == large  # nothing twice
    assert (before == large) == place.endswith("commit")


def test_what_is_not_finished_is_not_uploaded(hub: UploadHub, source: Path, tmp_path: Path) -> None:
    assert converted(source, tmp_path / "out") == 0
    (tmp_path / "out" / "config.json").unlink()
    with pytest.raises(CheckpointError, match="no finished conversion"):
        upload(tmp_path / "out", ID)
    assert not (tmp_path / "out" / JOURNAL).exists()
    assert not hub.asked


def test_a_hub_that_is_not_there_is_one_line(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert converted(source, tmp_path / "out") == 0
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(UploadError) as error:
        upload(tmp_path / "out", ID)
    assert "\n" not in str(error.value)
