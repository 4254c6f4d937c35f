"""A repository of the hub as a local folder: what is missing, is there room, fetch it, show it as a snapshot.

Fetching is ours, since huggingface_hub neither resumes a file across calls nor verifies its content; the cache
layout is huggingface_hub's, so that other tools see the files. Only data is fetched, nothing is executed.
"""

import contextlib
import logging
import shutil
import threading
from dataclasses import replace
from pathlib import Path

from mlx_qwen35.errors import CheckpointError, DownloadError
from mlx_qwen35.hub.cache import Listing, RemoteFile, RepoCache, is_hub_id
from mlx_qwen35.hub.fetch import Watch, disk_error, fetch_blob
from mlx_qwen35.hub.headers import INDEX_NAME, is_inside, read_checkpoint, read_index
from mlx_qwen35.hub.http import Connection, Hub, HubUnreachable, Retry
from mlx_qwen35.hub.listing import fetch_listing, is_needed, is_weight, needed_weights
from mlx_qwen35.hub.names import resolve
from mlx_qwen35.hub.parallel import in_parallel, pausing
from mlx_qwen35.hub.progress import Bar, Meter, ProgressCallback, gigabytes

log = logging.getLogger(__name__)

SPARE_DISK_BYTES = 64 << 20


def ensure_local(
    name: str,
    revision: str | None = None,
    *,
    offline: bool = False,
    update: bool = False,
    progress: ProgressCallback | None = None,
) -> Path:
    """The local folder of a model given by any name that `resolve` knows, downloaded if need be.

    A complete earlier download is used without asking the hub, unless `update`. Raises UserError, one line.
    """
    located = resolve(name)
    if located.path is not None:
        return located.path
    hub = Hub.from_environment(offline)
    if not update and (snapshot := cached_snapshot(located.hub_id, revision, hub)):
        return snapshot
    return download(located.hub_id, revision, progress=progress, hub=hub)


def download(
    hub_id: str,
    revision: str | None = None,
    *,
    progress: ProgressCallback | None = None,
    hub: Hub | None = None,
    retry: Retry | None = None,
) -> Path:
    """The snapshot folder of a repository, with every file a model needs, each of its full size.

    Asks the hub what the revision (default main) holds, fetches what is absent or cut short, verifies it by
    checksum. Offline, or when the hub cannot be reached, a complete earlier snapshot serves. progress: called
    with Progress, from other threads; by default a bar on stderr. Raises DownloadError, one line.
    """
    hub, retry, revision = hub or Hub.from_environment(), retry or Retry(), revision or "main"
    repo = repo_cache(hub, hub_id, revision)
    bar = Bar()
    try:
        if hub.offline:
            return _earlier(repo, revision, f"{hub_id} is not downloaded, and offline mode is on.")
        connection = hub.connect()
        try:
            listing = ask(connection, hub_id, revision, retry)
        except HubUnreachable as error:
            folder = _earlier(repo, revision, str(error))
            bar.note(f"{hub.endpoint} cannot be reached; using {hub_id} as downloaded before.")
            return folder
        return _Download(connection, repo, listing, retry, bar, progress).run(revision)
    except OSError as error:
        raise disk_error(error, hub.cache) from error
    except KeyboardInterrupt:
        bar.note("Stopped. What has arrived is kept; the next run continues from there.")
        raise
    finally:
        bar.close()


def cached_snapshot(hub_id: str, revision: str | None = None, hub: Hub | None = None) -> Path | None:
    """The folder of an earlier download if it is complete; no network. A file cut short counts as absent."""
    hub, revision = hub or Hub.from_environment(offline=True), revision or "main"
    repo = repo_cache(hub, hub_id, revision)
    commit = repo.commit(revision)
    if commit is None or missing_files(repo, commit):
        return None
    return repo.snapshot(commit)


def missing_files(repo: RepoCache, commit: str) -> list[str]:
    """Names of the files a snapshot lacks or has in the wrong size, as far as its listing is known."""
    listing = repo.load_listing(commit)
    snapshot = repo.snapshot(commit)
    if listing is None:
        try:
            read_checkpoint(snapshot)  # fetched by another tool: the headers tell whether it is whole
        except CheckpointError:
            return [INDEX_NAME]
        return [] if (snapshot / "config.json").is_file() else ["config.json"]
    needed = replace(listing, files=tuple(file for file in listing.files if is_needed(file.path)))
    index = needed.find(INDEX_NAME)
    if index is not None and not repo.holds(commit, index):
        return [INDEX_NAME]
    try:
        files = _needed_files(needed, snapshot if index else None)
    except (CheckpointError, DownloadError):
        return [INDEX_NAME]
    return [file.path for file in files if not repo.holds(commit, file)]


