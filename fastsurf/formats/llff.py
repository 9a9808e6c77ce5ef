"""LLFF's poses_bounds.npy: a row for each photograph in images/, in sorted order.

A row of 17 holds a 3x5 matrix, [camera-to-world columns (down, right, backwards) | centre | height, width, focal length], then the nearest
and farthest depth. The principal point is the middle of the image, (w/2, h/2) with pixel centres at half integers; no distortion.
"""

from pathlib import Path

import numpy as np

from ..cameras import Camera, Capture, View
from ..errors import SceneError
from ..guard import MOST_SIDE, read_arrays
from .checks import finish, image_folder

WANTED = "poses_bounds.npy"


def find(folder: Path) -> Path | None:
    """poses_bounds.npy before others, such as the original for photographs of full size."""
    known = (folder / "poses_bounds.npy", *sorted(folder.glob("poses_bounds*.npy")))
    return next((file for file in known if file.is_file()), None)


def load(scene: Path, file: Path, masks: str, outside: bool) -> Capture:
    """Read the poses; photographs belong to them in sorted order."""
    rows = read_arrays(file).get("", np.empty(0)).astype(np.float64)
    if rows.ndim != 2 or rows.shape[1] != 17:
        raise SceneError(f"{file}: want rows of 17 numbers, found {'x'.join(map(str, rows.shape))}")
    root, images = image_folder(scene, len(rows))
    if len(images) != len(rows):
        raise SceneError(f"{scene}: {len(rows)} poses in {file.name} but {len(images)} photographs in {root}; want one for each")
    views = []
    for row, image in zip(rows, images, strict=True):
        down, right, back, center, (height, width, focal) = row[:15].reshape(3, 5).T
        if not np.isfinite([height, width, focal]).all() or not 1 <= min(height, width) <= max(height, width) <= MOST_SIDE:
            raise SceneError(f"{file}: want height, width and focal length of {image.name}, found {height:g}, {width:g}, {focal:g}")
        w, h = round(width), round(height)
        camera = Camera("PINHOLE", w, h, (float(focal), float(focal), w / 2, h / 2))
        views.append(View(image.name, image, None, camera, np.stack([right, down, -back, center], axis=1)))
    near, far = rows[:, 15].min(), rows[:, 16].max()
    return finish(scene, "llff", views, masks, notes=[f"depths stated from {near:.4g} to {far:.4g}"])
