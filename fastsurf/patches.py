"""Which parts of the photographs the scene doesn't explain: passers-by and whatever else is in one photograph alone.

Each photograph is cut into square patches, and the errors of its rays in training are kept as running means, with their sign: texture that
is not learned yet is off either way, something in front is off one way. A patch that stays far worse than most pulls the less, the worse it
is (in the spirit of RobustNeRF, Sabour et al. 2023, which sorts the pixels of each batch).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from .rays import Batch

ACROSS = 32  # patches along a photograph's longer side
MEMORY = 0.9  # of the running means, a visit
LEAST = 1e-6  # a photograph isn't off by less


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
        n = int(count.prod(1).sum())
        self.errors, self.visits = torch.zeros(n, 3, device=device), torch.zeros(n, device=device)
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
        return 1.0 / (1.0 + (self.errors[patch].abs().sum(1) / self.bound) ** 4)

    def note(self, patch: Tensor, errors: Tensor) -> None:
        """Rays (n,) of these patches had these errors (n, 3)."""
        n, finite = len(self.errors), errors.isfinite().all(1)
        sums = errors.new_zeros(n, 3).index_add_(0, patch, torch.where(finite[:, None], errors, 0.0))
        count = errors.new_zeros(n).index_add_(0, patch, finite.float())
        self.visits += count
        memory = torch.clamp(1.0 - count / self.visits.clamp(min=1.0), max=MEMORY)  # at first the plain mean
        memory = torch.where(count > 0.0, memory, 1.0)[:, None]
        self.errors.mul_(memory).add_((1.0 - memory) * sums / count.clamp(min=1.0)[:, None])

    def judge(self, times: float) -> None:
        """From now on patches that are off by `times` the median, summed over channels, count half."""
        off = self.errors[self.visits > 0.0].abs().sum(1)
        self.bound.fill_(max(times * float(off.median()), LEAST) if len(off) else torch.inf)

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint keeps."""
        return {"patches.errors": self.errors, "patches.visits": self.visits, "patches.bound": self.bound}
