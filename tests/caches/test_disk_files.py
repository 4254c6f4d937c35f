"""One file of the prefix store: what was written comes back, and nothing else is ever taken for it."""

from __future__ import annotations

import contextlib
import json
import os
import struct
from array import array
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_qwen35.caches import disk_files
from mlx_qwen35.caches.disk_files import CHECKPOINT, SEGMENT, Blob, Damaged, Label, draft, node_key
from tests.caches.disk_nodes import OTHER, ROOT, content, same

IDS = [7, 248_319, 0, 4_294_967_295, 5]
KEY = node_key(ROOT, IDS)
LIMIT = 1 << 20


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / ROOT).mkdir()
    return tmp_path / ROOT


def written(home: Path, kind: str = SEGMENT, size: int = 8) -> Path:
    label = Label(ROOT, KEY, kind, ROOT if kind == SEGMENT else "")
    disk_files.write(home, draft(label, content(KEY, kind, size), IDS if kind == SEGMENT else None))
    return home / label.name


def is_refused(path: Path) -> bool:
    """Whether reading the tensors fails as damage; whatever else can be read must be the truth."""
    with contextlib.suppress(Damaged):
        assert disk_files.read_span(path)[:2] == (ROOT, array("I", IDS))
    with contextlib.suppress(Damaged):
        disk_files.read_metadata(path)
    try:
        disk_files.read(path, LIMIT)
    except Damaged as error:
        return str(error).isprintable()
    return False


@pytest.mark.parametrize("kind", [SEGMENT, CHECKPOINT])
def test_a_file_gives_back_what_was_written(home: Path, kind: str) -> None:
    path = written(home, kind)
    assert same(disk_files.read(path, LIMIT), content(KEY, kind, 8))
    assert path.stat().st_mode & 0o777 == 0o600
    assert [p.name for p in home.iterdir()] == [path.name]


def test_a_span_is_read_without_the_tensors(home: Path) -> None:
    path = written(home)
    assert disk_files.read_span(path) == (ROOT, array("I", IDS), path.stat().st_size)


def test_other_tools_read_the_files(home: Path) -> None:
    from safetensors import safe_open

    with safe_open(written(home), framework="numpy") as file:
        assert file.get_tensor("token_ids").tolist() == IDS
        assert file.metadata()["parent"] == ROOT
        assert bytes(file.get_tensor("10.state").tobytes()) == bytes(content(KEY, SEGMENT, 8)["10.state"].data)


