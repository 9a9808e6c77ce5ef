"""Sparse points as a weak prior: where photographs saw a point there is surface, and nothing between it and their cameras (in the manner
of DS-NeRF, Deng et al. 2022, and Geo-Neus, Fu et al. 2022).

COLMAP's scenes bring such points. For others `triangulate` makes them of the photographs and the cameras that are known (sfm.py).
"""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .cameras import Capture, rescale
from .child import ChildError, python_at_work
from .errors import CheckpointError
from .guard import read_arrays
from .rays import intersect_box

A_STEP = 64  # landmarks that a training step looks at
BEFORE = 3  # places on the way to each that should be empty
MARGIN = 0.02  # scene units before a landmark that nothing is said of
INSIDE = 0.98  # of the scene box that landmarks count in
FEWEST = 100
ON_SURFACE = 0.5  # the occupancy there
NEIGHBOURS = 8  # of each photograph that it is compared with
FEATURES = 4096  # of a photograph, at most
SIZES = ((1000, True), (1000, False), (700, False))  # pixels of the larger side that features are looked for at, and whether it is doubled
PIXEL_TAKES, PHOTOGRAPH_TAKES = 0.3e-6, 0.15  # seconds on two cores: features, and matching
SHARE = 0.25  # of the time there is that they may take
ENOUGH = 30  # photographs, where not all can be looked at


@dataclass(frozen=True)
class Known:
    """Points of known occupancy."""

    points: Tensor  # (n, 3), scene units
    occupancy: Tensor  # (n,) in [0, 1]


@dataclass(frozen=True)
class Landmarks:
    """Points, each with a camera that sees it; both (n, 3), scene units."""

    points: Tensor
    origins: Tensor

    @property
    def count(self) -> int:
        """Of different ones."""
        return len(torch.unique(self.points, dim=0))

    def to(self, device: torch.device) -> "Landmarks":
        """The same on another device."""
        return Landmarks(self.points.to(device), self.origins.to(device))

    def draw(self, generator: torch.Generator) -> Known:
        """A_STEP of them, and BEFORE places between each and its camera, anywhere in the scene box."""
        device = self.points.device
        drawn = torch.randint(len(self.points), (A_STEP,), generator=generator, device=device)
        points, origins = self.points[drawn], self.origins[drawn]
        way = points - origins
        length = way.norm(dim=-1, keepdim=True)
        direction = way / length
        near = intersect_box(origins, direction)[0][:, None]
        far = torch.maximum(length - MARGIN, near)
        t = near + (far - near) * torch.rand(A_STEP, BEFORE, generator=generator, device=device)
        free = origins[:, None] + t[..., None] * direction[:, None]
        occupancy = torch.zeros(A_STEP * (1 + BEFORE), device=device)
        occupancy[:A_STEP] = ON_SURFACE
        return Known(torch.cat([points, free.reshape(-1, 3)]), occupancy)


def landmarks_of(
    capture: Capture, train: Sequence[int], points: np.ndarray, sightings: np.ndarray, to_scene: Callable[[np.ndarray], np.ndarray]
) -> Landmarks | None:
    """Sightings (n, 2) of world points (m, 3), each the index of a view and of a point, by views to learn from; None where too few
    points lie in the scene box."""
    origins = to_scene(np.stack([view.center for view in capture.views]))
    inside = np.abs(to_scene(points)).max(-1, initial=0.0) < INSIDE
    kept = sightings[inside[sightings[:, 1]] & np.isin(sightings[:, 0], train)]
    if len(np.unique(kept[:, 1])) < FEWEST:
        return None
    return Landmarks(*(torch.from_numpy(a).float() for a in (to_scene(points)[kept[:, 1]], origins[kept[:, 0]])))


def kept_points(file: Path, views: int) -> tuple[np.ndarray, np.ndarray]:
    """What `triangulate` made for a run of so many views, from the file that the run keeps.

    Raises:
        CheckpointError: it is damaged.
    """
    found = read_arrays(file, CheckpointError)
    points, sightings = (found.get(name, np.zeros(0)) for name in ("points", "sightings"))
    if not (points.shape[1:] == (3,) and sightings.shape[1:] == (2,) and sightings.dtype.kind in "iu"
            and (sightings >= 0).all() and (sightings < (views, len(points))).all()):  # fmt: skip
        raise CheckpointError(f"{file}: damaged (no points with the photographs that see them): start a new run")
    return points, sightings


