"""The meaning of every operation, in plain PyTorch; float32 or float64, any device.

For a position x in [0, 1]^3 and a level: p = scale x + 0.5, cell = floor(p), w = p - cell; corner c = 0..7 of the cell has bit d set
where it lies one further on axis d. Its weight is prod_d (w_d or 1 - w_d), its entry as in tiny-cuda-nn (unsigned 32-bit arithmetic,
modulo the level's size), so that x = 1 on a dense level reads what lies behind the last vertex, wrapped around.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..compositing import weights_of
from ..encoding import PRIMES, Level
from ..rays import Rays
from ..surface import search

CHUNK = 1 << 16  # positions at a time where no graph is kept: bounds memory, changes no value
UINT32 = 0xFFFFFFFF
MOST_STEPS = 1 << 24  # lattice points of a ray: counted exactly in float32
FARTHEST_CELL = 1e9  # cells are clamped there, so that infinite positions stay integers


class ReferenceBackend:
    """Plain PyTorch: the fallback everywhere, and what the other backends are compared with."""

    name = "reference"

    def __init__(self, note: str = "", device: torch.device | str = "cpu") -> None:
        self.note, self.device, self.capturable = note, torch.device(device), False

    @property
    def detail(self) -> str:
        return "PyTorch" if self.device.type == "cpu" else f"PyTorch on {self.device}"

    def encode(self, x: Tensor, table: Tensor, levels: Sequence[Level]) -> Tensor:
        """See `Backend.encode`."""
        features = []
        for level in levels:
            index, w = _cell(x, level)
            features.append((_weights(w)[..., None] * _corners(table, index)).sum(1))
        return torch.cat(features, 1)

    def mlp(self, x: Tensor, weights: Sequence[Tensor]) -> Tensor:
        """See `Backend.mlp`."""
        for weight in weights[:-1]:
            x = torch.relu(x @ weight.T)
        return x @ weights[-1].T

    def field(self, x: Tensor, table: Tensor, levels: Sequence[Level], weights: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """See `Backend.field`. The gradient is written out, J^T W1^T (m v) with v = W2[0] and m the ReLU's slope, so that plain
        autograd gives the second-order term."""
        first, second = weights
        x = x.detach()
        features, jacobians = [], []
        for level in levels:
            index, w = _cell(x, level)
            corners = _corners(table, index)
            features.append((_weights(w)[..., None] * corners).sum(1))
            jacobians.append(torch.einsum("ncf,nck->nfk", corners, _weight_gradients(w) * level.scale))
        z = torch.cat(features, 1) @ first.T  # (n, hidden)
        u = ((z > 0) * second[0]) @ first  # (n, 2 n_levels): gradient of out[:, 0] with respect to the encoding
        return torch.relu(z) @ second.T, torch.einsum("nf,nfk->nk", u, torch.cat(jacobians, 1))

    @torch.no_grad()
    def field_value(self, x: Tensor, table: Tensor, levels: Sequence[Level], weights: Sequence[Tensor]) -> Tensor:
        """See `Backend.field_value`."""
        first, second = weights
        rows = [first, second[:1]]
        parts = [self.mlp(self.encode(part, table, levels), rows)[:, 0] for part in torch.split(x, CHUNK)]
        return torch.cat(parts) if parts else x.new_empty(0)

    @torch.no_grad()
    def occupied_steps(
        self, rays_o: Tensor, rays_d: Tensor, t_near: Tensor, t_far: Tensor, occupied: Tensor, step: float, most: int
    ) -> tuple[Tensor, Tensor]:
        """See `Backend.occupied_steps`."""
        cells = occupied.shape[0]
        assert step > 0 and most >= 0, (step, most)
        t_out = t_far[:, None].repeat(1, most)
        count = torch.zeros(len(t_near), dtype=torch.int64, device=t_near.device)
        span = torch.where(torch.isfinite(t_near) & torch.isfinite(t_far), t_far - t_near, 0)
        steps = 1 + math.ceil(max(0.0, span.max().item() if len(span) else 0.0) / step)
        if steps > MOST_STEPS:
            raise ValueError(f"{steps} lattice points on a ray, want at most {MOST_STEPS}: is the step {step} too small?")
        k = torch.arange(steps, device=t_near.device).to(t_near.dtype)
        rays = max(1, 32 * CHUNK // steps)
        for start in range(0, len(t_near), rays):
            part = slice(start, start + rays)
            t = t_near[part, None] + k * step  # (rays, steps)
            p = rays_o[part, None] + t[..., None] * rays_d[part, None]
            cell = ((p + 1) * (cells / 2)).nan_to_num(nan=0.0).clamp(0, cells - 1).long()
            keep = occupied[cell[..., 0], cell[..., 1], cell[..., 2]] & (t < t_far[part, None]) & (span[part, None] > 0)
            place = keep.cumsum(1) - 1
            keep &= place < most
            ray, lattice = keep.nonzero(as_tuple=True)
            t_out[part][ray, place[ray, lattice]] = t[ray, lattice]
            count[part] = keep.sum(1)
        return t_out, count

    def first_crossing(
        self,
        rays: Rays,
        lattice: Tensor,
        count: Tensor,
        step: float,
        secant_steps: int,
        prior_radius: float,
        table: Tensor,
        levels: Sequence[Level],
        weights: Sequence[Tensor],
    ) -> tuple[Tensor, Tensor]:
        """See `Backend.first_crossing`."""

        def level(x: Tensor) -> Tensor:
            radius: Tensor = x.norm(dim=-1)
            return self.field_value((x * 0.5 + 0.5).clamp(0.0, 1.0), table, levels, weights) + (prior_radius - radius)

        return search(level, rays, lattice, count, step, secant_steps)

    def weights_of(self, alphas: Tensor) -> Tensor:
        """See `Backend.weights_of`."""
        return weights_of(alphas)

    @torch.no_grad()
    def adam_(
        self, p: Tensor, grad: Tensor, m: Tensor, v: Tensor, step: int, rate: float, betas: tuple[float, float], eps: float
    ) -> None:
        """See `Backend.adam_`."""
        m.lerp_(grad, 1 - betas[0])
        v.mul_(betas[1]).addcmul_(grad, grad, value=1 - betas[1])
        p.addcdiv_(m, v.sqrt().div_(math.sqrt(1 - betas[1] ** step)).add_(eps), value=-rate / (1 - betas[0] ** step))


def _cell(x: Tensor, level: Level) -> tuple[Tensor, Tensor]:
    """Entries of the cell's 8 corners (n, 8) int64, and the place in the cell (n, 3), which carries the gradient.

    p is made in float64 and rounded once, as a fused multiply-add does: another cell would be another gradient.
    """
    p = (x.double() * level.scale + 0.5).to(x.dtype)
    floor = p.detach().floor().clamp(-FARTHEST_CELL, FARTHEST_CELL)
    corner = torch.arange(8, device=x.device)
    bits = torch.stack([corner & 1, corner >> 1 & 1, corner >> 2], 1)
    i, j, k = (floor.long()[:, None] + bits).unbind(2)  # (n, 8) each
    if level.hashed:
        index = i * PRIMES[0] ^ j * PRIMES[1] ^ k * PRIMES[2]
    else:
        index = i + j * level.resolution + k * level.resolution**2
    return (index & UINT32) % level.size + level.offset, p - floor


def _corners(table: Tensor, index: Tensor) -> Tensor:
    """Entries (n, 8, 2) of corners `index` (n, 8). On a CPU several threads sum the gradients of `table[index]` in any order, and those of
    `gather` in the points' order; on a GPU it is the other way round."""
    if table.is_cuda:
        return table[index]
    features = table.shape[1]
    return table.gather(0, index.reshape(-1, 1).expand(-1, features)).view(*index.shape, features)


def _weights(w: Tensor) -> Tensor:
    """Trilinear weights (n, 8) of the corners."""
    x, y, z = (torch.stack([1 - w[:, d], w[:, d]], 1) for d in range(3))
    return (z[:, :, None, None] * y[:, None, :, None] * x[:, None, None, :]).flatten(1)


def _weight_gradients(w: Tensor) -> Tensor:
    """Their derivatives (n, 8, 3) with respect to w."""
    x, y, z = (torch.stack([1 - w[:, d], w[:, d]], 1) for d in range(3))
    sign = w.new_tensor([-1.0, 1.0]).expand_as(x)
    parts = [(sign, y, z), (x, sign, z), (x, y, sign)]
    return torch.stack([(c[:, :, None, None] * b[:, None, :, None] * a[:, None, None, :]).flatten(1) for a, b, c in parts], 2)
