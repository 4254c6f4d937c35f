"""`mlx-qwen35 app demo` as `make app` runs it, in a process of its own that may reach nothing beyond this computer."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from gradio_client import Client

from mlx_qwen35 import demo_checkpoint
from mlx_qwen35.app.page import DEMO_NOTE
from tests.app.conftest import Blocks, ask, texts

pytestmark = pytest.mark.skipif(
    not (Path(str(demo_checkpoint.__file__)).parent / "config.json").is_file(),
    reason="the demo checkpoint is not in this tree",
)
# Whatever leaves loopback is written down and refused.
PROGRAM = """
import sys
from tests.browser.served import refuse_what_leaves_loopback

sys.addaudithook(refuse_what_leaves_loopback)
from mlx_qwen35.cli import main
sys.exit(main(["app", "demo", "--port", "0", "--no-browser"]))
"""


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The page's address. Afterwards: Ctrl-C ends it in good order though pages are open, and nothing went outside."""
    home = str(tmp_path_factory.mktemp("home"))
    environment = os.environ | {"XDG_STATE_HOME": home, "HOME": home}
    command = [sys.executable, "-c", PROGRAM]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=environment) as process:
        assert process.stderr is not None
        said = []
        for line in process.stderr:
            said.append(line)
            if found := re.search(r"answers at (http://127\.0\.0\.1:\d+) ", line):
                break
        else:
            pytest.fail("".join(said))
        open_page = Client(found[1], verbose=False)
        try:
            yield found[1]
        finally:
            ask(open_page, "What is this?", thinking=True)
            process.send_signal(signal.SIGINT)
            out, rest = process.communicate(timeout=60)
    assert "OUTSIDE" not in "".join(said) + rest
    assert "Traceback" not in rest
    assert out == ""
    assert process.returncode == 0


def said(client: Client, question: str, thinking: bool) -> tuple[Blocks, str]:
    result: Any = ask(client, question, thinking=thinking).result(timeout=60)
    return result[0], result[1]


def test_thinking_on_gives_a_folded_block_before_the_answer(url: str) -> None:
    blocks, _ = said(Client(url, verbose=False), "How do I convert a model?", thinking=True)
    assert len(texts(blocks, title="Thought")) == 1
    assert "convert" in " ".join(texts(blocks))


def test_without_thinking_there_is_no_such_block_in_any_turn(url: str) -> None:
    client = Client(url, verbose=False)
    said(client, "How do I convert a model?", thinking=False)
    blocks, status = said(client, "How do I start the app?", thinking=False)
    assert len(texts(blocks, role="user")) == 2
    assert len(texts(blocks)) == 2
    assert all(block["metadata"] is None for block in blocks)
    assert "tokens/s" in status


def test_the_demo_s_page_says_what_it_is(url: str) -> None:
    components: list[Any] = Client(url, verbose=False).config["components"]
    headings = [str(c["props"].get("value")) for c in components if c["type"] == "markdown"]
    assert any(DEMO_NOTE.split("{")[0] in heading for heading in headings)
