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

FIRST_VIEWS = 40  # that are looked at while the grid closes in on the visual hull; later all are
CELLS = 32  # of that grid along each axis
AGREE = 0.9  # share of the views seeing a point whose masks must hold it: hand-drawn masks err
PADDING = 1.06  # of a box that holds the object's extent
SPREAD = 1.25  # of the box that holds 96 % of the sparse points along each axis: smooth parts have none
FEWEST_POINTS = 20
PARALLEL = 1e-3  # mean squared sine of the angle between lines of sight below which their meeting point means nothing
NEAREST = 0.8  # part of the way from its centre to the nearest cameras that a box round points may take
NEAREST_GUESS = 0.65  # and a guessed one (fox: ears, plaque and nose fit)
COMMON_VIEW = "common view of the cameras"  # source of a box that is but a guess


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
    if points is not None and (box := points_box(views, points)) is not None:
        return box
    if stated is not None:
        return Box(np.asarray(stated[0], np.float64), PADDING * float(stated[1]), "stated by the input")
    return common_view(views)


def common_view(views: Sequence[View]) -> Box:
    """What all cameras look at: the point nearest to the lines of sight, and what a typical picture shows around it.

    Raises:
        SceneError: fewer than half of the cameras see that point, or they look in parallel.
    """
    center = meeting_point(views)
    share = _seeing(views, center)
    if share < 0.5:
        raise SceneError(
            f"the cameras don't look at one scene: only {share:.0%} of them see the point nearest to their lines of sight; "
            "check the poses' convention, or set scene.center and scene.radius"
        )
    depths = np.array([(center - view.center) @ view.c2w[:, 2] for view in views])
    halves = np.array([math.sqrt(v.camera.width / v.camera.focal[0] * v.camera.height / v.camera.focal[1]) / 2 for v in views])
    radius = float(np.median((depths * halves)[depths > 0]))
    return Box(center, min(radius, NEAREST_GUESS * _nearest_camera(views, center)), COMMON_VIEW)


def looking(views: Sequence[View]) -> float:
    """Share of the views that see the point nearest to their lines of sight; 0 where these are parallel."""
    try:
        return _seeing(views, meeting_point(views))
    except (SceneError, np.linalg.LinAlgError):
        return 0.0


def _seeing(views: Sequence[View], point: np.ndarray) -> float:
    return float(np.mean([_inside(view, point[None])[0] for view in views]))


def meeting_point(views: Sequence[View]) -> np.ndarray:
    """The point (3,) nearest to the lines of sight, by least distance (not its square: a few cameras may look elsewhere).

    Raises:
        SceneError: the lines are parallel.
    """
    origins = np.stack([view.center for view in views])
    forward = np.stack([_line_of_sight(view) for view in views])
    across = np.eye(3) - forward[:, :, None] * forward[:, None, :]  # (n, 3, 3), the part of a vector across the line
    if np.linalg.eigvalsh(across.mean(0))[0] < PARALLEL:
        raise SceneError("the cameras look in parallel, so how far away the scene is can't be told: set scene.center and scene.radius")
    weights = np.ones(len(views))
    for _ in range(20):
        normal = np.einsum("n,nij->ij", weights, across)
        center = np.linalg.solve(normal, np.einsum("n,nij,nj->i", weights, across, origins))
        distance = np.linalg.norm(np.einsum("nij,nj->ni", across, center - origins), axis=-1)
        weights = 1 / np.maximum(distance, 1e-3 * np.median(distance) + 1e-9 * np.abs(origins - center).max())
    return center


def _nearest_camera(views: Sequence[View], center: np.ndarray) -> float:
    """The radius at which a cube reaches the nearest cameras, but for 5 % of them."""
    distances = np.abs(np.stack([view.center for view in views]) - center).max(-1)
    return float(np.quantile(distances, 0.05))


def points_box(views: Sequence[View], points: np.ndarray) -> Box | None:
    """Box round the sparse points that most views look at; None where too few remain.

    Points are kept that lie in nearly as many pictures as the best ones, and not far behind the others: those are the surroundings.
    """
    points = points[np.isfinite(points).all(-1)]
    if len(points) < FEWEST_POINTS:
        return None
    seen = np.sum([_inside(view, points) for view in views], axis=0)  # (n,)
    points = points[(seen >= 2) & (seen >= 0.8 * np.quantile(seen, 0.95))]
    if len(points) < FEWEST_POINTS:
        return None
    distance = np.mean([np.linalg.norm(points - view.center, axis=-1) for view in views], axis=0)
    points = points[distance < 2 * np.median(distance)]
    low, high = np.quantile(points, [0.02, 0.98], axis=0)
    center = (low + high) / 2
    radius = SPREAD * float(np.max(high - low)) / 2
    if not radius > 0:
        return None
    return Box(center, min(radius, NEAREST * _nearest_camera(views, center)), f"{len(points)} sparse points")


