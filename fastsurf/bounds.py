"""Where the scene is: the cube that becomes [-1, 1]^3, found from masks, sparse points or the cameras. All in the input's world."""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.functional import max_pool2d

from .cameras import Camera, View, project, unproject
from .errors import SceneError

CELLS = 64  # of the visual hull along each axis; half as many while the hull is searched for
AGREE = 0.9  # share of the views seeing a point whose masks must hold it: hand-drawn masks err
PADDING = 1.06  # of a box that holds the object's extent
CLEARANCE = 0.8  # of the way from the centre to the nearer cameras that the box may take where only the cameras are known


@dataclass(frozen=True)
class Box:
    """The scene cube: half its edge is `radius`; `source` says in a few words where it comes from."""

    center: np.ndarray  # (3,)
    radius: float
    source: str


def find_box(
    views: Sequence[View], masks: Sequence[np.ndarray] | None, points: np.ndarray | None, stated: tuple[np.ndarray, float] | None
) -> Box:
    """The box by the most trusted thing there is: masks, sparse points, what the format states, the cameras' common view.

    Args:
        masks: (h, w) uint8 of each view, 255 is object.
        points: sparse points (n, 3).
        stated: centre and radius.

    Raises:
        SceneError: the views have nothing in common.
    """
    if masks is not None:
        return hull_box(views, masks)
    common = common_view(views)
    if points is not None and (box := points_box(views, points)) is not None:
        return box
    if stated is not None:
        return Box(np.asarray(stated[0], np.float64), float(stated[1]), "stated by the input")
    return common


def common_view(views: Sequence[View]) -> Box:
    """What all cameras look at: the point nearest to the lines of sight, and a part of what is visible around it.

    Raises:
        SceneError: fewer than half of the cameras look towards that point.
    """
    origins = np.stack([view.center for view in views])
    forward, half = _lines_of_sight(views)
    across = np.eye(3) - forward[:, :, None] * forward[:, None, :]  # (n, 3, 3), the part of a vector across the line
    weights = np.ones(len(views))
    for _ in range(20):  # reweighted, so that a few cameras looking elsewhere don't count
        system = np.einsum("n,nij->ij", weights, across)
        center = np.linalg.lstsq(system, np.einsum("n,nij,nj->i", weights, across, origins), rcond=1e-6)[0]
        distance = np.linalg.norm(np.einsum("nij,nj->ni", across, center - origins), axis=-1)
        weights = 1 / np.maximum(distance, 1e-3 * np.median(distance) + 1e-12)
    depth = np.einsum("ni,ni->n", center - origins, forward)
    looking = np.mean([_inside(view, center[None])[0] for view in views])
    if looking < 0.5:
        raise SceneError(
            f"the cameras don't look at one scene: only {looking:.0%} have the point nearest to their lines of sight in the picture; "
            "check the poses' convention, or set scene.center and scene.radius"
        )
    radius = float(np.median((depth * half)[depth > 0]))  # what the typical picture shows
    nearest = float(np.quantile(np.abs(origins - center).max(-1), 0.05))  # a camera is outside the cube beyond this radius
    return Box(center, min(radius, CLEARANCE * nearest), "common view of the cameras")


def points_box(views: Sequence[View], points: np.ndarray) -> Box | None:
    """Box round the sparse points that most views see; None where too few remain."""
    points = points[np.isfinite(points).all(-1)]
    if len(points) < 20:
        return None
    seen = np.sum([_inside(view, points) for view in views], axis=0)  # (n,)
    kept = points[seen >= 0.8 * np.quantile(seen, 0.95)]
    if len(kept) < 20:
        return None
    low, high = np.quantile(kept, [0.02, 0.98], axis=0)
    return Box((low + high) / 2, PADDING * float(np.max(high - low)) / 2, f"{len(kept)} sparse points")


