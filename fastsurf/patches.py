"""Which parts of the photographs the scene doesn't explain: passers-by and whatever else is in one photograph alone.

Each photograph is cut into square patches, and the errors of its rays in training are kept as running means, with their sign: texture that
is not learned yet is off either way, something in front is off one way. Since it is off over a whole region, and by more than the region's
own contrast, a patch's error is averaged with its neighbours' and divided by the contrast that the photograph has there: a detailed object
that is still blurred is far off, too, but not by more than its details. What stays far worse than most pulls the less, the worse it is.

In the spirit of RobustNeRF (Sabour et al. 2023), which sorts the pixels of each batch by error and lets neighbours vote.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from .rays import Batch

ACROSS = 32  # patches along a photograph's longer side
MEMORY = 0.5  # of the running means, a visit
FLAT = 0.1  # contrast, summed over channels, that a plain region is taken to have
STEEP = 8  # how fast trust falls
LEAST = 1e-6  # a photograph isn't off by less


class Patches:
    """Running means of all photographs.

    Args:
        images: (h, w, 3) uint8 each, in the order of the image store.
    """

    def __init__(self, images: Sequence[Tensor], device: torch.device) -> None:
        size = torch.tensor([image.shape[:2] for image in images])
        edge = torch.clamp((size.amax(1) + ACROSS - 1) // ACROSS, min=1)
        count = (size + edge[:, None] - 1) // edge[:, None]
        self.edge = edge.to(device)  # pixels
        self.width, self.across = size[:, 1].to(device), count[:, 1].to(device)  # patches across
        self.first_pixel, self.first = (torch.cat([a.new_zeros(1), a.cumsum(0)[:-1]]).to(device) for a in (size.prod(1), count.prod(1)))
        n = int(count.prod(1).sum())
        self.near = _neighbours(count).to(device)  # (n, 9)
        self.contrast = torch.cat([_contrast(a, int(e)) for a, e in zip(images, edge, strict=True)]).to(device)  # (n,)
        self.errors, self.visits = torch.zeros(n, 3, device=device), torch.zeros(n, device=device)
        self.trusted = torch.ones(n, device=device)  # how much rays of each count, in [0, 1]

    def of(self, batch: Batch) -> Tensor:
        """The patches (n,) int64 of a batch's pixels."""
        view = batch.rays.image_index
        assert batch.pixel is not None
        local = batch.pixel - self.first_pixel[view]
        v, u = local // self.width[view], local % self.width[view]
        return self.first[view] + v // self.edge[view] * self.across[view] + u // self.edge[view]

    def trust(self, patch: Tensor) -> Tensor:
        """How much rays of these patches count, (n,) in [0, 1]; 1 until they are judged."""
        return self.trusted[patch]

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
        """From now on patches that are off by `times` the median, for their contrast and with their neighbours, count half."""
        seen = (self.visits > 0.0).float()
        off = (self.errors.abs().sum(1) * seen)[self.near].sum(1) / seen[self.near].sum(1).clamp(min=1.0) / self.contrast
        if seen.any():
            bound = max(times * float(off[seen > 0.0].median()), LEAST)
            self.trusted.copy_(1.0 / (1.0 + (off / bound) ** STEEP))

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint keeps."""
        return {"patches.errors": self.errors, "patches.visits": self.visits, "patches.trusted": self.trusted}


def _neighbours(count: Tensor) -> Tensor:
    """Of each patch itself and the eight round it, in its photograph, (n, 9) int64; a border's patches stand in for those beyond.

    Args:
        count: patches down and across each photograph, (n_photographs, 2).
    """
    tables, first = [], 0
    for down, across in count.tolist():
        v, u = torch.meshgrid(torch.arange(down), torch.arange(across), indexing="ij")
        steps = [(dv, du) for dv in (-1, 0, 1) for du in (-1, 0, 1)]
        near = [(v + dv).clamp(0, down - 1) * across + (u + du).clamp(0, across - 1) for dv, du in steps]
        tables.append(first + torch.stack(near, -1).view(-1, 9))
        first += down * across
    return torch.cat(tables)


def _contrast(image: Tensor, edge: int) -> Tensor:
    """FLAT, and the standard deviation of a photograph's colours (h, w, 3) uint8, summed over channels, in each patch with the eight round
    it: (n,)."""
    colors = image.permute(2, 0, 1).float() / 255.0
    layers = torch.cat([colors, colors * colors, torch.ones_like(colors[:1])])
    whole = torch.nn.functional.pad(layers, (0, -image.shape[1] % edge, 0, -image.shape[0] % edge))
    sums = torch.nn.functional.avg_pool2d(torch.nn.functional.avg_pool2d(whole, edge), 3, 1, 1, count_include_pad=False)
    mean, square = (sums[:6] / sums[6]).chunk(2)
    return (square - mean * mean).clamp(min=0.0).sqrt().sum(0).view(-1) + FLAT
