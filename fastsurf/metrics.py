"""How good pictures and meshes are: PSNR, SSIM, Chamfer distance, F-score, normal error.

Surfaces are compared by points on each of them. The distance to a mesh is that to its triangles, found by samples of them. A true
surface that is points with normals is a surface of small discs: the distance to one is taken perpendicular to the disc, plus whatever
lies beside it. So the spacing of samples doesn't enter the score, and two samplings of one surface are (nearly) 0 apart.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .cameras import View
from .errors import SceneError, UsageError
from .guard import read_arrays, read_json
from .mesh import Mesh, sample_surface
from .meshio import read_geometry, read_mesh
from .shade import seen

Floats = npt.NDArray[np.float64]

WINDOW = 11  # pixels, of SSIM
_FAR = 0.03  # of the diagonal: beyond it, distances are to fewer samples
_NEAREST = 8  # samples whose triangles are measured to
_TRUE_SAMPLES = 500_000  # of a true mesh
_AT_ONCE = 1 << 16  # points


def psnr(a: npt.ArrayLike, b: npt.ArrayLike, mask: npt.ArrayLike | None = None) -> float:
    """Peak signal-to-noise ratio in dB of pictures (h, w, 3) in [0, 1]; `mask (h, w)` bool restricts it. inf for equal pictures."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    assert a.shape == b.shape, (a.shape, b.shape)
    square = (a - b) ** 2
    error = float(square.mean() if mask is None else square[np.asarray(mask, bool)].mean())
    return float("inf") if error == 0 else -10 * float(np.log10(error))


def ssim(a: npt.ArrayLike, b: npt.ArrayLike) -> float:
    """Structural similarity (Wang et al. 2004) of pictures (h, w, 3) in [0, 1].

    Gaussian window of 11x11 pixels, sigma 1.5, wherever it fits into the picture; K1 = 0.01, K2 = 0.03; mean over colours.

    Raises:
        UsageError: it fits nowhere. A smaller one would give another number of the same name.
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    assert a.shape == b.shape, (a.shape, b.shape)
    if min(a.shape[:2]) < WINDOW:
        raise UsageError(f"SSIM wants pictures of {WINDOW} pixels or more along each side, found {a.shape[1]}x{a.shape[0]}")
    mean_a, mean_b = _blur(a), _blur(b)
    var_a, var_b, cov = _blur(a * a) - mean_a**2, _blur(b * b) - mean_b**2, _blur(a * b) - mean_a * mean_b
    c1, c2 = 0.01**2, 0.03**2
    similarity = (2 * mean_a * mean_b + c1) * (2 * cov + c2) / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))
    return float(similarity.mean())


def picture_scores(shown: npt.ArrayLike, photo: npt.ArrayLike, counts: npt.ArrayLike) -> dict[str, float]:
    """`psnr` of the pixels that count, (h, w) bool, and `ssim` of all, which pictures smaller than its window have none of."""
    scores = {"psnr": psnr(shown, photo, counts)}
    return scores | {"ssim": ssim(shown, photo)} if min(np.shape(photo)[:2]) >= WINDOW else scores


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

    parts = list(read_geometry(path).geometry.values())
    if len(parts) == 1 and isinstance(parts[0], trimesh.PointCloud):
        return Truth(np.array(parts[0].vertices, np.float64))
    return Truth(mesh=read_mesh(path))


def _read_points(path: Path) -> tuple[Floats, Floats | None]:
    found = read_arrays(path)
    arrays = {name: found[name].astype(np.float64) for name in ("points", "normals") if name in found}
    if "points" not in arrays:
        raise SceneError(f"{path}: want an array `points`, found {', '.join(found)}")
    points, normals = arrays["points"], arrays.get("normals")
    for name, array in arrays.items():
        if array.shape != (len(points), 3) or not np.isfinite(array).all():
            raise SceneError(f"{path}: want finite `{name}` of one length in rows of 3, found {'x'.join(map(str, array.shape))}")
    if normals is None:
        return points, None
    return points, normals / np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12)


def _read_region(path: Path) -> tuple[Floats, Floats, Floats] | None:
    if not path.is_file():
        return None
    tree = read_json(path)
    try:
        low, high, to_box = (np.array(rows, float) for rows in (tree["min"], tree["max"], tree.get("world_to_box", np.eye(4))))
    except (TypeError, KeyError, AttributeError, ValueError, OverflowError):
        raise SceneError(f"{path}: want min, max and maybe world_to_box as numbers") from None
    if low.shape != (3,) or high.shape != (3,) or to_box.shape != (4, 4) or not all(np.isfinite(a).all() for a in (low, high, to_box)):
        raise SceneError(f"{path}: want 3 finite numbers each in min and max, 4x4 in world_to_box")
    return low, high, to_box


@dataclass(frozen=True)
class Threshold:
    """A distance up to which a point counts as found."""

    value: float
    percent: bool  # of the diagonal of the true points' box; else in the world's own units

    def length(self, diagonal: float) -> float:
        """In the world's own units."""
        return 0.01 * self.value * diagonal if self.percent else self.value


