"""Middlebury's *_par.txt: the number of images, then a line for each: name, K (9 numbers), R (9), t (3).

x_cam = R x + t, OpenCV axes. Pixels count from the top left with integers as centres, so half a pixel is added here. A README.txt beside
it states the object's bounding box.
"""

import re
from pathlib import Path

import numpy as np

from ..cameras import Capture, View, shift_centers
from ..errors import SceneError
from ..guard import read_text
from .checks import finish, from_world_to_camera, image_size, named, note_missing, numbers, pinhole

WANTED = "*_par.txt"
NUMBER = r"[-+]?\d*\.?\d+(?:[eE][-+]?\d+)?"
CORNER = rf"\(\s*({NUMBER})[\s,]+({NUMBER})[\s,]+({NUMBER})\s*\)"


def find(folder: Path) -> Path | None:
    """The parameter file."""
    return next(iter(sorted(folder.glob("*_par.txt"))), None)


def load(scene: Path, file: Path, masks: str, outside: bool) -> Capture:
    """Read the parameter file; photographs lie beside it or in images/."""
    lines = [line.split(maxsplit=1) for line in read_text(file).splitlines() if line.strip()]
    if len(lines) < 2 or len(lines[0]) != 1 or lines[0][0] != str(len(lines) - 1):
        found = " ".join(lines[0])[:40] if lines else "nothing"
        raise SceneError(f"{file}: want the number of images, then a line for each; found {found!r} before {max(len(lines) - 1, 0)} lines")
    homes = (scene, scene / "images")
    places = [[named(home, name, outside) for home in homes] for name, *_ in lines[1:]]
    images = [next((file for file in files if file.is_file()), files[0]) for files in places]
    notes = note_missing(images, scene)
    views = []
    for (name, *rest), image in zip(lines[1:], images, strict=True):
        if not image.is_file():
            continue
        values = np.array(numbers(" ".join(rest), file))
        if len(values) != 21:
            raise SceneError(f"{file}: {name} wants 21 numbers (K, R, t), found {len(values)}")
        camera = shift_centers(pinhole(values[:9].reshape(3, 3), *image_size(image), name))
        views.append(View(name, image, None, camera, from_world_to_camera(values[9:18].reshape(3, 3), values[18:])))
    return finish(scene, "middlebury", views, masks, box=_box(scene), notes=notes)


def _box(folder: Path) -> tuple[np.ndarray, float] | None:
    """The cube around the bounding box that a README.txt states as two corners in brackets."""
    readme = folder / "README.txt"
    if not readme.is_file():
        return None
    found = re.search(rf"bounding box.*?{CORNER}\s*{CORNER}", read_text(readme), re.DOTALL)
    if found is None:
        return None
    low, high = np.array(found.groups(), dtype=np.float64).reshape(2, 3)
    return (low + high) / 2, float(np.abs(high - low).max() / 2)