def hull_box(views: Sequence[View], masks: Sequence[np.ndarray]) -> Box:
    """Box round the masks' visual hull, carved coarse to fine.

    Raises:
        SceneError: no point of space lies inside the masks.
    """
    shown = [(view, mask) for view, mask in zip(views, masks, strict=True) if mask.max() > 127]
    if len(shown) < 2:
        raise SceneError(f"{len(shown)} of {len(masks)} masks show an object, want at least 2: replace them, or use --masks ignore")
    cells, edges = visual_hull(shown)
    low, high = (cells - edges[:, None] / 2).min(0), (cells + edges[:, None] / 2).max(0)
    return Box((low + high) / 2, PADDING * float(np.max(high - low)) / 2, f"visual hull of {len(shown)} masks")


def visual_hull(shown: Sequence[tuple[View, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Centres (n, 3) and edges (n,) of the cells that may hold the object of all masks; those at its surface are about 1/100 of it.

    A grid closes in on the object, then cells are halved twice, the second time at the surface only.

    Raises:
        SceneError: no point of space lies inside the masks.
    """
    center = meeting_point([view for view, _ in shown])
    radius = max(float(np.linalg.norm(view.center - center)) for view, _ in shown)
    around = np.stack(np.meshgrid(*[(np.arange(CELLS) + 0.5) * 2 / CELLS - 1] * 3, indexing="ij"), -1).reshape(-1, 3)
    tight = 0.0
    while tight < 0.75 * radius:
        radius = 1.05 * tight or radius
        cell = 2 * radius / CELLS
        kept = carve(shown[:: -(-len(shown) // FIRST_VIEWS)], center + radius * around, cell)
        low, high = kept.min(0), kept.max(0)
        center, tight = (low + high) / 2, float(np.max(high - low) + cell) / 2
    kept = carve(shown, _halved(kept, cell), cell / 2)
    inner = _enclosed(kept, cell / 2)
    outer = carve(shown, _halved(kept[~inner], cell / 2), cell / 4)
    edges = np.repeat([cell / 2, cell / 4], [int(inner.sum()), len(outer)])
    return np.concatenate([kept[inner], outer]), edges


def carve(shown: Sequence[tuple[View, np.ndarray]], points: np.ndarray, cell: float) -> np.ndarray:
    """Those of the cells round points (n, 3), with edge `cell`, that may hold the object.

    A cell is kept when it touches the mask in AGREE of the views that see it, and when these are at least a quarter of all views
    and half as many as see the best cell: close to a camera, hardly any other one looks.

    Raises:
        SceneError: none may.
    """
    seen, missed = np.zeros(len(points)), np.zeros(len(points))
    for i in np.random.default_rng(0).permutation(len(shown)):
        view, mask = shown[i]
        inside, touched = _touches(view, mask, points, cell)
        seen += inside
        missed += inside & ~touched
        alive = missed <= (1 - AGREE) * len(shown)
        points, seen, missed = points[alive], seen[alive], missed[alive]
    agreed = (seen >= max(2, len(shown) / 4)) & (missed <= (1 - AGREE) * seen)
    points = points[agreed & (2 * seen >= seen[agreed].max(initial=0))]
    if len(points) == 0:
        raise SceneError(
            f"the {len(shown)} masks have no common object: no point of space lies inside {AGREE:.0%} of them; "
            "check that masks and poses belong together, or use --masks ignore"
        )
    return points


def _halved(points: np.ndarray, cell: float) -> np.ndarray:
    """The eight halves of each cell: (n, 3) -> (8 n, 3)."""
    eighths = np.array(np.meshgrid(*[[-0.25, 0.25]] * 3)).reshape(3, 8).T * cell
    return (points[:, None] + eighths).reshape(-1, 3)


def _enclosed(points: np.ndarray, cell: float) -> np.ndarray:
    """Whether all six neighbours of each cell are there too, (n,) bool."""
    index = np.rint((points - points.min(0)) / cell).astype(int) + 1
    filled = np.zeros(index.max(0) + 2, bool)
    filled[tuple(index.T)] = True
    neighbours = [filled[tuple((index + side * step).T)] for step in np.eye(3, dtype=int) for side in (-1, 1)]
    return np.asarray(np.all(neighbours, axis=0))


def _touches(view: View, mask: np.ndarray, points: np.ndarray, cell: float) -> tuple[np.ndarray, np.ndarray]:
    """Whether cells round points (n, 3) lie in the picture, and whether they touch its mask, each (n,) bool."""
    pixels, inside = _pixels(view, points)
    if not inside.any():
        return inside, inside
    depth = float(np.median(np.linalg.norm(points[inside] - view.center, axis=-1)))
    reach = 0.87 * cell * max(view.camera.focal) / max(depth, 1e-9)  # pixels, half a cell's diagonal
    shrink = max(1, int(reach // 2))
    wider = math.ceil(reach / shrink)
    bright = torch.from_numpy(mask > 127)[None].float()
    small = max_pool2d(bright, min(shrink, *mask.shape), shrink, ceil_mode=True)
    near = max_pool2d(max_pool2d(small, (2 * wider + 1, 1), 1, (wider, 0)), (1, 2 * wider + 1), 1, (0, wider))[0].numpy() > 0
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


def _line_of_sight(view: View) -> np.ndarray:
    """Unit direction (3,) through the picture's middle, in the world."""
    plane = unproject(view.camera, np.array([[view.camera.width / 2, view.camera.height / 2]]))[0]
    direction = view.c2w[:, :3] @ np.append(plane, 1.0)
    return np.asarray(direction / np.linalg.norm(direction))