class _Download:
    """One call of `download`, from a listing to a snapshot."""

    def __init__(
        self,
        connection: Connection,
        repo: RepoCache,
        listing: Listing,
        retry: Retry,
        bar: Bar,
        progress: ProgressCallback | None,
    ) -> None:
        self.connection, self.repo, self.listing, self.retry = connection, repo, listing, retry
        self.callback = progress or bar
        self.note = bar.note if progress is None else log.info
        self.stop = threading.Event()

    def run(self, revision: str) -> Path:
        commit = self.listing.commit
        snapshot = self.repo.snapshot(commit)
        index = self.listing.find(INDEX_NAME)
        if index is not None and not self.repo.holds(commit, index):
            self._fetch((index,), lambda progress: None)  # it says which weights belong to the model
        files = _needed_files(self.listing, snapshot if index else None)
        missing = tuple(file for file in files if not self.repo.holds(commit, file))
        if missing:
            self._check_room(missing)
            self.repo.save_listing(self.listing)
            self._fetch(missing, self.callback)
        # Last, so that no tool finds an unfinished snapshot under the name of the branch. All may be here in a
        # cache that is shared and read-only.
        with contextlib.suppress(OSError):
            self.repo.remember(revision, commit)
        return snapshot

    def _fetch(self, files: tuple[RemoteFile, ...], callback: ProgressCallback) -> None:
        unique = {file.digest: file for file in files}
        meter = Meter(self.listing.hub_id, sum(file.size for file in unique.values()), callback)
        watch = Watch(meter.advance, meter.found, pausing(self.stop), self.note)

        def fetch(file: RemoteFile) -> None:
            fetch_blob(self.connection, self.listing, file, self.repo, self.retry, watch)
            for same in (other for other in files if other.digest == file.digest):
                self.repo.link(self.listing.commit, same)

        in_parallel(unique.values(), fetch, self.stop)

    def _check_room(self, missing: tuple[RemoteFile, ...]) -> None:
        """Say how much is to come, and refuse when the disk cannot hold it."""
        begun = sum(self._begun(file) for file in missing)
        coming = max(0, sum(file.size for file in missing) - begun)
        folder = next(path for path in (self.repo.cache, *self.repo.cache.parents) if path.exists())
        free = shutil.disk_usage(folder).free
        if coming + SPARE_DISK_BYTES > free:
            raise DownloadError(
                f"{self.listing.hub_id} needs {gigabytes(coming)} more on the disk of {self.repo.cache}, which has "
                f"{gigabytes(free)} free. Free some space, or set HF_HOME to a folder on another disk."
            )
        kept = f", {gigabytes(begun)} of it here already" if begun else ""
        count = f"{len(missing)} file{'s' if len(missing) > 1 else ''}"
        self.note(
            f"Fetching {self.listing.hub_id}: {gigabytes(coming + begun)} in {count}{kept}; "
            f"{gigabytes(free)} free in {self.repo.cache}."
        )

    def _begun(self, file: RemoteFile) -> int:
        blob = self.repo.blob(file)
        sizes = [path.stat().st_size for path in (blob, blob.with_name(blob.name + ".part")) if path.exists()]
        return min(file.size, max(sizes, default=0))


def _needed_files(listing: Listing, snapshot: Path | None) -> tuple[RemoteFile, ...]:
    """Small files first, then the weights that the index in `snapshot` names (None: the repository has none)."""
    weight_map = read_index(snapshot / INDEX_NAME) if snapshot else None
    small = tuple(file for file in listing.files if not is_weight(file.path))
    return small + needed_weights(listing, weight_map)


def ask(connection: Connection, hub_id: str, revision: str, retry: Retry) -> Listing:
    """The listing of a revision, without long patience."""
    # Without a network the first answer should come soon, so fewer tries than for a file half fetched.
    brief = replace(retry, attempts=min(3, retry.attempts))
    return fetch_listing(connection, hub_id, revision, brief, pausing(threading.Event()))


def _earlier(repo: RepoCache, revision: str, reason: str) -> Path:
    """A complete earlier snapshot, or DownloadError with the reason why nothing better can be had."""
    commit = repo.commit(revision)
    if commit is None:
        raise DownloadError(reason)
    if missing := missing_files(repo, commit):
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise DownloadError(f"{repo.hub_id} is not completely downloaded ({missing[0]}{more} missing). {reason}")
    return repo.snapshot(commit)


def repo_cache(hub: Hub, hub_id: str, revision: str) -> RepoCache:
    """The repository's place in the cache. Raises DownloadError for names that are none."""
    if not is_hub_id(hub_id):
        raise DownloadError(f"{hub_id[:120]!r} is not the name of a hub repository, such as Qwen/Qwen3.5-4B.")
    if not is_inside(revision):
        raise DownloadError(f"{revision[:120]!r} is not a revision. Give a branch, a tag or a commit.")
    return RepoCache(hub_id, hub.cache)