def read_thresholds(text: str) -> tuple[Threshold, ...]:
    """Thresholds as they are typed: 0.25%,0.5%,1% of the diagonal, or 0.002,0.01 in the world's own units.

    Raises:
        UsageError: something else.
    """
    found = []
    for word in text.split(","):
        number = word.strip().removesuffix("%")
        try:
            value = float(number)
        except ValueError:
            value = math.nan
        if not 0 < value < math.inf:
            raise UsageError(f"thresholds: want lengths such as 0.5%,1% (of the diagonal) or 0.01 (the world's units); found {word!r}")
        found.append(Threshold(value, number != word.strip()))
    return tuple(found)


@dataclass(frozen=True, eq=False)
class Measured:
    """Distances between a mesh and the truth, in the truth's own units."""

    to_true: Floats  # (n,) from points on the mesh that count; empty where none does
    to_found: Floats  # (m,) from the true points; inf where nothing was found
    normal_error_deg: float  # mean angle between normals, unoriented; NaN where the truth has none, or nothing was found
    offset: float  # signed median along the truth's normals of what lies within 3 % of the diagonal; NaN as above
    diagonal: float  # of the true points' box

    def precision(self, length: float) -> float:
        """Share of the mesh that lies closer than `length` to the truth."""
        return float((self.to_true < length).mean()) if len(self.to_true) else 0.0

    def recall(self, length: float) -> float:
        """Share of the truth that lies closer than `length` to the mesh."""
        return float((self.to_found < length).mean())

    def f_score(self, length: float) -> float:
        """Harmonic mean of the two."""
        precision, recall = self.precision(length), self.recall(length)
        return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def measure(mesh: Mesh, truth: Truth, views: Sequence[View] = (), samples: int = 200_000, seed: int = 0) -> Measured:
    """Measure a mesh against the truth. Beyond 3 % of the diagonal distances may be too large by about a hundredth.

    Args:
        views: if there are any, only those parts of the mesh count that one of them sees, unhidden by the mesh itself: nobody can
            reconstruct the rest. The true points are taken as they are.
        samples: points on each surface.
    """
    rng = np.random.default_rng(seed)
    true = _true_surface(truth, max(samples, _TRUE_SAMPLES), rng)
    wanted = true.some(samples, rng) if truth.points is None else _Surface(truth.points, truth.normals, 0)
    found = _Surface.of_mesh(mesh, 2 * samples, rng)
    found = found.part(_counts(found.points, mesh, truth, views))
    diagonal = float(np.linalg.norm(np.ptp(wanted.points, axis=0)))
    measured = found.some(samples, rng)
    if not len(measured.points):
        return Measured(np.zeros(0), np.full(len(wanted.points), np.inf), math.nan, math.nan, diagonal)
    far = _FAR * diagonal
    to_true, true_angles, above = true.distance(measured, far)
    to_found, found_angles, _ = found.distance(wanted, far)
    offset = float(np.median(above[to_true < far])) if (to_true < far).any() else math.nan
    return Measured(to_true, to_found, float((true_angles.mean() + found_angles.mean()) / 2), offset, diagonal)


def scores_of(measured: Measured) -> dict[str, float]:
    """The usual numbers, in the truth's own units.

    Returns:
        `accuracy`: mean distance from the mesh to the truth; `completeness`: the other way; `chamfer`: mean of both; `chamfer_pct`:
        in percent of the diagonal of the true points' box; `f_score`, `f_score_05`: share of either surface within 1 % and 0.5 % of
        the diagonal of the other, as harmonic mean; `normal_error_deg`: mean angle between normals, unoriented; `offset`: how far the
        mesh lies outside the truth, signed median along the truth's normals, of those parts that lie within 3 % of the diagonal
        (both NaN where the truth has no normals; positive is too large); `diagonal`.
    """
    accuracy = float(measured.to_true.mean()) if len(measured.to_true) else math.inf
    completeness, diagonal = float(measured.to_found.mean()), measured.diagonal
    return {
        "accuracy": accuracy,
        "completeness": completeness,
        "chamfer": (accuracy + completeness) / 2,
        "chamfer_pct": 100 * (accuracy + completeness) / 2 / diagonal,
        "f_score": measured.f_score(0.01 * diagonal),
        "f_score_05": measured.f_score(0.005 * diagonal),
        "normal_error_deg": measured.normal_error_deg,
        "offset": measured.offset,
        "diagonal": diagonal,
    }


