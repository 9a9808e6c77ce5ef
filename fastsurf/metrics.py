"""How good pictures and meshes are: PSNR, SSIM, Chamfer distance, F-score, normal error.

Surfaces are compared as points with normals. A point stands for the small disc that it is a sample of: the distance to it is taken
perpendicular to the disc, plus whatever lies beside it. So the spacing of samples doesn't enter the score, and two samplings of one
surface are (nearly) 0 apart.
"""

import json
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .cameras import View
from .errors import MeshError, SceneError
from .mesh import Mesh, sample_surface
from .meshio import read_mesh
from .shade import seen

Floats = npt.NDArray[np.float64]


def psnr(a: npt.ArrayLike, b: npt.ArrayLike, mask: npt.ArrayLike | None = None) -> float:
    """Peak signal-to-noise ratio in dB of pictures (h, w, 3) in [0, 1]; `mask (h, w)` bool restricts it. inf for equal pictures."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    assert a.shape == b.shape, (a.shape, b.shape)
    square = (a - b) ** 2
    error = float(square.mean() if mask is None else square[np.asarray(mask, bool)].mean())
    return float("inf") if error == 0 else -10 * float(np.log10(error))


def ssim(a: npt.ArrayLike, b: npt.ArrayLike) -> float:
    """Structural similarity (Wang et al. 2004) of pictures (h, w, 3) in [0, 1], at least 11 pixels along each side.

    Gaussian window of 11x11 pixels, sigma 1.5, wherever it fits into the picture; K1 = 0.01, K2 = 0.03; mean over colours.
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    assert a.shape == b.shape and min(a.shape[:2]) >= 11, (a.shape, b.shape)
    mean_a, mean_b = _blur(a), _blur(b)
    var_a, var_b, cov = _blur(a * a) - mean_a**2, _blur(b * b) - mean_b**2, _blur(a * b) - mean_a * mean_b
    c1, c2 = 0.01**2, 0.03**2
    similarity = (2 * mean_a * mean_b + c1) * (2 * cov + c2) / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))
    return float(similarity.mean())


def _blur(a: Floats) -> Floats:
    """Gaussian window over the first two axes, where it fits."""
    window = np.exp(-0.5 * (np.arange(-5, 6) / 1.5) ** 2)
    window /= window.sum()
    for axis in (0, 1):
        n = a.shape[axis] - 10
        a = sum((weight * np.take(a, range(k, k + n), axis) for k, weight in enumerate(window)), np.zeros(()))
    return a


@dataclass(frozen=True, eq=False)
class Truth:
    """A true surface, as a mesh or as points, in the input's own frame."""

    points: Floats | None = None  # (n, 3): what has to be found
    normals: Floats | None = None  # (n, 3) unit
    mesh: Mesh | None = None  # what may be found; without it, the points
    region: tuple[Floats, Floats, Floats] | None = None  # box low (3,) and high (3,), in the frame that a (4, 4) takes the world to


def read_truth(path: Path) -> Truth:
    """The truth in a mesh or point file (.ply, .obj, ..., .npz with `points` and maybe `normals`), or in a folder.

    A folder, or its sub-folder `gt`, holds `mesh.ply`, `points.npz` or both, and maybe `region.json` with the box that counts.

    Raises:
        SceneError: nothing of the kind.
        MeshError: a file that is neither mesh nor points.
    """
    if path.is_dir():
        folder = path / "gt" if (path / "gt").is_dir() else path
        mesh = read_mesh(folder / "mesh.ply") if (folder / "mesh.ply").is_file() else None
        points, normals = _read_points(folder / "points.npz") if (folder / "points.npz").is_file() else (None, None)
        if mesh is None and points is None:
            raise SceneError(f"no ground truth in {folder}: looked for mesh.ply and points.npz")
        return Truth(points, normals, mesh, _read_region(folder / "region.json"))
    if not path.is_file():
        raise SceneError(f"no ground truth {path}: want a mesh, points (.ply, .npz) or a folder with gt/")
    if path.suffix == ".npz":
        points, normals = _read_points(path)
        return Truth(points, normals)
    import trimesh

    try:
        geometry = trimesh.load(path, process=False)
    except Exception as e:  # trimesh raises many kinds on files that it doesn't know
        raise MeshError(f"{path}: neither a mesh nor points that can be read ({type(e).__name__}: {e})") from None
    if isinstance(geometry, trimesh.PointCloud):
        return Truth(np.array(geometry.vertices, np.float64))
    return Truth(mesh=read_mesh(path))


def _read_points(path: Path) -> tuple[Floats, Floats | None]:
    try:
        with np.load(path) as file:
            arrays = {name: file[name].astype(np.float64) for name in ("points", "normals") if name in file}
            found = ", ".join(file)
    except (OSError, ValueError, zipfile.BadZipFile) as e:
        raise SceneError(f"{path}: not an .npz file that can be read ({e})") from None
    if "points" not in arrays:
        raise SceneError(f"{path}: want an array `points`, found {found}")
    points, normals = arrays["points"], arrays.get("normals")
    if normals is None:
        return points, None
    return points, normals / np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12)


def _read_region(path: Path) -> tuple[Floats, Floats, Floats] | None:
    if not path.is_file():
        return None
    tree = json.loads(path.read_text())
    return np.array(tree["min"], float), np.array(tree["max"], float), np.array(tree.get("world_to_box", np.eye(4)), float)


