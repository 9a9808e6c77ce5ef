"""Where pixels look, and pools of pixels to draw from.

A pixel is its index in the image store's buffer; in its own image, column u and row v count from 0 and its centre is at
(u + 0.5, v + 0.5). The image plane is z = 1 in front of the camera: a pixel looks along (x, y, 1).
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from .cameras import Camera, project, unproject

TOLERANCE = 5e-4  # pixels that interpolation between nodes may be wrong
SPACINGS = (1024, 64, 32, 16, 8, 4, 2, 1)  # of the nodes, pixels; the first serves lenses without distortion


@dataclass(frozen=True)
class PixelDirections:
    """Image-plane coordinates of any pixel, cubic between nodes: 4 x 4 for a pinhole, every pixel at worst.

    Lenses bend slowly, so nodes many pixels apart are exact enough, and hundreds of distorted photographs need little memory.
    """

    nodes: Tensor  # (n_nodes, 2) float32; NaN where the lens model has no answer
    first: Tensor  # (n_views,) int64, first node of a view's camera
    counts: Tensor  # (n_views, 2) int64, nodes along u and v, at least 4
    per_pixel: Tensor  # (n_views, 2) float32, nodes per pixel along u and v

    def to(self, device: torch.device) -> "PixelDirections":
        """The same on another device."""
        return PixelDirections(*(getattr(self, f.name).to(device) for f in fields(self)))

    def __call__(self, view: Tensor, u: Tensor, v: Tensor) -> Tensor:
        """(x, y) (n, 2) of pixels (u, v) of views, each (n,) int64."""
        at = torch.stack([u, v], -1) * self.per_pixel[view]  # (n, 2) in nodes
        counts = self.counts[view]
        cell = torch.minimum((at.long() - 1).clamp(min=0), counts - 4)
        t = at - cell
        a, b, c = t - 1, t - 2, t - 3
        weights = torch.stack([a * b * c / -6, t * b * c / 2, t * a * c / -2, t * a * b / 6], -1)  # Lagrange's, (n, 2, 4)
        four = torch.arange(4, device=view.device)
        row = self.first[view, None] + (cell[:, 1:] + four) * counts[:, :1]  # (n, 4)
        index = row[:, :, None] + (cell[:, :1] + four)[:, None]  # (n, 4, 4)
        return torch.einsum("ni,nj,nijk->nk", weights[:, 1], weights[:, 0], self.nodes[index])


def pixel_directions(cameras: Sequence[Camera]) -> PixelDirections:
    """Nodes for each view's camera; views that share a camera share them."""
    known: dict[Camera, tuple[int, int, int]] = {}
    grids: list[np.ndarray] = []
    total = 0
    for camera in cameras:
        if camera not in known:
            grid = _fit(camera)  # (rows, columns, 2)
            known[camera] = (total, grid.shape[1], grid.shape[0])
            grids.append(grid)
            total += grid.shape[0] * grid.shape[1]
    return _directions(cameras, grids, [known[camera] for camera in cameras])


def _directions(cameras: Sequence[Camera], grids: Sequence[np.ndarray], places: Sequence[tuple[int, int, int]]) -> PixelDirections:
    nodes = torch.from_numpy(np.concatenate([grid.reshape(-1, 2) for grid in grids]).astype(np.float32))
    place = torch.tensor(places)
    last = torch.tensor([[max(c.width - 1, 1), max(c.height - 1, 1)] for c in cameras], dtype=torch.float64)
    return PixelDirections(nodes, place[:, 0], place[:, 1:], ((place[:, 1:] - 1) / last).float())


def _fit(camera: Camera) -> np.ndarray:
    """The coarsest grid of nodes (rows, columns, 2) that is right within TOLERANCE at pixels between them."""
    size = np.array([camera.width, camera.height])
    trial = np.random.default_rng(0).integers(0, size, (500, 2))
    trial = trial[np.isfinite(unproject(camera, trial + 0.5)).all(-1)]
    pixels, view = torch.from_numpy(trial), torch.zeros(len(trial), dtype=torch.int64)
    for spacing in SPACINGS:
        columns, rows = np.maximum(-(-(size - 1) // spacing) + 1, 4)
        u, v = np.linspace(0, size[0] - 1, columns), np.linspace(0, size[1] - 1, rows)
        grid = unproject(camera, np.stack(np.meshgrid(u, v), -1).reshape(-1, 2) + 0.5).reshape(rows, columns, 2)
        plane = _directions([camera], [grid], [(0, columns, rows)])(view, *pixels.T).numpy()
        back = project(camera, np.concatenate([plane, np.ones((len(plane), 1))], -1))
        if np.all(np.abs(back - trial - 0.5) < TOLERANCE):  # False for NaN
            break
    return grid


@dataclass(frozen=True)
class Pool:
    """A set of pixels, kept as runs of consecutive indices: exact, and small however large the photographs are."""

    size: int
    ends: Tensor  # (n_runs,) int64, how many pixels the runs so far hold
    shifts: Tensor  # (n_runs,) int64, what turns the k-th pixel of the pool into its index

    def __len__(self) -> int:
        return self.size

    def to(self, device: torch.device) -> "Pool":
        """The same on another device."""
        return Pool(self.size, self.ends.to(device), self.shifts.to(device))

    def draw_places(self, n: int, generator: torch.Generator) -> Tensor:
        """Places (n,) in the pool, from 0 to its size."""
        if n == 0:
            return torch.zeros(0, dtype=torch.int64, device=self.ends.device)
        return torch.randint(self.size, (n,), generator=generator, device=generator.device).to(self.ends.device)

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        """Indices (n,) of pixels, uniform with replacement; on the pool's device, whatever the generator's."""
        k = self.draw_places(n, generator)
        return k + self.shifts[torch.searchsorted(self.ends, k, right=True)]


def runs_of(chosen: np.ndarray, offset: int) -> tuple[np.ndarray, np.ndarray]:
    """First indices and lengths of the runs of pixels that are set in one image, (n,) bool, whose first pixel is `offset`."""
    edges = np.flatnonzero(chosen[1:] != chosen[:-1]) + 1
    edges = np.concatenate([[0] if chosen[0] else [], edges, [len(chosen)] if chosen[-1] else []]).astype(np.int64)
    return offset + edges[::2], edges[1::2] - edges[::2]


def pool_of(runs: Sequence[tuple[np.ndarray, np.ndarray]]) -> Pool:
    """The pool of all images' runs."""
    starts, lengths = (np.concatenate([np.zeros(0, np.int64), *parts]) for parts in zip(*runs, strict=True))
    ends = np.cumsum(lengths)
    return Pool(int(ends[-1]) if len(ends) else 0, torch.from_numpy(ends), torch.from_numpy(starts - (ends - lengths)))