def sweep(measured: Measured, thresholds: Sequence[Threshold]) -> list[dict[str, float]]:
    """Precision, recall and F1 at each threshold (as Heritage-Recon is scored, Sun et al. 2022).

    Returns:
        for each: `threshold` in the truth's own units, `percent` of the diagonal, `precision`, `recall`, `f1`.
    """
    rows = []
    for threshold in thresholds:
        length = threshold.length(measured.diagonal)
        of = {"precision": measured.precision(length), "recall": measured.recall(length), "f1": measured.f_score(length)}
        rows.append({"threshold": length, "percent": 100 * length / measured.diagonal, **of})
    return rows


def score_mesh(mesh: Mesh, truth: Truth, views: Sequence[View] = (), samples: int = 200_000, seed: int = 0) -> dict[str, float]:
    """`scores_of` what is measured: see there, and `measure`."""
    return scores_of(measure(mesh, truth, views, samples, seed))


def distance_to(truth: Truth, seed: int = 0) -> Callable[[Floats], Floats]:
    """A function from points (n, 3) to their distances (n,) from the true surface; NaN outside its region."""
    true = _true_surface(truth, _TRUE_SAMPLES, np.random.default_rng(seed))
    far = _FAR * float(np.linalg.norm(np.ptp(true.points, axis=0)))

    def distance(points: Floats) -> Floats:
        inside = _in_region(points, truth)
        distances = np.full(len(points), np.nan)
        distances[inside] = true.distance(_Surface(points[inside], None, 0), far)[0]
        return distances

    return distance


def _true_surface(truth: Truth, samples: int, rng: np.random.Generator) -> "_Surface":
    if truth.mesh is not None:
        return _Surface.of_mesh(truth.mesh, samples, rng)
    assert truth.points is not None, "a truth has a mesh or points"
    return _Surface.of_points(truth.points, truth.normals)


def _counts(points: Floats, mesh: Mesh, truth: Truth, views: Sequence[View]) -> npt.NDArray[np.bool_]:
    """Which points (n, 3) of the mesh lie in the region and are seen."""
    counted = _in_region(points, truth)
    if not views:
        return counted
    visible = np.zeros(len(points), bool)
    for view in views:
        todo = np.flatnonzero(counted & ~visible)
        visible[todo] = seen(mesh, points[todo], view.camera, view.c2w)
    return visible


def _in_region(points: Floats, truth: Truth) -> npt.NDArray[np.bool_]:
    if truth.region is None:
        return np.ones(len(points), bool)
    low, high, world_to_box = truth.region
    boxed = points @ world_to_box[:3, :3].T + world_to_box[:3, 3]
    counted: npt.NDArray[np.bool_] = np.all((boxed >= low) & (boxed <= high), axis=1)
    return counted


