"""Strecha's .camera files (EPFL multi-view stereo benchmark): gt_dense_cameras/0000.jpg.camera with images/0000.jpg.

Lines: K (3), distortion (1, zeros), camera-to-world rotation (3), centre (1), width height (1). OpenCV axes; pixels are counted with
integers as centres, so half a pixel is added here.
"""

from pathlib import Path

import numpy as np

from ..cameras import Capture, View, shift_centers
from ..errors import SceneError
from ..guard import MOST_NUMBER, read_text
from .checks import find_image, finish, note_missing, numbers, pinhole

WANTED = "gt_dense_cameras/*.camera"


def find(folder: Path) -> Path | None:
    """The folder of camera files; the plain name before variants for other sizes."""
    known = (folder / "gt_dense_cameras", *sorted(folder.glob("*cameras*")), folder / "images", folder)
    return next((f for f in known if f.is_dir() and any(f.glob("*.camera"))), None)


def load(scene: Path, cameras: Path, masks: str, outside: bool) -> Capture:
    """Read every camera file; the photograph has its name without .camera."""
    root = next((f for f in (scene / "images", scene / "image") if f.is_dir()), cameras)
    views = [_view(file, root) for file in sorted(cameras.glob("*.camera"))]
    notes = note_missing([view.image for view in views], scene)
    notes += [f"cameras of {cameras.name}/"]
    return finish(scene, "strecha", [view for view in views if view.image.is_file()], masks, notes=notes)


def _view(file: Path, root: Path) -> View:
    values = np.array(numbers(read_text(file), file))
    if len(values) != 26:
        raise SceneError(f"{file}: want 26 numbers (K, distortion, R, C, size), found {len(values)}")
    K, distortion, R, center = values[:9].reshape(3, 3), values[9:12], values[12:21].reshape(3, 3), values[21:24]
    name = file.name.removesuffix(".camera")
    if distortion.any():
        raise SceneError(f"{file}: want undistorted photographs (0 0 0), found distortion {distortion}")
    image = root / name if (root / name).is_file() else find_image((root / name).with_suffix(""))
    if not np.abs(values).max() <= MOST_NUMBER:
        raise SceneError(f"{file}: want finite numbers of at most {MOST_NUMBER:g}")
    camera = shift_centers(pinhole(K, round(values[24]), round(values[25]), name))
    return View(image.name, image, None, camera, np.concatenate([R, center.reshape(3, 1)], axis=1))
