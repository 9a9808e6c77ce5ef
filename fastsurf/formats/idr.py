"""IDR's cameras*.npz (also NeuS's and DTU's), and the dialect of DVR and UNISURF.

`world_mat_i` (4x4) projects world points to pixels: K [R|t], OpenCV axes. `scale_mat_i` maps the unit sphere around the object to the
world. In the dialect `world_mat_i` is [R|t] alone and `camera_mat_i` maps camera axes to [-1, 1] from edge to edge of the image; DTU's
files hold a `camera_mat_i` as well, but their world_mat is in pixels, so the dialect is told by whether world_mat is a rigid motion.

Pixel centres: IDR, NeuS and DTU count pixels from 0 and take the integer as the centre, so half a pixel is added here. The exception is a
principal point in the exact middle (w/2, h/2) of the image: only half-integer centres put it there, as renderers and COLMAP do.
The dialect's [-1, 1] spans the image from edge to edge, which leaves nothing to choose.
"""

import re
from pathlib import Path

import numpy as np

from ..cameras import Camera, Capture, View, shift_centers
from ..errors import SceneError
from ..guard import MOST_NUMBER, MOST_SIDE, read_arrays
from .checks import finish, from_world_to_camera, guess_stated_size, image_folder, image_size, pinhole

WANTED = "cameras_sphere.npz or cameras.npz"
MIDDLE = 0.02  # pixels from (w/2, h/2) within which a principal point is in the exact middle; float32 matrices are good to 1e-3


def find(folder: Path) -> Path | None:
    """The camera file: cameras_sphere.npz before cameras.npz before others."""
    known = (folder / "cameras_sphere.npz", folder / "cameras.npz", *sorted(folder.glob("cameras*.npz")))
    return next((file for file in known if file.is_file()), None)


def load(scene: Path, file: Path, masks: str, outside: bool) -> Capture:
    """Read the cameras; photographs in image/ belong to them in sorted order."""
    matrices = _read(file)
    indices = sorted(int(key[10:]) for key in matrices if re.fullmatch("world_mat_(0|[1-9][0-9]{0,8})", key))
    if not indices:
        raise SceneError(f"{file}: want world_mat_0, world_mat_1, ...; found {', '.join(sorted(matrices)[:4]) or 'nothing'}")
    root, images = image_folder(scene, len(indices))
    notes = []
    if len(images) != len(indices):
        numbered = [int(image.stem) if re.fullmatch("[0-9]{1,9}", image.stem) else -1 for image in images]
        if not set(numbered) <= set(indices):
            raise SceneError(f"{scene}: {len(indices)} cameras in {file.name} but {len(images)} photographs in {root}; want one for each")
        notes.append(f"{len(images)} photographs for {len(indices)} cameras, matched by number")
        indices = numbered
    views = []
    for i, image in zip(indices, images, strict=True):
        camera, c2w, rule = _camera(matrices, i, image)
        views.append(View(image.name, image, None, camera, c2w))
    notes.append(rule)
    others = [other.name for other in sorted(scene.glob("cameras*.npz")) if other != file]
    if others:
        notes.append(f"took {file.name}, not {', '.join(others)} beside it")
    box = _unit_sphere(matrices, indices, file)
    if box is not None:
        depths = [(box[0] - view.center) @ view.c2w[:, 2] for view in views]
        if np.max(depths) <= 0:
            raise SceneError(f"{file}: the scene lies behind every camera, so the projections are left-handed; want OpenCV axes")
    return finish(scene, "idr", views, masks, box=box, masks_in_order=True, notes=notes)


