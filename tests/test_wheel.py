"""The wheel: one for every Python of a platform, installed where there is no compiler."""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

SOURCES = Path(__file__).parent.parent
LOOK = """
import sys, torch, fastsurf
from fastsurf.backends import choose_backend
backend = choose_backend("native")
level = backend.mlp(torch.ones(3, 16), [torch.eye(16)])
print(fastsurf.__file__, backend.detail, float(level.sum()), sep="\\n")
"""


def run(*command, **settings):
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, **settings)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    if not (SOURCES / "CMakeLists.txt").is_file():
        pytest.skip("no sources beside the tests")
    if not shutil.which(os.environ.get("CXX", "c++")):
        pytest.skip("no compiler to build the wheel with")
    folder = tmp_path_factory.mktemp("wheel")
    built = run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", folder, SOURCES, "-C", f"build-dir={folder / 'build'}")
    if built.returncode and "scikit-build-core" in built.stderr and "No matching distribution" in built.stderr:
        pytest.skip("the build backend can't be had: no network")
    assert built.returncode == 0, built.stderr[-2000:]
    (found,) = folder.glob("*.whl")
    return found


def test_one_wheel_for_every_python_of_the_platform(wheel):
    platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
    assert wheel.name.endswith(f"-py3-none-{platform}.whl")


def test_it_works_in_a_new_environment_without_a_compiler(wheel, tmp_path):
    """Dependencies are those of the environment that runs the tests; fastsurf itself is not."""
    empty = {"PATH": str(tmp_path / "nothing"), "HOME": str(tmp_path)}
    assert run(sys.executable, "-m", "venv", tmp_path / "new").returncode == 0
    python = tmp_path / "new" / "bin" / "python"
    installed = run(python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", wheel, env=empty)
    assert installed.returncode == 0, installed.stderr
    own = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", env=empty).stdout.strip())
    (own / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    looked = run(python, "-c", LOOK, env=empty, cwd=tmp_path)
    assert looked.returncode == 0, looked.stderr
    file, detail, total = looked.stdout.splitlines()
    assert Path(file).is_relative_to(own) and "thread" in detail and float(total) == 48
    told = run(tmp_path / "new" / "bin" / "fastsurf", "info", "--backends", env=empty, cwd=tmp_path)
    assert told.returncode == 0 and "native     auto takes it" in told.stdout, told.stdout + told.stderr
