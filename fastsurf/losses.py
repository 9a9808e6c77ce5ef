"""What a rendering is blamed for. Each loss is a mean over rays, its weight stands in `LossConfig`.

Below stand the formulas; at the end, how each is asked of what a training step saw.
"""

import math
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from .compositing import Rendering
from .config import LossConfig
from .disputes import Disputes
from .landmarks import Known
from .rays import Batch
from .render import Solid
from .surface import Crossings

LEAST_OPACITY = 1e-4  # of the logarithm where something should be
HALF_OPAQUE = math.log(2.0)  # optical depth of occupancy 1/2
WHOLE = 0.99  # a mask from which a pixel shows nothing but the object
DEEP = 4.0  # optical depth from which the mask loss grows but slowly
WITH_MASKS = 0.15  # scale of outliers; without masks the surroundings are far off for long, and must pull
SMOOTH_WITH_MASKS, SMOOTH = 0.005, 0.02  # outlines hold a surface as well as smoothness does
SMOOTH_UNPLACED = 0.005  # at first, where neither outlines nor points say what the shape is: smoothed too soon, it is never found
DISPUTED = 16.0  # with masks: without them what is disputed for long are the surroundings
POINTS, MANY = 0.02, 36  # weight of sparse points where photographs are many: fewer say less, points as much as ever


@dataclass(frozen=True)
class Weights(LossConfig):
    """A `LossConfig` for one scene, nothing in it none."""

    outlier: float = WITH_MASKS
    smooth: float = SMOOTH_WITH_MASKS
    smooth_first: float = SMOOTH_WITH_MASKS
    points: float = POINTS
    disputed: float = DISPUTED


def weights_for(config: LossConfig, masks: bool, points: bool, photographs: int) -> Weights:
    """What is not configured, for a scene with masks or without, with sparse points or without, and so many photographs to learn from."""
    settled = {field.name: getattr(config, field.name) for field in fields(config)}
    if config.outlier is None:
        settled["outlier"] = WITH_MASKS if masks else 0.0
    if config.smooth is None:
        settled["smooth"] = SMOOTH_WITH_MASKS if masks else SMOOTH
    if config.smooth_first is None:
        settled["smooth_first"] = SMOOTH_UNPLACED if config.smooth is None and not (masks or points) else settled["smooth"]
    if config.disputed is None:
        settled["disputed"] = DISPUTED if masks and settled["outlier"] else 0.0
    if config.points is None:
        settled["points"] = POINTS * max(1.0, MANY / max(photographs, 1))
    return Weights(**settled)


def smooth_share(weights: Weights, early: float | Tensor) -> float | Tensor:
    """Of the weight `smooth`, which is not 0, what holds when `early`, 1 at first, has fallen so far."""
    return 1.0 + (weights.smooth_first / weights.smooth - 1.0) * early


def outlier_scale(weights: Weights) -> float:
    """`outlier` of the colour loss, infinite where all rays count alike."""
    return weights.outlier or math.inf


def color_loss(rgb: Tensor, target: Tensor, huber: float = 0.0, outlier: float = math.inf, trust: Tensor | None = None) -> Tensor:
    """L1, summed over channels (UNISURF, equation 12), of (n, 3); a ray that is off by e counts as e / (1 + e / outlier), so that
    highlights and passers-by, which no surface explains, pull at none (in the manner of Geman and McClure 1985).

    Args:
        huber: errors of a channel below it count as error^2 / (2 huber), larger ones as much less than L1 as keeps it smooth (Huber 1964,
            divided by his threshold).
        trust: factors (n,) of the rays.
    """
    off = deviation(rgb, target, huber)
    off = off / (1.0 + off / outlier)
    return (off if trust is None else off * trust).mean()


def deviation(rgb: Tensor, target: Tensor, huber: float) -> Tensor:
    """How far off rays are (n,), before outliers are thought of."""
    return torch.nn.functional.smooth_l1_loss(rgb, target, reduction="none", beta=huber).sum(-1)


def mask_loss(opacity: Tensor, optical_depth: Tensor, mask: Tensor) -> Tensor:
    """Binary cross-entropy of opacity against mask, all (n,), mask in [0, 1].

    Where there should be nothing it is written in the optical depth -log(1 - opacity), which can still be undone when the ray is long
    opaque; beyond DEEP that counts by its logarithm, so that no ray outweighs many others.
    """
    return _off_mask(opacity, optical_depth, mask).mean()


def _off_mask(opacity: Tensor, optical_depth: Tensor, mask: Tensor) -> Tensor:
    something = -torch.log(opacity.clamp(min=LEAST_OPACITY))
    nothing = torch.where(optical_depth > DEEP, DEEP * (1.0 + torch.log(optical_depth.clamp(min=DEEP) / DEEP)), optical_depth)
    return mask * something + (1.0 - mask) * nothing


