"""The store of conversations: what is kept comes back, nothing is lost between two writers, no file is trusted."""

from __future__ import annotations

import contextlib
import json
import os
import stat
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_qwen35.conversations.conversation import MAX_TITLE, Conversation
from mlx_qwen35.conversations.index import Summary, encoded
from mlx_qwen35.conversations.settings import Settings
from mlx_qwen35.conversations.store import ChangedElsewhere, Store, conversations_folder
from mlx_qwen35.errors import UserError

MODEL = "demo"
SUMMARY = Summary("20260101-000000-00000000", "one", MODEL, 1.0, 2.0, messages=2)


def talk(*turns: str, title: str = "") -> Conversation:
    conversation = Conversation(Settings("Be brief.", seed=3), title=title)
    for text in turns:
        conversation.add(text, {"role": "assistant", "content": f"to {text}", "reasoning_content": "hm"})
    return conversation


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "kept")


def file_of(store: Store, id: str) -> Path:
    return store.folder / f"{id}.json"


@given(
    title=st.text(st.characters(codec=None), max_size=300),
    turns=st.lists(st.tuples(st.text(), st.text()), min_size=1, max_size=4),
    model=st.text(max_size=500),
)
def test_any_conversation_comes_back(
    tmp_path_factory: pytest.TempPathFactory, title: str, turns: list[tuple[str, str]], model: str
) -> None:
    store = Store(tmp_path_factory.mktemp("kept"))
    conversation = Conversation(title=title)
    for question, answer in turns:
        conversation.add(question, {"role": "assistant", "content": answer})
    made = store.create(conversation, model)
    assert store.listing().broken == ()
    (listed,) = store.listing().chats
    assert (listed.id, listed.title, listed.messages) == (made.id, made.title, 2 * len(turns))
    assert listed.title
    assert len(listed.title) <= MAX_TITLE
    assert len(listed.title.splitlines()) == 1
    summary, again = store.open(made.id)
    assert summary == listed
    assert (again.messages, again.settings) == (conversation.messages, conversation.settings)


def test_only_its_owner_reads_it(store: Store) -> None:
    store.folder.mkdir(mode=0o755)
    before = os.umask(0)
    try:
        made = store.create(talk("secret"), MODEL)
    finally:
        os.umask(before)
    assert stat.S_IMODE(store.folder.stat().st_mode) == 0o700
    assert stat.S_IMODE(file_of(store, made.id).stat().st_mode) == 0o600
    assert sorted(os.listdir(store.folder)) == sorted([".lock", f"{made.id}.json"]), "a part file was left"


def test_the_folder_is_in_the_users_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.setattr("sys.platform", "linux")
    assert conversations_folder() == tmp_path / "mlx-qwen35" / "conversations"


def test_a_missing_folder_is_an_empty_list(store: Store) -> None:
    assert store.listing().chats == ()
    assert not store.folder.exists(), "looking made a folder"


def test_the_newest_change_comes_first(store: Store) -> None:
    first, second = store.create(talk("one"), MODEL), store.create(talk("two"), MODEL)
    assert [c.id for c in store.listing().chats] == [second.id, first.id]
    store.save(first, talk("one", "more"), MODEL)
    assert [(c.title, c.messages) for c in store.listing().chats] == [("one", 4), ("two", 2)]


def test_a_kept_file_loads_by_its_name_as_any_saved_chat(store: Store) -> None:
    made = store.create(talk("one", title="A title"), MODEL)
    assert Conversation.load(file_of(store, made.id)) == talk("one", title="A title")


@pytest.mark.parametrize("title", ["../../etc/passwd", "a/b", "\x00", "x" * 5000, "🙂\u202e", ".lock", "con\ntrol"])
def test_titles_are_text_and_never_names(store: Store, title: str) -> None:
    made = store.create(talk("one"), MODEL)
    before = sorted(os.listdir(store.folder))
    renamed = store.rename(made.id, title)
    assert sorted(os.listdir(store.folder)) == before
    assert store.listing().chats == (renamed,)
    assert renamed.title.startswith(title.split()[0][:MAX_TITLE])


def test_a_title_cannot_be_empty(store: Store) -> None:
    made = store.create(talk("one"), MODEL)
    with pytest.raises(UserError, match="not empty"):
        store.rename(made.id, " \n ")


