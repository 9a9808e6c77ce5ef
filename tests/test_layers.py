"""Imports point one way, and only the command line talks: read from the sources."""

import ast
from pathlib import Path

import pytest

import fastsurf

PACKAGE = Path(fastsurf.__file__).parent
MODULES = sorted(p for p in PACKAGE.rglob("*.py") if "native" not in p.parent.parts)
FRONT = {"cli", "options", "completion", "attended", "__main__"}  # the command line itself
# the product, made of the core; may use ui's log
RUNS = {"reconstruction", "runs", "demo", "scoring", "compare", "batch", "cluster", "following", "viewer"}
# slow to import
LAZY = {"rich", "tyro", "trimesh", "mcubes", "pycolmap", "scipy", "PIL", "nerfacc", "tinycudann", "ray", "xatlas", "manifold3d", "viser",
        "tensorboard"}  # fmt: skip


def name_of(path):
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")


def imports(path):
    """(full name imported, whether at import time) of every import; relative ones resolved, those for types left out."""
    here = ["fastsurf", *path.relative_to(PACKAGE).parent.parts]

    def walk(node, at_import):
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                continue
            inside = at_import and not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef)
            if isinstance(child, ast.Import):
                yield from ((alias.name, at_import) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                base = here[: len(here) - child.level + 1] if child.level else []
                module = ".".join([*base, *([child.module] if child.module else [])])
                if module in ("fastsurf", "fastsurf.ui", "fastsurf.formats", "fastsurf.backends"):
                    yield from ((f"{module}.{alias.name}", at_import) for alias in child.names)
                yield module, at_import
            yield from walk(child, inside)

    return list(walk(ast.parse(path.read_text(encoding="utf-8")), True))


def parts(path):
    """The package's own modules that a module imports, by first name."""
    return {name.split(".")[1] for name, _ in imports(path) if name.startswith("fastsurf.")}


def test_there_is_something_to_read():
    assert {"cli", "hooks", "reconstruction", "ui.screen", "backends.reference"} <= {name_of(p) for p in MODULES}
    assert ("rich.live", True) in imports(PACKAGE / "ui" / "screen.py") and "ui" in parts(PACKAGE / "cli.py")


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_only_the_command_line_prints_and_exits(path):
    calls = {ast.unparse(node.func) for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)}
    first = name_of(path).split(".")[0]
    if first != "ui" and first not in FRONT:
        assert not calls & {"print", "input", "sys.exit", "exit", "quit", "os._exit", "sys.stdout.write", "sys.stderr.write"}
        assert not {name for name, _ in imports(path)} & {"argparse", "tyro"}


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_libraries_stay_where_they_belong(path):
    used = {name.split(".")[0] for name, _ in imports(path)}
    first = name_of(path).split(".")[0]
    if first not in {"ui", "cli"}:
        assert "rich" not in used
    if name_of(path) != "backends.cuda":
        assert not used & {"tinycudann", "nerfacc"}
    if first not in {"options", "cli"}:
        assert "tyro" not in used
    if first != "viewer":
        assert "viser" not in used


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_point_one_way(path):
    first, used = name_of(path).split(".")[0], parts(path)
    assert not used & FRONT or first in FRONT
    if first == "ui":
        assert used <= {"ui", "hooks"}, "a display knows events and nothing else"
    elif first not in FRONT | RUNS:
        assert not used & (RUNS | {"ui"}), "the core knows neither the terminal nor the product"
    low = {"errors", "config", "hooks", "cameras", "rays", "compositing", "sampling", "conventions", "epipolar", "quality", "matching"}
    if first in low | {"mesh", "meshio", "metrics", "output", "solidity", "texture"}:
        assert not used & {"backends", "field", "color", "model", "scene", "training", "checkpoint", "pictures", "formats"}


def test_what_a_help_text_needs_is_light():
    """cli and what it imports at once pull in nothing beyond the standard library."""
    waiting, seen = ["cli"], set()
    while waiting:
        name = waiting.pop()
        seen.add(name)
        path = PACKAGE / f"{name}.py" if (PACKAGE / f"{name}.py").exists() else PACKAGE / name / "__init__.py"
        now = {module for module, at_import in imports(path) if at_import}
        assert not {module.split(".")[0] for module in now} & (LAZY | {"torch", "numpy"}), name
        own = {module.split(".")[1] for module in now if module.startswith("fastsurf.")} - {"__version__"}
        waiting += own - seen
