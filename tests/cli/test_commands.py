"""generate, models, convert and chat through a pipe: the answer on stdout, everything else on stderr."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import IO

import pytest

from mlx_qwen35 import blas
from mlx_qwen35.cli import main
from tests.cli.conftest import Run

LIGHT = ("mlx", "mlx_lm", "gradio", "transformers", "torch", "tokenizers", "prompt_toolkit")


@pytest.mark.parametrize("arguments", [["--help"], ["chat", "--help"], ["models"], ["--version"]])
def test_what_needs_no_model_loads_no_library_for_one(arguments: list[str], clean_environment: dict[str, str]) -> None:
    check = (
        "import sys; from mlx_qwen35.cli import main\n"
        f"try: main({arguments!r})\nexcept SystemExit: pass\n"
        f"print(*[name for name in {LIGHT!r} if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, env=clean_environment)
    assert done.returncode == 0
    assert done.stderr.strip() == ""
    assert done.stdout


def test_help_shows_an_example_for_every_command(run: Run) -> None:
    for command in ("chat", "generate", "models", "convert", "app"):
        done = run(command, "--help")
        assert done.returncode == 0
        assert f"Example: mlx-qwen35 {command}" in done.stdout


def test_generate_puts_the_answer_on_stdout_and_the_reasoning_on_stderr(run: Run, tiny_chat: Path) -> None:
    options = ["--model", str(tiny_chat), "--max-tokens", "12", "--seed", "1"]
    plain = run("generate", "Hello", "--no-think", *options)
    assert plain.returncode == 0
    assert plain.stdout.strip()
    assert plain.stderr == "(cut off after 12 tokens)\n"
    thinking = run("generate", "Hello", "--think", *options)
    assert thinking.stdout == ""
    assert len(thinking.stderr.splitlines()) >= 2


def test_the_same_seed_gives_the_same_answer_from_argument_and_stdin(run: Run, tiny_chat: Path) -> None:
    options = ["--model", str(tiny_chat), "--max-tokens", "12", "--seed", "7", "--no-think"]
    assert run("generate", "Hello", *options).stdout == run("generate", "-", *options, stdin="Hello").stdout


def test_json_is_one_object_that_says_everything(run: Run, tiny_chat: Path) -> None:
    done = run(
        "generate", "Hello", "--model", str(tiny_chat), "--json", "--max-tokens", "9", "--temperature", "0", "--think"
    )
    assert done.returncode == 0
    assert done.stderr == ""
    answer = json.loads(done.stdout)
    assert set(answer) == {"content", "reasoning", "tool_calls", "finish_reason", "usage", "model", "sampling"}
    assert answer["finish_reason"] == "length"
    assert answer["reasoning"]
    assert answer["content"] == ""
    assert answer["usage"]["completion_tokens"] == 9
    assert answer["sampling"]["temperature"] == 0


def test_an_answer_takes_the_form_it_is_asked_for(run: Run, tiny_chat: Path, tmp_path: Path) -> None:
    schema = tmp_path / "schema.json"
    schema.write_text('{"type": "array", "items": {"enum": ["a", 1]}, "maxItems": 2}')
    options = ["--model", str(tiny_chat), "--seed", "1"]
    assert isinstance(json.loads(run("generate", "Hello", "--schema", str(schema), *options).stdout), list)
    assert run("generate", "Hello", "--choice", "yes", "--choice", "no", *options).stdout.strip() in ("yes", "no")
    assert run("chat", str(tiny_chat), "--regex", "[0-9]{3}", stdin="Hello").stdout.strip().isdigit()


def test_thinking_ends_with_its_budget(run: Run) -> None:
    done = run("generate", "What is MLX?", "--model", "demo", "--think", "--thinking-budget", "4", "--temperature", "0")
    assert "limited time" in done.stderr
    assert done.stdout.strip()


def test_a_piped_question_is_answered_once(run: Run, tiny_chat: Path) -> None:
    done = run("chat", str(tiny_chat), "--max-tokens", "8", "--no-think", stdin="one\ntwo\n")
    assert done.returncode == 0
    assert done.stdout.strip()
    assert "\x1b" not in done.stdout + done.stderr
    assert ">" not in done.stderr


def test_the_last_model_is_taken_again(run: Run, tiny_chat: Path) -> None:
    options = ["--json", "--max-tokens", "2"]
    run("generate", "Hello", "--model", str(tiny_chat), *options)
    assert json.loads(run("generate", "Hello", *options).stdout)["model"] == str(tiny_chat)


def test_models_lists_the_family_for_people_and_machines(run: Run) -> None:
    done = run("models")
    assert done.returncode == 0
    assert [line.split()[0] for line in done.stdout.splitlines()[1:9]] == [
        "0.8b", "2b", "4b", "9b", "27b", "35b-a3b", "122b-a10b", "397b-a17b",
    ]  # fmt: skip
    listed = json.loads(run("models", "--json").stdout)
    by_name = {model["name"]: model for model in listed["models"]}
    assert by_name["27b"]["bytes"]["4"] < by_name["27b"]["bytes"]["8"] < by_name["27b"]["bytes"]["16"]
    assert all(model["downloaded"] is None for model in listed["models"])


def downloaded(environment: dict[str, str], folder: Path, ref: bool = True) -> str:
    """A hub name under which `folder` is in the cache.   ref: whether it says which commit main is"""
    repository = Path(environment["HF_HOME"]) / "hub" / "models--someone--Tiny"
    commit = "0" * 39 + "1"
    (repository / "snapshots").mkdir(parents=True)
    (repository / "snapshots" / commit).symlink_to(folder)
    if ref:
        (repository / "refs").mkdir()
        (repository / "refs" / "main").write_text(commit)
    return "someone/Tiny"


def test_models_says_what_is_downloaded(run: Run, clean_environment: dict[str, str], tiny_chat: Path) -> None:
    name = downloaded(clean_environment, tiny_chat, ref=False)
    assert name in run("models").stdout


def test_convert_says_where_and_the_result_chats(run: Run, tiny_chat: Path, tmp_path: Path) -> None:
    done = run("convert", str(tiny_chat), "--out", str(tmp_path / "out"), "--bits", "8")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(tmp_path / "out")
    answer = run("generate", "Hello", "--model", str(tmp_path / "out"), "--max-tokens", "4", "--no-think")
    assert answer.returncode == 0
    assert answer.stdout.strip()


def answering(environment: dict[str, str], model: Path) -> tuple[subprocess.Popen[bytes], IO[bytes], IO[bytes]]:
    """`generate` in the middle of its answer, and what it writes."""
    process = subprocess.Popen(
        [sys.executable, "-m", "mlx_qwen35", "generate", "Hello", "--model", str(model), "--no-think"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    assert os.read(process.stdout.fileno(), 10)
    return process, process.stdout, process.stderr


def test_a_reader_that_leaves_is_no_error(clean_environment: dict[str, str], tiny_chat: Path) -> None:
    process, answer, complaints = answering(clean_environment, tiny_chat)
    answer.close()
    assert process.wait(60) == 141
    assert complaints.read() == b""


def test_an_interrupt_ends_generate_with_130_and_no_traceback(
    clean_environment: dict[str, str], tiny_chat: Path
) -> None:
    process, _, _ = answering(clean_environment, tiny_chat)
    process.send_signal(signal.SIGINT)
    _, complaint = process.communicate(timeout=60)
    assert process.returncode == 130
    assert complaint.strip() == b""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has a disk that is always full")
def test_a_full_disk_is_one_line(clean_environment: dict[str, str]) -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "mlx_qwen35", "models"], stdout=full, stderr=subprocess.PIPE, env=clean_environment
        )
    assert done.returncode == 2
    assert done.stderr == b"mlx-qwen35: no space left on device.\n"


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-"])
def test_closed_streams_are_no_defect(clean_environment: dict[str, str], closed: str) -> None:
    program = f"{sys.executable} -m mlx_qwen35 generate {closed}"
    done = subprocess.run(["sh", "-c", program], capture_output=True, env=clean_environment, stdin=subprocess.DEVNULL)
    assert done.returncode == 2
    assert done.stderr in (b"", b"mlx-qwen35: The prompt is empty; give a question.\n")


def test_a_defect_is_one_line_with_its_type(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(as_json: bool) -> None:
        raise KeyError("two\nlines")

    monkeypatch.setattr("mlx_qwen35.terminal.models_table.print_models", broken)
    assert main(["models"]) == 1
    assert capsys.readouterr().err == (
        "mlx-qwen35: KeyError: 'two\\nlines'; this is a defect, run again with --debug\n"
    )
    assert main(["models", "--debug"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_a_fast_blas_is_found_and_named_only_when_it_is_not_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    library = tmp_path / "x86_64-linux-gnu" / "openblas-pthread" / "libopenblas.so.0"
    assert blas.find_openblas(tmp_path) is None
    library.parent.mkdir(parents=True)
    library.touch()
    assert blas.find_openblas(tmp_path) == library
    monkeypatch.setenv("LD_PRELOAD", str(library))
    assert blas.advice() is None
    monkeypatch.delenv("LD_PRELOAD")
    assert "LD_PRELOAD" in (blas.advice() or "") or "apt-get" in (blas.advice() or "")
    monkeypatch.setattr(sys, "platform", "darwin")
    assert blas.advice() is None


@pytest.mark.parametrize("of_the_hub", [False, True])
def test_a_login_that_cannot_be_read_is_no_hindrance_to_what_is_here(
    run: Run, clean_environment: dict[str, str], tiny_chat: Path, tmp_path: Path, of_the_hub: bool
) -> None:
    name = downloaded(clean_environment, tiny_chat) if of_the_hub else "demo"
    done = run("generate", "Hello", "--model", name, "--max-tokens", "2", HF_TOKEN_PATH=str(tmp_path))  # a folder
    assert done.returncode == 0, done.stderr
    assert done.stdout
