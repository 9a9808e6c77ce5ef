"""What a rendering is blamed for. Each loss is a mean over rays, its weight stands in `LossConfig`."""

import torch
from torch import Tensor


def color_loss(rgb: Tensor, target: Tensor, huber: float = 0.0) -> Tensor:
    """L1, summed over channels (UNISURF, equation 12); errors below `huber` count as error^2 / (2 huber), larger ones as much less than L1
    as keeps it smooth (Huber 1964, divided by his threshold). Both (n, 3)."""
    return torch.nn.functional.smooth_l1_loss(rgb, target, reduction="none", beta=huber).sum(-1).mean()


def mask_loss(opacity: Tensor, mask: Tensor) -> Tensor:
    """Binary cross-entropy of opacity (n,) in [0, 1] against mask (n,) in [0, 1]."""
    opacity = opacity.clamp(1e-4, 1.0 - 1e-4)
    return torch.nn.functional.binary_cross_entropy(opacity, mask)


def smooth_loss(normals: Tensor, counts: Tensor) -> Tensor:
    """Distance of unit normals (2 n, 3) at n points from those at points close to them, over those that count, (n,) bool (UNISURF,
    equation 13); 0 if none does."""
    at, near = normals.chunk(2)
    distance: Tensor = (at - near).norm(dim=-1)
    return torch.where(counts, distance, 0.0).sum() / counts.sum().clamp(min=1)
