"""COLMAP sparse models, binary and text: sparse/0, sparse, colmap/sparse/0, dense/sparse, or the files themselves.

World to camera (quaternion w first, translation), OpenCV axes, pixel centres at half integers; any of COLMAP's camera models.
Not by pycolmap: of a points3D.bin that was cut off it asks for more memory than there is, or returns what was never in it.
"""

import os
import struct
from dataclasses import dataclass
from itertools import zip_longest
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
LEAST_TRACK, MOST_ERROR = 3, 2.0  # photographs that see a point, and mean reprojection error in pixels, of points that are trusted


@dataclass(frozen=True, eq=False)
class Model:
    """A sparse model: image name -> (camera, c2w (3, 4)), points (n, 3), image name -> indices of the trusted points that it sees."""

    images: dict[str, tuple[Camera, np.ndarray]]
    points: np.ndarray
    seen: dict[str, np.ndarray]


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
    notes = note_missing([root / name for name in names], home)
    views = [View(name, root / name, None, *model.images[name]) for name in names if (root / name).is_file()]
    siblings = _models(folder.parent) if folder.name.isdigit() else []
    if len(siblings) > 1:
        counts = ", ".join(f"{m.name}: {_count(m)}" for m in siblings)
        notes.append(f"took sub-model {folder.name} of {len(siblings)} (images in {counts})")
    points = model.points if len(model.points) else None
    rows = [np.stack([np.full_like(seen, i), seen], -1) for i, view in enumerate(views) if len(seen := model.seen[view.name])]
    sightings = np.concatenate(rows) if rows else None
    return finish(scene, "colmap", views, masks, points=points, sightings=sightings, notes=notes)


def read(folder: Path) -> Model:
    """The model in a folder; points in the order of their numbers.

    Raises:
        SceneError: unreadable.
    """
    binary = (folder / "images.bin").is_file()
    try:
        cameras = _cameras_bin(folder / "cameras.bin") if binary else _cameras_txt(folder / "cameras.txt")
        found = _images_bin(folder / "images.bin") if binary else _images_txt(folder / "images.txt")
        ids, points, trusted = _points_bin(folder / "points3D.bin") if binary else _points_txt(folder / "points3D.txt")
        images = {name: (cameras[camera], from_world_to_camera(_rotation(pose[:4]), pose[4:])) for name, camera, pose, _ in found}
        seen = {name: _trusted(observed, ids, trusted) for name, _, _, observed in found}
    except (OSError, KeyError, IndexError, ValueError, OverflowError, struct.error) as e:
        raise SceneError(f"{folder}: not readable as a COLMAP model ({type(e).__name__}: {e})") from None
    return Model(images, points, seen)


def _trusted(observed: np.ndarray, ids: np.ndarray, trusted: np.ndarray) -> np.ndarray:
    """Indices of those observed points (k,) that are trusted; ids (n,) sorted, trusted (n,) bool."""
    index = np.searchsorted(ids, observed)
    index = index[(index < len(ids)) & (ids[np.minimum(index, len(ids) - 1)] == observed)] if len(ids) else index[:0]
    return np.unique(index[trusted[index]])


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


def _images_txt(file: Path) -> list[tuple[str, int, np.ndarray, np.ndarray]]:
    """Name, camera, pose and the ids of the points that it observes, of each image."""
    lines = _data_lines(file)
    pairs = zip_longest(lines[::2], lines[1::2], fillvalue="")
    rows = [(line.split(maxsplit=9), seen.split()[2::3]) for line, seen in pairs if line.strip()]
    return [
        (name.strip(), int(camera), np.array(pose, dtype=np.float64), _seen(np.array(seen, np.int64)))
        for (_, *pose, camera, name), seen in rows
    ]  # fmt: skip


def _points_txt(file: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ids (n,), sorted, positions (n, 3) and which are trusted."""
    lines = [line.split() for line in _data_lines(file) if line.strip()] if file.is_file() else []
    ids = np.array([words[0] for words in lines], np.int64)
    points = np.array([words[1:4] for words in lines], dtype=np.float64).reshape(-1, 3)
    trusted = np.array([len(words) - 8 >= 2 * LEAST_TRACK and float(words[7]) <= MOST_ERROR for words in lines], bool)
    order = np.argsort(ids)
    return ids[order], points[order], trusted[order]


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


def _images_bin(file: Path) -> list[tuple[str, int, np.ndarray, np.ndarray]]:
    """As `_images_txt`."""
    data = file.read_bytes()
    images = []
    at = 8
    for _ in range(_number(data)):
        pose = np.array(struct.unpack_from("<7d", data, at + 4))
        (camera,) = struct.unpack_from("<i", data, at + 60)
        end = data.index(b"\0", at + 64)
        (n,) = struct.unpack_from("<Q", data, end + 1)
        observed = np.frombuffer(data, "<i8", 3 * n, end + 9)[2::3]  # after x and y
        images.append((data[at + 64 : end].decode(), camera, pose, _seen(observed)))
        at = end + 9 + 24 * n
    return images


def _points_bin(file: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """As `_points_txt`."""
    data = file.read_bytes() if file.is_file() else bytes(8)
    rows = []
    at = 8
    for _ in range(_number(data)):
        i, x, y, z = struct.unpack_from("<q3d", data, at)
        error, n = struct.unpack_from("<dQ", data, at + 35)  # after colour
        rows.append((i, (x, y, z), n >= LEAST_TRACK and error <= MOST_ERROR))
        at += 51 + 8 * n  # image and observation of each track element
    rows.sort(key=itemgetter(0))
    ids, points, trusted = ([row[k] for row in rows] for k in range(3))
    return np.array(ids, np.int64), np.array(points, np.float64).reshape(-1, 3), np.array(trusted, bool)


def _seen(observed: np.ndarray) -> np.ndarray:
    """Without the -1 of features that belong to no point."""
    return observed[observed >= 0]


def _number(data: bytes) -> int:
    return int(struct.unpack_from("<Q", data)[0])