def silhouette_loss(opacity: Tensor, optical_depth: Tensor, deepest: Tensor, mask: Tensor, trust: Tensor) -> Tensor:
    """`mask_loss` of rays on the wrong side of their mask, all (n,); on the right side that of the deepest sample alone, as in IDR.

    Samples of an opaque ray have no say in its opacity, but all of them in its optical depth: where many rays graze a face and end in
    it, those past it carve, and those into it do not fill. Their deepest samples pull alike.

    Args:
        deepest: the largest optical depth of a sample, `log 2` where occupancy is 1/2.
        trust: what a ray counts that ends in the solid, as its mask wants: if its colour is wrong, it is the solid that may be wrong.
    """
    settled = (deepest > HALF_OPAQUE) == (mask > 0.5)
    alone = (1.0 - mask) * deepest - mask * torch.log((-torch.expm1(-deepest)).clamp(min=LEAST_OPACITY))
    alone = torch.where(mask > WHOLE, trust, 1.0) * alone
    return torch.where(settled, alone, _off_mask(opacity, optical_depth, mask)).mean()


def smooth_loss(normals: Tensor, counts: Tensor, emphasis: Tensor | None = None) -> Tensor:
    """Distance of unit normals (2 n, 3) at n points from those at points close to them, over those that count, (n,) bool (UNISURF,
    equation 13); 0 if none does.

    Args:
        emphasis: factors (n,) of the distances.
    """
    at, near = normals.chunk(2)
    distance: Tensor = (at - near).norm(dim=-1)
    distance = distance if emphasis is None else distance * emphasis
    return torch.where(counts, distance, 0.0).sum() / counts.sum().clamp(min=1)


def eikonal_loss(slope: Tensor) -> Tensor:
    """How far slopes (n,) of a distance are from 1 (Gropp et al. 2020)."""
    return ((slope - 1.0) ** 2).mean()


def points_loss(logit: Tensor, occupancy: Tensor) -> Tensor:
    """Cross-entropy of points whose occupancy (n,) is known, from the logit of that which the field has."""
    return (torch.nn.functional.softplus(logit) - occupancy * logit).mean()


@dataclass(frozen=True)
class Seen:
    """What a training step saw."""

    batch: Batch
    rendering: Rendering
    found: Crossings
    target: Tensor  # (n_rays, 3) what the rays should show
    config: Weights
    plain: float | Tensor  # 1 once colours learn from outliers as from other rays, 0 before
    generator: torch.Generator
    trust: Tensor | None = None  # (n_rays,) in [0, 1], how much the rays count for the colour loss; None: all alike
    known: Known | None = None  # points of known occupancy
    trust_points: float | Tensor = 1.0  # what is left of their weight
    early: float | Tensor = 0.0  # see `smooth_share`
    disputes: Disputes | None = None  # where smoothness counts more


def photometric(solid: Solid, seen: Seen) -> Tensor:
    """`color_loss` of all rays. Late in a run, when the surface stands, colours alone learn from outliers too: what has the wrong colour
    is an outlier, and would stay one."""
    scale, huber, trust = outlier_scale(seen.config), seen.config.huber, seen.trust
    loss, paint = color_loss(seen.rendering.rgb, seen.target, huber, scale, trust), seen.rendering.paint
    if math.isinf(scale):
        return loss
    left_out = color_loss(paint, seen.target, huber, trust=trust) - color_loss(paint, seen.target, huber, scale, trust)
    return loss + seen.plain * (left_out - left_out.detach())


def mask_term(solid: Solid, seen: Seen) -> Tensor:
    """`mask_loss`; asked only where there are masks."""
    assert seen.batch.mask is not None
    return mask_loss(seen.rendering.opacity, seen.rendering.optical_depth, seen.batch.mask)


def silhouette_term(solid: Solid, seen: Seen) -> Tensor:
    """`silhouette_loss`; asked only where there are masks."""
    shown, mask = seen.rendering, seen.batch.mask
    assert mask is not None
    with torch.no_grad():
        trust = (1.0 + deviation(shown.rgb, seen.target, seen.config.huber) / outlier_scale(seen.config)) ** -2
    return silhouette_loss(shown.opacity, shown.optical_depth, shown.deepest, mask, trust)


def smoothness(solid: Solid, seen: Seen) -> Tensor:
    """`smooth_loss` at the surface."""
    x, directions, hit = seen.batch.rays.at(seen.found.t), seen.batch.rays.directions, seen.found.hit
    if not solid.dense:
        x, directions, hit = x[hit], directions[hit], hit[hit]
    jitter = torch.rand(len(x), 3, generator=seen.generator, device=x.device) * 2.0 - 1.0
    normals = solid.sample(torch.cat([x, x + jitter * seen.config.smooth_distance])).normal
    emphasis = None if seen.disputes is None else seen.disputes.emphasis(x, directions, jitter)
    return smooth_share(seen.config, seen.early) * smooth_loss(normals, hit, emphasis)


def at_points(solid: Solid, seen: Seen) -> Tensor:
    """`points_loss`; asked only where there are landmarks."""
    assert seen.known is not None
    return seen.trust_points * points_loss(solid.sharpness * solid.sample(seen.known.points).level, seen.known.occupancy)
