"""Who may reach what this program serves: where it listens, under which names, and with which secrets.

The server and the page ask the same of a request, and say it in their own ways. Knows nothing of HTTP beyond a Host
header.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import os
import socket
from collections.abc import Collection, Sequence
from pathlib import Path

from mlx_qwen35.errors import ConfigError
from mlx_qwen35.loopback import is_loopback, name_of

BACKLOG = 1024  # connections that the system accepts before we do
LONGEST_SECRET = 512  # characters


def is_own_host(host: str, allowed: Collection[str], *, only_loopback: bool) -> bool:
    """Whether a Host header names this machine, so that no page rebound its own name to it.

    allowed: further names, in lower case   only_loopback: nothing beyond this computer can connect
    """
    name = name_of(host)
    if is_loopback(name) or name in allowed:
        return True
    # A page that rebinds a name sends that name: an address, or the machine's own name, is no such page.
    return not only_loopback and (_is_address(name) or name in _own_names())


def read_secrets(what: str, given: Sequence[str], files: Sequence[Path], variable: str) -> tuple[str, ...]:
    """Keys or passwords of the command line, of files (one a line) and of the environment's `variable`, once each.

    what: one of them, for people. Raises ConfigError for a file that holds none, or cannot be read.
    """
    secrets = [*given]
    for path in files:
        try:
            lines = path.expanduser().read_text().splitlines()
        except (OSError, UnicodeDecodeError) as error:
            reason = (error.strerror or str(error)).lower() if isinstance(error, OSError) else "it is not UTF-8 text"
            raise ConfigError(f"Cannot read the {what} in {path}: {reason}. Give a file with one a line.") from None
        found = [line.strip() for line in lines if line.strip()]
        if not found:
            raise ConfigError(f"{path} holds no {what}; write one a line.")
        secrets += found
    if from_environment := os.environ.get(variable, "").strip():
        secrets.append(from_environment)
    return tuple(dict.fromkeys(secrets))


def is_known(given: str, secrets: Collection[str]) -> bool:
    """Whether it is one of them, in a time that says nothing of how near a guess was, nor of a secret's length."""
    digest = _digest(given)
    return sum(hmac.compare_digest(digest, _digest(secret)) for secret in secrets) > 0


def listen(host: str, port: int) -> socket.socket:
    """A listening socket at an address or at localhost. Raises OSError where that cannot be had."""
    address = "127.0.0.1" if host.lower() == "localhost" else host.strip("[]")
    listener = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
    try:
        # Without it a restart within a minute would find its own port taken.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((address, port))
        listener.listen(BACKLOG)
    except OSError:
        listener.close()
        raise
    return listener


def url_of(listener: socket.socket) -> str:
    """The base URL of what listens there; of every address of this machine, under the machine's name."""
    address, port = listener.getsockname()[:2]
    if ipaddress.ip_address(address).is_unspecified:
        address = socket.gethostname()
    return f"http://[{address}]:{port}" if ":" in address else f"http://{address}:{port}"


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).digest()


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _own_names() -> tuple[str, str]:
    name = socket.gethostname().lower().removesuffix(".local")
    return name, f"{name}.local"
