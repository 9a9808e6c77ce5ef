"""Photographs with known cameras in, a solid coloured surface mesh out.

    from fastsurf import Config, reconstruct
    result = reconstruct("photos", Config(), run="photos.run", out="mesh.ply")

Names are imported when they are first asked for, so that `import fastsurf` costs nothing.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .config import Config, load_config
    from .mesh import Mesh, extract
    from .reconstruction import Result, reconstruct
    from .scene import Scene, load_scene
    from .training import Training, train

__version__ = "0.1.0"
__all__ = ["Config", "Mesh", "Result", "Scene", "Training", "__version__", "extract", "load_config", "load_scene", "reconstruct", "train"]

_HOMES = {
    "Config": "config",
    "load_config": "config",
    "Mesh": "mesh",
    "extract": "mesh",
    "Result": "reconstruction",
    "reconstruct": "reconstruction",
    "Scene": "scene",
    "load_scene": "scene",
    "Training": "training",
    "train": "training",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
