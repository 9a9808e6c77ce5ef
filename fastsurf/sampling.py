"""Where to sample a ray. `t` is distance along a unit ray in scene units; `t_surface (n_rays,)` is the first crossing of occupancy
0.5; `half_width` is half the interval sampled around it (UNISURF, Oechsle et al. 2021, equation 10)."""

import math

import torch
from torch import Tensor

from .config import Config, FieldConfig, SamplingConfig
from .rays import Rays
from .surface import Crossings

EVEN = 0.1  # light that the emptiest ray is taken to give, spread evenly


def half_width(progress: float, config: SamplingConfig) -> float:
    """max(delta_max exp(-k beta), delta_min), with beta such that delta_min is reached at `delta_until`."""
    return max(config.delta_max * math.exp(-decay(config) * progress), config.delta_min)


def decay(config: SamplingConfig) -> float:
    """beta of `half_width`, for all of `progress`."""
    return math.log(config.delta_max / config.delta_min) / config.delta_until


def sharpness(width: float, config: FieldConfig) -> float:
    """Slope of the logit, tied to the interval so that the flank of the occupancy always fits into it."""
    return min(max(config.sharpness, config.sharpness_times_half_width / width), config.sharpness_max)


def shrinking(progress: float, config: Config) -> tuple[float, float]:
    """Half-width of the interval and sharpness."""
    width = half_width(progress, config.sampling)
    return width, sharpness(width, config.field)


def place(rays: Rays, found: Crossings, width: float | Tensor, front: int, interval: int, generator: torch.Generator | None) -> Tensor:
    """Distances (n_rays, front + interval), front to back.

    A ray with a surface gets `interval` stratified samples in [t_surface - width, t_surface + width], clipped to the box, and
    `front` before it; a ray without gets all of them over the occupied space it passes.

    Args:
        generator: jitters each sample within its stratum; None takes the middles.
    """
    jitter = random_jitter(len(rays), front + interval, generator, found.t.device)
    return place_jittered(rays, found, width, front, jitter)


def place_jittered(rays: Rays, found: Crossings, width: float | Tensor, front: int, jitter: Tensor) -> Tensor:
    """`place` with each sample's place in its stratum, jitter (n_rays, n_samples) in [0, 1)."""
    low = torch.maximum(found.t - width, rays.t_near)[:, None]
    high = torch.minimum(found.t + width, rays.t_far)[:, None]
    near = rays.t_near[:, None]
    before, around, everywhere = stratify(jitter[:, :front]), stratify(jitter[:, front:]), stratify(jitter)
    t = torch.cat([near + (low - near) * before, low + (high - low) * around], 1)
    if t.is_cuda:  # shapes that no value decides, as a recorded step wants them
        return torch.where(found.hit[:, None], t, over_lattice(rays, found, everywhere))
    missed = (~found.hit).nonzero()[:, 0]
    lattice = Crossings(found.t[missed], found.hit[missed], found.lattice[missed], found.count[missed], found.step)
    return t.index_copy_(0, missed, over_lattice(rays[missed], lattice, everywhere[missed]))


def strata(n: int, count: int, generator: torch.Generator | None, device: torch.device | None = None) -> Tensor:
    """Sorted numbers in [0, 1), one in each of `count` equal strata: (n, count)."""
    return stratify(random_jitter(n, count, generator, device))


def random_jitter(n: int, count: int, generator: torch.Generator | None, device: torch.device | None = None) -> Tensor:
    """Places (n, count) in [0, 1) of samples within their strata; without a generator the middles."""
    if generator is None:
        return torch.full((n, count), 0.5, device=device)
    return torch.rand(n, count, generator=generator, device=device)


def stratify(jitter: Tensor) -> Tensor:
    """Strata of [0, 1), (n, count), each sample where the jitter puts it."""
    count = jitter.shape[1]
    return (torch.arange(count, device=jitter.device) + jitter) / count


def toward_light(weights: Tensor, count: Tensor, samples: int) -> Tensor:
    """Edges (n_rays, samples + 1) in [0, 1] of strata over the occupied lattice points of each ray, in each of which as much is seen
    (NeRF, section 5.2, here with one field for both passes); EVEN more, spread evenly, brings samples everywhere.

    Args:
        weights: (n_rays, most), what each lattice point adds to the ray, 0 beyond `count`.
    """
    n = count.clamp(min=1)[:, None]
    real = torch.arange(weights.shape[1], device=count.device) < n
    ends = torch.cumsum(weights + real * (EVEN / n), 1)
    ends = ends / ends[:, -1:]
    wanted = torch.linspace(0.0, 1.0, samples + 1, device=count.device).expand(len(count), -1).contiguous()
    index = torch.searchsorted(ends, wanted).clamp(max=weights.shape[1] - 1)
    high, low = ends.gather(1, index), ends.gather(1, (index - 1).clamp(min=0)) * (index > 0)
    return ((index + (wanted - low) / (high - low).clamp(min=1e-9)) / n).clamp(0.0, 1.0)


def over_lattice(rays: Rays, found: Crossings, u: Tensor) -> Tensor:
    """Spread u (n_rays, n_samples) in [0, 1) over the occupied lattice points of each ray, or over the box where there are none."""
    position = u * found.count[:, None]
    index = position.long().clamp(max=found.lattice.shape[1] - 1)
    t = found.lattice.gather(1, index) + (position - index - 0.5) * found.step
    over_box = rays.t_near[:, None] + (rays.t_far - rays.t_near)[:, None] * u
    t = torch.where(found.count[:, None] > 0, t, over_box)
    return torch.minimum(torch.maximum(t, rays.t_near[:, None]), rays.t_far[:, None])
