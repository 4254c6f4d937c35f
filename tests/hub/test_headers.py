"""Safetensors headers and checkpoint folders: what must be refused, and that what passes is what was written."""

import json
import os
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlx_qwen35.errors import CheckpointError
from mlx_qwen35.hub.headers import DTYPE_BITS, MAX_HEADER_BYTES, read_checkpoint, read_header, read_index
from mlx_qwen35.hub.jsonfile import read_json
from tests.hub.conftest import noise, repository, safetensors

TWO = {"a": ("F32", [2, 3], noise(24, 1)), "b": ("U8", [5], noise(5, 2))}


def with_header(header: object, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def entry(dtype: object = "U8", shape: object = (4,), offsets: object = (0, 4)) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def refused(path: Path, content: bytes, match: str) -> None:
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=match) as error:
        read_header(path)
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)


def test_a_header_equals_what_the_safetensors_library_wrote(tmp_path: Path) -> None:
    import numpy as np
    from safetensors.numpy import save_file

    arrays = {
        "w": np.arange(15, dtype=np.float32).reshape(3, 5),
        "empty": np.zeros((0, 4), np.float16),
        "scalar": np.array(7, np.int64),
    }
    path = tmp_path / "model.safetensors"
    save_file(arrays, path, metadata={"format": "mlx"})
    header = read_header(path)
    assert header.metadata == {"format": "mlx"}
    assert {name: entry.shape for name, entry in header.tensors.items()} == {
        name: array.shape for name, array in arrays.items()
    }
    content = path.read_bytes()
    for name, tensor in header.tensors.items():
        assert content[tensor.begin : tensor.end] == arrays[name].tobytes()
        assert tensor.elements == arrays[name].size


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"", "0 bytes, too few"),
        (b"\1\2\3", "3 bytes, too few"),
        (struct.pack("<Q", 1 << 63) + b"{}", "announces a header of 9,223,372,036,854,775,808 bytes"),
        (struct.pack("<Q", MAX_HEADER_BYTES + 1) + b"{}", "announces a header"),
        (struct.pack("<Q", 1000) + b"{}", "is cut short: its header alone"),
        (with_header(b"[]"), "not a JSON object"),
        (with_header(b" {}"), "not a JSON object"),
        (with_header(b"{"), "is not JSON"),
        (with_header(b"{" * 50), "is not JSON"),
        (with_header(b'{"a":' + b"[" * 100_000), "nests too deeply"),
        (with_header(b'{"a": "\xff"}'), "is not UTF-8"),
        (with_header(b'{"a": NaN}'), "holds NaN"),
        (with_header(b'{"a": ' + b"9" * 5000 + b"}"), "whole number of 5,000 digits"),
        (with_header(b'{"a": {}, "a": {}}'), "says 'a' twice"),
        (with_header({"__metadata__": {"n": 1}}), "__metadata__"),
        (with_header({"__metadata__": []}), "__metadata__"),
        (with_header({"a": [1]}), "something else than dtype, shape and data_offsets"),
        (with_header({"a": entry() | {"more": 1}}, bytes(4)), "something else"),
        (with_header({"a": entry(dtype="F99")}, bytes(4)), "unknown dtype 'F99'"),
        (with_header({"a": entry(dtype=["U8"])}, bytes(4)), "unknown dtype"),
        (with_header({"a": entry(shape=[2.0, 2])}, bytes(4)), "shape that is not"),
        (with_header({"a": entry(shape=[True, 4])}, bytes(4)), "shape that is not"),
        (with_header({"a": entry(shape=[-2, -2])}, bytes(4)), "shape that is not"),
        (with_header({"a": entry(shape=[1] * 33)}, bytes(4)), "shape that is not"),
        (with_header({"a": entry(shape="4")}, bytes(4)), "shape that is not"),
        (with_header({"a": entry(shape=[1 << 48, 1 << 48, 0], offsets=[0, 4])}, bytes(4)), "4 bytes where U8"),
        (with_header({"a": entry(offsets=[4, 0])}, bytes(4)), "offsets that are not"),
        (with_header({"a": entry(offsets=[0])}, bytes(4)), "offsets that are not"),
        (with_header({"a": entry(offsets=[0, 4, 4])}, bytes(4)), "offsets that are not"),
        (with_header({"a": entry(offsets=[-4, 0])}, bytes(4)), "offsets that are not"),
        (with_header({"a": entry(shape=[5])}, bytes(4)), "4 bytes where U8 of shape .5. needs 5"),
        (with_header({"a": entry(), "b": entry()}, bytes(4)), "'b' overlaps"),
        (with_header({"a": entry(offsets=[1, 5])}, bytes(5)), "'a' leaves a gap"),
        (with_header({"a": entry()}, bytes(3)), "cut short: its header describes"),
        (with_header({"a": entry()}, bytes(6)), "has 2 bytes after its last tensor"),
        (with_header({"a": entry("F4", [3], [0, 2])}, bytes(2)), "2 bytes where F4"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n", "git-lfs pointer"),
        (b"\n<!DOCTYPE html><html><head>" + b" " * 600, "web page"),
        (b"<html>" + b" " * 600, "web page"),
    ],
)
def test_a_damaged_header_is_one_line(tmp_path: Path, content: bytes, match: str) -> None:
    refused(tmp_path / "model.safetensors", content, match)


