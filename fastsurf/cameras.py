"""Cameras and what a folder of photographs says about them.

Inside fastsurf every camera has OpenCV axes (x right, y down, z forward), a pose `c2w (3, 4)` from camera to the input's own world,
and pixel centres at half integers: the centre of the top-left pixel is (0.5, 0.5), an image of width w spans [0, w]. Intrinsics carry
COLMAP's model names and parameter order, so that photographs are never resampled: pixels of a distorted image become rays.
"""

import contextlib
import functools
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType

import numpy as np

from .errors import SceneError
from .guard import MOST_NUMBER, MOST_SIDE

# Number of parameters; fx, fy, cx, cy come first in these models ...
TWO_FOCALS = {
    "PINHOLE": 4, "OPENCV": 8, "FULL_OPENCV": 12, "OPENCV_FISHEYE": 8, "FISHEYE": 4, "FOV": 5, "DIVISION": 5, "EUCM": 6,
    "THIN_PRISM_FISHEYE": 12, "RAD_TAN_THIN_PRISM_FISHEYE": 16,
}
# ... and f, cx, cy in these, each a special case of another model once the missing parameters are 0.
ONE_FOCAL = {
    "SIMPLE_PINHOLE": (3, "PINHOLE"), "SIMPLE_RADIAL": (4, "OPENCV"), "RADIAL": (5, "OPENCV"), "SIMPLE_DIVISION": (4, "DIVISION"),
    "SIMPLE_FISHEYE": (3, "FISHEYE"), "SIMPLE_RADIAL_FISHEYE": (4, "OPENCV_FISHEYE"), "RADIAL_FISHEYE": (5, "OPENCV_FISHEYE"),
}  # fmt: skip
POLYNOMIAL = ("OPENCV", "FULL_OPENCV")  # the distortions that need no pycolmap
NEWTON_STEPS = 20
ROUND_TRIP = 0.05  # pixels; a pixel whose ray projects further away than this has no ray


@dataclass(frozen=True)
class Camera:
    """Intrinsics: a COLMAP model name, the size in pixels they are for, parameters in COLMAP's order."""

    model: str
    width: int
    height: int
    params: tuple[float, ...]

    def __post_init__(self) -> None:
        wanted = TWO_FOCALS.get(self.model) or ONE_FOCAL.get(self.model, (None,))[0]
        if wanted is None:
            raise SceneError(f"camera model {self.model} is not supported; want one of {', '.join((*TWO_FOCALS, *ONE_FOCAL))}")
        if len(self.params) != wanted:
            raise SceneError(f"camera model {self.model} has {wanted} parameters, found {len(self.params)}")
        if not np.isfinite(self.params).all() or min(self.focal) <= 0 or np.abs(self.params).max() > MOST_NUMBER:
            raise SceneError(f"camera {self.model} wants finite parameters and positive focal lengths, found {self.params}")
        if not (1 <= self.width <= MOST_SIDE and 1 <= self.height <= MOST_SIDE):
            raise SceneError(f"camera {self.model} wants a size of 1 to {MOST_SIDE} pixels, found {self.width}x{self.height}")

    @property
    def focal(self) -> tuple[float, float]:
        """fx, fy in pixels."""
        return (self.params[0], self.params[0 if self.model in ONE_FOCAL else 1])

    @property
    def principal(self) -> tuple[float, float]:
        """cx, cy in pixels."""
        first = 1 if self.model in ONE_FOCAL else 2
        return (self.params[first], self.params[first + 1])

    @property
    def is_pinhole(self) -> bool:
        """Whether rays follow from focal lengths and principal point alone."""
        return self.model in ("PINHOLE", "SIMPLE_PINHOLE")


@dataclass(frozen=True, eq=False)
class View:
    """One photograph. `name` is the file name with sub-folder as in the input; `mask` a picture whose bright pixels are the object,
    `ignore` one whose bright pixels show something that isn't part of the scene: a passer-by, the photographer's shadow."""

    name: str
    image: Path
    mask: Path | None
    camera: Camera
    c2w: np.ndarray  # (3, 4) float64
    split: str = "train"  # or "test"
    ignore: Path | None = None

    @property
    def center(self) -> np.ndarray:
        """Camera centre in the world, (3,)."""
        return self.c2w[:, 3]


