"""Where rays meet a surface by sphere tracing, and how that point moves with the field and the camera (IDR, Yariv et al. 2020).

f = -level is a signed distance: positive outside, its slope about 1, so that a step of f passes no surface. `t` is distance along a unit
ray c + t v in scene units. `level_fn: (n, 3) -> (n,)` is called without gradients.
"""

import torch
from torch import Tensor

from .rays import Rays
from .surface import LevelFn, secant

CLOSE = 5e-5  # a distance that counts as arrived
STEPS = 10  # from either end; rays that are on their way after that are sampled
BACK_STEPS = 3  # a step that ends inside is halved so often, at most
SAMPLES = 100  # between the two ends of a ray on its way
LEAST_SLOPE = 0.1  # of the level along a ray: where one grazes the surface, the point would run off to infinity
ON_SURFACE = 1e-3  # a level further from 0 is no crossing: there the scene box cuts the solid


@torch.no_grad()
def sphere_trace(level_fn: LevelFn, rays: Rays, secant_steps: int) -> tuple[Tensor, Tensor]:
    """First crossings: t (n,), t_far where there is none, and hit (n,) bool.

    Both ends of the span within the scene box walk towards each other by f. A step that would end inside, where f is no exact distance, is
    halved; an end that can't walk on waits. A ray of which the near end arrives has its crossing, one whose ends pass each other has
    none; in the others `SAMPLES` points between the ends are looked at, with secant steps at the first change of sign.

    A ray that enters the box inside the solid crosses at t_near.
    """
    n = len(rays)
    both = torch.cat([rays.t_near, rays.t_far])  # the near ends, then the far ones
    ray = torch.arange(2 * n, device=both.device) % n
    sign = torch.ones_like(both)
    sign[n:] = -1.0
    f = -level_fn(rays[ray].at(both))
    meets = rays.t_far > rays.t_near
    walking = (f > CLOSE) & meets[ray]
    for _ in range(STEPS):
        rows = walking.nonzero()[:, 0]
        if len(rows) == 0:
            break
        both[rows], f[rows], moved = _step(level_fn, rays[ray[rows]], both[rows], f[rows], sign[rows])
        apart = both[:n] < both[n:]
        walking[rows] = moved & (f[rows] > CLOSE) & apart[ray[rows]]
    near, far, arrived = both[:n], both[n:], f[:n] <= CLOSE
    hit = arrived & meets & (near <= far)
    t = torch.where(hit, near, rays.t_far)
    rows = (~arrived & meets & (near < far)).nonzero()[:, 0]
    if len(rows):
        t[rows], hit[rows] = _sampled(level_fn, rays[rows], near[rows], far[rows], secant_steps)
    return t, hit


def _step(level_fn: LevelFn, rays: Rays, t: Tensor, f: Tensor, sign: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Places and distances after a step of f, and which ends moved."""
    t_next = t + sign * f
    f_next = -level_fn(rays.at(t_next))
    for halved in range(1, BACK_STEPS + 1):
        inside = (f_next < 0).nonzero()[:, 0]
        if len(inside) == 0:
            break
        t_next[inside] = t[inside] + sign[inside] * f[inside] * 0.5**halved
        f_next[inside] = -level_fn(rays[inside].at(t_next[inside]))
    moved = f_next >= 0
    return torch.where(moved, t_next, t), torch.where(moved, f_next, f), moved


def _sampled(level_fn: LevelFn, rays: Rays, near: Tensor, far: Tensor, secant_steps: int) -> tuple[Tensor, Tensor]:
    """First crossing between distances near and far, (n,) each, by samples: t, t_far where there is none, and hit."""
    t = near[:, None] + (far - near)[:, None] * torch.linspace(0.0, 1.0, SAMPLES, device=near.device, dtype=near.dtype)
    level = level_fn(rays.at(t).view(-1, 3)).view(t.shape)
    inside = level >= -CLOSE
    first = inside.int().argmax(1, keepdim=True)
    hit, before = inside.any(1), (first - 1).clamp(min=0)
    t_out, t_in, level_out, level_in = (a.gather(1, i)[:, 0] for a in (t, level) for i in (before, first))
    return torch.where(hit, secant(level_fn, rays, t_out, t_in, level_out, level_in, secant_steps), rays.t_far), hit


@torch.no_grad()
def nearest(level_fn: LevelFn, rays: Rays, u: Tensor) -> Tensor:
    """Where each ray comes closest to the surface, or is deepest inside: t (n,), of the places u (n, n_samples) in [0, 1) of its span."""
    t = rays.t_near[:, None] + (rays.t_far - rays.t_near)[:, None] * u
    level = level_fn(rays.at(t).view(-1, 3)).view(t.shape)
    return t.gather(1, level.argmax(1, keepdim=True))[:, 0]


def intersection(rays: Rays, t: Tensor, level: Tensor, gradient: Tensor) -> Tensor:
    """The points x(theta, c, v) = c + t(theta, c, v) v where rays meet the surface, (n, 3): IDR's equation 3,

        x = c + t_0 v - v f(c + t_0 v; theta) / (grad f(x_0; theta_0) . v_0),

    whose value is x_0 and whose first derivatives with respect to the field's parameters theta, the camera's centre c and the ray's
    direction v are those of the true crossing. The level is expanded round x_0, so that the field need not be differentiable in x.

    Args:
        t: (n,) the crossings t_0, constant.
        level: (n,) the field's level at x_0, carrying the gradients of its parameters.
        gradient: (n, 3) of the level at x_0.
    """
    x, gradient = rays.at(t), gradient.detach()
    change = level - level.detach() + (gradient * (x - x.detach())).sum(-1)  # 0, but with derivatives
    along = (gradient * rays.directions.detach()).sum(-1).clamp(min=LEAST_SLOPE)
    moves = level.detach().abs() < ON_SURFACE
    return x - torch.where(moves, change / along, 0.0)[:, None] * rays.directions
