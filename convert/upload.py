"""A finished conversion to the hub, through huggingface_hub. Looks for a login before hours of work, not after."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mlx_qwen35.convert.journal import is_interrupted
from mlx_qwen35.errors import CheckpointError, UserError
from mlx_qwen35.hub.cache import is_hub_id


class UploadError(UserError):
    """The hub did not take the files. The conversion itself is complete on the disk."""


def check_upload(hub_id: str) -> None:
    """Raise UploadError, one line, where an upload to this repository cannot succeed."""
    if not is_hub_id(hub_id):
        raise UploadError(f"{hub_id[:120]!r} is not the name of a hub repository, such as you/Qwen3.5-4B-4bit.")
    from huggingface_hub import HfApi

    try:
        who = HfApi().whoami()
    except Exception as error:  # of huggingface_hub, of its HTTP library, or of the network
        reason = _first_line(error)
        raise UploadError(
            f"Cannot upload to {hub_id}: log in first (hf auth login, or set HF_TOKEN). {reason}"
        ) from error
    if refused := _refusal(who, hub_id.partition("/")[0]):
        raise UploadError(f"Cannot upload to {hub_id}: {refused}")


def _refusal(who: Any, owner: str) -> str:
    """Why this login cannot write there, as far as it says of itself; '' where it may."""
    who = who if isinstance(who, dict) else {}
    auth = who.get("auth") or {}
    role = (auth.get("accessToken") or {}).get("role")
    if role == "read":
        return "the token may only read. Log in with one that may write (hf auth login, or set HF_TOKEN)."
    owners = [who.get("name"), *(org.get("name") for org in who.get("orgs") or [])]
    # A fine-grained token need not name all that it may write to.
    if role == "write" and owner not in owners:
        return f"this login writes to {', '.join(str(o)[:80] for o in owners[:5])}, not to {owner}."
    return ""


def upload(folder: Path, hub_id: str) -> str:
    """Upload a finished conversion; the address of the repository. What the hub has already is not sent again."""
    if is_interrupted(folder) or not (folder / "config.json").is_file():
        raise CheckpointError(f"{folder} is no finished conversion. Convert first, then upload.")
    from huggingface_hub import HfApi

    try:
        api = HfApi()
        address = api.create_repo(hub_id, exist_ok=True)
        api.upload_folder(repo_id=hub_id, folder_path=str(folder), commit_message="Converted with mlx-qwen35")
    except Exception as error:
        raise UploadError(
            f"{folder} is complete, but could not be uploaded to {hub_id}: {_first_line(error)} "
            f"Try again, which sends what is missing: hf upload {hub_id} {folder}"
        ) from error
    return str(address)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
