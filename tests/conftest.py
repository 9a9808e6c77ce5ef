import signal
from pathlib import Path

import pytest

SHARED_DATA = Path(__file__).parents[1].parent / "shared" / "data"


def pytest_configure(config):
    """Ctrl-C works, though a shell that runs this in the background has it ignored. And in one of several processes (pytest-xdist), torch's
    threads would only wait for those of the others."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if hasattr(config, "workerinput"):
        import torch

        torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shared_data():
    """Folder of real and rendered captures, kept beside the repository."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"no development data in {SHARED_DATA}")
    return SHARED_DATA


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory) -> Path:
    """A small rendered scene: 12 training and 2 test photographs of 48 x 48 pixels."""
    from fastsurf.demo_scene import make_scene

    folder = tmp_path_factory.mktemp("tiny")
    make_scene(folder, views=12, test=2, size=48)
    return folder


@pytest.fixture(scope="session")
def tiny(tiny_folder):
    """The same, loaded."""
    from fastsurf.scene import load_scene

    return load_scene(tiny_folder)
