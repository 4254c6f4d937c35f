"""Downloads killed, interrupted, and run twice at once: in real processes."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from mlx_qwen35.hub.cache import RepoCache
from mlx_qwen35.hub.download import cached_snapshot, download
from mlx_qwen35.hub.http import Hub
from tests.hub.conftest import BIG, ID, QUICK, repository
from tests.support.fake_hub import FakeHub, Fault, sha256

SCRIPT = """
import sys
from pathlib import Path
from mlx_qwen35.hub.download import download
from mlx_qwen35.hub.http import Hub
print(download("Qwen/Tiny", hub=Hub(sys.argv[1], Path(sys.argv[2]))))
"""


def start(hub: Hub) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", SCRIPT, hub.endpoint, str(hub.cache)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def part(hub: Hub) -> Path:
    return RepoCache(ID, hub.cache).folder / "blobs" / f"{sha256(repository()[BIG])}.part"


def wait_for_bytes(hub: Hub, count: int) -> None:
    deadline = time.monotonic() + 60
    while not part(hub).exists() or part(hub).stat().st_size < count:
        assert time.monotonic() < deadline, "the download never began"
        time.sleep(0.01)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_a_killed_download_resumes_where_it_was(fake: FakeHub, hub: Hub, how: signal.Signals) -> None:
    fake.faults[BIG] = Fault(hold=threading.Event(), times=1)
    process = start(hub)
    wait_for_bytes(hub, 50_000)
    os.kill(process.pid, how)
    _, said = process.communicate(timeout=60)
    assert process.returncode != 0
    assert how != signal.SIGINT or "Stopped. What has arrived is kept" in said
    assert cached_snapshot(ID, hub=hub) is None
    kept = part(hub).stat().st_size
    folder = download(ID, hub=hub, progress=lambda progress: None, retry=QUICK)
    assert (folder / BIG).read_bytes() == repository()[BIG]
    assert fake.of(BIG)[-1].headers["range"] == f"bytes={kept}-"
    assert fake.of(BIG)[-1].sent == len(repository()[BIG]) - kept


def test_two_processes_fetch_each_file_once_between_them(fake: FakeHub, hub: Hub) -> None:
    both = threading.Event()
    fake.faults[BIG] = Fault(hold=both)
    first = start(hub)
    wait_for_bytes(hub, 1)
    second = start(hub)
    assert second.stderr is not None
    while "Another process is fetching" not in (line := second.stderr.readline()):
        assert line, "the second process ended without waiting"
    both.set()
    answers = [process.communicate(timeout=120) for process in (first, second)]
    assert [first.returncode, second.returncode] == [0, 0], answers
    assert answers[0][0] == answers[1][0] != ""
    assert fake.sent(BIG) == len(repository()[BIG])
