"""What is here already: downloaded models of the family, and the one used last. No network, no tensor reads."""

import contextlib
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from mlx_qwen35.errors import CheckpointError
from mlx_qwen35.hub.cache import RepoCache, cache_folder, is_hub_id, write_atomically
from mlx_qwen35.hub.download import missing_files
from mlx_qwen35.hub.family import FAMILY, FamilyEntry
from mlx_qwen35.hub.jsonfile import read_json
from mlx_qwen35.hub.names import resolve

MODEL_TYPES = frozenset({"qwen3_5", "qwen3_5_text", "qwen3_5_moe", "qwen3_5_moe_text"})


@dataclass(frozen=True)
class Downloaded:
    """A repository in the hub cache. nbytes: of the files in its snapshot, and of parts still being fetched."""

    hub_id: str
    folder: Path
    nbytes: int
    complete: bool
    entry: FamilyEntry | None


def downloaded(cache: Path | None = None) -> list[Downloaded]:
    """Models of this family in the hub cache, by name. Anything unreadable there is passed over."""
    cache = cache or cache_folder()
    found = []
    with contextlib.suppress(OSError):
        for folder in sorted(cache.glob("models--*--*")):
            hub_id = folder.name.removeprefix("models--").replace("--", "/", 1)
            if is_hub_id(hub_id) and (model := _downloaded(RepoCache(hub_id, cache))):
                found.append(model)
    return found


def state_folder() -> Path:
    """Where this program keeps small things between runs."""
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support" / "mlx-qwen35"
    base = os.environ.get("XDG_STATE_HOME", "")
    return (Path(base) if os.path.isabs(base) else Path.home() / ".local" / "state") / "mlx-qwen35"


def remember_last(name: str) -> None:
    """Record the model in use, so that `chat` without a name takes it again. A folder is kept as its full path."""
    located = resolve(name)
    if located.path is not None and name.strip().lower() != "demo":
        name = str(located.path.resolve())
    # A read-only home must not keep anyone from chatting.
    with contextlib.suppress(OSError):
        write_atomically(_last_file(), json.dumps({"model": name}).encode())


def last_used() -> str | None:
    """The name recorded last, if it still resolves; None also for a damaged file."""
    try:
        name = read_json(_last_file(), 1 << 16).get("model")
        if not isinstance(name, str):
            return None
        resolve(name)
    except CheckpointError:
        return None
    return name


def _last_file() -> Path:
    return state_folder() / "last.json"


def _downloaded(repo: RepoCache) -> Downloaded | None:
    commit = repo.commit("main") or _newest_snapshot(repo)
    if commit is None:
        return None
    snapshot = repo.snapshot(commit)
    try:
        config = read_json(snapshot / "config.json")
    except CheckpointError:
        return None
    if config.get("model_type") not in MODEL_TYPES:
        return None
    size = sum(_size(path) for path in snapshot.rglob("*")) + sum(
        _size(path) for path in (repo.folder / "blobs").glob("*.part")
    )
    entry = next((entry for entry in FAMILY.values() if entry.hub_id == repo.hub_id), None)
    return Downloaded(repo.hub_id, snapshot, size, not missing_files(repo, commit), entry)


def _newest_snapshot(repo: RepoCache) -> str | None:
    """A download that was never finished has no ref yet."""
    with contextlib.suppress(OSError):
        folders = [path for path in (repo.folder / "snapshots").iterdir() if path.is_dir()]
        return max(folders, key=lambda path: path.stat().st_mtime).name if folders else None
    return None


def _size(path: Path) -> int:
    try:
        return path.stat().st_size if path.is_file() else 0
    except OSError:
        return 0
