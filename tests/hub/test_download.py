"""Downloads against a hub that cuts, lies, flips and refuses."""

import errno
import os
import shutil
import socket
import time
from dataclasses import replace
from pathlib import Path

import pytest

from mlx_qwen35.errors import DownloadError
from mlx_qwen35.hub import download as module
from mlx_qwen35.hub.cache import RepoCache
from mlx_qwen35.hub.download import cached_snapshot, download
from mlx_qwen35.hub.fetch import disk_error
from mlx_qwen35.hub.http import Hub, Retry
from mlx_qwen35.hub.progress import Progress
from tests.hub.conftest import BIG, ID, QUICK, noise, repository
from tests.support.fake_hub import COMMIT, FakeHub, Fault, git_blob_id, sha256

NEEDED = {
    "config.json",
    "tokenizer.json",
    "chat_template.jinja",
    "LICENSE",
    "model.safetensors.index.json",
    BIG,
    "model.safetensors-00002-of-00002.safetensors",
}


def quiet(progress: Progress) -> None:
    pass


def fetch(hub: Hub, retry: Retry = QUICK) -> Path:
    return download(ID, hub=hub, progress=quiet, retry=retry)


def blob(hub: Hub, content: bytes) -> Path:
    return RepoCache(ID, hub.cache).folder / "blobs" / sha256(content)


def part(hub: Hub) -> Path:
    whole = blob(hub, repository()[BIG])
    return whole.with_name(whole.name + ".part")


def assert_whole(folder: Path) -> None:
    files = repository()
    assert {str(path.relative_to(folder)) for path in folder.rglob("*")} == NEEDED
    assert all((folder / name).read_bytes() == files[name] for name in NEEDED)


def test_snapshot_holds_what_a_model_needs_and_neither_code_nor_pickles(fake: FakeHub, hub: Hub) -> None:
    assert_whole(fetch(hub))
    assert {request.path for request in fake.requests} == NEEDED | {ID}
    assert not list(hub.cache.rglob("*.part*"))


def test_other_tools_find_the_files(hub: Hub) -> None:
    import huggingface_hub

    folder = fetch(hub)
    theirs = huggingface_hub.snapshot_download(ID, cache_dir=hub.cache, local_files_only=True)
    assert Path(theirs) == folder
    found = huggingface_hub.try_to_load_from_cache(ID, BIG, cache_dir=hub.cache)
    assert found == str(folder / BIG)
    scan = huggingface_hub.scan_cache_dir(hub.cache)
    assert not scan.warnings
    assert [repo.repo_id for repo in scan.repos] == [ID]


def test_what_another_tool_fetched_is_not_fetched_again(fake: FakeHub, hub: Hub) -> None:
    content = repository()[BIG]
    blob(hub, content).parent.mkdir(parents=True)
    blob(hub, content).write_bytes(content)
    assert_whole(fetch(hub))
    assert fake.sent(BIG) == 0


def test_second_run_fetches_nothing(fake: FakeHub, hub: Hub) -> None:
    fetch(hub)
    fake.requests.clear()
    assert_whole(fetch(hub))
    assert {request.path for request in fake.requests} == {ID}


def test_a_cut_resumes_in_a_later_call_without_fetching_bytes_again(fake: FakeHub, hub: Hub) -> None:
    fake.faults[BIG] = Fault(cut=100_000, times=1)
    with pytest.raises(DownloadError, match="Check the network and start again"):
        fetch(hub, Retry(attempts=1))
    assert part(hub).stat().st_size == 100_000
    assert cached_snapshot(ID, hub=hub) is None
    assert_whole(fetch(hub))
    assert fake.of(BIG)[-1].headers["range"] == "bytes=100000-"
    assert fake.of(BIG)[-1].headers["if-range"].startswith('"')
    assert fake.sent(BIG) == len(repository()[BIG])


