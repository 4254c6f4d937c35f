"""Talking to the hub: one session, who we are, when to try again, and what a refusal means to a person.

The HTTP client is the one huggingface_hub brings (`get_session`): a company's proxy or certificates set up for
huggingface_hub then serve here too, connections are kept, and a token never follows a redirect to another
host. Its own request functions are not used, since they retry without verifying content, and build headers
by asking the hub which coding agent may be running.
"""

import contextlib
import email.utils
import os
import random
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from mlx_qwen35 import __version__
from mlx_qwen35.errors import DownloadError
from mlx_qwen35.hub.cache import cache_folder

LONGEST_WAIT = 600.0  # a hub that asks for more than ten minutes is better tried by hand


@dataclass(frozen=True)
class Retry:
    """How long to keep trying: `attempts` failures in a row without progress, waiting from `first` seconds on."""

    attempts: int = 6
    first: float = 1.0
    longest: float = 30.0


@dataclass(frozen=True)
class Hub:
    """Where checkpoints come from and where they are kept.   token: reads the login; called with the first request"""

    endpoint: str
    cache: Path
    offline: bool = False
    token: Callable[[], str | None] = field(default=lambda: None, repr=False)

    @classmethod
    def from_environment(cls, offline: bool = False) -> "Hub":
        """HF_ENDPOINT, HF_HUB_CACHE / HF_HOME, HF_HUB_OFFLINE, and the token of `hf auth login` or HF_TOKEN."""
        endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
        offline = offline or _is_true("HF_HUB_OFFLINE") or _is_true("TRANSFORMERS_OFFLINE")
        return cls(endpoint, cache_folder(), offline, _token)

    def connect(self) -> "Connection":
        return Connection(self)


class HubUnreachable(DownloadError):
    """All tries to reach the hub failed: no network, or the hub is down."""


class TryAgain(Exception):
    """A failure that may pass. wait: seconds the server asked for, or None."""

    def __init__(self, reason: str, wait: float | None = None) -> None:
        super().__init__(reason)
        self.wait = wait


class Connection:
    """Streams answers of the hub. Safe to share between threads."""

    def __init__(self, hub: Hub) -> None:
        self.hub = hub

    @cached_property
    def _client(self) -> Any:
        from huggingface_hub import get_session

        return get_session()

    @cached_property
    def _token(self) -> str | None:
        return self.hub.token()

    @cached_property
    def _network_errors(self) -> tuple[type[Exception], ...]:
        # huggingface_hub 1 brings httpx, 2 brings httpx2; whichever it is has been imported by now.
        modules = [sys.modules[name] for name in ("httpx2", "httpx") if name in sys.modules]
        theirs = tuple(error for m in modules for error in (m.HTTPError, m.StreamError, m.InvalidURL))
        return (*theirs, ConnectionError)

    @contextlib.contextmanager
    def stream(self, url: str, what: str, extra: Mapping[str, str] | None = None) -> Iterator[Any]:
        """The response to GET `url`, its body unread and uncompressed; the status is 200, 206 or 416.

        Raises TryAgain for what may pass (no connection, cut, 429, 5xx), also while the body is read inside the
        `with`; DownloadError for a refusal. what: the thing asked for, as a person would name it.
        """
        headers = {"user-agent": f"mlx-qwen35/{__version__}", "accept-encoding": "identity", **(extra or {})}
        if self._token:
            headers["authorization"] = f"Bearer {self._token}"
        client = self._client
        try:
            with client.stream("GET", url, headers=headers, follow_redirects=True, timeout=10) as response:
                _raise_for_status(response.status_code, response.headers, what, self.hub.endpoint)
                if response.headers.get("content-encoding", "identity") != "identity":
                    raise DownloadError(f"The hub compressed {what} although asked not to. Is a proxy in between?")
                yield response
        except self._network_errors as error:
            raise TryAgain(f"{type(error).__name__}: {error}".rstrip(": ")) from error


class Patience:
    """Counts failures in a row, and waits between them."""

    def __init__(self, retry: Retry, pause: Callable[[float], None], what: str, endpoint: str) -> None:
        self.retry, self.pause, self.what, self.endpoint = retry, pause, what, endpoint
        self.failures = 0

    def progressed(self) -> None:
        self.failures = 0

    def failed(self, error: TryAgain) -> None:
        """Wait before the next try. Raises DownloadError when it was the last one."""
        self.failures += 1
        if self.failures >= self.retry.attempts:
            raise HubUnreachable(
                f"{self.what} could not be fetched from {self.endpoint} ({_first_line(error)}). "
                "Check the network and start again: what has arrived is kept."
            ) from error
        wait = min(self.retry.longest, self.retry.first * 2 ** (self.failures - 1)) * random.uniform(0.75, 1.25)
        if error.wait is not None:
            if error.wait > LONGEST_WAIT:
                minutes = error.wait / 60
                raise DownloadError(f"{self.endpoint} asks to wait {minutes:.0f} minutes. Start again after that.")
            wait = error.wait
        self.pause(wait)


def _raise_for_status(status: int, headers: Mapping[str, str], what: str, endpoint: str) -> None:
    if status in (200, 206, 416):
        return
    if status in (408, 425, 429) or status >= 500:
        raise TryAgain(f"the hub answers {status}", _retry_after(headers))
    code = headers.get("x-error-code", "")
    repository = what.split(":")[0]
    if code == "GatedRepo":
        line = (
            f"{repository} is gated: accept its terms at {endpoint}/{repository}, then log in "
            "(hf auth login, or set HF_TOKEN)."
        )
    elif status == 401 and "credentials" in headers.get("x-error-message", ""):
        line = f"{endpoint} does not accept your token. Log in anew (hf auth login) or correct HF_TOKEN."
    elif code == "RevisionNotFound":
        line = f"{repository} has no such revision. Leave the revision out, or look it up on the hub."
    elif code == "EntryNotFound":
        line = f"{what} is not on the hub although it was listed. Try again."
    elif status in (401, 404):
        line = (
            f"{repository} is not on {endpoint}, or it is private. Check the spelling, or log in "
            "(hf auth login, or set HF_TOKEN)."
        )
    elif status == 403:
        line = f"{endpoint} refuses {what} (403). Check that your token may read it (hf auth whoami)."
    else:
        line = f"{endpoint} answers {status} for {what}. Try again later."
    raise DownloadError(line)


def _retry_after(headers: Mapping[str, str]) -> float | None:
    value = headers.get("retry-after", "").strip()
    if value.isdigit():
        return float(value[:9])
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (TypeError, ValueError, OverflowError):
        return None


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def _is_true(name: str) -> bool:
    return os.environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE")


def _token() -> str | None:
    if _is_true("HF_HUB_DISABLE_IMPLICIT_TOKEN"):
        return None
    from huggingface_hub import get_token

    return get_token()
