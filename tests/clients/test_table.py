"""The table of clients is sound, and README.md shows what was last measured with it. Installs and runs nothing."""

from __future__ import annotations

import pytest

from mlx_qwen35.chat.tokenizer import Tokenizer
from tests.clients import report
from tests.clients.agents_puppet import agents_script
from tests.clients.table import FOLDER, Client, read_clients
from tests.support import real_tokenizer

CLIENTS = read_clients()


def test_the_readmes_table_is_of_these_clients() -> None:
    """Whoever changes clients.toml runs `make test-clients` again."""
    rows = [[cell.strip() for cell in line.split("|")[1:4]] for line in report.written().splitlines()[2:]]
    assert rows == [[client.name, client.version, ", ".join(client.checks)] for client in CLIENTS]


def test_every_session_belongs_to_a_client_or_to_several() -> None:
    shared = {"checks.py", "checks.mjs", "ai_sessions.mjs", "questions.json"}
    files = {path.name for path in (FOLDER / "sessions").iterdir() if path.is_file()}
    assert files == shared | {client.session for client in CLIENTS}


def test_the_puppet_knows_what_every_agent_is_told() -> None:
    """Which also says that the script is one that a puppet can follow."""
    script = agents_script(Tokenizer.from_folder(real_tokenizer.folder()))
    assert {client.word for client in CLIENTS if client.word} <= set(script.voices)


@pytest.mark.parametrize("client", CLIENTS, ids=[client.key for client in CLIENTS])
def test_versions_are_pinned(client: Client) -> None:
    for pin in (*client.pip, *client.npm):
        assert ("==" if client.pip else "@") in pin[1:]
