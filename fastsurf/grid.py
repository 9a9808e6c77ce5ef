"""Occupancy grid over the scene box: which cells a ray may skip.

Laid out as nerfacc's OccGridEstimator (x-major cells, a decaying value per cell, bits), but made for occupancy instead of
density: alpha is occupancy itself, so what culled cells may cost is an error budget and not a density threshold. If a ray passes M
culled samples of occupancy at most tau each, it loses at most 1 - (1 - tau)^M opacity. nerfacc's estimator is not used on a CPU: it
draws one point per cell from the global random state, has no dilation, and its traversal exists for CUDA alone.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from .backends import FusedBackend, Parameters, Refresh
from .config import GridConfig

OpacityFn = Callable[[Tensor], Tensor]  # (n, 3) -> (n,), the alpha of a sample there, in [0, 1]

CHANCES = 2  # updates before an occupancy has sunk below the threshold at which the cell is due: a look may miss the peak of its cell
LOT = 64  # of so many cells that are not in use one is looked at
UINT32 = 0xFFFFFFFF


class OccupancyGrid(nn.Module):
    """Bits for marching and culling, refreshed from the field every few steps."""

    values: Tensor
    occupied: Tensor

    def __init__(self, config: GridConfig, samples_per_ray: int):
        super().__init__()
        self.config = config
        g = config.resolution
        self.threshold = 1.0 - (1.0 - config.error_budget) ** (1.0 / samples_per_ray)  # tau of the module's docstring
        self.due = self.threshold / max(config.decay, 1e-6) ** CHANCES  # a cell in use that has sunk to this is looked at
        self.register_buffer("values", torch.zeros(g, g, g))  # occupancy as last seen, sinking since; (x, y, z)
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
    def update(self, opacity_fn: OpacityFn, generator: torch.Generator, everywhere: bool = False) -> None:
        """Look at one jittered point in each cell that is due, and in one of LOT others (or in all).

        An occupancy that was seen sinks by `decay` at each update. A cell in use is due when few updates are left until its
        occupancy sinks below the threshold: until then a look could not change its bit.
        """
        g, seed = self.config.resolution, draw_seed(generator)
        values, device = self.values.view(-1), self.values.device
        in_use = self.occupied.view(-1)
        if everywhere:
            looks = torch.arange(g**3, device=device)
        else:
            due = in_use & ~(values > self.due)
            first = torch.arange(0, g**3, LOT, device=device)
            drawn = first + numbers(seed, 4 * first + 3) % LOT
            due[drawn[drawn < g**3]] |= ~in_use[drawn[drawn < g**3]]
            looks = due.nonzero()[:, 0]
        corner = torch.stack([looks // (g * g), looks // g % g, looks % g], 1)
        jitter = (numbers(seed, 4 * looks[:, None] + torch.arange(3, device=device)) >> 8) * 2.0**-24
        points = (corner + jitter) * (2.0 / g) - 1.0
        sunk = values * self.config.decay
        values.copy_(torch.where(in_use, sunk, values))
        values[looks] = torch.maximum(sunk[looks], opacity_fn(points))
        # bracketing points of a crossing must both lie in kept cells, and a point may miss the peak of its cell: dilate
        self.occupied.copy_(dilate(self.values > self.threshold))
        self._share = None

    def update_natively(self, backend: FusedBackend, parameters: Parameters, generator: torch.Generator, everywhere: bool = False) -> None:
        """`update` for the logit of a field, in one call."""
        seed, decay = int(draw_seed(generator)), self.config.decay
        refresh = Refresh(self.values, self.occupied, self.threshold, decay, self.due, LOT, seed, everywhere)
        backend.update_grid(refresh, parameters)
        self._share = None


def draw_seed(generator: torch.Generator) -> Tensor:
    """Of one update, (1,) int64."""
    return torch.randint(1 << 31, (1,), generator=generator, device=generator.device)


def numbers(seed: Tensor, counters: Tensor) -> Tensor:
    """Random numbers in [0, 2^32), int64, one for each of the counters: the same on any backend, in any order."""
    return mix((mix(counters) + mix(seed)) & UINT32)


def mix(h: Tensor) -> Tensor:
    """A bijection of 32-bit numbers under which every bit depends on every other (the finaliser of MurmurHash3)."""
    h = ((h ^ h >> 16) * 0x85EBCA6B) & UINT32
    h = ((h ^ h >> 13) * 0xC2B2AE35) & UINT32
    return h ^ h >> 16


def dilate(cells: Tensor) -> Tensor:
    """Cells (g, g, g) bool and all that touch one of them, corners included."""
    for axis in range(3):
        out, n = cells.clone(), cells.shape[axis] - 1
        out.narrow(axis, 0, n).logical_or_(cells.narrow(axis, 1, n))
        out.narrow(axis, 1, n).logical_or_(cells.narrow(axis, 0, n))
        cells = out
    return cells
