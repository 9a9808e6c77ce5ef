"""Which parts of the photographs the scene doesn't explain: passers-by and whatever else is in one photograph alone.

Each photograph is cut into square patches, and what its rays are off by in training is kept as a running mean. What is wrong with the scene
shows in all photographs and sinks while it is learned; a patch that stays far worse than most is of something else, and pulls the less, the
worse it is (in the spirit of RobustNeRF, Sabour et al. 2023, which sorts the pixels of each batch).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from .rays import Batch

ACROSS = 40  # patches along a photograph's longer side
MEMORY = 0.8  # of the running means, a visit
UNSEEN = -1.0


class Patches:
    """Running means of all photographs."""

    def __init__(self, shapes: Sequence[tuple[int, int]], device: torch.device):
        """Args:
        shapes: height and width of each photograph, pixels, in the order of the image store.
        """
        size = torch.tensor(shapes)
        self.edge = torch.clamp((size.amax(1) + ACROSS - 1) // ACROSS, min=1).to(device)  # pixels
        count = (size.to(device) + self.edge[:, None] - 1) // self.edge[:, None]  # patches down and across
        self.width, self.across = size[:, 1].to(device), count[:, 1]
        self.first_pixel, self.first = (torch.cat([a.new_zeros(1), a.cumsum(0)[:-1]]) for a in (size.prod(1).to(device), count.prod(1)))
        self.off = torch.full((int(count.prod(1).sum()),), UNSEEN, device=device)
        self.bound = torch.full((), torch.inf, device=device)  # a patch off by this counts half

    def of(self, batch: Batch) -> Tensor:
        """The patches (n,) int64 of a batch's pixels."""
        view = batch.rays.image_index
        assert batch.pixel is not None
        local = batch.pixel - self.first_pixel[view]
        v, u = local // self.width[view], local % self.width[view]
        return self.first[view] + v // self.edge[view] * self.across[view] + u // self.edge[view]

    def trust(self, patch: Tensor) -> Tensor:
        """How much rays of these patches count, (n,) in [0, 1]; 1 for those not seen yet."""
        return 1.0 / (1.0 + (self.off[patch].clamp(min=0.0) / self.bound) ** 4)

    def note(self, patch: Tensor, off: Tensor) -> None:
        """Rays of these patches were off by so much, both (n,)."""
        sums = torch.zeros(2, len(self.off), device=off.device).index_add_(1, patch, torch.stack([off, torch.ones_like(off)]))
        mean = sums[0] / sums[1].clamp(min=1.0)
        before = torch.where(self.off < 0.0, mean, self.off)
        self.off.copy_(torch.where(sums[1] > 0.0, MEMORY * before + (1.0 - MEMORY) * mean, self.off))

    def judge(self, times: float) -> None:
        """From now on patches that are off by `times` the median count half."""
        seen = self.off[self.off >= 0.0]
        self.bound.fill_(times * float(seen.median()) if len(seen) else torch.inf)

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint keeps."""
        return {"patches.off": self.off, "patches.bound": self.bound}
