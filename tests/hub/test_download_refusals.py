"""Downloads that cannot be, or must not be: one clear line, and nothing outside the cache."""

import errno
import os
from dataclasses import replace
from pathlib import Path

import pytest

from mlx_qwen35.errors import DownloadError
from mlx_qwen35.hub.download import download
from mlx_qwen35.hub.fetch import disk_error
from mlx_qwen35.hub.http import Hub
from tests.hub.conftest import BIG, ID, QUICK
from tests.hub.downloading import closed_port, edited, fetch, quiet
from tests.support.fake_hub import FakeHub, Fault

REFUSALS = [
    (Fault(status=403, headers={"X-Error-Code": "GatedRepo"}), "gated: accept its terms at http"),
    (Fault(status=401, headers={"X-Error-Code": "GatedRepo"}), "gated"),
    (Fault(status=401), "not on http.*Check the spelling, or log in"),
    (Fault(status=404, headers={"X-Error-Code": "RepoNotFound"}), "Check the spelling"),
    (Fault(status=404, headers={"X-Error-Code": "RevisionNotFound"}), "no such revision"),
    (Fault(status=401, headers={"X-Error-Message": "Invalid credentials in Authorization header"}), "token"),
    (Fault(status=403), "refuses"),
    (Fault(status=418), "answers 418"),
]


@pytest.mark.parametrize("path", [ID, BIG])
@pytest.mark.parametrize(("fault", "line"), REFUSALS)
def test_refusals_are_one_clear_line_at_once(fake: FakeHub, hub: Hub, path: str, fault: Fault, line: str) -> None:
    fake.faults[path] = replace(fault)
    with pytest.raises(DownloadError, match=line) as error:
        fetch(hub)
    assert "\n" not in str(error.value)
    assert len(fake.of(path)) == 1


def test_an_unknown_repository(hub: Hub) -> None:
    with pytest.raises(DownloadError, match="Qwen/Qwen9 is not on http"):
        download("Qwen/Qwen9", hub=hub, progress=quiet, retry=QUICK)


def test_a_disk_too_small_is_said_before_anything_is_fetched(fake: FakeHub, hub: Hub) -> None:
    fake.edit_listing = lambda listing: edited(listing, BIG, size=1 << 49)
    with pytest.raises(DownloadError, match=r"needs 562950\.0 GB more on the disk of"):
        fetch(hub)
    assert not fake.of(BIG)


def test_without_network_one_line(tmp_path: Path) -> None:
    hub = Hub(closed_port(), tmp_path)
    with pytest.raises(DownloadError, match=r"could not be fetched from http.*Check the network") as error:
        fetch(hub)
    assert "\n" not in str(error.value)


ESCAPES = ["../../evil.safetensors", "/etc/evil.safetensors", "a/../../evil.json", "..\\evil.json", "x\0.json"]


@pytest.mark.parametrize("name", ESCAPES)
def test_names_that_leave_the_cache_are_refused(fake: FakeHub, hub: Hub, tmp_path: Path, name: str) -> None:
    fake.edit_listing = lambda listing: edited(listing, BIG, rfilename=name)
    with pytest.raises(DownloadError, match="would leave the cache folder"):
        fetch(hub)
    assert not any(path.is_file() for path in tmp_path.rglob("*"))


@pytest.mark.parametrize(
    "edit",
    [
        lambda listing: edited(listing, BIG, lfs={"sha256": "../../../evil", "size": 5}),
        lambda listing: edited(listing, BIG, lfs={"sha256": "A" * 64, "size": 5}),
        lambda listing: edited(listing, "config.json", blobId="../../evil"),
        lambda listing: edited(listing, "config.json", size=-1),
        lambda listing: edited(listing, "config.json", size=None),
        lambda listing: edited(listing, "config.json", size=True),
        lambda listing: listing | {"sha": "../../evil"},
        lambda listing: listing | {"sha": None},
        lambda listing: listing | {"siblings": None},
        lambda listing: listing | {"siblings": [1]},
        lambda listing: b"<html>proxy login</html>",
        lambda listing: b"[" * 100_000,
        lambda listing: [],
    ],
)
def test_a_nonsensical_listing_is_one_line(fake: FakeHub, hub: Hub, tmp_path: Path, edit: object) -> None:
    fake.edit_listing = edit  # type: ignore[assignment]
    with pytest.raises(DownloadError):
        fetch(hub)
    assert not any(path.is_file() for path in tmp_path.rglob("*"))


@pytest.mark.parametrize(
    ("files", "line"),
    [
        ({"pytorch_model.bin": b""}, "pickled"),
        ({"model.gguf": b""}, "GGUF"),
        ({}, "holds no weights"),
    ],
)
def test_repositories_without_safetensors(fake: FakeHub, hub: Hub, files: dict[str, bytes], line: str) -> None:
    fake.repositories[ID] = {"config.json": b"{}", **files}
    with pytest.raises(DownloadError, match=line):
        fetch(hub)


@pytest.mark.parametrize("name", ["Qwen", "a/b/c", "../x", "a/..", "Qwen/a--b", "Qwen/a b", ""])
def test_names_that_are_no_repository(hub: Hub, name: str) -> None:
    with pytest.raises(DownloadError, match="not the name of a hub repository"):
        download(name, hub=hub, progress=quiet)


@pytest.mark.parametrize("revision", ["../../x", "/etc", "a\n"])
def test_revisions_that_would_be_paths(hub: Hub, revision: str) -> None:
    with pytest.raises(DownloadError, match="not a revision"):
        download(ID, revision, hub=hub, progress=quiet)


def test_a_read_only_cache_is_one_line(fake: FakeHub, hub: Hub) -> None:
    hub.cache.parent.mkdir(exist_ok=True)
    hub.cache.write_text("a file where the folder should be")
    with pytest.raises(DownloadError, match="The hub cache cannot be written"):
        fetch(hub)


@pytest.mark.parametrize(
    ("number", "line"),
    [(errno.ENOSPC, "The disk of /c is full. Free some space"), (errno.EACCES, "cannot be written: /c/x: perm")],
)
def test_a_disk_that_fails_in_the_middle_is_one_line(number: int, line: str) -> None:
    error = disk_error(OSError(number, os.strerror(number), "/c/x"), Path("/c"))
    assert line in str(error)