def score_mesh(mesh: Mesh, truth: Truth, views: Sequence[View] = (), samples: int = 200_000, seed: int = 0) -> dict[str, float]:
    """Distances between a mesh and the truth, in the truth's own units.

    Args:
        views: if there are any, only those parts of the mesh count that one of them sees, unhidden by the mesh itself: nobody can
            reconstruct the rest. The true points are taken as they are.
        samples: points on each surface.

    Returns:
        `accuracy`: mean distance from the mesh to the truth; `completeness`: the other way; `chamfer`: mean of both; `chamfer_pct`:
        in percent of the diagonal of the true points' box; `f_score`, `f_score_05`: share of either surface within 1 % and 0.5 % of
        the diagonal of the other, as harmonic mean; `normal_error_deg`: mean angle between normals, unoriented (NaN where the truth
        has none); `diagonal`.
    """
    rng = np.random.default_rng(seed)
    if truth.mesh is not None:
        true = _Surface.of_mesh(truth.mesh, max(samples, 500_000), rng)
    else:
        assert truth.points is not None, "a truth has a mesh or points"
        true = _Surface.of_points(truth.points, truth.normals)
    wanted = true.some(samples, rng) if truth.points is None else _Surface(truth.points, truth.normals, 0)
    found = _Surface.of_mesh(mesh, 2 * samples, rng)
    found = found.part(_counts(found.points, mesh, truth, views))
    diagonal = float(np.linalg.norm(np.ptp(wanted.points, axis=0)))
    if not len(found.points):
        nothing = dict.fromkeys(("accuracy", "completeness", "chamfer", "chamfer_pct"), float("inf"))
        return {**nothing, "f_score": 0.0, "f_score_05": 0.0, "normal_error_deg": float("nan"), "diagonal": diagonal}

    to_true, true_angles = true.distance(found.some(samples, rng), 0.03 * diagonal)
    to_found, found_angles = found.distance(wanted, 0.03 * diagonal)
    accuracy, completeness = float(to_true.mean()), float(to_found.mean())
    return {
        "accuracy": accuracy,
        "completeness": completeness,
        "chamfer": (accuracy + completeness) / 2,
        "chamfer_pct": 100 * (accuracy + completeness) / 2 / diagonal,
        "f_score": _f_score(to_true, to_found, 0.01 * diagonal),
        "f_score_05": _f_score(to_true, to_found, 0.005 * diagonal),
        "normal_error_deg": float((true_angles.mean() + found_angles.mean()) / 2),
        "diagonal": diagonal,
    }


def _counts(points: Floats, mesh: Mesh, truth: Truth, views: Sequence[View]) -> npt.NDArray[np.bool_]:
    """Which points (n, 3) of the mesh lie in the region and are seen."""
    counted: npt.NDArray[np.bool_] = np.ones(len(points), bool)
    if truth.region is not None:
        low, high, world_to_box = truth.region
        boxed = points @ world_to_box[:3, :3].T + world_to_box[:3, 3]
        counted = np.all((boxed >= low) & (boxed <= high), axis=1)
    if not views:
        return counted
    visible = np.zeros(len(points), bool)
    for view in views:
        todo = np.flatnonzero(counted & ~visible)
        visible[todo] = seen(mesh, points[todo], view.camera, view.c2w)
    return visible


def _f_score(to_true: Floats, to_found: Floats, threshold: float) -> float:
    precision, recall = float((to_true < threshold).mean()), float((to_found < threshold).mean())
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


@dataclass(frozen=True, eq=False)
class _Surface:
    """Discs of one radius: samples of a surface."""

    points: Floats  # (n, 3)
    normals: Floats | None  # (n, 3) unit
    radius: float

    @staticmethod
    def of_mesh(mesh: Mesh, n: int, rng: np.random.Generator) -> "_Surface":
        points, normals, area = sample_surface(mesh.vertices, mesh.faces, n, rng)
        return _Surface(points, normals, float(np.sqrt(area / n)))

    @staticmethod
    def of_points(points: Floats, normals: Floats | None) -> "_Surface":
        from scipy.spatial import cKDTree

        apart = cKDTree(points).query(points[:: max(1, len(points) // 10_000)], k=2)[0][:, 1].mean()
        return _Surface(points, normals, 2 * float(apart))  # uniform random points are half of sqrt(area / n) from their next

    def part(self, kept: npt.NDArray[Any]) -> "_Surface":
        return _Surface(self.points[kept], None if self.normals is None else self.normals[kept], self.radius)

    def some(self, n: int, rng: np.random.Generator) -> "_Surface":
        return self.part(rng.permutation(len(self.points))[:n])

    def distance(self, other: "_Surface", far: float) -> tuple[Floats, Floats]:
        """From each of the other's points to the nearest disc, and the angle (degrees) between their normals: (n,) each.

        Beyond `far` the nearest of fewer discs is taken: a full search from near a centre of curvature visits them all.
        """
        from scipy.spatial import cKDTree

        away, nearest = cKDTree(self.points).query(other.points, distance_upper_bound=far)
        lost = np.flatnonzero(np.isinf(away))
        few = np.random.default_rng(0).permutation(len(self.points))[:10_000]
        away[lost], at = cKDTree(self.points[few]).query(other.points[lost])
        nearest[lost] = few[at]
        if self.normals is None:
            return away, np.full(len(away), np.nan)
        way, normal = other.points - self.points[nearest], self.normals[nearest]
        above = (way * normal).sum(1)
        beside = np.sqrt(np.maximum(away**2 - above**2, 0))
        distances: Floats = np.hypot(above, np.maximum(beside - self.radius, 0))
        if other.normals is None:
            return distances, np.full(len(away), np.nan)
        cosines = np.abs((normal * other.normals).sum(1)).clip(0, 1)
        return distances, np.degrees(np.arccos(cosines))
