"""Where the page is, and who may see it: settled before a model is loaded."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mlx_qwen35.access import LONGEST_SECRET, listen, read_secrets
from mlx_qwen35.errors import ConfigError
from mlx_qwen35.loopback import is_loopback

FIRST_PORT, PORTS_TRIED = 7860, 20
PASSWORD_VARIABLE = "MLX_QWEN35_APP_PASSWORD"
SHORTEST_PASSWORD = 8  # characters; at the rate that wrong tries are taken, these are out of reach


@dataclass(frozen=True)
class Door:
    """Where the page is, and who may see it.

    host: a name or address of this machine   port: None takes the first free one from 7860, 0 any
    passwords: any of them opens; none are needed on loopback   hosts: further names of this machine
    """

    host: str = "127.0.0.1"
    port: int | None = None
    passwords: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()

    @property
    def only_loopback(self) -> bool:
        return is_loopback(self.host)


def read_passwords(files: Sequence[Path]) -> tuple[str, ...]:
    """Those in files, one a line, and in the environment. Raises ConfigError for what cannot be one."""
    passwords = read_secrets("password", (), files, PASSWORD_VARIABLE)
    for password in passwords:
        if not SHORTEST_PASSWORD <= len(password) <= LONGEST_SECRET or not password.isprintable():
            raise ConfigError(f"A password has {SHORTEST_PASSWORD} to {LONGEST_SECRET} characters that can be typed.")
    return passwords


def bind(door: Door) -> socket.socket:
    """A listening socket. Raises ConfigError, before any model is loaded."""
    if not door.only_loopback and not door.passwords:
        raise ConfigError(
            f"Listening on {door.host[:80]!r} opens the page to other machines and needs a password: set "
            f"{PASSWORD_VARIABLE}, or give --password-file. Without --host it answers on this computer only."
        )
    host, port = door.host, door.port
    if port is not None and not 0 <= port <= 65535:
        raise ConfigError(f"Port {port} does not exist; give one from 1 to 65535, or 0 for any free one.")
    for candidate in [port] if port is not None else range(FIRST_PORT, FIRST_PORT + PORTS_TRIED):
        with contextlib.suppress(OSError):
            return listen(host, candidate)
    if port is not None:
        raise ConfigError(f"Port {port} on {host} is not available; give another, or none for the first free one.")
    raise ConfigError(f"No port from {FIRST_PORT} to {FIRST_PORT + PORTS_TRIED - 1} on {host} is free; give one.")
