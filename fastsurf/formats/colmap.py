"""COLMAP sparse models, binary and text: sparse/0, sparse, colmap/sparse/0, dense/sparse, or the files themselves.

World to camera (quaternion w first, translation), OpenCV axes, pixel centres at half integers; any of COLMAP's camera models.
Not by pycolmap: of a points3D.bin that was cut off it asks for more memory than there is, or returns what was never in it.
"""

import os
import struct
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path

import numpy as np

from ..cameras import Camera, Capture, View
from ..errors import SceneError
from ..guard import read_text
from .checks import finish, from_world_to_camera, named, note_missing

WANTED = "sparse/0/images.bin or .txt (also sparse, colmap/sparse/0, dense/sparse, or the model's files themselves)"
ROOTS = ("sparse", "colmap/sparse", "dense/sparse", "dense/0/sparse", "")
IMAGE_FOLDERS = ("images", "image", "rgb", "")
MODELS = {
    0: ("SIMPLE_PINHOLE", 3), 1: ("PINHOLE", 4), 2: ("SIMPLE_RADIAL", 4), 3: ("RADIAL", 5), 4: ("OPENCV", 8), 5: ("OPENCV_FISHEYE", 8),
    6: ("FULL_OPENCV", 12), 7: ("FOV", 5), 8: ("SIMPLE_RADIAL_FISHEYE", 4), 9: ("RADIAL_FISHEYE", 5), 10: ("THIN_PRISM_FISHEYE", 12),
    11: ("RAD_TAN_THIN_PRISM_FISHEYE", 16), 12: ("SIMPLE_DIVISION", 4), 13: ("DIVISION", 5), 14: ("SIMPLE_FISHEYE", 3), 15: ("FISHEYE", 4),
    16: ("EUCM", 6),
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class Model:
    """A sparse model: image name -> (camera, c2w (3, 4)), points (n, 3)."""

    images: dict[str, tuple[Camera, np.ndarray]]
    points: np.ndarray


def find(folder: Path) -> Path | None:
    """The folder that holds cameras, images and points3D: of several models the one with most images."""
    models = _models(folder)
    if len(models) > 1:
        return max(models, key=_count)
    return models[0] if models else None


def load(scene: Path, folder: Path, masks: str, outside: bool) -> Capture:
    """Read the model in `folder`; photographs are looked for beside it, up to `scene` and at least two folders up."""
    model = read(folder)
    if not model.images:
        raise SceneError(f"{folder}: the model has no images with a pose; want a finished reconstruction")
    names = sorted(model.images)
    for name in names:
        named(scene, name, outside)
    root = _image_root(folder, scene, names)
    if scene == folder:
        scene = root.parent if root.name in IMAGE_FOLDERS else root
    home = scene if root.is_relative_to(os.path.abspath(scene)) else root
    notes = note_missing([root / name for name in names], home, outside)
    views = [View(name, root / name, None, *model.images[name]) for name in names if (root / name).is_file()]
    siblings = _models(folder.parent) if folder.name.isdigit() else []
    if len(siblings) > 1:
        counts = ", ".join(f"{m.name}: {_count(m)}" for m in siblings)
        notes.append(f"took sub-model {folder.name} of {len(siblings)} (images in {counts})")
    points = model.points if len(model.points) else None
    return finish(scene, "colmap", views, masks, points=points, notes=notes, outside=outside)


def read(folder: Path) -> Model:
    """The model in a folder; points in the order of their numbers.

    Raises:
        SceneError: unreadable.
    """
    binary = (folder / "images.bin").is_file()
    try:
        cameras = _cameras_bin(folder / "cameras.bin") if binary else _cameras_txt(folder / "cameras.txt")
        found = _images_bin(folder / "images.bin") if binary else _images_txt(folder / "images.txt")
        points = _points_bin(folder / "points3D.bin") if binary else _points_txt(folder / "points3D.txt")
        images = {name: (cameras[camera], from_world_to_camera(_rotation(pose[:4]), pose[4:])) for name, camera, pose in found}
    except (OSError, KeyError, IndexError, ValueError, OverflowError, struct.error) as e:
        raise SceneError(f"{folder}: not readable as a COLMAP model ({type(e).__name__}: {e})") from None
    return Model(images, points)


def _models(folder: Path) -> list[Path]:
    for root in ROOTS:
        base = folder / root
        candidates = [base, *sorted(p for p in base.glob("*") if p.name.isdigit())] if base.is_dir() else []
        models = [c for c in candidates if any((c / f"images{s}").is_file() and (c / f"cameras{s}").is_file() for s in (".bin", ".txt"))]
        if models:
            return models
    return []


def _count(model: Path) -> int:
    """Number of images, without reading the model."""
    try:
        if (model / "images.bin").is_file():
            with open(model / "images.bin", "rb") as file:
                return int(struct.unpack("<Q", file.read(8))[0])
        return len(_data_lines(model / "images.txt")) // 2
    except (struct.error, SceneError):
        return 0


def _image_root(model: Path, scene: Path, names: list[str]) -> Path:
    """The folder relative to which image names count: the one with most of them, nearest to the model first."""
    model, scene = Path(os.path.abspath(model)), Path(os.path.abspath(scene))
    parents = [model, *model.parents]
    above = parents.index(scene) if scene in parents else 0
    roots = [parent / name for parent in parents[: max(above, 2) + 1] for name in IMAGE_FOLDERS]
    found = [sum((root / name).is_file() for name in names) for root in roots]
    if not max(found):
        looked = ", ".join(str(root) for root in dict.fromkeys(roots) if root.is_dir())
        raise SceneError(f"{scene}: the COLMAP model names {len(names)} photographs such as {names[0]}, found none; looked in {looked}")
    return roots[int(np.argmax(found))]


def _rotation(quaternion: np.ndarray) -> np.ndarray:
    length = np.linalg.norm(quaternion)
    if not 1e-6 < length < 1e6:
        raise ValueError(f"a quaternion of length {length:g}")
    w, x, y, z = quaternion / length
    return np.array([
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ])  # fmt: skip


def _data_lines(file: Path) -> list[str]:
    """Lines that are no comment; the empty line of an image without points counts."""
    lines = [line for line in read_text(file).splitlines() if not line.startswith("#")]
    while lines and not lines[0].strip():
        lines.pop(0)
    return lines


def _cameras_txt(file: Path) -> dict[int, Camera]:
    rows = [line.split() for line in _data_lines(file) if line.strip()]
    return {int(i): Camera(model, int(w), int(h), tuple(map(float, params))) for i, model, w, h, *params in rows}


def _images_txt(file: Path) -> list[tuple[str, int, np.ndarray]]:
    rows = [line.split(maxsplit=9) for line in _data_lines(file)[::2] if line.strip()]
    return [(name.strip(), int(camera), np.array(pose, dtype=np.float64)) for _, *pose, camera, name in rows]


def _points_txt(file: Path) -> np.ndarray:
    if not file.is_file():
        return np.empty((0, 3))
    rows = sorted(((int(i), xyz) for i, *xyz in (line.split()[:4] for line in _data_lines(file) if line.strip())), key=itemgetter(0))
    return np.array([xyz for _, xyz in rows], dtype=np.float64).reshape(-1, 3)


def _cameras_bin(file: Path) -> dict[int, Camera]:
    data = file.read_bytes()
    cameras = {}
    at = 8
    for _ in range(_number(data)):
        i, kind, width, height = struct.unpack_from("<iiQQ", data, at)
        model, n = MODELS[kind]
        cameras[i] = Camera(model, width, height, struct.unpack_from(f"<{n}d", data, at + 24))
        at += 24 + 8 * n
    return cameras


def _images_bin(file: Path) -> list[tuple[str, int, np.ndarray]]:
    data = file.read_bytes()
    images = []
    at = 8
    for _ in range(_number(data)):
        pose = np.array(struct.unpack_from("<7d", data, at + 4))
        (camera,) = struct.unpack_from("<i", data, at + 60)
        end = data.index(b"\0", at + 64)
        images.append((data[at + 64 : end].decode(), camera, pose))
        (n,) = struct.unpack_from("<Q", data, end + 1)
        at = end + 9 + 24 * n  # x, y and the point's id of each observation
    return images


def _points_bin(file: Path) -> np.ndarray:
    if not file.is_file():
        return np.empty((0, 3))
    data = file.read_bytes()
    rows = []
    at = 8
    for _ in range(_number(data)):
        rows.append(struct.unpack_from("<Q3d", data, at))
        (n,) = struct.unpack_from("<Q", data, at + 43)  # after id, position, colour and error
        at += 51 + 8 * n  # image and observation of each track element
    return np.array([xyz for _, *xyz in sorted(rows, key=itemgetter(0))]).reshape(-1, 3)


def _number(data: bytes) -> int:
    return int(struct.unpack_from("<Q", data)[0])
