"""The options of `convert`: what each asks for, what is refused, and a plan that writes nothing."""

import argparse
import json
from pathlib import Path

import pytest

from mlx_qwen35.cli import make_parser
from mlx_qwen35.terminal.convert_arguments import conversion_options, size
from tests.cli.conftest import Run


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [("62GB", 62 * 10**9), ("62g", 62 * 10**9), ("1.5 GiB", 3 << 29), ("250MB", 250 * 10**6), ("2TB", 2 * 10**12)],
)
def test_sizes_as_people_write_them(text: str, nbytes: int) -> None:
    assert size()(text) == nbytes


def test_a_macs_memory_is_counted_in_powers_of_two() -> None:
    assert size(always_binary=True)("64GB") == 64 << 30


@pytest.mark.parametrize("text", ["", "62", "GB", "-1GB", "0GB", "1e9GB", "62 apples", "9999999999GB"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError):
        size()(text)


def test_every_option_arrives() -> None:
    command = (
        "convert SRC --bits 6 --group-size 32 --quality good --recipe uniform --mtp inline --mtp-source a/b "
        "--vision drop --block 64MB --calibration texts.jsonl --calibration-tokens 99"
    )
    options = conversion_options(make_parser().parse_args(command.split()))
    assert (options.bits, options.group_size, options.quality, options.recipe) == (6, 32, "good", "uniform")
    assert (options.mtp, options.mtp_source, options.vision) == ("inline", "a/b", "drop")
    assert (options.block_bytes, str(options.calibration), options.calibration_tokens) == (64 << 20, "texts.jsonl", 99)
    options = conversion_options(
        make_parser().parse_args(["convert", "SRC", "--size", "62GB", "--token-size", "5.5GB"])
    )
    assert (options.size, options.token_bytes) == (62 * 10**9, 5_500_000_000)
    options = conversion_options(make_parser().parse_args(["convert", "SRC", "--fit", "64GB"]))
    assert options.fit == 64 << 30


def test_a_dry_run_shows_the_plan_and_writes_nothing(run: Run, tiny_chat: Path, tmp_path: Path) -> None:
    done = run("convert", str(tiny_chat), "--dry-run", "--out", str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    assert "bits a weight" in done.stdout
    assert "fits" in done.stdout.splitlines()[-1]
    assert not (tmp_path / "out").exists()


def test_the_plan_lies_beside_the_weights(run: Run, tiny_chat: Path, tmp_path: Path) -> None:
    done = run("convert", str(tiny_chat), "--out", str(tmp_path / "out"), "--quality", "stock", "--vision", "drop")
    assert done.returncode == 0, done.stderr
    plan = json.loads((tmp_path / "out" / "quant_plan.json").read_text())
    assert plan["quality"] == "stock"
    assert plan["bytes"] == sum(file.stat().st_size for file in (tmp_path / "out").rglob("*.safetensors")) - headers(
        tmp_path / "out"
    )
    assert all("error" in tensor for tensor in plan["tensors"].values())


def headers(folder: Path) -> int:
    files = [file.read_bytes()[:8] for file in folder.rglob("*.safetensors")]
    return sum(8 + int.from_bytes(length, "little") for length in files)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--quality", "great"], "'great'"),
        (["--size", "much"], "'much'"),
        (["--size", "1GB", "--bits", "4"], "--bits"),
        (["--upload", "not a name"], "not the name of a hub repository"),
        (["--recipe", "nowhere.json"], "nowhere.json"),
    ],
)
def test_mistakes_are_one_line_and_nothing_is_written(
    run: Run, tiny_chat: Path, tmp_path: Path, options: list[str], named: str
) -> None:
    done = run("convert", str(tiny_chat), "--out", str(tmp_path / "out"), *options)
    assert done.returncode == 2
    assert named in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_an_upload_without_a_login_is_refused_before_the_work(run: Run, tiny_chat: Path, tmp_path: Path) -> None:
    done = run("convert", str(tiny_chat), "--out", str(tmp_path / "out"), "--upload", "someone/Tiny-4bit")
    assert done.returncode == 2
    assert "log in first" in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_conversion_is_measured_against_its_source(run: Run, tiny_chat: Path, tmp_path: Path) -> None:
    texts = tmp_path / "texts.txt"
    texts.write_text("One river is long.\n\nAnother one is wide.")
    assert run("convert", str(tiny_chat), "--out", str(tmp_path / "out")).returncode == 0
    done = run("eval", "kl", str(tiny_chat), str(tmp_path / "out"), "--texts", str(texts), "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["comparisons"]
