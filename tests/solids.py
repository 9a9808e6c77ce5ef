"""Analytic solids that stand in for a trained field."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from fastsurf.backends.reference import ReferenceBackend
from fastsurf.compositing import occupancy, weights_of
from fastsurf.field import FieldSample
from fastsurf.rays import Rays, make_rays
from fastsurf.surface import Crossings, first_crossing, march, unsearched


def grid_around(level, resolution: int = 48, margin: float = 0.1) -> Tensor:
    """Cells (g, g, g) whose middle lies inside the solid or within `margin` of it."""
    axis = (torch.arange(resolution) + 0.5) * (2.0 / resolution) - 1.0
    middles = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), -1)
    return (level(middles.view(-1, 3)) > -margin).view(resolution, resolution, resolution)


@dataclass
class Sphere:
    """A coloured ball; `sample` and `color` carry gradients to `radius`."""

    radius: Tensor = field(default_factory=lambda: torch.tensor(0.5))
    center: Tensor = field(default_factory=lambda: torch.zeros(3))
    sharpness: float = 2000.0
    march_step: float = 0.01
    secant_steps: int = 8
    dense: bool = False

    def __post_init__(self):
        self.occupied = grid_around(self.level)

    @torch.no_grad()
    def level(self, x: Tensor) -> Tensor:
        return self.radius - (x - self.center).norm(dim=-1)

    def first_crossing(self, rays: Rays, offset: Tensor | None = None) -> Crossings:
        return first_crossing(self.level, rays, self.occupied, self.march_step, self.secant_steps, ReferenceBackend(), offset)

    def march(self, rays: Rays, offset: Tensor | None = None) -> Crossings:
        lattice, count = march(rays, self.occupied, self.march_step, ReferenceBackend(), offset)
        return unsearched(rays, lattice, count, self.march_step)

    def sample(self, x: Tensor) -> FieldSample:
        offset = x - self.center
        distance = offset.norm(dim=-1, keepdim=True)
        return FieldSample(self.radius - distance[:, 0], torch.zeros(len(x), 15), offset / distance.clamp(min=1e-6))

    def opacity(self, level: Tensor, length: Tensor | float) -> tuple[Tensor, Tensor]:
        return occupancy(level, length, self.sharpness)

    def weights_of(self, alphas: Tensor) -> Tensor:
        return weights_of(alphas)

    def color(self, x: Tensor, sample: FieldSample, directions: Tensor, view: Tensor | None = None) -> Tensor:
        return (0.5 + 0.4 * sample.normal).clamp(0, 1)


def parallel_rays(n: int = 400, seed: int = 0, spread: float = 0.9) -> Rays:
    """Rays along +z through random points of a square, from outside the scene box."""
    xy = (torch.rand(n, 2, generator=torch.Generator().manual_seed(seed)) * 2 - 1) * spread
    origins = torch.cat([xy, torch.full((n, 1), -3.0)], 1)
    return make_rays(origins, torch.tensor([0.0, 0.0, 1.0]).expand(n, 3).contiguous())