@dataclass(frozen=True, eq=False)
class _Surface:
    """Points of triangles, or the middles of discs of one radius."""

    points: Floats  # (n, 3)
    normals: Floats | None  # (n, 3) unit
    radius: float
    triangles: Floats | None = None  # (n, 3, 3): where each point lies, in a mesh
    random: npt.NDArray[np.bool_] | None = None  # (n,): uniform by area; the others are there so that no triangle is overlooked

    @staticmethod
    def of_mesh(mesh: Mesh, n: int, rng: np.random.Generator) -> "_Surface":
        points, normals, of_face = sample_surface(mesh.vertices, mesh.faces, n, rng)
        corners = mesh.vertices[mesh.faces]
        flat = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
        flat /= np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-30)
        random = np.arange(n + len(corners)) < n
        points, normals = np.concatenate([points, corners.mean(1)]), np.concatenate([normals, flat])
        return _Surface(points, normals, 0, np.concatenate([corners[of_face], corners]), random)

    @staticmethod
    def of_points(points: Floats, normals: Floats | None) -> "_Surface":
        from scipy.spatial import cKDTree

        apart = cKDTree(points).query(points[:: max(1, len(points) // 10_000)], k=2)[0][:, 1].mean()
        return _Surface(points, normals, 2 * float(apart))  # uniform random points are half of sqrt(area / n) from their next

    def part(self, kept: npt.NDArray[Any]) -> "_Surface":
        normals, triangles, random = (None if a is None else a[kept] for a in (self.normals, self.triangles, self.random))
        return _Surface(self.points[kept], normals, self.radius, triangles, random)

    def some(self, n: int, rng: np.random.Generator) -> "_Surface":
        candidates = np.arange(len(self.points)) if self.random is None else np.flatnonzero(self.random)
        return self.part(rng.permutation(candidates)[:n])

    def distance(self, other: "_Surface", far: float) -> tuple[Floats, Floats, Floats]:
        """From each of the other's points to this surface: distance, angle between the normals (degrees), height along ours: (n,) each.

        Angle and height are NaN where a normal is missing. Beyond `far` the nearest of fewer samples is taken: a full search from near
        a centre of curvature visits them all.
        """
        from scipy.spatial import cKDTree

        few = np.random.default_rng(0).permutation(len(self.points))[:10_000]
        tree, coarse = cKDTree(self.points), cKDTree(self.points[few])
        order = cKDTree(other.points).indices  # neighbours one after the other find the same branches in the cache
        distances, nearest = np.empty(len(other.points)), np.empty(len(other.points), np.int64)
        for start in range(0, len(other.points), _AT_ONCE):
            now = order[start : start + _AT_ONCE]
            points = other.points[now]
            k = 1 if self.triangles is None else min(_NEAREST, len(self.points))
            away, samples = (a.reshape(len(points), k) for a in tree.query(points, k=k, distance_upper_bound=far, workers=-1))
            lost = np.isinf(away[:, 0])
            away[lost, 0], at = coarse.query(points[lost], workers=-1)
            samples[lost, 0] = few[at]
            samples = np.where(np.isinf(away), samples[:, :1], samples)
            exact = self._measure(points, away, samples)
            best = exact.argmin(1)[:, None]
            distances[now] = np.take_along_axis(exact, best, 1)[:, 0]
            nearest[now] = np.take_along_axis(samples, best, 1)[:, 0]
        nothing = np.full(len(distances), np.nan)
        if self.normals is None:
            return distances, nothing, nothing
        normals = self.normals[nearest]
        above: Floats = ((other.points - self.points[nearest]) * normals).sum(1)
        if other.normals is None:
            return distances, nothing, above
        cosines = np.abs((normals * other.normals).sum(1)).clip(0, 1)
        return distances, np.degrees(np.arccos(cosines)), above

    def _measure(self, points: Floats, away: Floats, samples: npt.NDArray[np.int64]) -> Floats:
        """Distances (n, k) of points (n, 3) from what the samples (n, k), `away (n, k)` themselves, stand for."""
        if self.triangles is not None:
            return triangle_distance(np.repeat(points, samples.shape[1], 0), self.triangles[samples.ravel()]).reshape(samples.shape)
        if self.normals is None:
            return away
        above = ((points[:, None] - self.points[samples]) * self.normals[samples]).sum(-1)
        beside = np.sqrt(np.maximum(away**2 - above**2, 0))
        distances: Floats = np.hypot(above, np.maximum(beside - self.radius, 0))
        return distances


def triangle_distance(points: Floats, triangles: Floats) -> Floats:
    """Distance (n,) of points (n, 3), each from its own triangle (n, 3, 3): its plane where it projects inside, else an edge."""
    normals = np.cross(triangles[:, 1] - triangles[:, 0], triangles[:, 2] - triangles[:, 0])
    inside = np.ones(len(points), bool)
    squared = np.full(len(points), np.inf)
    for k in range(3):
        along, way = triangles[:, (k + 1) % 3] - triangles[:, k], points - triangles[:, k]
        length = np.einsum("nj,nj->n", along, along)
        share = np.einsum("nj,nj->n", way, along) / np.where(length > 0, length, 1)
        off = way - share.clip(0, 1)[:, None] * along
        squared = np.minimum(squared, np.einsum("nj,nj->n", off, off))
        inside &= np.einsum("nj,nj->n", np.cross(along, way), normals) > 0
    height = np.einsum("nj,nj->n", points - triangles[:, 0], normals)
    size = np.linalg.norm(normals, axis=1)
    distances: Floats = np.where(inside, np.abs(height) / np.where(size > 0, size, 1), np.sqrt(squared))
    return distances