@pytest.mark.parametrize(
    "id", ["", "../x", "20260101-000000-0000000g", "/etc/passwd", "x" * 9999, "20260101-000000-00000000\n"]
)
def test_an_id_that_could_be_a_path_is_none(store: Store, id: str) -> None:
    for act in (store.open, store.delete, lambda id: store.rename(id, "x"), lambda id: store.branch(id, 0)):
        with pytest.raises(UserError) as error:
            act(id)
        assert "\n" not in str(error.value)


def test_of_two_windows_neither_loses_an_answer(store: Store) -> None:
    made = store.create(talk("one"), MODEL)
    (here, mine), (there, theirs) = store.open(made.id), store.open(made.id)
    mine.add("mine", {"role": "assistant", "content": "m"})
    theirs.add("theirs", {"role": "assistant", "content": "t"})
    store.save(here, mine, MODEL)
    with pytest.raises(ChangedElsewhere, match="another window"):
        store.save(there, theirs, MODEL)
    assert store.open(made.id)[1].messages == mine.messages
    store.delete(made.id)
    with pytest.raises(ChangedElsewhere, match="deleted"):
        store.save(there, theirs, MODEL)


def test_renaming_elsewhere_disturbs_nobody(store: Store) -> None:
    made = store.create(talk("one"), MODEL)
    store.rename(made.id, "Renamed")
    assert store.save(made, talk("one", "two"), MODEL).title == "Renamed"
    assert store.open(made.id)[1].messages == talk("one", "two").messages


