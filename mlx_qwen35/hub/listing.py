"""What a repository on the hub holds, and which of its files a model needs.

Only data is ever fetched: configuration, tokenizer, template, safetensors. Never code (*.py), never pickles.
"""

import json
import re
from collections.abc import Callable, Iterable
from typing import Any
from urllib.parse import quote

from mlx_qwen35.errors import DownloadError
from mlx_qwen35.hub.cache import Listing, RemoteFile, is_commit, remote_file
from mlx_qwen35.hub.headers import PICKLE_SUFFIXES
from mlx_qwen35.hub.http import Connection, Patience, Retry, TryAgain

MAX_ANSWER_BYTES = 64 << 20
_NEEDED = re.compile(
    r"""(?x)
    (config|generation_config|quant_plan|hf_quant_config|quantize_config)\.json
    | (tokenizer|tokenizer_config|special_tokens_map|added_tokens|vocab|chat_template)\.json
    | (preprocessor_config|video_preprocessor_config|processor_config)\.json
    | merges\.txt | tokenizer\.model | [\w.-]+\.tiktoken | chat_template\.jinja
    | additional_chat_templates/[\w.-]+\.jinja
    | (LICENSE|NOTICE|README)(\.md|\.txt)?
    | [\w.-]+\.safetensors | model\.safetensors\.index\.json
    | mtp/[\w.-]+\.safetensors | mtp/config\.json
    """
)


def is_needed(path: str) -> bool:
    return _NEEDED.fullmatch(path) is not None


def is_weight(path: str) -> bool:
    return path.endswith(".safetensors")


def fetch_listing(
    connection: Connection,
    hub_id: str,
    revision: str,
    retry: Retry,
    pause: Callable[[float], None],
) -> Listing:
    """Ask the hub for the commit that `revision` stands for and for the files a model needs.

    Raises DownloadError: no network, no such repository or revision, gated, a nonsensical answer, no safetensors.
    """
    endpoint = connection.hub.endpoint
    url = f"{endpoint}/api/models/{hub_id}/revision/{quote(revision, safe='')}?blobs=true"
    patience = Patience(retry, pause, hub_id, endpoint)
    while True:
        try:
            with connection.stream(url, hub_id) as response:
                return parse_listing(hub_id, _read_bounded(response.iter_raw(), endpoint))
        except TryAgain as error:
            patience.failed(error)


def parse_listing(hub_id: str, answer: bytes) -> Listing:
    """Check the hub's answer; every name, size and checksum in it is untrusted."""
    try:
        data = json.loads(answer)
        commit, siblings = data["sha"], data["siblings"]
        entries = [(entry["rfilename"], entry) for entry in siblings]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise DownloadError(f"The hub's answer for {hub_id} is not a listing. Is HF_ENDPOINT right?") from None
    if not isinstance(commit, str) or not is_commit(commit):
        raise DownloadError(f"The hub's answer for {hub_id} names no commit. Is HF_ENDPOINT right?")
    files = []
    for path, entry in entries:
        _refuse_escape(hub_id, path)
        if is_needed(path):
            files.append(_file(path, entry))
    listing = Listing(hub_id, commit, tuple(files))
    _refuse_without_weights(listing, [path for path, _ in entries])
    return listing


def needed_weights(listing: Listing, weight_map: dict[str, str] | None) -> tuple[RemoteFile, ...]:
    """The safetensors files to fetch: those the index names (or model*.safetensors without one), and mtp/."""
    weights = [file for file in listing.files if is_weight(file.path)]
    shards = set(weight_map.values()) if weight_map is not None else None
    chosen = [
        file
        for file in weights
        if file.path.startswith("mtp/")
        or (file.path in shards if shards is not None else file.path.startswith("model"))
    ]
    absent = sorted((shards or set()) - {file.path for file in chosen})
    if absent:
        raise DownloadError(
            f"{listing.hub_id}: its index names {absent[0][:80]!r}, which the repository does not hold. "
            "Use another repository or revision."
        )
    return tuple(chosen)


def _file(path: str, entry: dict[str, Any]) -> RemoteFile:
    lfs = entry.get("lfs")
    if isinstance(lfs, dict):
        return remote_file(path, lfs.get("size"), lfs.get("sha256"), True)
    return remote_file(path, entry.get("size"), entry.get("blobId"), False)


def _refuse_escape(hub_id: str, path: Any) -> None:
    if not isinstance(path, str) or path.startswith("/") or "\\" in path or "\0" in path or ".." in path.split("/"):
        raise DownloadError(
            f"{hub_id} lists a file named {str(path)[:80]!r}, which would leave the cache folder; nothing was "
            "fetched. Do not use this repository."
        )


def _refuse_without_weights(listing: Listing, names: list[str]) -> None:
    if any(is_weight(file.path) for file in listing.files):
        return
    if any(name.endswith(".gguf") for name in names):
        reason = "holds GGUF weights, which are not read here"
    elif any(name.endswith(PICKLE_SUFFIXES) for name in names):
        reason = "holds only pickled weights, which can run code and are never fetched"
    else:
        reason = "holds no weights"
    raise DownloadError(f"{listing.hub_id} {reason}. Choose a repository with safetensors, such as Qwen/Qwen3.5-4B.")


def _read_bounded(chunks: Iterable[bytes], endpoint: str) -> bytes:
    parts, size = [], 0
    for chunk in chunks:
        size += len(chunk)
        if size > MAX_ANSWER_BYTES:
            raise DownloadError(f"{endpoint} sends an endless listing. Is HF_ENDPOINT right?")
        parts.append(chunk)
    return b"".join(parts)
