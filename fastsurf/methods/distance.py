"""Signed distance fields, f = -level: positive outside, its slope about 1, learned as such by the eikonal loss (IDR, Yariv et al. 2020).

Over the hash encoding, or, as IDR has it, one larger MLP of position itself (`none`) or of its sines and cosines (`frequency`).
"""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from ..backends import Backend
from ..config import FieldConfig
from ..encoding import Level
from ..field import OUT, FieldSample, OccupancyField
from ..rays import Rays
from ..surface import search

OCTAVES = 6  # of the frequencies
HIDDEN, WIDTH, STEEP = 4, 128, 100.0  # layers; neurons; softplus' slope: IDR has 8 of 512, for a GPU and a day
CHUNK = 1 << 15  # points at a time where no graph is kept


class HashDistance(nn.Module):
    """The occupancy field's encoding and MLP, also differentiable in x."""

    def __init__(self, config: FieldConfig, generator: torch.Generator):
        super().__init__()
        self.net = OccupancyField(config, generator)

    @property
    def levels(self) -> Sequence[Level]:
        return self.net.levels

    def set_progress(self, progress: float) -> None:
        """Fade in the finer levels."""
        self.net.set_progress(progress)

    def sample(self, x: Tensor, backend: Backend) -> FieldSample:
        """Level, feature, normal and slope at x (n, 3), differentiable in the parameters, and in x where x asks for it."""
        if not (x.requires_grad and torch.is_grad_enabled()):
            return self.net.sample(x, backend)
        w1, w2 = self.net.weights()
        encoded = backend.encode((x * 0.5 + 0.5).clamp(0.0, 1.0), self.net.table, self.levels)
        out = torch.relu(encoded @ w1.T) @ w2.T
        level = out[:, 0] + (self.net.config.prior_radius - x.norm(dim=-1))
        return _sample(x, level, out[:, 1:])

    def level(self, x: Tensor, backend: Backend) -> Tensor:
        """The level alone (n,), without gradients."""
        return self.net.level(x, backend)

    def first_crossing(
        self, rays: Rays, lattice: Tensor, count: Tensor, step: float, secant_steps: int, backend: Backend
    ) -> tuple[Tensor, Tensor]:
        """`surface.search` for this level."""
        return self.net.first_crossing(rays, lattice, count, step, secant_steps, backend)


class MlpDistance(nn.Module):
    """One MLP with softplus that starts as a sphere (geometric initialisation: Atzmon and Lipman 2020; IDR's of the frequencies)."""

    def __init__(self, config: FieldConfig, generator: torch.Generator):
        super().__init__()
        self.octaves = OCTAVES if config.encoding == "frequency" else 0
        self.levels: Sequence[Level] = ()
        widths = [3 + 6 * self.octaves, *[WIDTH] * HIDDEN, OUT]
        weights = [torch.randn(b, a, generator=generator) * math.sqrt(2.0 / b) for a, b in pairwise(widths)]
        weights[0][:, 3:] = 0.0  # the frequencies come in by learning
        weights[-1][0] = torch.randn(WIDTH, generator=generator) * 1e-4 - math.sqrt(math.pi / WIDTH)  # level = radius - |x|
        self.weights = nn.ParameterList(weights)
        self.biases = nn.ParameterList(torch.zeros(b) for b in widths[1:])
        with torch.no_grad():
            self.biases[-1][0] = config.prior_radius

    def set_progress(self, progress: float) -> None:
        """It has no schedule."""

    def sample(self, x: Tensor, backend: Backend) -> FieldSample:
        """Level, feature, normal and slope at x (n, 3), differentiable in the parameters, and in x where x asks for it."""
        graph = torch.is_grad_enabled()
        with torch.enable_grad():
            x = x if graph and x.requires_grad else x.detach().requires_grad_()
            out = self._out(x)
            sample = _sample(x, out[:, 0], out[:, 1:], graph)
        return sample if graph else FieldSample(sample.level.detach(), sample.feature.detach(), sample.normal, sample.slope)

    @torch.no_grad()
    def level(self, x: Tensor, backend: Backend) -> Tensor:
        """The level alone (n,), without gradients."""
        return torch.cat([self._out(part)[:, 0] for part in torch.split(x, CHUNK)]) if len(x) else x.new_empty(0)

    def first_crossing(
        self, rays: Rays, lattice: Tensor, count: Tensor, step: float, secant_steps: int, backend: Backend
    ) -> tuple[Tensor, Tensor]:
        """`surface.search` for this level."""
        return search(lambda x: self.level(x, backend), rays, lattice, count, step, secant_steps)

    def _out(self, x: Tensor) -> Tensor:
        """The last layer's outputs (n, 16)."""
        waves = [wave(2.0**k * x) for k in range(self.octaves) for wave in (torch.sin, torch.cos)]
        h = torch.cat([x, *waves], 1)
        for weight, bias in zip(self.weights[:-1], self.biases[:-1], strict=True):
            h = nn.functional.softplus(nn.functional.linear(h, weight, bias), beta=STEEP)
        return nn.functional.linear(h, self.weights[-1], self.biases[-1])


def _sample(x: Tensor, level: Tensor, feature: Tensor, graph: bool = True) -> FieldSample:
    """With the normal by autograd."""
    (gradient,) = torch.autograd.grad(level.sum(), x, create_graph=graph)
    return FieldSample(level, feature, -nn.functional.normalize(gradient, dim=-1), gradient.norm(dim=-1))
