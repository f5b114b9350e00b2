"""The floors of the house: imports point down only, and the face of the package is lazy."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# package -> floor; a module may import its own package and what stands on a lower floor
FLOORS = {
    "scripts": 5,
    "latentgen.cli": 4,
    "training": 3,
    "pipelines": 2,
    "latentgen.schedulers": 1,
    "latentgen.models": 1,
    "latentgen.conditioning": 1,
    "latentgen.evaluation": 1,
    "latentgen.hardware": 0,
    "latentgen.configuration": 0,
    "latentgen.noise": 0,
    "latentgen.diffusion": 0,
}
# The face: names its owners in strings, and may be imported by all for its version.
FACE = ("latentgen", "latentgen.__main__")
# What the mathematics may know besides the standard library.
PURE = {"torch", "numpy", "latentgen"}


def modules() -> dict[str, Path]:
    """Every Python file of the repository's packages by its dotted name."""
    found = {}
    for top in ("latentgen", "pipelines", "training", "scripts"):
        for path in (ROOT / top).rglob("*.py"):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def package(name: str) -> str | None:
    """The entry of FLOORS that `name` belongs to."""
    return next((one for one in FLOORS if name == one or name.startswith(f"{one}.")), None)


def imports(tree: ast.AST, checked_only: bool = True) -> set[str]:
    """Absolute names that a syntax tree imports, wherever in it; `from a import b` counts as a.b."""
    skipped = set()
    for node in ast.walk(tree):
        # Imports for the type checker do not run.
        if checked_only and isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            skipped |= {id(inner) for one in node.body for inner in ast.walk(one)}
    names = set()
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide the floor they lead to"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def upward(name: str, source: str) -> list[str]:
    """What the module `name` imports although it stands beside or above it."""
    own = package(name)
    if name in FACE:
        return sorted(other for other in imports(ast.parse(source)) if package(other) not in (None, "latentgen.cli"))
    assert own is not None, f"{name} stands on no floor; give its package one in FLOORS"
    wrong = []
    for other in imports(ast.parse(source)):
        target = package(other)
        if target is not None and target != own and FLOORS[target] >= FLOORS[own]:
            wrong.append(other)
    return sorted(wrong)


def test_imports_point_down_only() -> None:
    found = {name: upward(name, path.read_text(encoding="utf-8")) for name, path in modules().items()}
    assert len(found) > 20
    assert {name: wrong for name, wrong in found.items() if wrong} == {}


def test_the_check_sees_an_upward_arrow_wherever_it_is() -> None:
    assert upward("latentgen.models.unet", "def f():\n    from pipelines.loading import locate") == [
        "pipelines.loading.locate"
    ]
    assert upward("pipelines.loading", "import training.loop") == ["training.loop"]
    assert upward("latentgen.models.unet", "from latentgen import schedulers") == ["latentgen.schedulers"]
    assert upward("latentgen", "import pipelines") == ["pipelines"]
    assert upward("training.loop", "from pipelines import TextToImagePipeline\nimport torch") == []


def test_the_mathematics_knows_neither_networks_nor_files() -> None:
    for name, path in modules().items():
        if package(name) == "latentgen.diffusion":
            tops = {other.split(".")[0] for other in imports(ast.parse(path.read_text(encoding="utf-8")), False)}
            assert tops - PURE <= set(sys.stdlib_module_names), name


def test_no_module_has_a_name_that_diffusers_takes_for_one_of_its_pipelines() -> None:
    # diffusers looks the second-last part of a component's module up among its pipeline folders.
    from diffusers import pipelines as theirs

    for name in modules():
        if name.startswith("latentgen.") and name.count(".") > 1:
            assert not hasattr(theirs, name.split(".")[-2]), name


def test_what_needs_no_network_does_not_import_torch() -> None:
    check = """
import sys
import latentgen
latentgen.__version__, dir(latentgen)
from latentgen.cli.main import main
assert main(["--help"]) == main(["--version"]) == main(["generate", "--help"]) == main(["train", "--help"]) == 0
assert main(["generate", " "]) == main(["generate", "a", "--steps", "0"]) == main(["draw"]) == 2
assert not set("torch transformers diffusers numpy PIL datasets jsonargparse".split()) & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", check], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_face_offers_what_it_names() -> None:
    import latentgen

    for name in latentgen.__all__:
        assert getattr(latentgen, name) is not None
    assert set(latentgen.__all__) <= set(dir(latentgen))
    with pytest.raises(AttributeError, match=r"no attribute 'Nothing'; it offers .*TextToImagePipeline"):
        _ = latentgen.Nothing
