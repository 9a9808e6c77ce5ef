"""BlendedMVS and MVSNet: cams/00000000_cam.txt with photographs in blended_images/ or images/.

A file holds the word extrinsic and a 4x4 world-to-camera matrix, the word intrinsic and a 3x3 calibration, then depths. OpenCV axes, pixel
centres at half integers (MVSNet's own warping samples there).
"""

from pathlib import Path

import numpy as np

from ..cameras import Capture, View
from ..errors import SceneError
from ..guard import read_text
from .checks import find_image, finish, from_world_to_camera, guess_stated_size, image_size, note_missing, numbers, pinhole

WANTED = "cams/*_cam.txt"
IMAGE_FOLDERS = ("blended_images", "images", "image")


def find(folder: Path) -> Path | None:
    """The folder of camera files."""
    return folder / "cams" if any(folder.glob("cams/*_cam.txt")) else None


def load(scene: Path, cams: Path, masks: str, outside: bool) -> Capture:
    """Read every camera file; the photograph has its number."""
    root = next((scene / name for name in IMAGE_FOLDERS if (scene / name).is_dir()), scene)
    files = sorted(cams.glob("*_cam.txt"))
    images = [find_image(root / file.name.removesuffix("_cam.txt")) for file in files]
    notes = note_missing(images, scene)
    views = []
    for file, image in zip(files, images, strict=True):
        if not image.is_file():
            continue
        w2c, K = _read(file)
        width, height = image_size(image)
        camera = pinhole(K, *guess_stated_size((K[0, 2], K[1, 2]), width, height, image.name), image.name)
        views.append(View(image.name, image, None, camera, from_world_to_camera(w2c[:3, :3], w2c[:3, 3])))
    return finish(scene, "blendedmvs", views, masks, notes=notes)


def _read(file: Path) -> tuple[np.ndarray, np.ndarray]:
    """World-to-camera (4, 4) and calibration (3, 3)."""
    _, _, rest = read_text(file).partition("extrinsic")
    extrinsic, _, rest = rest.partition("intrinsic")
    pose, K = numbers(extrinsic, file), numbers(" ".join(rest.split()[:9]), file)
    if len(pose) != 16 or len(K) != 9:
        raise SceneError(f"{file}: want extrinsic and 16 numbers, intrinsic and 9; found {len(pose)} and {len(K)}")
    return np.array(pose).reshape(4, 4), np.array(K).reshape(3, 3)