def test_cuts_within_a_call_are_resumed(fake: FakeHub, hub: Hub) -> None:
    fake.faults[BIG] = Fault(cut=90_000, times=3)
    assert_whole(fetch(hub))
    assert fake.sent(BIG) == len(repository()[BIG])


def test_a_hub_that_always_cuts_is_given_up(fake: FakeHub, hub: Hub) -> None:
    fake.faults[BIG] = Fault(cut=1)
    with pytest.raises(DownloadError, match="what has arrived is kept"):
        fetch(hub)
    assert len(fake.of(BIG)) == QUICK.attempts


def test_a_byte_flipped_once_is_fetched_anew(fake: FakeHub, hub: Hub) -> None:
    fake.faults[BIG] = Fault(flip=77_777, times=1)
    assert_whole(fetch(hub))


@pytest.mark.parametrize("path", [BIG, "config.json"])  # sha256 and git's sha1
def test_a_byte_always_flipped_is_refused(fake: FakeHub, hub: Hub, path: str) -> None:
    fake.faults[path] = Fault(flip=3)
    with pytest.raises(DownloadError, match="wrong content twice"):
        fetch(hub)
    content = repository()[path]
    names = {sha256(content), git_blob_id(content)}
    assert not any(file.name in names for file in hub.cache.rglob("*"))
    assert cached_snapshot(ID, hub=hub) is None


def test_a_damaged_part_of_an_earlier_run_is_noticed(hub: Hub) -> None:
    part(hub).parent.mkdir(parents=True)
    part(hub).write_bytes(noise(50_000, seed=9))
    assert_whole(fetch(hub))


def test_a_part_longer_than_the_file_is_dropped(hub: Hub) -> None:
    content = repository()[BIG]
    part(hub).parent.mkdir(parents=True)
    part(hub).write_bytes(content + b"more")
    assert_whole(fetch(hub))


def test_a_blob_cut_short_in_the_cache_is_completed(fake: FakeHub, hub: Hub) -> None:
    folder = fetch(hub)
    with blob(hub, repository()[BIG]).open("r+b") as file:
        file.truncate(1000)
    assert cached_snapshot(ID, hub=hub) is None
    fake.requests.clear()
    assert_whole(fetch(hub))
    assert (folder / BIG).is_symlink()
    assert fake.of(BIG)[0].headers["range"] == "bytes=1000-"


def test_a_dangling_shared_blob_is_replaced(hub: Hub) -> None:
    path = blob(hub, repository()[BIG])
    path.parent.mkdir(parents=True)
    path.symlink_to("../../blobs/00/gone")
    assert_whole(fetch(hub))


@pytest.mark.parametrize(
    "fault",
    [
        Fault(status=500, times=2),
        Fault(status=416, times=1),
        Fault(length=100, times=1),
        Fault(length=-100, times=1),
        Fault(cut=0, times=2),
    ],
    ids=["500", "416", "length too large", "length too small", "nothing"],
)
def test_passing_faults_are_overcome(fake: FakeHub, hub: Hub, fault: Fault) -> None:
    fake.faults[BIG] = replace(fault)
    assert_whole(fetch(hub))


@pytest.mark.parametrize(
    "fault",
    [Fault(ignore_range=True), Fault(shift=5, times=1), Fault(etag='"changed"'), Fault(etag='W/"weak"')],
    ids=["range ignored", "other range", "etag changed", "weak etag"],
)
def test_a_resume_the_server_does_not_honour_starts_anew_at_once(fake: FakeHub, hub: Hub, fault: Fault) -> None:
    fake.faults[BIG] = Fault(cut=100_000, times=1)
    with pytest.raises(DownloadError):
        fetch(hub, Retry(attempts=1))
    fake.faults[BIG] = replace(fault)
    assert_whole(fetch(hub))
    # Noticed from the answer's headers: no file was received whole only to fail its checksum.
    assert sum(request.sent == len(repository()[BIG]) for request in fake.of(BIG)) == 1
    assert len(fake.of(BIG)) == (3 if fault.shift else 2)


