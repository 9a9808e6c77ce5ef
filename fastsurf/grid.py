"""Occupancy grid over the scene box: which cells a ray may skip.

Laid out as nerfacc's OccGridEstimator (x-major cells, a decaying maximum per cell, bits), but made for occupancy instead of
density: alpha is occupancy itself, so what culled cells may cost is an error budget and not a density threshold. If a ray passes M
culled samples of occupancy at most tau each, it loses at most 1 - (1 - tau)^M opacity. nerfacc's estimator is not used on a CPU: it
draws one point per cell from the global random state, has no dilation, and its traversal exists for CUDA alone.
"""

import torch
from torch import Tensor, nn

from .config import GridConfig
from .surface import LevelFn


class OccupancyGrid(nn.Module):
    """Bits for marching and culling, refreshed from the field every few steps."""

    values: Tensor
    occupied: Tensor

    def __init__(self, config: GridConfig, samples_per_ray: int):
        super().__init__()
        self.config = config
        g = config.resolution
        self.threshold = 1.0 - (1.0 - config.error_budget) ** (1.0 / samples_per_ray)  # tau of the module's docstring
        self.register_buffer("values", torch.zeros(g, g, g))  # decaying maximum of occupancy, (x, y, z)
        self.register_buffer("occupied", torch.ones(g, g, g, dtype=torch.bool))  # everything, until looked at
        self._share: float | None = None  # counted when asked for, once between updates

    @property
    def share(self) -> float:
        """Share of cells in use."""
        if self._share is None:
            self._share = int(self.occupied.count_nonzero()) / self.occupied.numel()
        return self._share

    @property
    def step(self) -> float:
        """Distance of marching points, scene units."""
        return float(2 * 3**0.5 / self.config.steps)

    @torch.no_grad()
    def update(self, level_fn: LevelFn, generator: torch.Generator, everywhere: bool = False) -> None:
        """Look at one jittered point in every cell in use or beside one, and in an eighth of the others (or in all).

        Cells deep in the solid count as others: rays stop before them, and their neighbours tell when the surface comes near.
        """
        g, device = self.config.resolution, self.occupied.device
        if everywhere:
            cells = torch.arange(g**3, device=device)
        else:
            deep = ~dilate(self.values < 0.5)
            chosen = (self.occupied & ~deep).flatten() | (torch.rand(g**3, generator=generator, device=device) < 0.125)
            cells = chosen.nonzero()[:, 0]
        corner = torch.stack([cells // (g * g), cells // g % g, cells % g], 1)
        points = (corner + torch.rand(len(cells), 3, generator=generator, device=device)) * (2.0 / g) - 1.0
        values = self.values.view(-1)
        values[cells] = torch.maximum(values[cells] * self.config.decay, torch.sigmoid(level_fn(points)))
        # bracketing points of a crossing must both lie in kept cells, and a point may miss the peak of its cell: dilate
        self.occupied.copy_(dilate(self.values > self.threshold))
        self._share = None


def dilate(cells: Tensor) -> Tensor:
    """Cells (g, g, g) bool and all that touch one of them, corners included."""
    for axis in range(3):
        out, n = cells.clone(), cells.shape[axis] - 1
        out.narrow(axis, 0, n).logical_or_(cells.narrow(axis, 1, n))
        out.narrow(axis, 1, n).logical_or_(cells.narrow(axis, 0, n))
        cells = out
    return cells
