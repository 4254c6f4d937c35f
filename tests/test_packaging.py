"""The built wheel: what is in it, and that it chats where nothing else is installed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
QUESTION = "How do I convert a model?\n"


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, so that nothing lying about in the checkout gets in, and nothing is left in it."""
    folder = tmp_path_factory.mktemp("wheel")
    copy = folder / "source"
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    for name in listed.stdout.splitlines():
        if not name.startswith("tests/") and os.path.lexists(ROOT / name):
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, copy / name, follow_symlinks=False)
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(copy)]
    subprocess.run(build, check=True, capture_output=True)
    return next(folder.glob("*.whl"))


def test_the_wheel_holds_every_part_and_no_tests(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    for needed in (
        "mlx_qwen35/runtime.py",
        "mlx_qwen35/py.typed",
        "mlx_qwen35/convert/plan.py",
        "mlx_qwen35/app/__init__.py",
        "mlx_qwen35/metal_kernels/delta_rule.py",
        "mlx_qwen35/metal_kernels/rms_norm.metal",
        "mlx_qwen35/demo_checkpoint/model.safetensors",
        "mlx_qwen35/demo_checkpoint/tokenizer.json",
        "mlx_qwen35/demo_checkpoint/chat_template.jinja",
    ):
        assert needed in names, f"{needed} is not in the wheel"
    tops = {n.split("/")[0] for n in names}
    assert {t for t in tops if not t.endswith(".dist-info")} == {"mlx_qwen35"}
    assert any(n.endswith("licenses/LICENSE") for n in names)


def chats(command: Path, environment: dict[str, str]) -> None:
    environment = {k: v for k, v in environment.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(
        [command, "chat", "demo"], input=QUESTION, capture_output=True, text=True, env=environment, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert "mlx-qwen35 convert" in done.stdout


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_pip_installs_the_wheel_into_an_empty_environment_and_it_chats(
    wheel: Path, tmp_path: Path, clean_environment: dict[str, str]
) -> None:
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    subprocess.run([tmp_path / "venv/bin/pip", "install", "--quiet", wheel], check=True)
    chats(tmp_path / "venv/bin/mlx-qwen35", clean_environment)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_uv_tool_installs_the_wheel_and_it_chats(
    wheel: Path, tmp_path: Path, clean_environment: dict[str, str]
) -> None:
    uv = Path(sys.executable).parent / "uv"
    places = {"UV_TOOL_DIR": str(tmp_path / "tools"), "UV_TOOL_BIN_DIR": str(tmp_path / "bin")}
    command = [uv, "tool", "install", "--quiet", "--python", sys.executable, wheel]
    subprocess.run(command, check=True, env={**os.environ, **places})
    chats(tmp_path / "bin/mlx-qwen35", clean_environment)
