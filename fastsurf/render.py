"""Three ways to turn a solid into pixels: same arguments, same Rendering.

`render_volume` spreads samples over all the occupied space a ray passes, `render_surface` takes the colour of the first crossing, and
`render_unified` (UNISURF, Oechsle et al. 2021) samples an interval around that crossing: towards width 0 it becomes
`render_surface`, towards the whole ray `render_volume`.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from .compositing import Rendering, blend
from .field import FieldSample
from .rays import Rays
from .sampling import over_lattice, place, random_jitter
from .surface import Crossings

LEAST_WEIGHT = 1e-3  # samples that weigh less get no colour: about half of the colour head's work, < 0.2 % of the light

BackgroundFn = Callable[[Rays], Tensor]  # colour (n, 3) seen behind the scene box


class Solid(Protocol):
    """What can be rendered: a field with colours, and the grid that says where to look. Points are in scene units."""

    @property
    def dense(self) -> bool:
        """Evaluate every sample, needed or not: more work, but shapes that no value decides, as a recorded step wants them."""
        ...

    @property
    def occupied(self) -> Tensor:
        """(g, g, g) bool over [-1, 1]^3, what has to be looked at."""
        ...

    @property
    def sharpness(self) -> float | Tensor:
        """How steep the opacity is in the level."""
        ...

    def level(self, x: Tensor) -> Tensor:
        """(n, 3) -> (n,), positive inside the solid, without gradients."""
        ...

    def first_crossing(self, rays: Rays, offset: Tensor | None = None) -> Crossings:
        """Where rays first meet the surface, as in surface.py; offset (n_rays,) in [0, 1] shifts each ray's marching lattice."""
        ...

    def march(self, rays: Rays, offset: Tensor | None = None) -> Crossings:
        """The occupied space that rays pass, for `render_volume`: as `first_crossing`, with nothing searched or found."""
        ...

    def sample(self, x: Tensor) -> FieldSample:
        """Level, feature and normal of (n, 3), with gradients."""
        ...

    def opacity(self, level: Tensor, length: Tensor | float) -> tuple[Tensor, Tensor]:
        """Alphas and optical depths -log(1 - alpha) of samples, each of which stands for that length of its ray; all (n,)."""
        ...

    def color(self, x: Tensor, sample: FieldSample, directions: Tensor, view: Tensor | None = None) -> Tensor:
        """Colours (n, 3), as in photographs view (n,) int64."""
        ...

    def weights_of(self, alphas: Tensor) -> Tensor:
        """`compositing.weights_of`."""
        ...


@dataclass(frozen=True)
class Samples:
    """How many samples a ray gets, and what jitters them (None: the middle of each stratum)."""

    front: int
    interval: int
    generator: torch.Generator | None = None


SpreadFn = Callable[[Rays, Solid, Crossings, int], Tensor]  # -> edges (n_rays, n_samples + 1) in [0, 1] of strata of the lattice


def find(rays: Rays, solid: Solid, generator: torch.Generator | None = None) -> Crossings:
    """First crossings; a generator shifts each ray's marching lattice."""
    return solid.first_crossing(rays, _offset(rays, generator))


def _offset(rays: Rays, generator: torch.Generator | None) -> Tensor | None:
    return None if generator is None else torch.rand(len(rays), generator=generator, device=rays.t_near.device)


def render_unified(
    rays: Rays, solid: Solid, width: float | Tensor, samples: Samples, background: BackgroundFn
) -> tuple[Rendering, Crossings]:
    """UNISURF's rendering with an interval of half-width `width`, and the crossings it was placed on."""
    found = find(rays, solid, samples.generator)
    t = place(rays, found, width, samples.front, samples.interval, samples.generator)
    return shade(rays, solid, t, None, found, background), found


def evenly(rays: Rays, solid: Solid, found: Crossings, samples: int) -> Tensor:
    """A `SpreadFn`: strata of one length."""
    return torch.linspace(0.0, 1.0, samples + 1, device=found.t.device).expand(len(rays), -1)


def render_volume(
    rays: Rays, solid: Solid, samples: Samples, background: BackgroundFn, spread: SpreadFn = evenly
) -> tuple[Rendering, Crossings]:
    """All samples spread over the occupied space of the ray; one that is more than half opaque hits, at its depth.

    Args:
        spread: where, for a medium; the opacity of a solid depends on how its samples lie, so they lie evenly.
    """
    found = solid.march(rays, _offset(rays, samples.generator))
    edges = spread(rays, solid, found, samples.front + samples.interval)
    jitter = random_jitter(len(rays), edges.shape[1] - 1, samples.generator, found.t.device)
    t = over_lattice(rays, found, torch.lerp(edges[:, :-1], edges[:, 1:], jitter))
    rendering = shade(rays, solid, t, edges.diff() * (found.count * found.step)[:, None], found, background)
    hit = rendering.opacity.detach() > 0.5
    found = replace(found, t=torch.where(hit, rendering.depth, rays.t_far), hit=hit)
    return replace(rendering, hit=hit, t_surface=found.t), found