def plan(shapes: Sequence[tuple[int, int]], seconds: float) -> tuple[int, tuple[int, bool]] | None:
    """How many photographs of these heights and widths to go on by, and the first of SIZES, at which features take but a share of the time:
    all of them, else every second one, and so on while ENOUGH are left. None where that takes longer, too."""
    for step in range(1, max(len(shapes) // ENOUGH, 1) + 1):
        for side, doubled in SIZES:
            pixels = sum(h * w * min(1.0, side / max(h, w)) ** 2 for h, w in shapes[::step])
            if PIXEL_TAKES * pixels * (4 if doubled else 1) + PHOTOGRAPH_TAKES * len(shapes[::step]) <= SHARE * seconds:
                return step, (side, doubled)
    return None


def neighbours(centers: np.ndarray, forward: np.ndarray, middle: np.ndarray) -> list[tuple[int, int]]:
    """Pairs (i, j), i < j, of cameras that look at `middle` (3,) from nearly the same side: for each the NEIGHBOURS nearest.

    Args:
        centers, forward: (n, 3) each; the unit viewing directions.
    """
    towards = middle - centers
    towards = towards / np.maximum(np.linalg.norm(towards, axis=-1, keepdims=True), 1e-12)
    alike = towards @ towards.T + forward @ forward.T
    np.fill_diagonal(alike, -np.inf)
    nearest = np.argsort(-alike, axis=1, kind="stable")[:, : min(NEIGHBOURS, len(centers) - 1)]
    return sorted({(min(i, int(j)), max(i, int(j))) for i, row in enumerate(nearest) for j in row})


def triangulate(
    capture: Capture, images: Sequence[Tensor], train: Sequence[int], middle: np.ndarray, size: tuple[int, bool], work: Path, *,
    seed: int, threads: int, on_progress: Callable[[float, str], None],
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Points (n, 3) in the world, made of the photographs `train`, and sightings (m, 2) as `landmarks_of` takes them.

    Args:
        images: (h, w, 3) uint8 of every view.
        size: see `plan`.
        work: a folder for what is needed on the way, which is removed.

    Raises:
        ChildError: COLMAP failed.
    """
    from PIL import Image

    shutil.rmtree(work, ignore_errors=True)
    (work / "images").mkdir(parents=True)
    cameras = []
    try:
        for i in train:
            image, camera = Image.fromarray(images[i].numpy()), capture.views[i].camera
            scale = min(1.0, size[0] / max(image.size))
            if scale < 1.0:
                image = image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))), Image.Resampling.BOX)
            image.save(work / "images" / f"{i}.png", compress_level=1)
            fitted = rescale(camera, *image.size)
            cameras.append({"name": f"{i}.png", "model": fitted.model, "params": list(map(float, fitted.params)), "width": image.width,
                            "height": image.height, "c2w": capture.views[i].c2w.tolist()})  # fmt: skip
        views = [capture.views[i] for i in train]
        pairs = neighbours(np.stack([v.center for v in views]), np.stack([v.c2w[:, 2] for v in views]), middle)
        job = {
            "scene": str(work.resolve()), "known": cameras, "wanted": [[f"{train[i]}.png", f"{train[j]}.png"] for i, j in pairs],
            "points": str(work.resolve() / "points.npz"), "threads": threads, "max_side": size[0],
            "doubled": size[1], "features": FEATURES, "seed": seed,
        }  # fmt: skip
        log = work / "colmap.log"
        with python_at_work(["-P", "-m", "fastsurf.sfm"], json.dumps(job), log, "COLMAP", OMP_NUM_THREADS="1") as lines:
            stage = "features"
            for answer in map(json.loads, lines):
                if "error" in answer:
                    raise ChildError(f"COLMAP failed: {answer['error']}")
                if "points" in answer:
                    break
                if "finished" in answer:
                    stage = "matching"
                else:
                    on_progress(answer["done"] / max(answer["of"], 1), f"{stage} {answer['done']:,} of {answer['of']:,}")
        found = read_arrays(work / "points.npz", ChildError)
        return found["points"], np.stack([np.array(train)[found["sightings"][:, 0]], found["sightings"][:, 1]], -1)
    finally:
        shutil.rmtree(work, ignore_errors=True)
