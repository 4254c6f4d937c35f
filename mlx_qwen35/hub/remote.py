"""A look at a repository before it is downloaded: its config and tensor headers, by range requests."""

import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlx_qwen35.errors import DownloadError
from mlx_qwen35.hub.cache import Listing, RemoteFile
from mlx_qwen35.hub.download import ask, repo_cache
from mlx_qwen35.hub.fetch import file_url
from mlx_qwen35.hub.headers import INDEX_NAME, MAX_HEADER_BYTES, TensorEntry, header_length, parse_header
from mlx_qwen35.hub.http import Connection, Hub, Patience, Retry, TryAgain
from mlx_qwen35.hub.jsonfile import DEFAULT_LIMIT_BYTES, parse_object
from mlx_qwen35.hub.listing import is_weight, needed_weights
from mlx_qwen35.hub.parallel import in_parallel, pausing

FIRST_HEADER_BYTES = 1 << 18


@dataclass(frozen=True)
class RemoteCheckpoint:
    """What a repository holds, read without downloading it. TensorEntry.file is its path in the repository."""

    hub_id: str
    commit: str
    config: dict[str, Any]
    tensors: dict[str, TensorEntry]
    download_bytes: int


def remote_headers(
    hub_id: str, revision: str | None = None, *, hub: Hub | None = None, retry: Retry | None = None
) -> RemoteCheckpoint:
    """Config and tensor headers of a repository, by range requests: enough for a memory plan before a download.

    Raises DownloadError, or CheckpointError for a header that read_header would refuse.
    """
    hub, retry, revision = hub or Hub.from_environment(), retry or Retry(), revision or "main"
    repo_cache(hub, hub_id, revision)
    if hub.offline:
        raise DownloadError(f"Offline mode is on; the headers of {hub_id} cannot be read.")
    connection = hub.connect()
    listing = ask(connection, hub_id, revision, retry)
    reader = _RangeReader(connection, listing, retry)
    config = listing.find("config.json")
    if config is None:
        raise DownloadError(f"{hub_id} has no config.json. Choose a model repository such as Qwen/Qwen3.5-4B.")
    index = listing.find(INDEX_NAME)
    weight_map = _weight_map(hub_id, reader.json(index, MAX_HEADER_BYTES)) if index else None
    weights = needed_weights(listing, weight_map)
    headers: dict[str, dict[str, TensorEntry]] = {}
    stop = threading.Event()
    in_parallel(weights, lambda file: headers.update({file.path: reader.tensors(file)}), stop)
    tensors = {name: entry for path in sorted(headers) for name, entry in headers[path].items()}
    small = sum(file.size for file in listing.files if not is_weight(file.path))
    size = small + sum(file.size for file in weights)
    return RemoteCheckpoint(hub_id, listing.commit, reader.json(config, DEFAULT_LIMIT_BYTES), tensors, size)


class _RangeReader:
    """Reads pieces of remote files into memory."""

    def __init__(self, connection: Connection, listing: Listing, retry: Retry) -> None:
        self.connection, self.listing, self.retry = connection, listing, retry
        self.pause = pausing(threading.Event())

    def json(self, file: RemoteFile, limit: int) -> dict[str, Any]:
        if file.size > limit:
            raise DownloadError(f"{self.listing.hub_id}: {file.path} is too large ({file.size:,} bytes).")
        try:
            return parse_object(self.read(file, file.size))
        except ValueError as error:
            raise DownloadError(f"{self.listing.hub_id}: {file.path} {error}.") from None

    def tensors(self, file: RemoteFile) -> dict[str, TensorEntry]:
        path = Path(self.listing.hub_id, file.path)
        start = self.read(file, min(FIRST_HEADER_BYTES, file.size))
        end = 8 + header_length(start, file.size, path)
        if end > len(start):
            start = self.read(file, end)
        return parse_header(start[8:end], path, file.size).tensors

    def read(self, file: RemoteFile, count: int) -> bytes:
        """The first `count` bytes of a file, also from a server that ignores ranges."""
        url, what = file_url(self.connection, self.listing, file), f"{self.listing.hub_id}: {file.path}"
        patience = Patience(self.retry, self.pause, what, self.connection.hub.endpoint)
        while True:
            try:
                with self.connection.stream(url, what, {"range": f"bytes=0-{count - 1}"}) as response:
                    content = bytearray()
                    for chunk in response.iter_raw():
                        content += chunk
                        if len(content) >= count:
                            return bytes(content[:count])
                raise TryAgain("the connection was cut")
            except TryAgain as error:
                patience.failed(error)


def _weight_map(hub_id: str, index: dict[str, Any]) -> dict[str, str]:
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(shard, str) for shard in weight_map.values()):
        raise DownloadError(f"{hub_id}: {INDEX_NAME} has no weight_map from tensors to files.")
    return weight_map
