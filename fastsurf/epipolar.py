"""Whether poses and photographs belong together: features of a few pairs, matched by COLMAP (matching.py), against epipolar lines.

Two cameras that see one point fix where in the second picture it may be, given where it is in the first: on a line. The symmetric epipolar
distance of a match is the mean of how far either end is from the other's line. Points are on the plane z = 1 of a camera with OpenCV axes,
so that lenses make no difference, and distances are turned into pixels of the photographs that features were looked for in.
"""

import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .cameras import View, load_pycolmap, unproject
from .child import ChildError, python_at_work

PAIRS, SIDE, FEATURES = 8, 640, 1500
ANGLE = 12.0  # degrees between the directions of a good pair: enough to see which way the camera went, and SIFT bears it
NEAR, LEAST_NEAR = 2.0 / 640, 0.5  # of a picture's longer side, at least so many pixels: how far a match that agrees may be off


@dataclass(frozen=True, eq=False)
class Pair:
    """Matches between two views: places on the planes z = 1, (n, 2) each, a pixel's edge there, and how many pixels count as near."""

    first: int
    second: int
    a: np.ndarray
    b: np.ndarray
    pixel: float
    near: float = 2.0


@dataclass(frozen=True)
class Fit:
    """How well poses explain matches."""

    matches: int
    distance: float  # median symmetric epipolar distance, pixels
    share: float  # of the matches that are near their lines and in front of both cameras


def pick_pairs(poses: np.ndarray, n: int = PAIRS) -> list[tuple[int, int]]:
    """Up to n pairs of neighbours among poses (m, 3, 4), spread over them: whichever way the poses are read, the angles are the same."""
    turns = poses[:, :, :3]
    cosine = (np.einsum("mij,kij->mk", turns, turns) - 1) / 2
    off = np.abs(np.degrees(np.arccos(np.clip(cosine, -1, 1))) - ANGLE)
    np.fill_diagonal(off, np.inf)
    firsts = np.unique(np.linspace(0, len(poses) - 1, min(n, len(poses))).round().astype(int))
    return sorted({(min(i, j), max(i, j)) for i in firsts.tolist() for j in [int(np.argmin(off[i]))]})


def find_matches(views: Sequence[View], images: Sequence[np.ndarray], threads: int = 1) -> list[Pair] | None:
    """Matches of a few pairs; None where there is no pycolmap, or where it fails.

    Args:
        images: of the views, (h, w, 3) uint8, of any size with their aspect.
    """
    if load_pycolmap() is None:
        return None
    from PIL import Image

    wanted = pick_pairs(np.stack([view.c2w for view in views]))
    with tempfile.TemporaryDirectory(prefix="fastsurf-") as temporary:
        folder = Path(temporary)
        (folder / "images").mkdir()
        sizes = {}
        for i in sorted({i for pair in wanted for i in pair}):
            picture = Image.fromarray(images[i]).convert("L")
            picture.thumbnail((SIDE, SIDE), Image.Resampling.BOX)
            picture.save(folder / "images" / f"{i}.png", compress_level=1)
            sizes[i] = picture.size
        job = {"folder": str(folder), "pairs": [(f"{i}.png", f"{j}.png") for i, j in wanted], "features": FEATURES, "seed": 0,
               "threads": threads}  # fmt: skip
        words = ["-P", "-m", "fastsurf.matching"]
        try:
            with python_at_work(words, json.dumps(job), folder / "colmap.log", "COLMAP", OMP_NUM_THREADS="1") as lines:
                answer = json.loads(next(lines))
        except ChildError:
            return None
    if "matches" not in answer:
        return None
    return [_pair(views, sizes, i, j, np.array(found).reshape(-1, 4)) for (i, j), found in zip(wanted, answer["matches"], strict=True)]


def fit(pairs: Sequence[Pair], poses: np.ndarray) -> Fit:
    """How well poses (n, 3, 4) explain the pairs' matches."""
    distances, agree = [], []
    for pair in pairs:
        first, second = poses[pair.first], poses[pair.second]
        turn = second[:, :3].T @ first[:, :3]  # from the first camera's axes to the second's
        move = second[:, :3].T @ (first[:, 3] - second[:, 3])
        a, b = (np.concatenate([x, np.ones((len(x), 1))], -1) for x in (pair.a, pair.b))
        seen = a @ turn.T  # the first camera's rays in the second's axes, (n, 3)
        normal = np.cross(move, seen)  # of the epipolar planes: b . normal = 0
        off = np.abs(np.einsum("nj,nj->n", b, normal))
        back = np.cross(b, move) @ turn  # their lines in the first picture
        with np.errstate(divide="ignore", invalid="ignore"):
            there = off / np.linalg.norm(normal[:, :2], axis=-1)
            here = np.abs(np.einsum("nj,nj->n", a, back)) / np.linalg.norm(back[:, :2], axis=-1)
        distances.append(np.nan_to_num((there + here) / 2 / pair.pixel, nan=np.inf))
        cross = np.cross(b, seen)  # depths from z_b b = z_a seen + move
        in_front = (np.einsum("nj,nj->n", cross, np.cross(b, move)) < 0) & (np.einsum("nj,nj->n", cross, np.cross(seen, move)) < 0)
        agree.append((distances[-1] < pair.near) & in_front)
    distance = np.concatenate([np.zeros(0), *distances])
    if not len(distance):
        return Fit(0, float("nan"), 0.0)
    return Fit(len(distance), float(np.median(distance)), float(np.mean(np.concatenate(agree))))


def _pair(views: Sequence[View], sizes: dict[int, tuple[int, int]], i: int, j: int, found: np.ndarray) -> Pair:
    """Matches (n, 4), pixels of the reduced photographs, on the planes; those that the lens model gives no ray drop out."""
    a, b = (
        unproject(views[k].camera, ends * np.array([views[k].camera.width, views[k].camera.height]) / sizes[k])
        for k, ends in ((i, found[:, :2]), (j, found[:, 2:]))
    )
    sure = np.isfinite(a).all(-1) & np.isfinite(b).all(-1)
    camera = views[i].camera
    near = max(NEAR * max(sizes[i]), LEAST_NEAR)
    return Pair(i, j, a[sure], b[sure], camera.width / sizes[i][0] / max(camera.focal), near)
