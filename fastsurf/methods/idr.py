"""IDR (Yariv, Kasten, Moran, Galun, Atzmon, Basri and Lipman 2020): surface rendering of a signed distance, which wants masks.

A ray shows the colour M(x, n, v, z) of the one point where it meets the surface. That point moves with field and camera (tracing.py), so
colours shape the surface where a ray meets it; where none does, only the masks can.
"""

import torch
from torch import Tensor

from ..compositing import Rendering
from ..config import Config
from ..field import Field
from ..losses import Seen, color_loss, eikonal_loss, outlier_scale
from ..rays import Rays
from ..render import BackgroundFn, Samples, Solid
from ..sampling import strata
from ..surface import Crossings
from ..tracing import SAMPLES, intersection, nearest, sphere_trace
from .distance import HashDistance, MlpDistance

SHARPEST_AT = 0.625  # progress: IDR doubles alpha five times in the first 1250 of 2000 epochs
SECANT_STEPS = 8
OBJECT = 0.5  # a mask above it
FEW_SAMPLES = 32  # of a ray that misses, for the eikonal loss
AROUND = 0.05  # of the surface, scene units: where slopes are asked for as well


def field(config: Config, generator: torch.Generator) -> Field:
    """A signed distance with the encoding of `field.encoding`."""
    return (HashDistance if config.field.encoding == "hash" else MlpDistance)(config.field, generator)


def schedule(progress: float, config: Config) -> tuple[float, float]:
    """No interval; alpha of the mask loss, which grows from `field.sharpness` to `field.sharpness_max`."""
    least, most = config.field.sharpness, config.field.sharpness_max
    return 0.0, least * (most / least) ** min(progress / SHARPEST_AT, 1.0)


def opacity(level: Tensor, length: Tensor | float, sharpness: float | Tensor) -> tuple[Tensor, Tensor]:
    """sigmoid(alpha level) of the largest level that a stretch of this length can have, where that changes by its length at most."""
    logit = sharpness * (level + 0.5 * length)
    return torch.sigmoid(logit), torch.nn.functional.softplus(logit)


def render(
    rays: Rays, solid: Solid, width: float | Tensor, samples: Samples, background: BackgroundFn
) -> tuple[Rendering, Crossings]:
    """Colours where rays meet the surface, with gradients to field and cameras; `width` and the numbers of samples say nothing here."""
    t, hit = sphere_trace(solid.level, rays.detached(), SECANT_STEPS)
    x = _on_surface(rays[hit], t[hit], solid)
    sample = solid.sample(x)
    rgb = background(rays).index_put((hit,), solid.color(x, sample, rays.directions[hit], rays.image_index[hit]))
    normal = torch.zeros_like(rays.origins).index_put((hit,), sample.normal).detach()
    found = Crossings(t, hit, t[:, None][:, :0], torch.zeros_like(rays.image_index), 0.0)
    optical_depth = torch.where(hit, torch.inf, 0.0)
    return Rendering(rgb, hit.float(), optical_depth, optical_depth, t, normal, hit, t, rgb), found


def _on_surface(rays: Rays, t: Tensor, solid: Solid) -> Tensor:
    """Points (n, 3) at crossings t (n,): equation 3 while learning."""
    if not torch.is_grad_enabled():
        return rays.at(t)
    at = solid.sample(rays.at(t).detach())
    assert at.slope is not None
    return intersection(rays, t, at.level, -at.normal * at.slope[:, None])


def photometric(solid: Solid, seen: Seen) -> Tensor:
    """`color_loss` of the rays that meet the surface within their mask, as a share of all; of all rays where there are no masks."""
    scale, mask = outlier_scale(seen.config), seen.batch.mask
    if mask is None:
        return color_loss(seen.rendering.rgb, seen.target, seen.config.huber, scale)
    on = seen.found.hit & (mask > OBJECT)
    share = on.float().mean()
    return color_loss(seen.rendering.rgb[on], seen.batch.rgb[on], seen.config.huber, scale) * share if on.any() else share


def silhouette(solid: Solid, seen: Seen) -> Tensor:
    """`mask_loss` (equation 7) of the other rays, where they come closest to the surface or are deepest inside."""
    mask = seen.batch.mask
    assert mask is not None
    off = ~(seen.found.hit & (mask > OBJECT))
    rays = seen.batch.rays[off]
    t = nearest(solid.level, rays.detached(), strata(len(rays), SAMPLES, seen.generator, mask.device))
    return mask_loss(solid.sample(rays.at(t)).level, mask[off], solid.sharpness).sum() / len(mask)


def mask_loss(level: Tensor, mask: Tensor, alpha: float | Tensor) -> Tensor:
    """Cross-entropy / alpha of sigmoid(alpha level) against masks, all (n,)."""
    something, nothing = (torch.nn.functional.softplus(sign * alpha * level) for sign in (-1.0, 1.0))
    return (mask * something + (1.0 - mask) * nothing) / alpha


def eikonal(solid: Solid, seen: Seen) -> Tensor:
    """`eikonal_loss` where rays meet the surface or come closest to it, round about, and at a few points of the box.

    IDR has more points anywhere. In a hash grid they are noise: an entry far off is touched once in a while, and Adam makes of each touch
    a whole step.
    """
    rays, found, generator, n = seen.batch.rays.detached(), seen.found, seen.generator, len(seen.batch.rays)
    t, missed, device = found.t.clone(), ~found.hit, found.t.device
    t[missed] = nearest(solid.level, rays[missed], strata(int(missed.sum()), FEW_SAMPLES, generator, device))
    at = rays.at(t)
    around = at + (torch.rand(n, 3, generator=generator, device=device) * 2.0 - 1.0) * AROUND
    anywhere = torch.rand(n // 16, 3, generator=generator, device=device) * 2.0 - 1.0
    slope = solid.sample(torch.cat([at, around, anywhere]).clamp(-1.0, 1.0)).slope
    assert slope is not None
    return eikonal_loss(slope)
