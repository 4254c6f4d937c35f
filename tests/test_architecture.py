"""What Package.md says of the tree, checked from the source: who may import whom, and what is installed."""

from __future__ import annotations

import ast
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Each layer may import itself and what stands before it.
LAYERS = [
    "errors options blas columns loopback",
    "requests hub chat access ending openai_client",
    "conversations",
    "metal_kernels",
    "caches",
    "models",
    "generation",
    "running reading_ahead",
    "folded",
    "guiding",
    "runtime",
    "asking session_file",
    "session",
    "tools",
    "qwen",
    "convert",
    "counting",
    "planning",
    "doctor",
    "benching",
    "terminal app server",
    "cli",
]
WITHOUT_MLX = "hub chat conversations errors options blas columns loopback requests access ending openai_client"
NEVER = {"torch", "cv2", "transformers", "convert", "app", "metal_kernels"}


def sources() -> list[tuple[str, Path]]:
    """Every module of the package: its dotted name below mlx_qwen35, and its file."""
    found = []
    for folder in ("mlx_qwen35", "convert", "app", "metal_kernels"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            inside = path.relative_to(ROOT / "mlx_qwen35") if folder == "mlx_qwen35" else path.relative_to(ROOT)
            if folder == "mlx_qwen35" and any((ROOT / "mlx_qwen35" / p).is_symlink() for p in inside.parts[:1]):
                continue
            found.append((".".join(inside.with_suffix("").parts), path))
    return found


def imports(path: Path) -> set[str]:
    """Absolute names of everything a file imports, wherever in the file."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            assert node.module is not None
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def layer_of(part: str) -> int | None:
    return next((i for i, names in enumerate(LAYERS) if part in names.split()), None)


@pytest.mark.parametrize(("module", "path"), sources(), ids=[m for m, _ in sources()])
def test_imports_point_downwards(module: str, path: Path) -> None:
    own = module.split(".")[0]
    for name in sorted(imports(path)):
        top = name.split(".")[0]
        assert top not in NEVER, f"{module} imports {name}"
        assert not (top == "mlx" and own in WITHOUT_MLX.split()), f"{module} imports {name}, and knows no mlx"
        if top != "mlx_qwen35" or own in ("__init__", "__main__", "demo_checkpoint"):
            continue
        part = name.split(".")[1] if "." in name else "__init__"
        ours, theirs = layer_of(own), layer_of(part)
        if theirs is None:
            assert part in ("__init__", "__version__", "demo_checkpoint"), f"{module} imports {name}, in no layer"
        else:
            assert ours is not None, f"{module} stands in no layer"
            assert part == own or theirs < ours, f"{module} imports {name}, which stands above or beside it"


def test_mlx_lm_stands_behind_one_module_each() -> None:
    """The samplers and penalties, from one file of it; its package, which imports transformers, is not imported."""
    assert not {m for m, path in sources() if any(n.split(".")[0] == "mlx_lm" for n in imports(path))}
    # And its model, run by nobody but the count of launches, in one other.
    named = {m for m, path in sources() if '"mlx_lm"' in path.read_text()}
    assert named == {"generation.sampling", "counting.stock"}


def test_llguidance_stands_behind_one_module() -> None:
    assert [m for m, path in sources() if any(n.split(".")[0] == "llguidance" for n in imports(path))] == [
        "generation.grammars"
    ]


def test_every_package_on_disk_is_installed() -> None:
    listed = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    on_disk = {"mlx_qwen35"}
    for module, path in sources():
        if path.name == "__init__.py" and module != "__init__":
            on_disk.add("mlx_qwen35." + module.removesuffix(".__init__"))
    assert on_disk == listed


def test_the_outer_folders_are_links_inside_the_package() -> None:
    for folder in ("convert", "app", "metal_kernels"):
        link = ROOT / "mlx_qwen35" / folder
        assert link.is_symlink()
        assert str(link.readlink()) == f"../{folder}"


def test_files_stay_small_enough_to_hold_in_the_head() -> None:
    long = {str(p.relative_to(ROOT)): n for _, p in sources() if (n := p.read_text().count("\n")) > 400}
    assert not long
