"""A source that is still on the hub: planned from headers, converted while it arrives, deleted where that is asked."""

import json
import threading
from collections.abc import Iterator
from pathlib import Path

import mlx.core as mx
import pytest

from mlx_qwen35.convert import ConversionPlan, Options, convert, plan_conversion
from mlx_qwen35.errors import UserError
from mlx_qwen35.hub.headers import INDEX_NAME
from mlx_qwen35.hub.remote import FIRST_HEADER_BYTES
from tests.convert.originals import stored
from tests.convert.support import all_tensors, as_stock
from tests.convert.test_interruption import hashes
from tests.hub.conftest import safetensors
from tests.reference import write_checkpoint
from tests.support.fake_hub import FakeHub, Fault

ID = "Qwen/Tiny"
SHARDS = [f"model.safetensors-{i:05d}-of-00003.safetensors" for i in (1, 2, 3)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """In three shards by layer, as the released files are; the MTP layer is in the last."""
    folder = write_checkpoint("moe", tmp_path_factory.mktemp("source") / "moe")
    tensors = all_tensors(folder)
    for file in folder.glob("*.safetensors*"):
        file.unlink()
    shards: list[dict[str, mx.array]] = [{}, {}, {}]
    for name, tensor in tensors.items():
        early = "embed_tokens" in name or "model.layers.0." in name or "language_model.layers.0." in name
        late = name.startswith(("mtp.", "lm_head")) or ".layers.3." in name or name.endswith("model.norm.weight")
        shards[0 if early else 2 if late else 1][name] = tensor
    for file, content in zip(SHARDS, shards):
        (folder / file).write_bytes(safetensors({n: stored(t) for n, t in content.items()}, {"format": "pt"}))
    weight_map = {name: file for file, content in zip(SHARDS, shards) for name in content}
    (folder / INDEX_NAME).write_text(json.dumps({"weight_map": weight_map}))
    return folder


@pytest.fixture
def hub(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    files = {p.name: p.read_bytes() for p in folder.iterdir()}
    with FakeHub({ID: files}) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
        for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_TOKEN"):
            monkeypatch.delenv(name, raising=False)
        yield hub


@pytest.fixture(scope="module")
def expected(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return without_plan(hashes(convert(folder, tmp_path_factory.mktemp("out") / "out", as_stock()).out))


def without_plan(found: dict[str, str]) -> dict[str, str]:
    """The plan names its source, which a folder and a repository name differently."""
    return {name: value for name, value in found.items() if name != "quant_plan.json"}


def cached(tmp_path: Path) -> set[str]:
    return {p.name for p in (tmp_path / "cache").glob("models--Qwen--Tiny/snapshots/*/*") if p.exists()}


def blobs(tmp_path: Path) -> int:
    return sum(p.stat().st_size for p in (tmp_path / "cache").glob("models--Qwen--Tiny/blobs/*"))


def test_a_plan_needs_headers_only(hub: FakeHub, folder: Path, tmp_path: Path) -> None:
    plan, local = plan_conversion(ID, as_stock()), plan_conversion(folder, as_stock())
    assert [file.header() for file in plan.files] == [file.header() for file in local.files]
    assert not cached(tmp_path)
    assert not blobs(tmp_path)


def test_a_shard_is_converted_while_the_next_arrives(hub: FakeHub, tmp_path: Path, expected: dict[str, str]) -> None:
    """The last shard holds back its end until something was written, which would wait for ever if all came first."""
    written = threading.Event()

    def announce(plan: ConversionPlan, out: Path) -> None:
        hub.faults[SHARDS[2]] = Fault(hold=written)

    def progress(done: int, total: int) -> None:
        written.set()

    out = convert(ID, tmp_path / "out", as_stock(), progress=progress, announce=announce).out
    assert without_plan(hashes(out)) == expected
    assert cached(tmp_path) >= {*SHARDS, "config.json", "tokenizer.json"}
    # It is a complete download now: the next one asks the hub for nothing.
    asked = len(hub.requests)
    convert(ID, tmp_path / "again", as_stock(bits=8))
    assert len(hub.requests) == asked


def test_used_shards_are_deleted_on_demand(hub: FakeHub, tmp_path: Path, expected: dict[str, str]) -> None:
    report = convert(ID, tmp_path / "out", as_stock(delete_source_shards=True))
    assert without_plan(hashes(report.out)) == expected
    assert not cached(tmp_path) & set(SHARDS)
    assert "config.json" in cached(tmp_path)
    assert blobs(tmp_path) < 50_000
    assert len(report.errors) == sum(job.packing is not None for job in report.plan.jobs)


def test_what_was_used_up_is_not_fetched_again(
    hub: FakeHub, tmp_path: Path, expected: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlx_qwen35.convert.stream.GROUP_BYTES", 20_000)

    def stop(done: int, total: int) -> None:
        if done > 0.5 * total:
            raise KeyboardInterrupt

    options = as_stock(delete_source_shards=True)
    with pytest.raises(KeyboardInterrupt):
        convert(ID, tmp_path / "out", options, progress=stop)
    assert SHARDS[0] not in cached(tmp_path)
    sent = hub.sent(SHARDS[0])
    report = convert(ID, tmp_path / "out", options)
    assert without_plan(hashes(report.out)) == expected
    assert hub.sent(SHARDS[0]) - sent <= FIRST_HEADER_BYTES  # for the plan
    assert len(report.errors) == sum(job.packing is not None for job in report.plan.jobs)


def test_a_folder_of_the_users_is_never_touched(folder: Path, tmp_path: Path) -> None:
    before = hashes(folder)
    convert(folder, tmp_path / "out", as_stock(delete_source_shards=True))
    assert hashes(folder) == before


def test_a_download_that_was_there_before_stays(hub: FakeHub, tmp_path: Path) -> None:
    from mlx_qwen35.hub.download import ensure_local

    ensure_local(ID, progress=lambda progress: None)
    convert(ID, tmp_path / "out", as_stock(delete_source_shards=True))
    assert cached(tmp_path) >= set(SHARDS)


def test_a_grafted_layer_comes_with_its_own_shard_only(hub: FakeHub, folder: Path, tmp_path: Path) -> None:
    lost = convert(folder, tmp_path / "lost", as_stock(mtp="drop")).out
    whole = convert(folder, tmp_path / "whole", as_stock()).out
    out = convert(lost, tmp_path / "out", as_stock(mtp_source=ID)).out
    assert (out / "mtp/model.safetensors").read_bytes() == (whole / "mtp/model.safetensors").read_bytes()
    assert cached(tmp_path) & set(SHARDS) == {SHARDS[2]}


def test_a_shard_that_does_not_come_is_one_line_and_continues(
    hub: FakeHub, tmp_path: Path, expected: dict[str, str]
) -> None:
    hub.faults[SHARDS[2]] = Fault(status=403, times=1_000)
    with pytest.raises(UserError) as error:
        convert(ID, tmp_path / "out", as_stock())
    assert "403" in str(error.value)
    assert "\n" not in str(error.value)
    hub.faults.clear()
    assert without_plan(hashes(convert(ID, tmp_path / "out", as_stock()).out)) == expected


def test_calibration_wants_the_whole_source_first(hub: FakeHub, tmp_path: Path) -> None:
    texts = tmp_path / "texts.txt"
    texts.write_text("The river is long.\n\nThe sea is wide.")
    options = Options(4, 32, quality="good", calibration=str(texts), check_drafts=False)
    out = convert(ID, tmp_path / "out", options).out
    assert (out / "config.json").exists()
    assert cached(tmp_path) >= set(SHARDS)
