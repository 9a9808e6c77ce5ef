"""Where photographs disagree on a surface's colour, so that smoothness has to say what they can't.

A highlight shows each photograph another colour, and a pit explains that as well as a smooth surface does, if not better. Cells of the
scene box keep running means of the errors of rays that meet the surface there; where these are large, normals are asked to differ the less.
"""

import torch
from torch import Tensor

from .rays import Batch

CELLS = 32  # along the scene box
MEMORY = 0.9  # of the running means, for each ray
WHOLE = 0.99  # of a pixel within the mask
HALF = 0.15  # mean L1 error of colours, over three channels, with which a quarter of the emphasis is reached


class Disputes:
    """Running means of a scene.

    Args:
        most: smoothness counts up to 1 + most times as much.
    """

    def __init__(self, most: float, device: torch.device) -> None:
        self.most = most
        n = 8 * CELLS**3  # each cell, looked at from each octant
        self.errors = torch.zeros(n, 3, device=device)  # with their sign; 0: not seen
        self.rays = torch.zeros(n, device=device)  # of the step in hand

    def note(self, batch: Batch, t: Tensor, hit: Tensor, errors: Tensor) -> None:
        """Rays met the surface at t (n,) where they hit, (n,) bool, and had these errors (n, 3) of their colours; at the border of a mask
        the surroundings have a share in them, and they don't count."""
        counts = hit & errors.isfinite().all(1)
        counts = (counts if batch.mask is None else counts & (batch.mask > WHOLE)).float()
        cells = _cells(batch.rays.at(t), batch.rays.directions)
        rays = self.rays.index_add_(0, cells, counts)[cells].clamp(min=1.0)
        share = counts * (1.0 - MEMORY**rays) / rays  # all rays in a cell together move it as far as one after the other
        self.errors.index_add_(0, cells, share[:, None] * (torch.where(counts[:, None] > 0, errors, 0.0) - self.errors[cells]))
        self.rays.index_fill_(0, cells, 0.0)

    def emphasis(self, points: Tensor, directions: Tensor, jitter: Tensor) -> Tensor:
        """How much smoothness counts at points (n, 3) seen along directions (n, 3), (n,) from 1 on; where a cell ends and the next begins,
        chance decides by jitter (n, 3), each in [-1, 1]."""
        off = self.errors[_cells(points + jitter / CELLS, directions)].abs().sum(1)
        return 1.0 + self.most * (off / (off + HALF)) ** 2

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint keeps."""
        return {"disputes.errors": self.errors}


def _cells(points: Tensor, directions: Tensor) -> Tensor:
    at = ((points * 0.5 + 0.5) * CELLS).long().clamp(0, CELLS - 1)
    x, y, z = (directions > 0.0).long().unbind(-1)
    return ((at[:, 0] * CELLS + at[:, 1]) * CELLS + at[:, 2]) * 8 + 4 * x + 2 * y + z