def test_of_many_writers_at_once_one_goes_first(store: Store) -> None:
    made = store.create(talk("one"), MODEL)
    start, outcomes = threading.Barrier(6), []

    def write(number: int) -> None:
        start.wait()
        try:
            store.save(made, talk("one", str(number)), MODEL)
            outcomes.append(number)
        except ChangedElsewhere:
            pass

    threads = [threading.Thread(target=write, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(outcomes) == 1
    assert store.open(made.id)[1].messages == talk("one", str(outcomes[0])).messages


def test_a_branch_goes_its_own_way(store: Store) -> None:
    made = store.create(talk("one", "two"), MODEL)
    copy = store.branch(made.id, 2)
    assert (copy.branch_of, copy.messages, copy.title) == (made.id, 2, "one (branch)")
    store.save(copy, talk("one", "three"), MODEL)
    assert store.open(made.id)[1].messages == talk("one", "two").messages
    for messages in (-1, 5):
        with pytest.raises(UserError, match="cannot branch"):
            store.branch(made.id, messages)


def test_deleting_removes_leftovers_too(store: Store) -> None:
    made, other = store.create(talk("one"), MODEL), store.create(talk("two"), MODEL)
    (store.folder / f".{made.id}.json.77.1").write_text("what a killed write left")
    store.delete(made.id)
    assert sorted(os.listdir(store.folder)) == [".lock", f"{other.id}.json"]
    with pytest.raises(UserError, match="deleted"):
        store.open(made.id)


def test_a_full_disk_keeps_the_old_file_and_the_conversation(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    made, longer = store.create(talk("one"), MODEL), talk("one", "two")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    for act in (lambda: store.save(made, longer, MODEL), lambda: store.create(longer, MODEL)):
        with pytest.raises(UserError, match=r"Cannot write to .*: no space left on device\.$"):
            act()
    monkeypatch.undo()
    assert longer == talk("one", "two")
    assert store.open(made.id)[1].messages == talk("one").messages
    assert len(os.listdir(store.folder)) == 2
    store.save(made, longer, MODEL)


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    store = Store(tmp_path / "file" / "kept")
    for act in (lambda: store.create(talk("one"), MODEL), store.listing):
        with pytest.raises(UserError, match="not a directory"):
            act()


def test_what_is_too_large_is_refused(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlx_qwen35.conversations.store.MAX_BYTES", 1000)
    made = store.create(talk("one"), MODEL)
    with pytest.raises(UserError, match="at most 1,000"):
        store.save(made, talk("x" * 1000), MODEL)
    monkeypatch.setattr("mlx_qwen35.conversations.store.MAX_CHATS", 1)
    with pytest.raises(UserError, match="delete some"):
        store.create(talk("two"), MODEL)


def kept_line(**changes: Any) -> bytes:
    """A whole file whose first line is changed."""
    content = encoded(SUMMARY, talk("one"))
    line, rest = content.split(b"\n", 1)
    first = json.loads(line[:-1] + b"}")
    for name, value in changes.items():
        (first["kept"] if name in first["kept"] else first)[name] = value
    return json.dumps(first)[:-1].encode() + b",\n" + rest


HOSTILE = [
    b"",
    b"{",
    b"[" * 100_000,
    b"\xff\xfe,\n",
    b"{},\n",
    b'{"a": 1,\n',
    b"\n" * 50,
    b"x" * 70_000,
    kept_line()[:-5],
    kept_line() + b" ",
    kept_line(title=5),
    kept_line(title="x" * 999),
    kept_line(title="two\nlines"),
    kept_line(version=2),
    kept_line(format="other"),
    kept_line(created=float("1e300")),
    kept_line(changed=10**500),
    kept_line(changed=-1),
    kept_line(changed=True),
    kept_line(messages="7"),
    kept_line(revision=-1),
    kept_line(model=None),
    kept_line(kept=[]),
    kept_line(rest_bytes=7),
]


@pytest.mark.parametrize("content", HOSTILE, ids=range(len(HOSTILE)))
def test_a_broken_file_is_named_and_hides_no_other(store: Store, content: bytes) -> None:
    good = store.create(talk("good"), MODEL)
    name = "20260101-000000-00000000.json"
    (store.folder / name).write_bytes(content)
    listing = store.listing()
    assert listing.chats == (good,)
    assert [broken.name for broken in listing.broken] == [name]
    assert "\n" not in listing.broken[0].why
    assert len(listing.broken[0].why) < 300
    with pytest.raises(UserError):
        store.open(name.removesuffix(".json"))


def test_the_changed_line_is_sound_when_nothing_is_changed(store: Store) -> None:
    store.folder.mkdir()
    (store.folder / "20260101-000000-00000000.json").write_bytes(kept_line())
    assert store.listing().chats == (SUMMARY,)


@given(content=st.binary(max_size=200), cut=st.integers(0, 400))
def test_no_bytes_crash_the_list(tmp_path_factory: pytest.TempPathFactory, content: bytes, cut: int) -> None:
    store = Store(tmp_path_factory.mktemp("kept"))
    sound = kept_line()
    (store.folder / "20260101-000000-00000000.json").write_bytes(sound[:cut] + content + sound[cut + len(content) :])
    listing = store.listing()
    assert len(listing.chats) + len(listing.broken) == 1
    for chat in listing.chats:
        with contextlib.suppress(UserError):
            store.open(chat.id)


def test_what_is_no_file_is_named(store: Store, tmp_path: Path) -> None:
    good = store.create(talk("good"), MODEL)
    os.mkfifo(store.folder / "20260101-000000-00000000.json")
    (store.folder / "20260101-000000-00000001.json").mkdir()
    (store.folder / "20260101-000000-00000002.json").symlink_to(file_of(store, good.id))
    (store.folder / "mine.json").write_text("{}")
    (store.folder / "notes.txt").write_text("not ours")
    listing = store.listing()
    assert listing.chats == (good,)
    assert [broken.why.split(";")[0] for broken in listing.broken] == [
        "was not put here by this program",
        *["is not a file"] * 3,
    ]


def test_an_export_is_imported(store: Store, tmp_path: Path) -> None:
    talk("one", title="A title").save(tmp_path / "out.json", MODEL)
    made = store.import_file(tmp_path / "out.json", MODEL)
    assert (made.title, made.messages) == ("A title", 2)
    assert store.open(made.id)[1] == talk("one", title="A title")


@given(content=st.recursive(st.none() | st.booleans() | st.floats() | st.text(), st.lists, max_leaves=5) | st.binary())
def test_an_import_that_is_none_is_one_line(tmp_path_factory: pytest.TempPathFactory, content: Any) -> None:
    folder = tmp_path_factory.mktemp("import")
    store, path = Store(folder / "kept"), folder / "in.json"
    messages = {"format": "mlx-qwen35 chat", "version": 1, "settings": {}, "messages": [content]}
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(messages).encode())
    with pytest.raises(UserError) as error:
        store.import_file(path)
    assert len(str(error.value).splitlines()) == 1
    assert store.listing().chats == ()


def test_an_import_that_is_too_large_is_refused_unread(store: Store, tmp_path: Path) -> None:
    with (tmp_path / "big.json").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(UserError, match="at most 33,554,432"):
        store.import_file(tmp_path / "big.json")
