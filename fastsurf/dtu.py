"""Scores by the protocol of the DTU data set (Jensen et al. 2014), as papers on surfaces report them; all lengths in mm.

The mesh becomes points no further than 0.2 mm apart, thinned until none are closer than that. Accuracy is their mean distance from the
scanned points, of those inside the observation mask; completeness is the mean distance of the scanned points above the table's plane
from them, of all in the box around the mask. Distances of 20 mm or more are left out of both means. Nothing is aligned.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .errors import MeshError, SceneError
from .mesh import Mesh
from .metrics import read_truth

Floats = npt.NDArray[np.float64]

DENSITY = 0.2
CUT_OFF = 20.0
MARGIN = 60.0  # of the box around the mask; twice that above it


@dataclass(frozen=True, eq=False)
class Observation:
    """What was scanned of one scene, and where."""

    points: Floats  # (n, 3)
    mask: npt.NDArray[np.bool_]  # (x, y, z) cells that the scanner saw
    low: Floats  # (3,): the middle of the first cell
    high: Floats  # (3,)
    cell: float  # edge
    plane: Floats  # (4,): a x + b y + c z + d > 0 is above the table


def scan_number(scene: Path) -> int:
    """The scan that a folder such as dtu_scan65 is named after.

    Raises:
        SceneError: it has no such name.
    """
    found = re.findall(r"scan_?(\d+)", scene.name)
    if not found:
        raise SceneError(f"{scene.name} names no DTU scan: want a folder such as scan65")
    return int(found[-1])


def read_observation(folder: Path, scan: int) -> Observation:
    """The truth of a scan, as DTU gives it away: ObsMask/ObsMask{scan}_10.mat, ObsMask/Plane{scan}.mat, Points/stl/stl{scan:03}_total.ply.

    Raises:
        SceneError: a file is missing or has another content.
    """
    files = [folder / "ObsMask" / f"ObsMask{scan}_10.mat", folder / "ObsMask" / f"Plane{scan}.mat"]
    cloud = folder / "Points" / "stl" / f"stl{scan:03}_total.ply"
    for path in (*files, cloud):
        if not path.is_file():
            raise SceneError(f"no DTU truth of scan {scan}: {path} is missing")
    mask, plane = _read_mat(files[0], ("ObsMask", "BB", "Res")), _read_mat(files[1], ("P",))
    points = read_truth(cloud).points
    if points is None:
        raise SceneError(f"{cloud}: want points, found a mesh")
    low, high = np.asarray(mask["BB"], np.float64).reshape(2, 3)
    seen = np.asarray(mask["ObsMask"]) > 0
    return Observation(points, seen, low, high, float(np.ravel(mask["Res"])[0]), np.asarray(plane["P"], np.float64).ravel()[:4])


def _read_mat(path: Path, wanted: tuple[str, ...]) -> dict[str, Any]:
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    try:
        file = loadmat(path)
    except (OSError, ValueError, NotImplementedError, MatReadError) as e:
        raise SceneError(f"{path}: not a MATLAB file that can be read ({e})") from None
    if missing := [name for name in wanted if name not in file]:
        raise SceneError(f"{path}: want {', '.join(wanted)}; {', '.join(missing)} is missing")
    return {name: file[name] for name in wanted}


def score_dtu(mesh: Mesh, observed: Observation, seed: int = 0) -> dict[str, float]:
    """`accuracy`, `completeness` and their mean `overall` in mm; NaN where nothing lies within the cut-off.

    Args:
        mesh: in the data set's own frame.

    Raises:
        MeshError: nothing of the mesh is near what was observed; most likely it is in another frame.
    """
    from scipy.spatial import cKDTree

    found = thin(dense_points(mesh, DENSITY), DENSITY, np.random.default_rng(seed))
    found = found[((found >= observed.low - MARGIN) & (found < observed.high + 2 * MARGIN)).all(1)]
    counted = found[_in_mask(found, observed)]
    if not len(counted):
        size = " ... ".join(np.array2string(a, precision=1) for a in (mesh.vertices.min(0), mesh.vertices.max(0)))
        raise MeshError(f"nothing of the mesh ({size}) lies in the observation mask: is it in DTU's own frame, in mm?")
    wanted = observed.points[observed.points @ observed.plane[:3] + observed.plane[3] > 0]
    accuracy = _mean_within(cKDTree(observed.points).query(counted, distance_upper_bound=CUT_OFF)[0])
    completeness = _mean_within(cKDTree(found).query(wanted, distance_upper_bound=CUT_OFF)[0])
    return {"accuracy": accuracy, "completeness": completeness, "overall": (accuracy + completeness) / 2}


def _in_mask(points: Floats, observed: Observation) -> npt.NDArray[np.bool_]:
    cells = np.rint((points - observed.low) / observed.cell).astype(np.int64)
    inside: npt.NDArray[np.bool_] = np.all((cells >= 0) & (cells < observed.mask.shape), axis=1)
    inside[inside] = observed.mask[tuple(cells[inside].T)]
    return inside


def _mean_within(distances: Floats) -> float:
    near = distances[distances < CUT_OFF]
    return float(near.mean()) if len(near) else float("nan")


def dense_points(mesh: Mesh, apart: float) -> Floats:
    """The vertices, and points inside the larger triangles on lattices whose edges are at most `apart`, (n, 3)."""
    corners = mesh.vertices[mesh.faces]  # (f, 3, 3)
    longest = np.linalg.norm(corners - np.roll(corners, -1, 1), axis=2).max(1, initial=0)
    pieces = np.ceil(longest / apart).astype(np.int64)  # along each edge
    parts = [mesh.vertices]
    for n in np.unique(pieces[pieces > 1]):
        i, j = (a.ravel() for a in np.meshgrid(np.arange(n + 1), np.arange(n + 1)))
        weights = np.stack([i, j, n - i - j], 1)[(i + j <= n) & (i < n) & (j < n) & (i + j > 0)] / n  # (m, 3), without the corners
        parts.append(np.einsum("mk,fkj->fmj", weights, corners[pieces == n]).reshape(-1, 3))
    return np.concatenate(parts)


def thin(points: Floats, apart: float, rng: np.random.Generator) -> Floats:
    """In random order, every point that isn't within `apart` of one already taken; (m, 3).

    Done in rounds: a point is taken once all its neighbours of an earlier place in the order are out.
    """
    from scipy.spatial import cKDTree

    points = rng.permutation(points)
    pairs = np.sort(cKDTree(points).query_pairs(apart, output_type="ndarray"), 1)  # earlier, later
    waiting, taken = np.ones(len(points), bool), np.zeros(len(points), bool)
    while waiting.any():
        first = waiting.copy()
        first[pairs[:, 1]] = False
        taken |= first
        waiting &= ~first
        waiting[pairs[first[pairs[:, 0]], 1]] = False
        pairs = pairs[waiting[pairs].all(1)]
    return points[taken]
