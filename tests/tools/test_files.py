"""A folder to read from: nothing outside it, nothing hidden, nothing that blocks or does not end."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlx_qwen35.errors import UserError
from mlx_qwen35.tools import files
from mlx_qwen35.tools.files import Folder
from mlx_qwen35.tools.tool import ToolError

SECRET = "the secret"


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Folder]:
    root = tmp_path / "root"
    (root / "notes").mkdir(parents=True)
    (root / "notes" / "today.txt").write_text("milk\nbread\n")
    (root / ".hidden").write_text(SECRET)
    (root / ".git").mkdir()
    (root / ".git" / "config").write_text(SECRET)
    (root / "binary").write_bytes(b"a\0b")
    (root / "latin").write_bytes(b"caf\xe9")
    os.mkfifo(root / "pipe")
    (tmp_path / "secret.txt").write_text(SECRET)
    (root / "link.txt").symlink_to(tmp_path / "secret.txt")
    (root / "linked").symlink_to(tmp_path)
    (root / "zero").symlink_to("/dev/zero")
    opened = Folder(root)
    yield opened
    opened.close()


def test_lists_and_reads_what_is_there(folder: Folder) -> None:
    assert folder.entries() == ["binary (3 bytes)", "latin (4 bytes)", "notes/"]
    assert folder.entries("./notes/") == ["today.txt (11 bytes)"]
    assert folder.text("notes//today.txt") == "milk\nbread\n"


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("../secret.txt", "out of the folder"),
        ("notes/../../secret.txt", "out of the folder"),
        ("notes/../notes/today.txt", "out of the folder"),
        ("/etc/passwd", "inside the folder"),
        ("~/x", "inside the folder"),
        ("..\\secret.txt", "inside the folder"),
        ("a\0b", "inside the folder"),
        (".hidden", "hidden"),
        (".git/config", "hidden"),
        ("link.txt", "there is no file"),
        ("linked/secret.txt", "there is no file"),
        ("zero", "there is no file"),
        ("pipe", "there is no file"),
        ("notes", "is a folder"),
        ("", "is a folder"),
        ("binary", "not UTF-8 text"),
        ("latin", "not UTF-8 text"),
        ("none", "there is no file"),
        ("notes/today.txt/x", "there is no file"),
        ("\ud800", "there is no file"),
        ("x" * 1000, "there is no file"),
    ],
)
def test_what_is_refused(folder: Folder, path: str, why: str) -> None:
    with pytest.raises(ToolError, match=why) as caught:
        folder.text(path)
    assert "\n" not in str(caught.value)
    if why not in ("is a folder", "not UTF-8 text"):
        with pytest.raises(ToolError):
            folder.entries(path)


PIECES = st.sampled_from(
    ["..", ".", "", "notes", "linked", "link.txt", "secret.txt", "root", ".hidden", "/", "~", "today.txt"]
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(PIECES | st.text(max_size=3), max_size=6).map("/".join))
def test_no_path_leads_out(folder: Folder, path: str) -> None:
    for read in (folder.text, folder.entries):
        try:
            found = read(path)
        except ToolError:
            continue
        assert SECRET not in str(found)
        assert "secret.txt" not in str(found)


def test_a_folder_swapped_for_a_link_meanwhile_leads_nowhere(folder: Folder, tmp_path: Path) -> None:
    """One thread exchanges a folder and a link to the outside, another reads through the name."""
    root = tmp_path / "root"
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file.txt").write_text(SECRET)
    (root / "real").mkdir()
    (root / "real" / "file.txt").write_text("harmless")
    (root / "trap").symlink_to(outside)
    ended = threading.Event()

    def swap() -> None:
        while not ended.is_set():
            for first, second in (("real", "name"), ("name", "real"), ("trap", "name"), ("name", "trap")):
                os.rename(root / first, root / second)

    thread = threading.Thread(target=swap)
    thread.start()
    seen = set()
    try:
        for _ in range(3_000):
            try:
                seen.add(folder.text("name/file.txt"))
            except ToolError:
                seen.add("")
    finally:
        ended.set()
        thread.join()
    assert seen <= {"harmless", ""}


def test_the_root_stays_the_folder_that_was_chosen(folder: Folder, tmp_path: Path) -> None:
    (tmp_path / "root").rename(tmp_path / "moved")
    (tmp_path / "root").symlink_to("/etc")
    assert folder.entries("notes") == ["today.txt (11 bytes)"]


def test_sizes_are_bounded(folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "root"
    read = {tool.name: tool for tool in folder.tools()}["read_file"].run
    (root / "long.txt").write_text("".join(f"line {i}\n" for i in range(1, 10_001)))
    first = read({"path": "long.txt"})
    assert len(first) < files.MAX_SHOWN + 100
    start = int(first.rpartition("start=")[2].rstrip("]"))
    assert read({"path": "long.txt", "start": start}).startswith(f"line {start}\n")
    assert read({"path": "long.txt", "start": 10_000}) == "line 10000\n"
    with pytest.raises(ToolError, match="10,000 lines"):
        read({"path": "long.txt", "start": 10_001})
    (root / "endless.txt").write_text("x" * 100_000)
    assert "100,000 characters" in read({"path": "endless.txt"})
    monkeypatch.setattr(files, "MAX_FILE", 1000)
    with pytest.raises(ToolError, match="more than 1,000 bytes"):
        read({"path": "endless.txt"})
    monkeypatch.setattr(files, "MAX_ENTRIES", 2)
    assert "cut" in folder.entries()[-1]


def test_a_folder_that_is_none_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Cannot open the folder"):
        Folder(tmp_path / "none")
