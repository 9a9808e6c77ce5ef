"""What is seen behind the scene box, learned: samples in contracted space (Barron et al. 2022, equation 10, in the maximum norm).

Outside the box, x goes to (2 - 1 / |x|) x / |x|, so that all of space fits into [-2, 2]^3. As in the solid, alpha is the field's
occupancy on a fixed number of samples; the last one is opaque. Colours do not depend on the direction of view: from few photographs such
a background learns each of them by heart, and nothing is left for the surfaces in front of it.
"""

import torch
from torch import Tensor, nn

from .backends import Backend
from .compositing import blend
from .encoding import FEATURES, entries, growth, level_table
from .field import xavier
from .rays import Rays
from .sampling import strata

SAMPLES = 12
LEVELS, LOG2_ENTRIES, BASE, FINEST, WIDTH = 8, 15, 4, 64, 32
EMBEDDING = 16  # inputs for a photograph's, padded with zeros


class Background(nn.Module):
    """A small radiance field of the surroundings."""

    def __init__(self, generator: torch.Generator, embedded: bool = False):
        """Args:
        embedded: colours are a photograph's own.
        """
        super().__init__()
        self.levels = level_table(LEVELS, LOG2_ENTRIES, BASE, growth(LEVELS, BASE, FINEST))
        self.table = nn.Parameter((torch.rand(entries(self.levels), FEATURES, generator=generator) * 2 - 1) * 1e-4)
        widths = ((FEATURES * LEVELS + (EMBEDDING if embedded else 0), WIDTH), (WIDTH, WIDTH), (WIDTH, 16))
        self.weights = nn.ParameterList(xavier(b, a, generator) for a, b in widths)

    def forward(self, rays: Rays, backend: Backend, generator: torch.Generator | None, appearance: Tensor | None = None) -> Tensor:
        """Colours (n, 3) of what rays see beyond the box, in photographs of these embeddings (n, a)."""
        n = len(rays)
        u = strata(n, SAMPLES, generator, rays.t_far.device).flip(1)  # towards 0 is towards infinity
        t = rays.t_far[:, None] + 1.0 / u.clamp(min=1e-3) - 1.0
        x = contract(rays.at(t)).view(-1, 3)
        encoded = backend.encode(x * 0.25 + 0.5, self.table, self.levels)
        if appearance is not None:
            embedded = torch.nn.functional.pad(appearance, (0, EMBEDDING - appearance.shape[1]))
            encoded = torch.cat([encoded, embedded.repeat_interleave(SAMPLES, 0)], 1)
        out = backend.mlp(encoded, list(self.weights)).view(n, SAMPLES, -1)
        alphas = torch.sigmoid(out[..., 3])
        alphas = torch.cat([alphas[:, :-1], torch.ones_like(alphas[:, :1])], 1)
        return blend(backend.weights_of(alphas), torch.sigmoid(out[..., :3]))


def contract(x: Tensor) -> Tensor:
    """Space (..., 3) into [-2, 2]^3; the identity within [-1, 1]^3."""
    size = x.abs().amax(-1, keepdim=True).clamp(min=1.0)
    return (2.0 - 1.0 / size) * x / size
