"""Where pixels look, and pools of pixels to draw from.

A pixel is its index in the image store's buffer; in its own image, column u and row v count from 0 and its centre is at
(u + 0.5, v + 0.5). The image plane is z = 1 in front of the camera: a pixel looks along (x, y, 1).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .cameras import Camera, unproject

TOLERANCE = 2e-4  # pixels that interpolation between nodes may be wrong


@dataclass(frozen=True)
class PixelDirections:
    """Image-plane coordinates of any pixel, bilinear between nodes (one of a pinhole's four corners, every pixel at worst).

    Lenses bend slowly, so that a node every few pixels is exact enough and 100 distorted photographs need little memory.
    """

    nodes: Tensor  # (n_nodes, 2) float32; NaN where the lens model has no answer
    first: Tensor  # (n_views,) int64, first node of a view's camera
    columns: Tensor  # (n_views,) int64, nodes in a row
    rows: Tensor  # (n_views,) int64
    per_pixel: Tensor  # (n_views, 2) float32, nodes per pixel along u and v

    def __call__(self, view: Tensor, u: Tensor, v: Tensor) -> Tensor:
        """(x, y) (n, 2) of pixels (u, v) of views, each (n,) int64."""
        at = torch.stack([u, v], -1) * self.per_pixel[view]  # (n, 2) in nodes
        last = torch.stack([self.columns[view], self.rows[view]], -1) - 2
        cell = torch.minimum(at.long(), last)
        fx, fy = (at - cell).unbind(-1)
        columns = self.columns[view]
        corner = self.first[view] + cell[:, 1] * columns + cell[:, 0]
        top = torch.lerp(self.nodes[corner], self.nodes[corner + 1], fx[:, None])
        bottom = torch.lerp(self.nodes[corner + columns], self.nodes[corner + columns + 1], fx[:, None])
        return torch.lerp(top, bottom, fy[:, None])


def pixel_directions(cameras: Sequence[Camera]) -> PixelDirections:
    """Nodes for each view's camera; views that share a camera share them."""
    made: dict[Camera, tuple[int, int, int]] = {}
    nodes: list[np.ndarray] = []
    for camera in cameras:
        if camera not in made:
            grid = _nodes(camera)  # (rows, columns, 2)
            made[camera] = (sum(len(n) for n in nodes), grid.shape[1], grid.shape[0])
            nodes.append(grid.reshape(-1, 2).astype(np.float32))
    first, columns, rows = torch.tensor([made[c] for c in cameras]).T
    last = torch.tensor([[max(c.width - 1, 1), max(c.height - 1, 1)] for c in cameras], dtype=torch.float64)
    per_pixel = ((torch.stack([columns, rows], -1) - 1) / last).float()
    return PixelDirections(torch.from_numpy(np.concatenate(nodes)), first, columns, rows, per_pixel)


def _nodes(camera: Camera) -> np.ndarray:
    """The coarsest grid of nodes (rows, columns, 2) that is right within TOLERANCE between them."""
    last = np.array([max(camera.width - 1, 1), max(camera.height - 1, 1)])
    for spacing in (max(last), 64, 16, 8, 4, 2, 1):
        count = -(-last // spacing) + 1
        u, v = (np.linspace(0, end, n) for end, n in zip(last, count, strict=True))
        grid = _look(camera, u, v)
        if spacing == 1:
            break
        rows, columns = (np.unique(np.linspace(0, n - 2, 24).astype(int)) for n in (count[1], count[0]))
        middle = _look(camera, (u[columns] + u[columns + 1]) / 2, (v[rows] + v[rows + 1]) / 2)
        blend = (grid[:-1, :-1] + grid[:-1, 1:] + grid[1:, :-1] + grid[1:, 1:])[np.ix_(rows, columns)] / 4
        if np.all(np.linalg.norm(blend - middle, axis=-1) * max(camera.focal) < TOLERANCE):  # False for NaN
            break
    return grid


def _look(camera: Camera, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Image-plane coordinates (len(v), len(u), 2), NaN where the lens model has none."""
    xy = np.stack(np.meshgrid(u + 0.5, v + 0.5), -1).reshape(-1, 2)
    return unproject(camera, xy).reshape(len(v), len(u), 2)


@dataclass(frozen=True)
class Pool:
    """A set of pixels, kept as runs of consecutive indices: exact, and small however large the photographs are."""

    ends: Tensor  # (n_runs,) int64, how many pixels the runs so far hold
    shifts: Tensor  # (n_runs,) int64, what turns the k-th pixel of the pool into its index

    def __len__(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        """Indices (n,) of pixels, uniform with replacement."""
        if n == 0:
            return torch.zeros(0, dtype=torch.int64)
        k = torch.randint(len(self), (n,), generator=generator)
        return k + self.shifts[torch.searchsorted(self.ends, k, right=True)]


def pool_of(parts: Iterable[tuple[int, np.ndarray]]) -> Pool:
    """The pixels that are set in `parts`: (index of the first pixel, (n,) bool) of one image each."""
    starts, lengths = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for offset, chosen in parts:
        edges = np.flatnonzero(np.diff(chosen.view(np.int8), prepend=0, append=0))
        starts.append(offset + edges[::2])
        lengths.append(edges[1::2] - edges[::2])
    start, length = np.concatenate(starts), np.concatenate(lengths)
    ends = np.cumsum(length)
    return Pool(torch.from_numpy(ends), torch.from_numpy(start - (ends - length)))
