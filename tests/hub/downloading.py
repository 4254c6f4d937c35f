"""What the download tests share: the tiny repository fetched, and where it comes to lie."""

import socket
from pathlib import Path

from mlx_qwen35.hub.cache import RepoCache
from mlx_qwen35.hub.download import download
from mlx_qwen35.hub.http import Hub, Retry
from mlx_qwen35.hub.progress import Progress
from tests.hub.conftest import BIG, ID, QUICK, repository
from tests.support.fake_hub import sha256

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


def edited(listing: dict, path: str, **changes: object) -> dict:
    for entry in listing["siblings"]:
        if entry["rfilename"] == path:
            if "size" in changes and "lfs" in entry:
                entry["lfs"]["size"] = changes["size"]
            entry.update(changes)
    return listing


def closed_port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"
