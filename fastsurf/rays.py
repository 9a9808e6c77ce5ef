"""Rays in scene units: `t` is distance along a unit direction, the scene box is [-1, 1]^3."""

from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Rays:
    """A bundle of rays and where each one crosses the scene box."""

    origins: Tensor  # (n, 3)
    directions: Tensor  # (n, 3), unit
    t_near: Tensor  # (n,), where the ray enters the box, at least 0
    t_far: Tensor  # (n,), where it leaves; equal to t_near for a ray that misses
    image_index: Tensor  # (n,) int64, the view a ray belongs to; -1: none

    def __len__(self) -> int:
        return len(self.origins)

    def __getitem__(self, index: Tensor | slice) -> "Rays":
        return Rays(self.origins[index], self.directions[index], self.t_near[index], self.t_far[index], self.image_index[index])

    def to(self, device: torch.device) -> "Rays":
        """The same rays on another device."""
        return Rays(*(getattr(self, f.name).to(device) for f in fields(self)))

    def detached(self) -> "Rays":
        """The same rays as constants."""
        return Rays(*(getattr(self, f.name).detach() for f in fields(self)))

    def at(self, t: Tensor) -> Tensor:
        """Points (n, ..., 3) at distances t (n, ...)."""
        extra = (1,) * (t.dim() - 1)
        shape = (len(self), *extra, 3)
        return self.origins.view(shape) + t[..., None] * self.directions.view(shape)


@dataclass(frozen=True)
class Batch:
    """Random pixels to learn from."""

    rays: Rays
    rgb: Tensor  # (n, 3) in [0, 1], straight colour
    mask: Tensor | None  # (n,) in [0, 1], 1 is object
    pixel: Tensor | None = None  # (n,) int64, in the image store's buffer; None: of no photograph

    def to(self, device: torch.device) -> "Batch":
        """The same pixels on another device."""
        mask, pixel = (None if a is None else a.to(device) for a in (self.mask, self.pixel))
        return Batch(self.rays.to(device), self.rgb.to(device), mask, pixel)


def intersect_box(origins: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
    """Entry and exit (n,) of rays through [-1, 1]^3 by the slab method; equal for a ray that misses, never negative."""
    inverse = 1.0 / torch.where(directions.abs() < 1e-9, torch.full_like(directions, 1e-9).copysign(directions), directions)
    a, b = (-1.0 - origins) * inverse, (1.0 - origins) * inverse
    t_near = torch.minimum(a, b).amax(-1).clamp(min=0.0)
    t_far = torch.maximum(a, b).amin(-1)
    return t_near, torch.maximum(t_near, t_far)


def make_rays(origins: Tensor, directions: Tensor, image_index: Tensor | None = None) -> Rays:
    """Rays clipped to the scene box."""
    t_near, t_far = intersect_box(origins, directions)
    if image_index is None:
        image_index = torch.full((len(origins),), -1, device=origins.device)
    return Rays(origins, directions, t_near, t_far, image_index)


def box_edges(points: int = 2) -> np.ndarray:
    """The twelve edges of the scene box, (12, points, 3): places along each, ends included."""
    corners = np.array(np.meshgrid([-1.0, 1.0], [-1.0, 1.0], [-1.0, 1.0], indexing="ij")).reshape(3, 8).T
    pairs = np.array([(a, b) for a in range(8) for b in range(a + 1, 8) if np.abs(corners[a] - corners[b]).sum() == 2])
    share = np.linspace(0.0, 1.0, points)[:, None]
    return np.asarray(corners[pairs[:, :1]] * (1.0 - share) + corners[pairs[:, 1:]] * share)