def decompose(P: np.ndarray, name: str) -> tuple[np.ndarray, np.ndarray]:
    """A projection (3, 4) as K (3, 3), upper triangular with positive diagonal and K[2, 2] = 1, and c2w (3, 4).

    P and -P are the same projection; the sign with det R = +1 is taken.
    """
    if not np.isfinite(P).all() or not abs(np.linalg.det(P[:, :3])) > 1e-12 * np.abs(P[:, :3]).max() ** 3:
        raise SceneError(f"world_mat of {name} is not finite or singular; want a projection K [R|t]")
    P = P * np.sign(np.linalg.det(P[:, :3]))
    q, r = np.linalg.qr(P[::-1, :3].T)  # rows in reverse order turn QR into RQ
    K, R = r.T[::-1, ::-1], q.T[::-1]
    signs = np.sign(np.diag(K))
    K, R = K * signs, signs[:, None] * R
    return K / K[2, 2], from_world_to_camera(R, np.linalg.solve(K, P[:, 3]))


def _camera(matrices: dict[str, np.ndarray], i: int, image: Path) -> tuple[Camera, np.ndarray, str]:
    """Intrinsics for the stated size with centres at half integers, c2w, and in words which rule gave the pixel centres."""
    width, height = image_size(image)
    world = matrices[f"world_mat_{i}"]
    to_unit = matrices.get(f"camera_mat_{i}")
    rotation = world[:3, :3]
    if np.abs(rotation @ rotation.T - np.eye(3)).max() < 1e-3:
        if to_unit is None:
            raise SceneError(f"world_mat_{i} is [R|t] without intrinsics; want K [R|t], or camera_mat_{i} beside it")
        K = to_unit[:3, :3] if to_unit[0, 0] > 100 else _from_unit(width, height) @ to_unit[:3, :3]
        c2w = from_world_to_camera(rotation, world[:3, 3])
        return pinhole(K / K[2, 2], width, height, image.name), c2w, "UNISURF's camera_mat: [-1, 1] from edge to edge of the image"
    K, c2w = decompose(world[:3], image.name)
    if to_unit is not None and all(2 / MOST_SIDE <= to_unit[k, k] < 1 for k in (0, 1)):  # DTU: camera_mat maps pixels to [-1, 1]
        w, h = round(2 / to_unit[0, 0]), round(2 / to_unit[1, 1])
    else:
        w, h = guess_stated_size((K[0, 2], K[1, 2]), width, height, image.name)
    camera = pinhole(K, w, h, image.name)
    if max(abs(K[0, 2] - w / 2), abs(K[1, 2] - h / 2)) < MIDDLE:
        return camera, c2w, "pixel centres at half integers (principal points in the exact middle)"
    return shift_centers(camera), c2w, "pixel centres at integers, as in IDR"


def _from_unit(width: int, height: int) -> np.ndarray:
    """[-1, 1]^2 to pixels, (3, 3)."""
    return np.array([[width / 2, 0, width / 2], [0, height / 2, height / 2], [0, 0, 1]])


def _unit_sphere(matrices: dict[str, np.ndarray], indices: list[int], file: Path) -> tuple[np.ndarray, float] | None:
    """Centre and radius of the sphere that scale_mat states for the first view, in the world."""
    scale = matrices.get(f"scale_mat_{indices[0]}")
    if scale is None:
        return None
    radius = float(np.abs(np.diag(scale)[:3]).max())
    if not np.isfinite(scale).all() or radius == 0:
        raise SceneError(f"{file}: scale_mat_{indices[0]} is not finite or empty; want a scale and a centre")
    return scale[:3, 3].copy(), radius


def _read(file: Path) -> dict[str, np.ndarray]:
    matrices = {key: matrix.astype(np.float64) for key, matrix in read_arrays(file).items()}
    for key, matrix in matrices.items():
        if not re.fullmatch(r"(world|scale|camera)_mat_[0-9]{1,9}", key):
            continue
        least = {"w": (3, 4), "s": (3, 4), "c": (3, 3)}[key[0]]
        if matrix.ndim != 2 or max(matrix.shape) > 4 or not (matrix.shape[0] >= least[0] and matrix.shape[1] >= least[1]):
            raise SceneError(f"{file}: {key} wants 4x4 numbers, found {'x'.join(map(str, matrix.shape))}")
        if np.isfinite(matrix).all() and np.abs(matrix).max() > MOST_NUMBER:
            raise SceneError(f"{file}: {key} has the number {np.abs(matrix).max():g}; want at most {MOST_NUMBER:g}")
    return matrices