def hull_box(views: Sequence[View], masks: Sequence[np.ndarray]) -> Box:
    """Box round the masks' visual hull, carved coarse to fine.

    Raises:
        SceneError: no point of space lies inside the masks.
    """
    shown = [(view, mask) for view, mask in zip(views, masks, strict=True) if mask.max() > 127]
    origins = np.stack([view.center for view, _ in shown])
    center = common_view([view for view, _ in shown]).center
    radius = float(np.linalg.norm(origins - center, axis=-1).max())
    fine = False
    while True:
        kept, cell = carve(shown, center, radius, CELLS if fine else CELLS // 2)
        if len(kept) == 0:
            raise SceneError(
                f"the {len(shown)} masks have no common object: no point of space lies inside {AGREE:.0%} of them; "
                "check that masks and poses belong together, or use --masks ignore"
            )
        low, high = kept.min(0) - cell / 2, kept.max(0) + cell / 2
        tight = float(np.max(high - low)) / 2
        if fine:
            return Box((low + high) / 2, PADDING * tight, f"visual hull of {len(shown)} masks")
        fine = tight > 0.7 * radius
        center, radius = (low + high) / 2, 1.05 * tight


def carve(
    shown: Sequence[tuple[View, np.ndarray]], center: np.ndarray, radius: float, cells: int = CELLS
) -> tuple[np.ndarray, float]:
    """Centres (n, 3) of the cells of a cells^3 grid that may hold the object, and the length of their edge.

    A cell is kept when it touches the mask in AGREE of the views that see it, and at least a quarter of all views see it.
    """
    cell = 2 * radius / cells
    axis = (np.arange(cells) + 0.5) * cell - radius
    points = center + np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), -1).reshape(-1, 3)
    seen, missed = np.zeros(len(points)), np.zeros(len(points))
    for i in np.random.default_rng(0).permutation(len(shown)):
        view, mask = shown[i]
        inside, touched = _touches(view, mask, points, cell)
        seen += inside
        missed += inside & ~touched
        alive = missed <= (1 - AGREE) * len(shown)
        points, seen, missed = points[alive], seen[alive], missed[alive]
    kept = (missed <= (1 - AGREE) * seen) & (seen >= max(2, len(shown) / 4))
    return points[kept], cell


def _touches(view: View, mask: np.ndarray, points: np.ndarray, cell: float) -> tuple[np.ndarray, np.ndarray]:
    """Whether cells round points (n, 3) lie in the picture, and whether they touch its mask, each (n,) bool."""
    pixels, inside = _pixels(view, points)
    if not inside.any():
        return inside, inside
    depth = np.linalg.norm(points[inside] - view.center, axis=-1)
    reach = 0.87 * cell * max(view.camera.focal) / max(float(np.median(depth)), 1e-9)  # pixels, half a cell's diagonal
    shrink = max(1, int(reach // 2))
    wider = math.ceil(reach / shrink)
    bright = torch.from_numpy(mask > 127)[None].float()
    small = max_pool2d(bright, min(shrink, *mask.shape), shrink, ceil_mode=True)
    near = max_pool2d(small, 2 * wider + 1, 1, wider)[0].numpy() > 0
    column, row = (pixels[inside] / shrink).astype(int).T
    touched = np.zeros(len(points), bool)
    touched[inside] = near[np.minimum(row, near.shape[0] - 1), np.minimum(column, near.shape[1] - 1)]
    return inside, touched


def _pixels(view: View, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pixels (n, 2) of world points, and whether they lie in the picture."""
    local = (points - view.center) @ view.c2w[:, :3]
    pixels = project(view.camera, local)
    with np.errstate(invalid="ignore"):
        inside = np.all((pixels >= 0) & (pixels < (view.camera.width, view.camera.height)), axis=-1)
    if not view.camera.is_pinhole:  # far outside the picture, a lens polynomial can bend back into it
        inside = inside & (np.linalg.norm(local[:, :2], axis=-1) < 1.05 * _widest(view.camera) * local[:, 2])
    return pixels, inside


@functools.lru_cache(maxsize=4096)
def _widest(camera: Camera) -> float:
    """Distance from the axis, on the plane z = 1, of the picture's furthest border pixel."""
    x, y = np.linspace(0, camera.width, 33), np.linspace(0, camera.height, 33)
    border = [(x, 0 * x), (x, 0 * x + camera.height), (0 * y, y), (0 * y + camera.width, y)]
    reach = np.linalg.norm(unproject(camera, np.concatenate([np.stack(side, -1) for side in border])), axis=-1)
    return float(np.nanmax(reach, initial=0.0)) or math.inf


def _inside(view: View, points: np.ndarray) -> np.ndarray:
    return _pixels(view, points)[1]


def _lines_of_sight(views: Sequence[View]) -> tuple[np.ndarray, np.ndarray]:
    """Unit directions (n, 3) through the pictures' middles, and the tangent of half the smaller angle of view (n,)."""
    forward, half = [], []
    for view in views:
        w, h = view.camera.width, view.camera.height
        plane = unproject(view.camera, np.array([[w / 2, h / 2]]))[0]
        direction = view.c2w[:, :3] @ np.append(plane, 1.0)
        forward.append(direction / np.linalg.norm(direction))
        half.append(min(w / view.camera.focal[0], h / view.camera.focal[1]) / 2)
    return np.stack(forward), np.array(half)
