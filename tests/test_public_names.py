"""What `fastsurf` offers by name, and that asking for it is cheap."""

import subprocess
import sys

import pytest

import fastsurf


def test_every_public_name_is_there_and_documented():
    for name in fastsurf.__all__:
        assert name == "__version__" or getattr(fastsurf, name).__doc__, name


def test_names_stay_what_they_are_once_their_modules_are_loaded():
    from fastsurf.reconstruction import reconstruct
    from fastsurf.training import train

    assert fastsurf.reconstruct is reconstruct and fastsurf.train is train


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="reconstruckt"):
        fastsurf.reconstruckt  # noqa: B018


def test_importing_the_package_imports_nothing_heavy():
    code = "import sys, fastsurf; print(sorted({'torch', 'numpy', 'rich', 'tyro', 'scipy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