def test_a_truncated_file_is_refused_at_every_length(tmp_path: Path) -> None:
    whole = safetensors(TWO, {"format": "pt"})
    path = tmp_path / "model.safetensors"
    for length in range(len(whole)):
        refused(path, whole[:length], "cut short|too few")
    path.write_bytes(whole)
    assert set(read_header(path).tensors) == {"a", "b"}


def test_a_pipe_does_not_block_and_a_link_in_a_circle_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "circle").symlink_to("circle")
    (tmp_path / "nowhere").symlink_to("gone")
    for name, match in (
        ("pipe", "not a regular file"),
        ("circle", "cannot be read"),
        ("nowhere", "broken link"),
        ("absent", "is missing"),
        (".", "not a regular file"),
        ("nul\0", "cannot be read"),
    ):
        for read in (read_header, read_json):
            with pytest.raises(CheckpointError, match=match):
                read(tmp_path / name)


def test_every_dtype_has_the_size_safetensors_gives_it(tmp_path: Path) -> None:
    for dtype, bits in DTYPE_BITS.items():
        path = tmp_path / f"{dtype}.safetensors"
        path.write_bytes(safetensors({"x": (dtype, [8, 3], bytes(3 * bits))}))
        assert read_header(path).tensors["x"].nbytes == 3 * bits
        from safetensors import safe_open

        with safe_open(path, "np") as theirs:
            assert list(theirs.keys()) == ["x"]


# What a bit flip, a hostile hand or a broken writer makes of a header: pieces that parse, put together anew.
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(1 << 70), 1 << 70)
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from([*DTYPE_BITS, "f32"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
SIZES = st.integers(-2, 40) | st.sampled_from([True, 1.0, 1 << 48, 1 << 64])
ENTRIES = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from([*DTYPE_BITS, "F128", 3]),
        "shape": st.lists(SIZES, max_size=4) | VALUES,
        "data_offsets": st.lists(SIZES, min_size=1, max_size=3) | VALUES,
    }
)
HEADERS = st.dictionaries(st.text(max_size=5) | st.just("__metadata__"), ENTRIES | VALUES, max_size=4)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(header=HEADERS, data=st.binary(max_size=64))
def test_whatever_the_header_says_it_is_refused_or_describes_the_file(
    tmp_path: Path, header: dict[str, Any], data: bytes
) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(with_header(header, data))
    _refused_or_tiling(path)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(edits=st.lists(st.tuples(st.integers(0, 10_000), st.binary(max_size=4)), min_size=1, max_size=4))
def test_a_mutated_header_is_refused_or_describes_the_file(tmp_path: Path, edits: list[tuple[int, bytes]]) -> None:
    content = bytearray(safetensors(TWO, {"format": "pt"}))
    for at, piece in edits:
        at %= len(content)
        content[at : at + max(1, len(piece))] = piece  # replaces, or with an empty piece deletes
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    _refused_or_tiling(path)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=300))
def test_any_bytes_are_refused_or_describe_the_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    _refused_or_tiling(path)


def _refused_or_tiling(path: Path) -> None:
    """Either one CheckpointError line, or entries that tile the file exactly and that safetensors accepts."""
    try:
        header = read_header(path)
    except CheckpointError as error:
        assert len(str(error).splitlines()) == 1  # noqa: PT017
        return
    spans = sorted((tensor.begin, tensor.end) for tensor in header.tensors.values())
    (length,) = struct.unpack("<Q", path.read_bytes()[:8])
    edges = [8 + length, *(end for _, end in spans)]
    assert [begin for begin, _ in spans] == edges[:-1]
    assert edges[-1] == path.stat().st_size
    from safetensors import safe_open

    with safe_open(path, "np") as theirs:  # raises if the strict reader of record disagrees
        assert set(theirs.keys()) == set(header.tensors)


