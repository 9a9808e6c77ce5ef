"""From opacities along rays to pictures. Samples are dense, (n_rays, n_samples), front to back; `alphas` is occupancy itself
(UNISURF, Oechsle et al. 2021, equation 7), so the number of samples of a ray is kept and a skipped sample has alpha 0."""

from dataclasses import dataclass

import torch
from torch import Tensor

DENSEST = 9.0  # log of a density that a tenth of a marching step makes opaque
CLOSEST_TO_OPAQUE = 1e-6  # transmittance that an opaque sample lets through: keeps the gradient of the product finite


@dataclass(frozen=True)
class Rendering:
    """What every renderer returns, one row a ray."""

    rgb: Tensor  # (n_rays, 3) in [0, 1], on the background
    opacity: Tensor  # (n_rays,) in [0, 1]
    optical_depth: Tensor  # (n_rays,) -log(1 - opacity), of samples together; 0 or inf for a surface
    deepest: Tensor  # (n_rays,) the same of its densest sample
    depth: Tensor  # (n_rays,) expected distance; t_far where nothing is hit
    normal: Tensor  # (n_rays, 3) weighted mean of unit normals, outward
    hit: Tensor  # (n_rays,) bool, met the 0.5 surface; of `render_volume` more than half opaque
    t_surface: Tensor  # (n_rays,) first crossing, of `render_volume` the depth; t_far where there is none
    paint: Tensor  # rgb again; its gradient reaches the samples' colours, and not how much each weighs


def occupancy(level: Tensor, length: Tensor | float, sharpness: float | Tensor) -> tuple[Tensor, Tensor]:
    """Alphas and optical depths -log(1 - alpha) of a solid: alpha is occupancy, sigmoid(sharpness * level), whatever the length."""
    logit = sharpness * level
    return torch.sigmoid(logit), torch.nn.functional.softplus(logit)


def density(level: Tensor, length: Tensor | float, scale: float | Tensor) -> tuple[Tensor, Tensor]:
    """Alphas 1 - exp(-sigma length) and optical depths sigma * length of a medium of density sigma = scale * exp(level) (Max 1995; NeRF,
    equation 3). Beyond DENSEST sigma grows linearly, so that no gradient overflows."""
    log = level + torch.log(torch.as_tensor(scale, device=level.device))
    depth = torch.exp(log.clamp(max=DENSEST)) * (1.0 + (log - DENSEST).clamp(min=0.0)) * length
    return -torch.expm1(-depth), depth


def transmittance(alphas: Tensor) -> Tensor:
    """Light that reaches each sample, prod_{j<i} (1 - alpha_j): (n_rays, n_samples)."""
    through = 1.0 - alphas * (1.0 - CLOSEST_TO_OPAQUE)
    ahead = torch.cumprod(through, dim=-1)
    return torch.cat([torch.ones_like(ahead[:, :1]), ahead[:, :-1]], dim=-1)


def weights_of(alphas: Tensor) -> Tensor:
    """Weights (n_rays, n_samples) of the samples' colours; a row sums to at most 1."""
    return alphas * transmittance(alphas)


def blend(weights: Tensor, values: Tensor) -> Tensor:
    """Weighted sum of values (n_rays, n_samples, c): (n_rays, c)."""
    return (weights[..., None] * values).sum(dim=1)
