"""What a person can get wrong costs one clear line on stderr and exit status 2, never a traceback or a usage dump."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.cli.conftest import Run


def complaint(done) -> str:
    """The one line of a command that failed."""
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("mlx-qwen35: ")
    return lines[0]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["chat", "--temprature", "1"], "unknown option --temprature; did you mean --temperature?"),
        (["generate", "hi", "--max-token=5"], "unknown option --max-token; did you mean --max-tokens?"),
        (["models", "--jsn"], "unknown option --jsn; did you mean --json?"),
        (["--verison"], "unknown option --verison; did you mean --version?"),
        (["chta"], "unknown command 'chta'; did you mean chat?"),
        (
            ["frobnicate"],
            "unknown command 'frobnicate'; known are chat, generate, models, plan, convert, eval, app, serve, cache, "
            "doctor, bench, kernels",
        ),
        (["generate", "hi", "--preset", "thinkin"], "unknown --preset 'thinkin'; did you mean thinking?"),
        (["generate", "two", "words"], "generate has no place for 'words'"),
        (["generate", "hi", "--temperature", "warm"], "--temperature: 'warm' is not a number"),
        (["generate", "hi", "--temperature", "nan"], "--temperature: nan is not between 0 and 100"),
        (["generate", "hi", "--top-p", "2"], "--top-p: 2 is not between 0 and 1"),
        (["chat", "--context", "99999999"], "--context: 99999999 is not between 1 and 16,777,216"),
        (["generate", "hi", "--top-k", "1.5"], "--top-k: '1.5' is not a number"),
        (["generate", "hi", "--seed"], "--seed: expected one argument"),
        (["convert"], "the following arguments are required: SRC"),
        (["generate", ""], "The prompt is empty"),
        (["generate", "-"], "The prompt is empty"),
        (["chat"], "The prompt is empty"),
        (["generate", "hi", "--tools", "no-such-file.json"], "Cannot read no-such-file.json"),
        (["generate", "hi", "--model", "27bb"], "Did you mean 27b"),
        (["serve", "demo", "--allow-origin", "localhost:3000"], "--allow-origin: 'localhost:3000' is no origin; give"),
        (["serve", "demo", "--allow-origin", "http://pages/chat"], "'http://pages/chat' is no origin"),
        (["serve", "demo", "--allow-host", "http://mac.local"], "--allow-host: 'http://mac.local' is no name; give"),
        (["serve", "demo", "--allow-host", "mac.local:8080"], "'mac.local:8080' is no name"),
        (["serve", "demo", "--alias", ""], "--alias: it is empty"),
        (["serve", "demo", "--disk", ""], "--disk: it is empty"),
        (["serve", "demo", "--prefix-memory", "nan"], "--prefix-memory: nan is not between 0 and 4,096"),
        (["serve", "demo", "--prefix-memory", "-1"], "--prefix-memory: -1 is not between 0 and 4,096"),
        (["serve", "demo", "--api-key-file", "no-such-keys"], "Cannot read the key in no-such-keys: no such file"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else "",
)
def test_a_wrong_command_line_is_one_line(run: Run, arguments: list[str], expected: str) -> None:
    assert expected in complaint(run(*arguments))


def test_a_model_that_is_nowhere_is_one_line_without_a_network(run: Run) -> None:
    assert "no/such/model" in complaint(run("chat", "no/such/model", stdin="hi"))
    assert "no-such/model" in complaint(run("chat", "no-such/model", "--offline", stdin="hi"))
    assert "127.0.0.1:9" in complaint(run("chat", "no-such/model", stdin="hi"))


def test_a_folder_without_a_config_is_one_line(run: Run, tmp_path: Path) -> None:
    assert "No config.json in" in complaint(run("chat", str(tmp_path), stdin="hi"))


def test_a_control_sequence_in_a_name_is_not_printed(run: Run) -> None:
    assert "\x1b" not in complaint(run("chat", "./a\x1b[31mb", stdin="hi"))


@pytest.fixture
def copy(tiny_chat: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_chat, tmp_path / "copy"))


def test_truncated_weights_are_one_line(run: Run, copy: Path) -> None:
    weights = copy / "model.safetensors"
    with weights.open("r+b") as file:
        file.truncate(weights.stat().st_size // 2)
    assert "model.safetensors" in complaint(run("chat", str(copy), stdin="hi"))


def test_a_header_of_a_huge_length_is_one_line(run: Run, copy: Path) -> None:
    with (copy / "model.safetensors").open("r+b") as file:
        file.write((1 << 60).to_bytes(8, "little"))
    assert "model.safetensors" in complaint(run("chat", str(copy), stdin="hi"))


def test_a_model_too_large_for_the_memory_is_refused_with_its_table(run: Run, copy: Path) -> None:
    write_huge(copy)
    done = run("chat", str(copy), stdin="hi")
    assert done.returncode == 2
    assert done.stdout == ""
    first, *table = done.stderr.splitlines()
    assert first.startswith("mlx-qwen35: ")
    assert "this machine has" in first
    assert [line.split()[0] for line in table[:3]] == ["weights", "KV", "DeltaNet"]
    assert "--force" in table[-1]
    assert "Traceback" not in done.stderr


def write_huge(folder: Path) -> None:
    """A sparse file in place of the weights: a header of one tensor of 2 TiB, and no disk space."""
    size = 2 << 40
    header = {"model.embed_tokens.weight": {"dtype": "BF16", "shape": [1 << 20, 1 << 20], "data_offsets": [0, size]}}
    text = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + size)


def test_an_unreadable_prompt_is_one_line(run: Run) -> None:
    assert "not UTF-8" in complaint(run("generate", "-", stdin=b"\xff\xfe"))


def test_tools_that_are_none_are_one_line(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "tools.json"
    for content, expected in (("{", "not JSON"), ("[1]", "tools[0]"), ('{"a": 1}', "list of tools")):
        file.write_text(content)
        assert expected in complaint(run("generate", "hi", "--tools", str(file)))


def test_forms_that_are_none_are_one_line(run: Run, tmp_path: Path) -> None:
    schema = tmp_path / "schema.json"
    schema.write_text("{")
    for options, expected in (
        (["--schema", str(schema)], "not JSON"),
        (["--schema", str(tmp_path / "none")], "no such file"),
        (["--regex", "a", "--choice", "a"], "one form"),
        (["--reasoning-effort", "some"], "unknown --reasoning-effort"),
        (["--thinking-budget", "-1"], "not between"),
    ):
        done = run("generate", "Hello", "--model", "demo", *options)
        assert done.returncode == 2
        assert len(done.stderr.splitlines()) == 1
        assert expected in done.stderr


def test_debug_shows_where_an_error_comes_from(run: Run) -> None:
    done = run("chat", "no/such/model", "--debug", stdin="hi")
    assert done.returncode == 2
    assert "Traceback" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("mlx-qwen35: ")
