"""A repository's headers read by ranges equal those of its files, at a fraction of the bytes."""

from pathlib import Path

import pytest

from mlx_qwen35.errors import CheckpointError, DownloadError
from mlx_qwen35.hub.headers import read_checkpoint
from mlx_qwen35.hub.http import Hub
from mlx_qwen35.hub.remote import FIRST_HEADER_BYTES, remote_headers
from tests.hub.conftest import BIG, ID, QUICK, repository, safetensors
from tests.support.fake_hub import COMMIT, FakeHub, Fault


def test_remote_headers_equal_those_of_the_files(fake: FakeHub, hub: Hub, tmp_path: Path) -> None:
    many = {f"layer.{i}.{'x' * 200}": ("U8", [1], b"z") for i in range(2000)}
    fake.repositories[ID]["model.safetensors-00002-of-00002.safetensors"] = safetensors(
        {"b": ("U8", [3], b"bbb"), **many}
    )
    for name, content in fake.repositories[ID].items():
        (tmp_path / name).write_bytes(content)
    fake.repositories[ID][BIG] += b""
    remote = remote_headers(ID, hub=hub, retry=QUICK)
    (tmp_path / "model.safetensors.index.json").unlink()
    local = read_checkpoint(tmp_path)
    plain = {name: (e.dtype, e.shape, e.begin, e.end) for name, e in remote.tensors.items()}
    assert plain == {name: (e.dtype, e.shape, e.begin, e.end) for name, e in local.tensors.items()}
    assert remote.commit == COMMIT
    assert remote.config["model_type"] == "qwen3_5"
    assert remote.tensors["a"].file == Path(ID, BIG)


@pytest.mark.parametrize("fault", [Fault(), Fault(ignore_range=True)])
def test_only_the_beginning_of_a_file_is_fetched(fake: FakeHub, hub: Hub, fault: Fault) -> None:
    fake.repositories[ID][BIG] = safetensors({"a": ("U8", [30_000_000], bytes(30_000_000))})
    fake.faults[BIG] = fault
    remote = remote_headers(ID, hub=hub, retry=QUICK)
    assert remote.tensors["a"].nbytes == 30_000_000
    assert remote.download_bytes > 30_000_000
    assert fake.of(BIG)[0].headers["range"] == f"bytes=0-{FIRST_HEADER_BYTES - 1}"
    if not fault.ignore_range:
        assert fake.sent(BIG) == FIRST_HEADER_BYTES


def test_a_cut_is_tried_again_and_damage_is_one_line(fake: FakeHub, hub: Hub) -> None:
    fake.faults[BIG] = Fault(cut=5, times=2)
    assert set(remote_headers(ID, hub=hub, retry=QUICK).tensors) == {"a", "b"}
    fake.faults[BIG] = Fault(flip=7)  # the top byte of the header's length
    with pytest.raises(CheckpointError, match="announces a header"):
        remote_headers(ID, hub=hub, retry=QUICK)
    del fake.faults[BIG]
    fake.repositories[ID]["config.json"] = b"<html>"
    with pytest.raises(DownloadError, match=r"config.json is not JSON"):
        remote_headers(ID, hub=hub, retry=QUICK)
    fake.repositories[ID] = repository()
    del fake.repositories[ID]["config.json"]
    with pytest.raises(DownloadError, match=r"no config.json"):
        remote_headers(ID, hub=hub, retry=QUICK)


def test_offline_and_hostile_indexes(fake: FakeHub, hub: Hub) -> None:
    from dataclasses import replace

    with pytest.raises(DownloadError, match="Offline mode"):
        remote_headers(ID, hub=replace(hub, offline=True))
    fake.repositories[ID]["model.safetensors.index.json"] = b'{"weight_map": {"a": "../../x.safetensors"}}'
    with pytest.raises(DownloadError, match="which the repository does not hold"):
        remote_headers(ID, hub=hub, retry=QUICK)
