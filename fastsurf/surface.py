"""Where a ray first meets the surface: marching through occupied space, then secant steps.

`level_fn: (n, 3) -> (n,)` is positive inside the solid and zero on its surface (the logit of occupancy); it is called without
gradients. UNISURF, Oechsle et al. 2021, section 3.3; Niemeyer et al. 2020 for the secant method.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .backends import Backend
from .rays import Rays

LevelFn = Callable[[Tensor], Tensor]
CHUNK = 8  # marching points of a ray that are evaluated together, before rays that found their surface drop out


@dataclass(frozen=True)
class Crossings:
    """First crossings and the occupied lattice they were found on."""

    t: Tensor  # (n_rays,) distance of the first crossing; t_far where there is none
    hit: Tensor  # (n_rays,) bool
    lattice: Tensor  # (n_rays, most) occupied marching points, padded with t_far
    count: Tensor  # (n_rays,) how many of them are real
    step: float  # their distance


@torch.no_grad()
def first_crossing(
    level_fn: LevelFn, rays: Rays, occupied: Tensor, step: float, secant_steps: int, backend: Backend, offset: Tensor | None = None
) -> Crossings:
    """First change from outside to inside along each ray.

    A ray that enters the box inside the solid crosses at t_near: the box cuts the solid there.

    Args:
        occupied: (g, g, g) bool over [-1, 1]^3; the rest counts as outside.
        step: distance of marching points.
        offset: see `march`.
    """
    lattice, count = march(rays, occupied, step, backend, offset)
    t, hit = search(level_fn, rays, lattice, count, step, secant_steps)
    return Crossings(t, hit, lattice, count, step)


def march(rays: Rays, occupied: Tensor, step: float, backend: Backend, offset: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """`Crossings.lattice` and `count` of rays through the box.

    Args:
        offset: (n_rays,) in [0, 1], shifts each ray's lattice by that share of a step (0.5 if not given).
    """
    offset = torch.full_like(rays.t_near, 0.5) if offset is None else offset
    most = int(2 * 3**0.5 / step) + 1
    return backend.occupied_steps(rays.origins, rays.directions, rays.t_near + offset * step, rays.t_far, occupied, step, most)


def unsearched(rays: Rays, lattice: Tensor, count: Tensor, step: float) -> Crossings:
    """The occupied lattice alone: no ray has met anything."""
    return Crossings(rays.t_far, torch.zeros_like(rays.t_far, dtype=torch.bool), lattice, count, step)


@torch.no_grad()
def search(level_fn: LevelFn, rays: Rays, lattice: Tensor, count: Tensor, step: float, secant_steps: int) -> tuple[Tensor, Tensor]:
    """`Crossings.t` and `hit`: the lattice from front to back until a point lies inside, then secant steps."""
    (n, most), device = lattice.shape, lattice.device
    # the first point found inside, and the last one outside before it
    t_in, level_in = torch.zeros(n, device=device), torch.zeros(n, device=device)
    t_out, level_out = rays.t_near.clone(), torch.full((n,), -torch.inf, device=device)
    hit = torch.zeros(n, dtype=torch.bool, device=device)
    active = (count > 0).nonzero()[:, 0]
    for start in range(0, most, CHUNK):
        if len(active) == 0:
            break
        t = lattice[active, start : start + CHUNK]
        real = torch.arange(start, start + t.shape[1], device=device) < count[active, None]
        points = rays[active].at(t)
        level = torch.full_like(t, -torch.inf)
        level[real] = level_fn(points[real])
        inside = level > 0
        found = inside.any(1)
        first = torch.where(found, inside.int().argmax(1), real.sum(1))  # found: index of the crossing; else one past the end
        before = (first - 1).clamp(min=0)[:, None]
        fresh = (first > 0) & (real[:, 0])
        rows = active[fresh]
        t_out[rows], level_out[rows] = t.gather(1, before)[fresh, 0], level.gather(1, before)[fresh, 0]
        rows = active[found]
        index = first[found][:, None]
        t_in[rows], level_in[rows], hit[rows] = t[found].gather(1, index)[:, 0], level[found].gather(1, index)[:, 0], True
        active = active[~found & (count[active] > start + CHUNK)]
    t_surface = torch.where(hit, t_in, rays.t_far)
    rows = hit.nonzero()[:, 0]
    if len(rows):
        # the point before may lie in a culled cell, a step or more away: start the secant from one step before the crossing
        far = t_out[rows] < t_in[rows] - 1.01 * step
        t_out[rows] = torch.where(far, torch.maximum(t_in[rows] - step, rays.t_near[rows]), t_out[rows])
        fresh = rows[far | ~torch.isfinite(level_out[rows])]
        if len(fresh):
            level_out[fresh] = level_fn(rays[fresh].at(t_out[fresh]))
        t_surface[rows] = secant(level_fn, rays[rows], t_out[rows], t_in[rows], level_out[rows], level_in[rows], secant_steps)
    return t_surface, hit


@torch.no_grad()
def secant(level_fn: LevelFn, rays: Rays, t_out: Tensor, t_in: Tensor, level_out: Tensor, level_in: Tensor, steps: int) -> Tensor:
    """Zero of the level between t_out (outside) and t_in (inside), all (n,), by regula falsi with the Illinois rule.

    Where t_out is inside as well (the box cuts the solid) the answer is t_out.
    """
    cut = level_out > 0
    low, high, f_low, f_high = t_out, t_in, level_out, level_in
    was_inside = torch.zeros_like(cut)
    for step in range(steps):
        t = low + (high - low) * (-f_low / (f_high - f_low).clamp(min=1e-12)).clamp(0.0, 1.0)
        f = level_fn(rays.at(t))
        inside = f > 0
        again = (inside == was_inside) if step else torch.zeros_like(inside)
        # the end that stays for a second time weighs half, so that both ends close in
        f_low = torch.where(inside, torch.where(again, f_low * 0.5, f_low), f)
        f_high = torch.where(inside, f, torch.where(again, f_high * 0.5, f_high))
        low, high = torch.where(inside, low, t), torch.where(inside, t, high)
        was_inside = inside
    t = low + (high - low) * (-f_low / (f_high - f_low).clamp(min=1e-12)).clamp(0.0, 1.0)
    return torch.where(cut, t_out, t)
