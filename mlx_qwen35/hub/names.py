"""Models by name: a local folder, a hub id, or a short name such as 27b. Decides which; fetches nothing."""

import difflib
import os
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from mlx_qwen35.errors import CheckpointError
from mlx_qwen35.hub.cache import cache_folder, is_hub_id
from mlx_qwen35.hub.family import FAMILY, FamilyEntry
from mlx_qwen35.hub.headers import PICKLE_SUFFIXES

DEMO = "demo"
_HUB_PAGES = ("https://huggingface.co/", "https://hf.co/", "hf://models/", "hf://")


@dataclass(frozen=True)
class Located:
    """What a name stands for: a folder here (`path`), or a repository (`hub_id`, else empty)."""

    name: str
    path: Path | None = None
    hub_id: str = ""
    entry: FamilyEntry | None = None


def resolve(name: str) -> Located:
    """Find out what `name` means.

    In this order: `demo` and the short names of the family (any case; write ./27b for a folder of that name),
    an existing folder or anything spelt like a path, a hub id org/name, a web address of a hub repository.
    Raises CheckpointError, one line, with close matches for a name that is nothing known.
    """
    short = name.strip().lower()
    if short == DEMO:
        return Located(name, path=demo_folder())
    if entry := FAMILY.get(short):
        return Located(name, hub_id=entry.hub_id, entry=entry)
    path = Path(name).expanduser() if name.startswith("~") else Path(name)
    if _is_path(name) or (name and os.path.lexists(path)):
        return Located(name, path=_model_folder(path))
    hub_id = _without_page(name.strip())
    if entry := _family_entry(hub_id.lower()):
        return Located(name, hub_id=entry.hub_id, entry=entry)
    if is_hub_id(hub_id):
        if hub_id.lower().endswith("-gguf"):
            raise CheckpointError(
                f"{hub_id} holds GGUF weights, which are not read here. Choose a repository with safetensors."
            )
        return Located(name, hub_id=hub_id)
    raise CheckpointError(_unknown(name))


def demo_folder() -> Path:
    """The folder of the bundled demo checkpoint, in a checkout and in an installed wheel alike."""
    folder = Path(str(resources.files("mlx_qwen35.demo_checkpoint")))
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"The bundled demo is not complete: no config.json in {folder}. Install mlx-qwen35 anew.")
    return folder


def _family_entry(name: str) -> FamilyEntry | None:
    """The entry whose hub id this is, with or without the organisation, in lower case."""
    return next((e for e in FAMILY.values() if name in (e.name.lower(), e.hub_id.lower())), None)


def _is_path(name: str) -> bool:
    return name.startswith((".", "/", "~")) or "\\" in name or (name.count("/") > 1 and "://" not in name)


def _without_page(name: str) -> str:
    for page in _HUB_PAGES:
        if name.startswith(page):
            return "/".join(name.removeprefix(page).split("/")[:2])
    return name


def _model_folder(path: Path) -> Path:
    """The folder itself, if it looks like a checkpoint."""
    advice = "Give a model folder or a hub name such as Qwen/Qwen3.5-4B."
    if path.is_dir():
        if (path / "config.json").is_file():
            return path
        if any(path.glob("*.gguf")):
            raise CheckpointError(f"{path} holds GGUF weights, which are not read here. {advice}")
        raise CheckpointError(f"No config.json in {path}. {advice}")
    if path.suffix.lower() == ".gguf":
        raise CheckpointError(f"{path} is a GGUF file, which is not read here. {advice}")
    if path.is_file() and path.suffix in (*PICKLE_SUFFIXES, ".safetensors", ".json"):
        raise CheckpointError(f"{path} is one file of a checkpoint. Give its folder, {path.parent}.")
    if path.is_file():
        raise CheckpointError(f"{path} is a file, not a model folder. {advice}")
    raise CheckpointError(f"There is no folder {path}. {advice}")


def _unknown(name: str) -> str:
    known = [DEMO, *FAMILY, *(entry.hub_id for entry in FAMILY.values()), *_downloaded_ids()]
    close = difflib.get_close_matches(name.lower(), {key.lower(): key for key in known}, n=3, cutoff=0.6)
    spelt = {key.lower(): key for key in known}
    if close:
        return f"{name[:120]!r} is not a known model. Did you mean {' or '.join(spelt[key] for key in close)}?"
    return (
        f"{name[:120]!r} is not a known model. Give a model folder, a hub name such as Qwen/Qwen3.5-4B, or one of "
        f"{', '.join([DEMO, *FAMILY])}."
    )


def _downloaded_ids() -> list[str]:
    try:
        names = os.listdir(cache_folder())
    except OSError:
        return []
    return [name.removeprefix("models--").replace("--", "/") for name in names if name.startswith("models--")]
