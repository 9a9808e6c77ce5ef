"""The colour head c(x, n, h, d): position, normal, the field's feature and the viewing direction (UNISURF; IDR's renderer M), and where
`color.appearance` says so an embedding of the photograph."""

from itertools import pairwise

import torch
from torch import Tensor, nn

from .backends import Backend
from .config import ColorConfig
from .errors import ConfigError
from .field import FieldSample, xavier

OTHER_NAMES = {"v": "d", "z": "h"}  # as IDR calls them
WIDTHS = {"d": 16, "h": 15, "n": 3, "x": 3}  # of the inputs, in the order in which they are laid side by side; the embedding follows
IN = 48  # their sum, padded with zeros to a multiple of 16: room for embeddings of up to 11 numbers
OUT = 16  # red, green, blue and padding, as tiny-cuda-nn lays it out


class ColorHead(nn.Module):
    """A bias-free MLP with a sigmoid at the end. An input that `color.inputs` leaves out is zero."""

    def __init__(self, config: ColorConfig, generator: torch.Generator):
        super().__init__()
        parts = [part.strip() for part in config.inputs.split(",")]
        self.used = {OTHER_NAMES.get(part, part) for part in parts}
        if not self.used <= set(WIDTHS):
            raise ConfigError(f"color.inputs: want some of {', '.join(sorted(WIDTHS))} (or v for d, z for h); found {config.inputs!r}")
        widths = [IN] + [config.width] * config.hidden + [OUT]
        self.weights = nn.ParameterList(xavier(b, a, generator) for a, b in pairwise(widths))

    def forward(self, x: Tensor, sample: FieldSample, directions: Tensor, appearance: Tensor | None, backend: Backend) -> Tensor:
        """Colours (n, 3) in [0, 1] of points x seen along unit directions, both (n, 3), in photographs of these embeddings (n, a)."""
        values = {"d": spherical_harmonics(directions), "h": sample.feature, "n": sample.normal, "x": x}
        parts = [values[key] if key in self.used else x.new_zeros(len(x), width) for key, width in WIDTHS.items()]
        if appearance is not None:
            parts.append(appearance)
        inputs = torch.cat([*parts, x.new_zeros(len(x), IN - sum(part.shape[1] for part in parts))], dim=1)
        return torch.sigmoid(backend.mlp(inputs, list(self.weights))[:, :3])


def spherical_harmonics(d: Tensor) -> Tensor:
    """Real spherical harmonics up to degree 3 of unit directions d (n, 3): (n, 16), in tiny-cuda-nn's order and signs."""
    x, y, z = d.unbind(-1)
    xx, yy, zz = x * x, y * y, z * z
    return torch.stack(
        [
            torch.full_like(x, 0.28209479177387814),
            -0.48860251190291987 * y,
            0.48860251190291987 * z,
            -0.48860251190291987 * x,
            1.0925484305920792 * x * y,
            -1.0925484305920792 * y * z,
            0.94617469575755997 * zz - 0.31539156525251999,
            -1.0925484305920792 * x * z,
            0.54627421529603959 * (xx - yy),
            0.59004358992664352 * y * (yy - 3.0 * xx),
            2.8906114426405538 * x * y * z,
            0.45704579946446572 * y * (1.0 - 5.0 * zz),
            0.3731763325901154 * z * (5.0 * zz - 3.0),
            0.45704579946446572 * x * (1.0 - 5.0 * zz),
            1.4453057213202769 * z * (xx - yy),
            0.59004358992664352 * x * (3.0 * yy - xx),
        ],
        dim=-1,
    )
