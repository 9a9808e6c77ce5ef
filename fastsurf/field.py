"""The occupancy field: o(x) = sigmoid(s (g(x) + r0 - |x|)), g from a hash encoding and a two-layer MLP (Müller et al. 2022).

`s` is the sharpness of the transition, tied to the sampling interval; r0 - |x| is the sphere that an untrained field shows.
Positions are in scene units, the level ("logit / s") is 0 on the surface and positive inside, so its slope is roughly 1.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from .backends import Backend
from .config import FieldConfig
from .encoding import FEATURES, Level, entries, growth, level_table
from .rays import Rays

OUT = 16  # the level and 15 features for the colour head


@dataclass(frozen=True)
class FieldSample:
    """The field at n points."""

    level: Tensor  # (n,) 0 on the surface, positive inside
    feature: Tensor  # (n, 15)
    normal: Tensor  # (n, 3) unit, outward
    slope: Tensor | None = None  # (n,) length of the level's gradient, where the field tells it


class Field(Protocol):
    """What is learned of a shape: an nn.Module. Points are in scene units."""

    @property
    def levels(self) -> Sequence[Level]:
        """Of its hash encoding."""
        ...

    def set_progress(self, progress: float) -> None:
        """Point of its own schedules."""
        ...

    def sample(self, x: Tensor, backend: Backend) -> FieldSample:
        """Level, feature and normal at x (n, 3), differentiable with respect to the parameters."""
        ...

    def level(self, x: Tensor, backend: Backend) -> Tensor:
        """The level alone (n,), without gradients: positive inside the solid, 0 on its surface."""
        ...

    def first_crossing(
        self, rays: Rays, lattice: Tensor, count: Tensor, step: float, secant_steps: int, backend: Backend
    ) -> tuple[Tensor, Tensor]:
        """`surface.search` for this level."""
        ...


class OccupancyField(nn.Module):
    """Parameters of g and how to read them, coarse to fine."""

    fade: Tensor

    def __init__(self, config: FieldConfig, generator: torch.Generator):
        super().__init__()
        self.config = config
        scale = growth(config.levels, config.base_resolution, config.finest_resolution)
        self.levels = level_table(config.levels, config.log2_entries, config.base_resolution, scale)
        self.table = nn.Parameter((torch.rand(entries(self.levels), FEATURES, generator=generator) * 2 - 1) * 1e-4)
        self.w1 = nn.Parameter(xavier(config.width, FEATURES * config.levels, generator))
        self.w2 = nn.Parameter(xavier(OUT, config.width, generator))
        with torch.no_grad():
            self.w2[0] *= 0.1  # starts close to the prior
        self.register_buffer("fade", torch.ones(FEATURES * config.levels), persistent=False)  # weighs the encoding
        self.set_progress(1.0)

    def set_progress(self, progress: float) -> None:
        """Fade in the finer levels."""
        c = self.config
        grown = min(progress / c.grow_until, 1.0) if c.grow_until > 0 else 1.0
        active = c.first_levels + (c.levels - c.first_levels) * grown
        self.complete = active >= c.levels
        self.fade.copy_(torch.tensor([min(max(active - k // FEATURES, 0.0), 1.0) for k in range(FEATURES * c.levels)]))

    def sample(self, x: Tensor, backend: Backend) -> FieldSample:
        """Level, feature and normal at x (n, 3), differentiable with respect to the parameters."""
        out, gradient = backend.field(self.unit(x), self.table, self.levels, self.weights())
        radius = x.norm(dim=-1, keepdim=True).clamp(min=1e-6)
        gradient = gradient * 0.5 - x / radius  # to scene units, and the prior's
        level = out[:, 0] + (self.config.prior_radius - radius[:, 0])
        return FieldSample(level, out[:, 1:], -nn.functional.normalize(gradient, dim=-1), gradient.norm(dim=-1))

    @torch.no_grad()
    def level(self, x: Tensor, backend: Backend) -> Tensor:
        """The level alone (n,), without gradients."""
        g = backend.field_value(self.unit(x), self.table, self.levels, self.weights())
        level: Tensor = g + (self.config.prior_radius - x.norm(dim=-1))
        return level

    def first_crossing(
        self, rays: Rays, lattice: Tensor, count: Tensor, step: float, secant_steps: int, backend: Backend
    ) -> tuple[Tensor, Tensor]:
        """`surface.search` for this level."""
        grid, net = (self.table, self.levels), self.weights()
        return backend.first_crossing(rays, lattice, count, step, secant_steps, self.config.prior_radius, *grid, net)

    def unit(self, x: Tensor) -> Tensor:
        """Positions in [0, 1]^3, as the encoding wants them."""
        return (x.detach() * 0.5 + 0.5).clamp(0.0, 1.0)

    def weights(self) -> tuple[Tensor, Tensor]:
        """The MLP's, with the levels that are not yet in use faded."""
        if self.complete and not self.w1.is_cuda:  # on a GPU the product stays, for a recorded step is the same at any progress
            return self.w1, self.w2
        return self.w1 * self.fade, self.w2


def xavier(out: int, inputs: int, generator: torch.Generator) -> Tensor:
    """Uniform Glorot initialisation, (out, inputs)."""
    weights: Tensor = (torch.rand(out, inputs, generator=generator) * 2 - 1) * (6.0 / (out + inputs)) ** 0.5
    return weights