def test_more_bytes_than_listed_are_refused(fake: FakeHub, hub: Hub) -> None:
    fake.edit_listing = lambda listing: _with(listing, BIG, size=1000)
    with pytest.raises(DownloadError, match="wrong content twice"):
        fetch(hub)


def test_429_waits_as_long_as_asked(fake: FakeHub, hub: Hub) -> None:
    fake.faults[BIG] = Fault(status=429, headers={"Retry-After": "1"}, times=1)
    begin = time.monotonic()
    assert_whole(fetch(hub))
    assert time.monotonic() - begin >= 1  # no upper bound: the machine may be busy


def test_429_for_an_hour_is_a_line_and_not_a_wait(fake: FakeHub, hub: Hub) -> None:
    fake.faults[ID] = Fault(status=429, headers={"Retry-After": "3600"})
    with pytest.raises(DownloadError, match="60 minutes"):
        fetch(hub)


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
    fake.edit_listing = lambda listing: _with(listing, BIG, size=1 << 49)
    with pytest.raises(DownloadError, match=r"needs 562950\.0 GB more on the disk of"):
        fetch(hub)
    assert not fake.of(BIG)


def test_without_network_one_line(tmp_path: Path) -> None:
    hub = Hub(_closed_port(), tmp_path)
    with pytest.raises(DownloadError, match=r"could not be fetched from http.*Check the network") as error:
        fetch(hub)
    assert "\n" not in str(error.value)


