"""NeRF (Mildenhall et al. 2020), on a hash grid as in Müller et al. 2022: the field is the density sigma(x) of a medium that glows.

A sample that stands for the length delta of its ray has alpha = 1 - exp(-sigma delta). Nothing says where a surface is, so that is chosen:
level(x) = log sigma(x) - log `field.density_level`. Densities are per scene unit, so divided by the scene's radius per unit of the input.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..backends import Backend
from ..compositing import Rendering
from ..config import Config
from ..encoding import Level
from ..field import FieldSample, OccupancyField
from ..grid import OccupancyGrid
from ..rays import Rays
from ..render import BackgroundFn, Samples, Solid, render_volume
from ..sampling import toward_light
from ..surface import Crossings, search


class DensityField(nn.Module):
    """log sigma(x) = `field.sharpness` g(x), with g the network that an `OccupancyField` holds, here without a prior."""

    def __init__(self, config: Config, generator: torch.Generator):
        super().__init__()
        self.net = OccupancyField(config.field, generator)
        self.gain, self.surface = config.field.sharpness, math.log(config.field.density_level)
        self.colored_by_normal = "n" in config.color.inputs

    @property
    def levels(self) -> Sequence[Level]:
        """Of its hash encoding."""
        return self.net.levels

    def set_progress(self, progress: float) -> None:
        """Fade in the finer levels."""
        self.net.set_progress(progress)

    def sample(self, x: Tensor, backend: Backend) -> FieldSample:
        """Level, feature and normal -grad sigma / |grad sigma| at x (n, 3). While it learns the normal is 0 unless colours depend on it:
        the gradient and its second order would be half of the work."""
        unit, (grid, net) = self.net.unit(x), ((self.net.table, self.net.levels), self.net.weights())
        if torch.is_grad_enabled() and not self.colored_by_normal:
            out, normal = backend.mlp(backend.encode(unit, *grid), net), torch.zeros_like(x)
        else:
            out, gradient = backend.field(unit, *grid, net)
            normal = -nn.functional.normalize(gradient, dim=-1)
        return FieldSample(self.gain * out[:, 0] - self.surface, out[:, 1:], normal)

    @torch.no_grad()
    def level(self, x: Tensor, backend: Backend) -> Tensor:
        """The level alone (n,), without gradients."""
        g = backend.field_value(self.net.unit(x), self.net.table, self.net.levels, self.net.weights())
        return self.gain * g - self.surface

    def first_crossing(
        self, rays: Rays, lattice: Tensor, count: Tensor, step: float, secant_steps: int, backend: Backend
    ) -> tuple[Tensor, Tensor]:
        """`surface.search` for this level."""
        return search(lambda x: self.level(x, backend), rays, lattice, count, step, secant_steps)


def thinnest_kept(grid: OccupancyGrid) -> float:
    """The density below which cells are culled, per scene unit."""
    return -math.log1p(-grid.threshold) / grid.step


def whole_ray(progress: float, config: Config) -> tuple[float, float]:
    """No interval; and the density where the level is 0."""
    return 0.0, config.field.density_level


def render(
    rays: Rays, solid: Solid, width: float | Tensor, samples: Samples, background: BackgroundFn
) -> tuple[Rendering, Crossings]:
    """`render_volume`, with most samples where light comes from; there is no interval whose width would matter."""
    return render_volume(rays, solid, samples, background, toward_what_glows)


@torch.no_grad()
def toward_what_glows(rays: Rays, solid: Solid, found: Crossings, samples: int) -> Tensor:
    """A `SpreadFn`: `toward_light` of what the occupied lattice points show, if each stands for one step."""
    real = torch.arange(found.lattice.shape[1], device=found.t.device) < found.count[:, None]
    points = rays.at(found.lattice)
    if solid.dense:
        level = torch.where(real, solid.level(points.view(-1, 3)).view_as(found.lattice), -torch.inf)
    else:
        level = torch.full_like(found.lattice, -torch.inf).masked_scatter_(real, solid.level(points[real]))
    return toward_light(solid.weights_of(solid.opacity(level, found.step)[0]), found.count, samples)
