"""clients.toml at the door: each client as plain data."""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass, fields
from pathlib import Path

FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Client:
    """One row of the table; fields as clients.toml explains them."""

    key: str
    name: str
    session: str
    checks: tuple[str, ...]
    pip: tuple[str, ...] = ()
    npm: tuple[str, ...] = ()
    word: str = ""
    seconds: int = 120

    @property
    def model(self) -> str:
        """The checkpoint that answers it."""
        return "puppet" if self.word else "demo"

    @property
    def expected(self) -> tuple[str, ...]:
        """The names of all checks that its session reports."""
        if self.word:
            return self.checks
        return tuple(name + form for name in self.checks for form in ("", ", streamed"))

    @property
    def package(self) -> str:
        """The package it is named for, as a folder can be called."""
        return re.sub(r"[^a-z0-9-]+", "-", self._pin[0]).strip("-")

    @property
    def version(self) -> str:
        return self._pin[1]

    @property
    def _pin(self) -> tuple[str, str]:
        name, _, version = (*self.pip, *self.npm)[0].rpartition("==" if self.pip else "@")
        return name, version


def read_clients() -> list[Client]:
    """All clients, in the order of the file. ValueError where it says something else than a client."""
    known = {field.name for field in fields(Client)} - {"key"}
    clients = []
    for key, row in tomllib.loads((FOLDER / "clients.toml").read_text()).items():
        if extra := set(row) - known:
            raise ValueError(f"clients.toml: {key} has {', '.join(sorted(extra))}, which no client has")
        lists = {name: tuple(value) for name, value in row.items() if isinstance(value, list)}
        client = Client(key, **{**row, **lists})
        if not (FOLDER / "sessions" / client.session).is_file():
            raise ValueError(f"clients.toml: {key} has the session {client.session}, which is not there")
        clients.append(client)
    return clients