@dataclass(frozen=True, eq=False)
class Capture:
    """A folder of photographs with cameras, as its files say it.

    Attributes:
        points: sparse points in the world, (n, 3), or None.
        sightings: which views see which trusted points, (m, 2) indices of a view and of a point, or None.
        box: centre (3,) and radius of the region that the format itself states, in the world, or None.
        alpha_masks: the photographs' alpha channel is the mask.
        notes: one-line remarks for the user.
        convention: how poses were read, where that isn't as the format has it (conventions.py).
    """

    path: Path
    format: str
    views: tuple[View, ...]
    points: np.ndarray | None = None
    sightings: np.ndarray | None = None
    box: tuple[np.ndarray, float] | None = None
    alpha_masks: bool = False
    notes: tuple[str, ...] = ()
    convention: str = ""


def unproject(camera: Camera, xy: np.ndarray) -> np.ndarray:
    """Points (x/z, y/z) on the plane z = 1 seen at pixels `xy (n, 2)`: (n, 2) float64; NaN where the model gives a pixel no ray.

    Raises:
        SceneError: a model that needs pycolmap, which is not installed.
    """
    xy = np.asarray(xy, dtype=np.float64)
    if camera.is_pinhole:
        return (xy - camera.principal) / camera.focal
    pycolmap = load_pycolmap()
    if pycolmap is not None:
        uv = np.asarray(_colmap_camera(camera).cam_from_img(xy))
    else:
        uv = _undistort(_distortion(camera), (xy - camera.principal) / camera.focal)
    uv1 = np.concatenate([uv, np.ones_like(uv[:, :1])], axis=1)
    error = np.linalg.norm(project(camera, uv1) - xy, axis=1)
    return np.where((error < ROUND_TRIP)[:, None], uv, np.nan)


def project(camera: Camera, points_cam: np.ndarray) -> np.ndarray:
    """Pixels (n, 2) of points (n, 3) in the camera's own axes; NaN for points that are not in front of it.

    Raises:
        SceneError: a model that needs pycolmap, which is not installed.
    """
    points_cam = np.asarray(points_cam, dtype=np.float64)
    in_front = points_cam[:, 2:] > 0
    depth = np.where(in_front, points_cam[:, 2:], np.nan)
    if camera.is_pinhole:
        return points_cam[:, :2] / depth * camera.focal + camera.principal
    pycolmap = load_pycolmap()
    if pycolmap is not None:
        return np.where(in_front, np.asarray(_colmap_camera(camera).img_from_cam(points_cam)), np.nan)
    return _distort(_distortion(camera), points_cam[:, :2] / depth) * camera.focal + camera.principal


def rescale(camera: Camera, width: int, height: int) -> Camera:
    """The same camera for an image of another size: [0, w] x [0, h] is stretched, so focal length and principal point scale alike."""
    sx, sy = width / camera.width, height / camera.height
    if sx == sy == 1:
        return camera
    if camera.model in ONE_FOCAL and sx != sy:
        camera = _two_focals(camera)
    scales = (sx, sx, sy) if camera.model in ONE_FOCAL else (sx, sy, sx, sy)
    scaled = tuple(p * s for p, s in zip(camera.params, scales, strict=False))
    return Camera(camera.model, width, height, scaled + camera.params[len(scales) :])


def shift_centers(camera: Camera, offset: float = 0.5) -> Camera:
    """The camera with its principal point moved by `offset` pixels: +0.5 turns pixel centres at integers into ours at half integers."""
    first = 1 if camera.model in ONE_FOCAL else 2
    params = list(camera.params)
    params[first] += offset
    params[first + 1] += offset
    return replace(camera, params=tuple(params))