def test_tensors_lie_aligned_in_the_file(home: Path) -> None:
    from mlx_qwen35.hub.headers import DTYPE_BITS, read_header

    for entry in read_header(written(home)).tensors.values():
        assert entry.begin % (DTYPE_BITS[entry.dtype] // 8) == 0, entry.name


@pytest.mark.parametrize("kind", [SEGMENT, CHECKPOINT])
def test_every_flipped_bit_is_found(home: Path, kind: str) -> None:
    path = written(home, kind)
    sound = path.read_bytes()
    for at in range(len(sound)):
        for bit in (5, at % 8):  # 5 makes a capital of a letter; all eight take half a minute
            damaged = bytearray(sound)
            damaged[at] ^= 1 << bit
            path.write_bytes(damaged)
            assert is_refused(path), (at, bit)


def test_every_truncation_and_extension_is_found(home: Path) -> None:
    path = written(home)
    sound = path.read_bytes()
    for length in range(len(sound)):
        path.write_bytes(sound[:length])
        assert is_refused(path), length
    for tail in (b"\0", b"\0" * 4096, sound):
        path.write_bytes(sound + tail)
        assert is_refused(path), len(tail)


@given(st.data())
def test_garbage_is_refused_and_never_raises_anything_else(tmp_path_factory: pytest.TempPathFactory, data) -> None:
    home = tmp_path_factory.mktemp("garbage") / ROOT
    home.mkdir()
    path = written(home)
    sound = path.read_bytes()
    begin = data.draw(st.integers(0, len(sound)))
    end = data.draw(st.integers(begin, len(sound)))
    splice = data.draw(st.one_of(st.binary(max_size=200), st.just(sound[: len(sound) // 2]), st.just(b"[" * 5000)))
    damaged = sound[:begin] + splice + sound[end:]
    path.write_bytes(damaged)
    assert is_refused(path) or damaged == sound


def relabelled(path: Path, **changes: object) -> None:
    """Rewrite the header, checksum left as it was unless given, so that the other checks are seen at work."""
    raw = path.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + length])
    header["__metadata__"] |= changes
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + raw[8 + length :])


@pytest.mark.parametrize(
    "changes",
    [{"fingerprint": OTHER}, {"key": "0" * 40}, {"kind": CHECKPOINT}, {"format": "pt"}, {"checksum": "\ud800"},
     {"parent": "\ud800"}, {"parent": "../../etc"}, {"parent": ""}],
)  # fmt: skip
def test_a_false_label_is_refused_from_the_header_alone(home: Path, changes: dict[str, str]) -> None:
    path = written(home)
    relabelled(path, **changes)
    with pytest.raises(Damaged):
        disk_files.read_metadata(path)
    assert is_refused(path)


def test_a_file_of_another_model_or_node_is_refused(home: Path) -> None:
    path = written(home)
    elsewhere = home.parent / OTHER
    elsewhere.mkdir()
    for other in (elsewhere / path.name, home / f"{'0' * 40}.segment.safetensors"):
        other.write_bytes(path.read_bytes())
        with pytest.raises(Damaged):
            disk_files.read(other, LIMIT)
        with pytest.raises(Damaged):
            disk_files.read_span(other)


def test_ids_that_do_not_make_the_name_are_refused(home: Path) -> None:
    """The checksum is not read when the tree is listed, so there the name itself must prove the ids."""
    path = written(home)
    sound = path.read_bytes()
    at = sound.index(struct.pack("<5I", *IDS))
    path.write_bytes(sound[:at] + struct.pack("<I", 8) + sound[at + 4 :])
    with pytest.raises(Damaged, match="other token ids"):
        disk_files.read_span(path)


def test_links_pipes_and_folders_are_refused_without_being_followed(home: Path, tmp_path: Path) -> None:
    path = written(home)
    outside = tmp_path / path.name
    path.rename(outside)
    path.symlink_to(outside)
    assert is_refused(path)
    path.unlink()
    os.mkfifo(path)
    assert is_refused(path)  # and does not wait for a writer
    path.unlink()
    path.mkdir()
    assert is_refused(path)
    path.rmdir()
    path.write_bytes((1 << 62).to_bytes(8, "little") + b"{")
    assert is_refused(path)


def test_a_giant_is_refused_before_memory_is_taken_for_it(home: Path) -> None:
    path = written(home, size=1000)
    disk_files.read(path, path.stat().st_size)
    with pytest.raises(Damaged, match="more than was ever written"):
        disk_files.read(path, path.stat().st_size - 1)


def test_an_absent_file_is_absent_and_not_damaged(home: Path) -> None:
    with pytest.raises(FileNotFoundError):
        disk_files.read(home / f"{KEY}.segment.safetensors", LIMIT)


def test_mistakes_of_the_caller_are_named() -> None:
    label = Label(ROOT, KEY, SEGMENT, ROOT)
    for blobs in (
        {"a": Blob("F32", (2,), b"1234567")},
        {"a": Blob("FLOAT", (2,), b"12345678")},
        {"token_ids": Blob("U8", (1,), b"1")},
    ):
        with pytest.raises(ValueError):
            draft(label, blobs, IDS)


def test_a_key_stands_for_the_whole_text_before_it() -> None:
    assert node_key(ROOT, [1, 2]) != node_key(OTHER, [1, 2])
    assert node_key(node_key(ROOT, [1]), [2]) != node_key(ROOT, [1, 2])
    assert node_key(ROOT, array("I", [1, 2])) == node_key(ROOT, (1, 2))
