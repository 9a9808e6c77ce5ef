"""Cameras that are learned with the scene (IDR, Yariv et al. 2020, section 3.3): a quaternion and a translation for each photograph.

They correct the poses that the files state: directions turn, origins move, in scene units. Of all corrections together a similarity is
not determined by the photographs; the box and the mesh go with it.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from .cameras import View
from .rays import Rays, intersect_box
from .scene import Scene


class Corrections(nn.Module):
    """What the poses of `views` photographs are corrected by; nothing, at first."""

    def __init__(self, views: int):
        super().__init__()
        self.turn = nn.Parameter(torch.tensor([1.0, 0.0, 0.0, 0.0]).repeat(views, 1))  # quaternions w, x, y, z, of any length
        self.shift = nn.Parameter(torch.zeros(views, 3))  # scene units

    def forward(self, rays: Rays) -> Rays:
        """The rays as the corrected cameras see them, with gradients; those of no photograph (a negative index) as they are."""
        index = rays.image_index.clamp(min=0)
        of_photograph = (rays.image_index >= 0)[:, None]
        turned = torch.einsum("nij,nj->ni", rotations(self.turn)[index], rays.directions)
        origins = torch.where(of_photograph, rays.origins + self.shift[index], rays.origins)
        directions = torch.where(of_photograph, turned, rays.directions)
        t_near, t_far = intersect_box(origins.detach(), directions.detach())
        return Rays(origins, directions, t_near, torch.where(rays.t_far > rays.t_near, t_far, t_near), rays.image_index)

    def views(self, scene: Scene) -> Sequence[View]:
        """The scene's views with their corrected poses, in the world."""
        turns = rotations(self.turn.detach().double().cpu()).numpy()
        shifts = self.shift.detach().double().cpu().numpy() * scene.radius
        return [
            replace(view, c2w=np.concatenate([turn @ view.c2w[:, :3], (view.center + shift)[:, None]], 1))
            for view, turn, shift in zip(scene.capture.views, turns, shifts, strict=True)
        ]


def rotations(quaternions: Tensor) -> Tensor:
    """Matrices (n, 3, 3) of quaternions (n, 4), w first, of any length but 0."""
    w, x, y, z = nn.functional.normalize(quaternions, dim=-1).unbind(-1)
    rows = [
        1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
        2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
        2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y),
    ]  # fmt: skip
    return torch.stack(rows, -1).view(-1, 3, 3)