def world_to_pixels(view: View, points: np.ndarray) -> np.ndarray:
    """Pixels (n, 2) of world points (n, 3); NaN behind the camera."""
    return project(view.camera, (points - view.center) @ view.c2w[:, :3])


@functools.cache
def load_pycolmap() -> ModuleType | None:
    """pycolmap, kept from writing to the terminal, or None where it is not installed (there is no wheel for some systems)."""
    with contextlib.suppress(ImportError):
        from PIL import Image  # noqa: F401 # loaded after pycolmap 4.2, Pillow 13 writes PNG with half of another zlib, and crashes
    try:
        import pycolmap
    except ImportError:
        return None
    pycolmap.logging.minloglevel = 3  # its errors also reach us as exceptions
    return pycolmap  # type: ignore[no-any-return, unused-ignore]


@functools.lru_cache(maxsize=4096)
def _colmap_camera(camera: Camera):  # type: ignore[no-untyped-def]
    pycolmap = load_pycolmap()
    assert pycolmap is not None
    return pycolmap.Camera(model=camera.model, width=camera.width, height=camera.height, params=camera.params)


def _two_focals(camera: Camera) -> Camera:
    model = ONE_FOCAL[camera.model][1]
    f, cx, cy, *distortion = camera.params
    missing = TWO_FOCALS[model] - 4 - len(distortion)
    return Camera(model, camera.width, camera.height, (f, f, cx, cy, *distortion, *[0.0] * missing))


def _distortion(camera: Camera) -> np.ndarray:
    """k1, k2, p1, p2, k3, k4, k5, k6 of OpenCV's rational model, (8,)."""
    if camera.model in ONE_FOCAL:
        camera = _two_focals(camera)
    if camera.model not in POLYNOMIAL:
        raise SceneError(f"camera model {camera.model} needs pycolmap, which is not installed: pip install pycolmap")
    return np.array([*camera.params[4:], *[0.0] * (12 - len(camera.params))])


def _distort(distortion: np.ndarray, uv: np.ndarray) -> np.ndarray:
    """OpenCV's rational and tangential distortion of plane points, (n, 2) -> (n, 2)."""
    k1, k2, p1, p2, k3, k4, k5, k6 = distortion
    u, v = uv[:, 0], uv[:, 1]
    r2 = u * u + v * v
    radial = (1 + r2 * (k1 + r2 * (k2 + r2 * k3))) / (1 + r2 * (k4 + r2 * (k5 + r2 * k6)))
    du = 2 * p1 * u * v + p2 * (r2 + 2 * u * u)
    dv = 2 * p2 * u * v + p1 * (r2 + 2 * v * v)
    return np.stack([u * radial + du, v * radial + dv], axis=1)


def _undistort(distortion: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Newton's method on `_distort(uv) = target`, derivatives by central differences, (n, 2) -> (n, 2)."""
    uv = target.copy()
    step = 1e-6
    for _ in range(NEWTON_STEPS):
        left, right = ((_distort(distortion, uv + e) - _distort(distortion, uv - e)) / (2 * step) for e in step * np.eye(2))
        error = _distort(distortion, uv) - target
        det = left[:, 0] * right[:, 1] - right[:, 0] * left[:, 1]
        det = np.where(np.abs(det) < 1e-12, 1e-12, det)
        du = (error[:, 0] * right[:, 1] - error[:, 1] * right[:, 0]) / det
        dv = (error[:, 1] * left[:, 0] - error[:, 0] * left[:, 1]) / det
        uv = uv - np.clip(np.stack([du, dv], axis=1), -0.5, 0.5)
        if np.abs(error).max(initial=0.0) < 1e-12:
            break
    return uv


def up_of(poses: np.ndarray) -> np.ndarray:
    """The cameras' mean up direction (3,), unit, of c2w (n, 3, 4); +z where they have none in common."""
    up = -poses[:, :, 1].mean(0)
    length = float(np.linalg.norm(up))
    return up / length if length >= 0.1 else np.array([0.0, 0.0, 1.0])
