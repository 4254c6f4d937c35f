"""Downloads into the cache that other tools share: what is fetched, found again, and used offline."""

import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from mlx_qwen35.errors import DownloadError
from mlx_qwen35.hub import download as module
from mlx_qwen35.hub.cache import RepoCache
from mlx_qwen35.hub.download import cached_snapshot, download
from mlx_qwen35.hub.http import Hub
from mlx_qwen35.hub.progress import Progress
from tests.hub.conftest import BIG, ID, QUICK, repository
from tests.hub.downloading import NEEDED, assert_whole, blob, closed_port, fetch
from tests.support.fake_hub import COMMIT, FakeHub, Fault


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


def test_without_network_an_earlier_download_serves(
    fake: FakeHub, hub: Hub, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = fetch(hub)
    away = replace(hub, endpoint=closed_port())
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
        fetch(replace(hub, token=lambda: "hf_secret"))
        assert fake.of(BIG)[0].headers["authorization"] == "Bearer hf_secret"
        assert "authorization" not in storage.of(BIG)[0].headers
        assert "hf_secret" not in repr(replace(hub, token=lambda: "hf_secret"))


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


def test_huggingface_hub_is_imported_only_when_asked() -> None:
    import subprocess
    import sys

    code = "import sys, mlx_qwen35.hub.catalog, mlx_qwen35.hub.remote, mlx_qwen35.hub.memory\n"
    code += "print([m for m in ('huggingface_hub', 'mlx', 'rich', 'transformers') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert module.download is download