def render_surface(rays: Rays, solid: Solid, background: BackgroundFn) -> tuple[Rendering, Crossings]:
    """The colour c(x_s, n_s, h_s, d) of the first crossing, the background where there is none."""
    found = find(rays, solid)
    hit = found.hit
    x = rays.origins[hit] + found.t[hit, None] * rays.directions[hit]
    sample = solid.sample(x)
    rgb = background(rays).index_put((hit,), solid.color(x, sample, rays.directions[hit], rays.image_index[hit]))
    normal = rays.origins.new_zeros(len(rays), 3).index_put((hit,), sample.normal)
    optical_depth = torch.where(hit, torch.inf, 0.0)
    return Rendering(rgb, hit.float(), optical_depth, optical_depth, found.t, normal, hit, found.t, rgb), found


def shade(rays: Rays, solid: Solid, t: Tensor, lengths: Tensor | None, found: Crossings, background: BackgroundFn) -> Rendering:
    """Opacity and colour at distances t (n_rays, n_samples), blended. Samples in culled cells have alpha 0.

    Args:
        lengths: (n_rays, n_samples) how much of its ray each sample stands for; None where opacity doesn't ask.
    """
    points = rays.at(t).view(-1, 3)
    in_use = _in_use(points, solid.occupied, rays, t.shape[1])
    lengths = t.new_zeros(()).expand_as(t) if lengths is None else lengths
    weights, rgbs, normal, depths = (_shade_all if solid.dense else _shade_some)(rays, solid, points, in_use, lengths)
    opacity = weights.sum(1)
    rgb = blend(weights, rgbs) + (1.0 - opacity)[:, None] * background(rays)
    with torch.no_grad():
        depth = (weights * t).sum(1) + (1.0 - opacity) * rays.t_far
    paint = blend(weights.detach(), rgbs) + (rgb - blend(weights, rgbs)).detach()
    return Rendering(rgb, opacity, depths.sum(1), depths.amax(1), depth, normal, found.hit, found.t, paint)


def _shade_some(rays: Rays, solid: Solid, points: Tensor, in_use: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Weights (n_rays, n_samples), colours (n_rays, n_samples, 3), the rays' mean normals (n_rays, 3) and the samples' optical depths
    (n_rays, n_samples), where there is something."""
    n, s = lengths.shape
    kept = in_use.nonzero()[:, 0]
    x = points[kept]
    sample = solid.sample(x)
    alphas, depths = (x.new_zeros(n * s).index_put((kept,), v).view(n, s) for v in solid.opacity(sample.level, lengths.flatten()[kept]))
    weights = solid.weights_of(alphas)
    weight = weights.detach().view(-1)[kept]
    bright = (weight > LEAST_WEIGHT).nonzero()[:, 0]
    seen = FieldSample(sample.level[bright], sample.feature[bright], sample.normal[bright])
    rows = kept[bright]
    color = solid.color(x[bright], seen, rays.directions[rows // s], rays.image_index[rows // s])
    with torch.no_grad():
        normal = x.new_zeros(n, 3).index_add_(0, kept // s, weight[:, None] * sample.normal)
    return weights, x.new_zeros(n * s, 3).index_put((rows,), color).view(n, s, 3), normal, depths


def _shade_all(rays: Rays, solid: Solid, points: Tensor, in_use: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`_shade_some`, every sample evaluated."""
    n, s = lengths.shape
    sample = solid.sample(points)
    alphas, depths = (torch.where(in_use, v, 0.0).view(n, s) for v in solid.opacity(sample.level, lengths.flatten()))
    weights = solid.weights_of(alphas)
    color = solid.color(points, sample, *(a.repeat_interleave(s, 0) for a in (rays.directions, rays.image_index))).view(n, s, 3)
    with torch.no_grad():
        bright = (weights > LEAST_WEIGHT)[..., None]
        normal = blend(weights, sample.normal.view(n, s, 3))
    return weights, torch.where(bright, color, 0.0), normal, depths


def _in_use(points: Tensor, occupied: Tensor, rays: Rays, samples: int) -> Tensor:
    """Which points (n_rays * n_samples,) lie in cells in use on rays that meet the box."""
    g = occupied.shape[0]
    x, y, z = ((points + 1.0) * (g / 2.0)).int().clamp_(0, g - 1).unbind(1)
    inside = occupied.view(-1).index_select(0, (x * g + y) * g + z).view(len(rays), samples)
    meets = rays.t_far > rays.t_near
    return (inside & meets[:, None]).flatten()
