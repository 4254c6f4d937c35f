"""One folder for each set of packages, in the user's cache: a virtual environment, or node_modules. Made once.

Registries, proxies and certificates are whatever the environment and the user's own uv and npm settings say.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.clients.table import Client

INSTALL_SECONDS = 900


class InstallError(Exception):
    """A client that could not be installed, in one line."""


def cache_folder() -> Path:
    """Where clients and what they are served with are kept; MLX_QWEN35_CLIENTS names another place."""
    named = os.environ.get("MLX_QWEN35_CLIENTS")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(named) if named else cache / "mlx-qwen35-tests" / "clients"


def install(client: Client) -> Path:
    """The folder with the client's packages, installed if it is not there yet. Raises InstallError.

    Clients with the same packages share one.
    """
    pins = "\n".join([*client.pip, *client.npm])
    folder = cache_folder() / f"{client.package}-{hashlib.sha256(pins.encode()).hexdigest()[:8]}"
    if (folder / "pins.txt").is_file():
        return folder
    shutil.rmtree(folder, ignore_errors=True)  # one that was cut off half-made
    folder.mkdir(parents=True)
    if client.pip:
        uv = [sys.executable, "-m", "uv", "--quiet"]
        _run([*uv, "venv", "--python", sys.executable, "--allow-existing", str(folder)])
        _run([*uv, "pip", "install", "--python", str(folder / "bin" / "python"), *client.pip])
    if client.npm:
        if not shutil.which("npm"):
            raise InstallError("npm is absent; install Node.js 20 or newer")
        (folder / "package.json").write_text('{"private": true, "type": "module"}\n')
        _run(["npm", "install", "--prefix", str(folder), "--no-audit", "--no-fund", *client.npm])
    (folder / "pins.txt").write_text(pins)
    return folder


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_SECONDS)
    except subprocess.TimeoutExpired as error:
        raise InstallError(f"{' '.join(command[-4:])}: not installed within {INSTALL_SECONDS} s") from error
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines() or ["no reason given"]
        raise InstallError(f"{' '.join(command[-4:])}: {lines[-1][:300]}")
