"""How each photograph was taken: exposure, white balance, weather, as a few numbers that colours see and geometry does not.

An embedding a photograph, learned with everything else (Martin-Brualla et al. 2021; Sun et al. 2022 for surfaces). Pictures that belong to
no photograph that was learned from (orbits, vertices of a mesh, held-out views) show the mean of those that were.
"""

import torch
from torch import Tensor, nn

MEAN = -1  # the index of no photograph


class Appearance(nn.Module):
    """Embeddings of all photographs of a scene, at first zero."""

    learned: Tensor

    def __init__(self, photographs: int, dimensions: int):
        """Args:
        dimensions: numbers a photograph.
        """
        super().__init__()
        assert photographs > 0, "an appearance is a photograph's: say how many there are"
        self.table = nn.Parameter(torch.zeros(photographs, dimensions))
        self.register_buffer("learned", torch.zeros(photographs, dtype=torch.bool))  # those learned from

    def forward(self, view: Tensor) -> Tensor:
        """Embeddings (n, dimensions) of photographs view (n,) int64; the mean for MEAN and for those that nothing was learned from."""
        own = nn.functional.embedding(view.clamp(min=0), self.table)  # its gradient sums in the photographs' order
        known = (view >= 0) & self.learned[view.clamp(min=0)]
        return torch.where(known[:, None], own, self.mean())

    def mean(self) -> Tensor:
        """Of the photographs learned from, (dimensions,), without gradients."""
        weights = self.learned.to(self.table.dtype)
        mean: Tensor = weights @ self.table.detach() / weights.sum().clamp(min=1.0)
        return mean