def test_without_network_an_earlier_download_serves(
    fake: FakeHub, hub: Hub, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = fetch(hub)
    away = replace(hub, endpoint=_closed_port())
    assert fetch(away) == folder
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "cannot be reached; using Qwen/Tiny as downloaded before" in printed.err
    (folder / BIG).unlink()
    with pytest.raises(DownloadError, match="not completely downloaded"):
        fetch(away)


def test_offline_makes_no_request(fake: FakeHub, hub: Hub) -> None:
    offline = replace(hub, offline=True)
    with pytest.raises(DownloadError, match="not downloaded, and offline mode is on"):
        fetch(offline)
    assert not fake.requests
    folder = fetch(hub)
    fake.requests.clear()
    assert fetch(offline) == folder
    assert not fake.requests
    os.truncate(blob(hub, repository()[BIG]), 10)
    with pytest.raises(DownloadError, match=f"not completely downloaded.*{BIG} missing"):
        fetch(offline)


def test_offline_without_our_listing_the_headers_tell(hub: Hub) -> None:
    folder = fetch(hub)
    shutil.rmtree(RepoCache(ID, hub.cache).folder / "mlx-qwen35")
    assert cached_snapshot(ID, hub=hub) == folder
    os.truncate(blob(hub, repository()[BIG]), 5000)
    assert cached_snapshot(ID, hub=hub) is None


ESCAPES = ["../../evil.safetensors", "/etc/evil.safetensors", "a/../../evil.json", "..\\evil.json", "x\0.json"]


@pytest.mark.parametrize("name", ESCAPES)
def test_names_that_leave_the_cache_are_refused(fake: FakeHub, hub: Hub, tmp_path: Path, name: str) -> None:
    fake.edit_listing = lambda listing: _with(listing, BIG, rfilename=name)
    with pytest.raises(DownloadError, match="would leave the cache folder"):
        fetch(hub)
    assert not any(path.is_file() for path in tmp_path.rglob("*"))


@pytest.mark.parametrize(
    "edit",
    [
        lambda listing: _with(listing, BIG, lfs={"sha256": "../../../evil", "size": 5}),
        lambda listing: _with(listing, BIG, lfs={"sha256": "A" * 64, "size": 5}),
        lambda listing: _with(listing, "config.json", blobId="../../evil"),
        lambda listing: _with(listing, "config.json", size=-1),
        lambda listing: _with(listing, "config.json", size=None),
        lambda listing: _with(listing, "config.json", size=True),
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


def test_the_index_says_which_weights_are_fetched(fake: FakeHub, hub: Hub) -> None:
    fake.repositories[ID]["consolidated.safetensors"] = b"large and not of this model"
    fetch(hub)
    assert not fake.of("consolidated.safetensors")
    with_mtp = {**repository(), "mtp/model.safetensors": b"\2\0\0\0\0\0\0\0{}"}
    fake.repositories[ID] = with_mtp
    fake.commit = COMMIT[::-1]
    assert (fetch(hub) / "mtp" / "model.safetensors").is_file()


def test_a_new_commit_fetches_only_what_changed(fake: FakeHub, hub: Hub) -> None:
    fetch(hub)
    fake.requests.clear()
    fake.commit = "f" * 40
    fake.repositories[ID]["chat_template.jinja"] = b"{{ new }}"
    folder = fetch(hub)
    assert folder.name == "f" * 40
    assert {request.path for request in fake.requests if request.sent} == {ID, "chat_template.jinja"}
    assert cached_snapshot(ID, hub=hub) == folder


def test_two_files_of_equal_content_are_both_there(fake: FakeHub, hub: Hub) -> None:
    fake.repositories[ID]["NOTICE"] = fake.repositories[ID]["LICENSE"]
    assert (fetch(hub) / "NOTICE").read_bytes() == b"Apache"
    assert (fetch(hub) / "LICENSE").read_bytes() == b"Apache"


def test_a_token_goes_to_the_hub_and_to_no_other_host(fake: FakeHub, hub: Hub) -> None:
    with FakeHub({ID: repository()}) as storage:
        fake.faults[BIG] = Fault(redirect=storage.endpoint)
        fetch(replace(hub, token="hf_secret"))
        assert fake.of(BIG)[0].headers["authorization"] == "Bearer hf_secret"
        assert "authorization" not in storage.of(BIG)[0].headers
        assert "hf_secret" not in repr(replace(hub, token="hf_secret"))


def test_progress_ends_at_the_total(hub: Hub) -> None:
    told: list[Progress] = []
    download(ID, hub=hub, progress=told.append, retry=QUICK)
    files = repository()
    index = "model.safetensors.index.json"  # fetched first, to know what else to fetch
    assert told[-1].done == told[-1].total == sum(len(files[name]) for name in NEEDED - {index})


def test_the_size_is_said_on_stderr_before_it_starts(hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    download(ID, hub=hub, retry=QUICK)
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "Fetching Qwen/Tiny: 0.4 MB in 6 files; " in printed.err


def test_a_read_only_cache_is_one_line(fake: FakeHub, hub: Hub) -> None:
    hub.cache.parent.mkdir(exist_ok=True)
    hub.cache.write_text("a file where the folder should be")
    with pytest.raises(DownloadError, match="The hub cache cannot be written"):
        fetch(hub)


def test_huggingface_hub_is_imported_only_when_asked() -> None:
    import subprocess
    import sys

    code = "import sys, mlx_qwen35.hub.catalog, mlx_qwen35.hub.remote, mlx_qwen35.hub.memory\n"
    code += "print([m for m in ('huggingface_hub', 'mlx', 'rich', 'transformers') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert module.download is download


def _with(listing: dict, path: str, **changes: object) -> dict:
    for entry in listing["siblings"]:
        if entry["rfilename"] == path:
            if "size" in changes and "lfs" in entry:
                entry["lfs"]["size"] = changes["size"]
            entry.update(changes)
    return listing


def _closed_port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"


@pytest.mark.parametrize(
    ("number", "line"),
    [(errno.ENOSPC, "The disk of /c is full. Free some space"), (errno.EACCES, "cannot be written: /c/x: perm")],
)
def test_a_disk_that_fails_in_the_middle_is_one_line(number: int, line: str) -> None:
    error = disk_error(OSError(number, os.strerror(number), "/c/x"), Path("/c"))
    assert line in str(error)
