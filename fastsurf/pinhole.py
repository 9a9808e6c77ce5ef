"""Photographs as an ideal pinhole camera at the same place would have taken them: whatever the lens, they lie over what a browser draws."""

import math
from dataclasses import replace

import numpy as np
import torch

from .cameras import Camera, View, project, rescale, unproject
from .images import read_images

WIDEST = 2.4  # radians, vertical, of a window that a fisheye's photograph is put into
BORDER = 32  # places along each edge of a photograph that tell how far it reaches
OUTSIDE = 40  # grey beside a photograph


def fitting_view(camera: Camera, aspect: float) -> float:
    """The vertical field of view, in radians, of a window of this aspect (width / height) that takes in the whole photograph."""
    x, y = np.nanmax(np.abs(unproject(camera, _border(camera))), axis=0)
    return min(2.0 * math.atan(max(y, x / aspect)), WIDEST)


def through_pinhole(photograph: torch.Tensor, camera: Camera, field_of_view: float, width: int, height: int) -> np.ndarray:
    """The photograph (h, w, 3) uint8 of `camera` as a pinhole camera at its place sees it, (height, width, 3) uint8; grey outside it.

    Args:
        field_of_view: vertical, in radians; the principal point is in the middle.
    """
    pixel = 2.0 * math.tan(0.5 * field_of_view) / height
    x, y = ((np.arange(n) + 0.5 - 0.5 * n) * pixel for n in (width, height))
    plane = np.stack(np.meshgrid(x, y), -1).reshape(-1, 2)
    reach = 1.01 * np.nanmax(np.linalg.norm(unproject(camera, _border(camera)), axis=1))  # beyond, polynomials may come back
    xy = project(camera, np.concatenate([plane, np.ones((len(plane), 1))], axis=1))
    size = np.array([camera.width, camera.height])
    inside = ((xy >= 0) & (xy <= size)).all(1) & (np.linalg.norm(plane, axis=1) <= reach)
    grid = torch.from_numpy(np.nan_to_num(2.0 * xy / size - 1.0)).float().view(1, height, width, 2)
    channels = photograph.permute(2, 0, 1)[None].float()
    seen = torch.nn.functional.grid_sample(channels, grid, padding_mode="border", align_corners=False)[0].permute(1, 2, 0)
    return np.where(inside.reshape(height, width, 1), (seen + 0.5).byte().numpy(), np.uint8(OUTSIDE))


def _border(camera: Camera) -> np.ndarray:
    """Places along the photograph's edges, in pixels, (n, 2)."""
    along, w, h = np.linspace(0.0, 1.0, BORDER), camera.width, camera.height
    none = np.zeros(BORDER)
    return np.concatenate([np.stack(edge, -1) for edge in (
        (along * w, none), (along * w, none + h), (none, along * h), (none + w, along * h))])  # fmt: skip


def read_photograph(view: View, side: int) -> tuple[torch.Tensor, Camera]:
    """A photograph of at most `side` pixels a side, (h, w, 3) uint8, white where it is transparent, and its camera at that size.

    Raises:
        SceneError: it can't be read.
    """
    w, h = view.camera.width, view.camera.height
    scale = min(1.0, side / max(w, h))
    small = replace(view, mask=None, ignore=None, camera=rescale(view.camera, max(1, round(w * scale)), max(1, round(h * scale))))
    return read_images([small], False, False, 255).images[0], small.camera
