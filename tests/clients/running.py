"""One client's session as a child process with an environment of its own, and what came of it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from tests.clients.agents_puppet import DONE, NOTE, NOTE_FILE
from tests.clients.servers import MODEL_NAME
from tests.clients.table import FOLDER, Client

KEY = "none"  # any will do, and every client wants one


@dataclass(frozen=True)
class Outcome:
    """failures: by check, "" where it held, in the table's order. timed_out: it was ended before it had said all."""

    failures: dict[str, str]
    seconds: float
    timed_out: bool

    @property
    def passed(self) -> int:
        return sum(not failure for failure in self.failures.values())


def run(client: Client, installed: Path, url: str, work: Path) -> Outcome:
    """The session against a server. work: an empty folder, in which HOME and the folder it starts in are made."""
    home, started_in = work / "home", work / "project"
    home.mkdir(parents=True)
    started_in.mkdir()
    # A script finds its packages beside itself.
    sessions = installed / "sessions"
    shutil.copytree(FOLDER / "sessions", sessions, dirs_exist_ok=True)
    start = time.monotonic()
    task = {"TASK": f"Write the note about the {client.word}."} if client.word else {}
    output, error, timed_out = _child(client, installed, _environment(installed, home, url) | task, started_in)
    (work / "stdout.txt").write_text(output)
    (work / "stderr.txt").write_text(error)
    last = (error.strip().splitlines() or ["nothing on stderr"])[-1][:300]
    why = f"not done within {client.seconds} s" if timed_out else f"the session ended early: {last}"
    failures = dict.fromkeys(client.expected, why)
    failures |= _judged(client, started_in, output, error) if client.word else _reported(output)
    if extra := set(failures) - set(client.expected):
        raise ValueError(f"{client.session} reports {', '.join(sorted(extra))}, which clients.toml does not name")
    return Outcome(failures, round(time.monotonic() - start, 1), timed_out)


def _environment(installed: Path, home: Path, url: str) -> dict[str, str]:
    """Nothing of the user's: no keys, no settings, no proxies."""
    programs = [installed / "bin", installed / "node_modules" / ".bin"]
    node = [Path(found).parent for found in (shutil.which("node"),) if found]
    paths = [*programs, *node, "/usr/local/bin", "/usr/bin", "/bin"]
    where = {"HOME": str(home), "PATH": os.pathsep.join(map(str, paths)), "LANG": "C.UTF-8", "TERM": "dumb"}
    server = {"BASE_URL": url, "MODEL": MODEL_NAME, "OPENAI_API_KEY": KEY, "ANTHROPIC_API_KEY": KEY}
    return {**where, **server, "DO_NOT_TRACK": "1", "CI": "1"}


def _child(client: Client, installed: Path, environment: dict[str, str], folder: Path) -> tuple[str, str, bool]:
    script = str(installed / "sessions" / client.session)
    program = {".py": str(installed / "bin" / "python"), ".mjs": "node", ".sh": "/bin/sh"}[Path(script).suffix]
    # A group of its own, so that what a client has started ends with it.
    child = subprocess.Popen(
        [program, script],
        env=environment,
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    try:
        output, error = child.communicate(timeout=client.seconds)
        timed_out = False
    except subprocess.TimeoutExpired:
        os.killpg(child.pid, signal.SIGKILL)
        output, error = child.communicate()
        timed_out = True
    return output, error, timed_out


def _judged(client: Client, project: Path, output: str, error: str) -> dict[str, str]:
    """What an agent program did and said. It reports nothing by itself."""
    note = project / NOTE_FILE
    written = note.read_text().strip() if note.is_file() else None
    last = " ".join((output.strip() or error.strip())[-300:].split()) or "nothing"
    failures = {
        "file": "" if written == NOTE else f"{NOTE_FILE} has {written!r}; the program said: {last}",
        "answer": "" if DONE in output else f"the program said: {last}",
    }
    return {check: failures[check] for check in client.checks}


def _reported(output: str) -> dict[str, str]:
    """The checks in what a session printed; whatever else its client prints is not ours."""
    found: dict[str, str] = {}
    for line in output.splitlines():
        if line.startswith('{"check":'):
            row = json.loads(line)
            found[row["check"]] = row["failure"]
    return found