def write(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def indexed(weight_map: dict[str, Any], **files: bytes) -> dict[str, bytes]:
    named = {name.replace("__", "-") + ".safetensors": content for name, content in files.items()}
    return {"model.safetensors.index.json": json.dumps({"weight_map": weight_map}).encode(), **named}


A, B = safetensors({"a": ("U8", [4], b"aaaa")}), safetensors({"b": ("U8", [4], b"bbbb")}, {"format": "pt"})


def test_shards_are_found_by_the_index_whatever_their_names(tmp_path: Path) -> None:
    found = read_checkpoint(write(tmp_path, repository()))
    assert set(found.tensors) == {"a", "b"}
    assert found.tensors["b"].file.name == "model.safetensors-00002-of-00002.safetensors"
    layers = write(tmp_path / "layers", indexed({"a": "layers-0.safetensors", "b": "out.safetensors"}))
    write(layers, {"layers-0.safetensors": A, "out.safetensors": B, "other.safetensors": b"not of this model"})
    assert [path.name for path in read_checkpoint(layers).files] == ["layers-0.safetensors", "out.safetensors"]
    assert read_checkpoint(layers).metadata == {"format": "pt"}


def test_an_mtp_folder_belongs_to_the_checkpoint(tmp_path: Path) -> None:
    folder = write(tmp_path, {"model.safetensors": A, "mtp/model.safetensors": B})
    assert set(read_checkpoint(folder).tensors) == {"a", "b"}


@pytest.mark.parametrize(
    ("files", "match"),
    [
        ({}, "holds no model.*safetensors"),
        ({"pytorch_model.bin": b""}, "only pickled weights .pytorch_model.bin., which can run code"),
        ({"x.gguf": b""}, "GGUF"),
        ({"model-00001-of-00003.safetensors": A}, "lacks 2 of 3 weight files: model-00002-of-00003"),
        ({"model.safetensors-00002-of-00002.safetensors": A}, "lacks 1 of 2 weight files"),
        ({"model-1.safetensors": A, "model-2.safetensors": A}, "'a' is in model-1.safetensors and in model-2"),
        ({"model.safetensors": A, "mtp/x.safetensors": A}, "'a' is in model.safetensors and in x"),
        (indexed({"a": "one.safetensors"}), "lacks 1 of 1 weight files: one.safetensors"),
        (indexed({"a": "one.safetensors", "b": "one.safetensors"}, one=A), "promises .* 'b' in one"),
        (indexed({"a": "two.safetensors", "b": "one.safetensors"}, one=A, two=B), "promises .* 'a' in two"),
        (indexed({"a": "../one.safetensors"}), "not a safetensors file inside the folder"),
        (indexed({"a": "/etc/passwd"}), "inside the folder"),
        (indexed({"a": "x/../../one.safetensors"}), "inside the folder"),
        (indexed({"a": "pytorch_model.bin"}), "not a safetensors file"),
        (indexed({"a": 5}), "no weight_map"),
        ({"model.safetensors.index.json": b"[]"}, "not a JSON object"),
        ({"model.safetensors.index.json": b"<!doctype html>"}, "web page"),
        ({"model.safetensors.index.json": b'{"weight_map": []}'}, "no weight_map"),
        ({"model.safetensors": A[:-1]}, "cut short"),
    ],
)
def test_a_folder_that_is_no_checkpoint_is_one_line(tmp_path: Path, files: dict[str, bytes], match: str) -> None:
    with pytest.raises(CheckpointError, match=match) as error:
        read_checkpoint(write(tmp_path, files))
    assert "\n" not in str(error.value)


def test_a_missing_folder_or_a_broken_index_link(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is not a folder"):
        read_checkpoint(tmp_path / "absent")
    write(tmp_path, {"model.safetensors": A})
    (tmp_path / "model.safetensors.index.json").symlink_to("gone")
    with pytest.raises(CheckpointError, match="broken link"):
        read_checkpoint(tmp_path)


def test_a_damaged_file_of_the_hub_cache_names_the_blob_to_delete(tmp_path: Path) -> None:
    blob = write(tmp_path, {"blobs/abc": b"broken"}) / "blobs" / "abc"
    snapshot = tmp_path / "snapshots" / "c0ffee"
    snapshot.mkdir(parents=True)
    (snapshot / "model.safetensors").symlink_to("../../blobs/abc")
    with pytest.raises(CheckpointError, match=f"Delete {blob} and start again"):
        read_checkpoint(snapshot)


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"", "is not JSON"),
        (b"[1]", "not a JSON object"),
        (b'{"a": 1, "a": 2}', "says 'a' twice"),
        (b'{"x": {"a": 1, "a": 2}}', "says 'a' twice"),
        (b'{"a": Infinity}', "holds Infinity"),
        (b"\xff\xfe{\0", "is not UTF-8"),
        (b"<html>login</html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git-lfs pointer"),
        (b'{"a": "' + b"x" * 2000 + b'"}', "no config.json of this family exceeds 1,000"),
    ],
)
def test_json_that_is_none_is_one_line(tmp_path: Path, content: bytes, match: str) -> None:
    path = write(tmp_path, {"config.json": content}) / "config.json"
    with pytest.raises(CheckpointError, match=match) as error:
        read_json(path, 1000)
    assert "\n" not in str(error.value)


def test_json_with_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    path = write(tmp_path, {"config.json": b'\xef\xbb\xbf{"a": 1}'}) / "config.json"
    assert read_json(path) == {"a": 1}


def test_an_index_maps_tensors_to_files(tmp_path: Path) -> None:
    folder = write(tmp_path, indexed({"a": "sub/one.safetensors"}))
    assert read_index(folder / "model.safetensors.index.json") == {"a": "sub/one.safetensors"}
