"""What tells one method from another: its field, what the field's level means, how it renders, its losses and its schedule.

Everything else, from the photographs to the mesh, is the same for all.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..compositing import Rendering, density, occupancy
from ..config import Config
from ..field import Field, OccupancyField
from ..losses import Seen, at_points, mask_term, photometric, silhouette_term, smoothness
from ..rays import Rays
from ..render import BackgroundFn, Samples, Solid, render_unified
from ..sampling import shrinking
from ..surface import Crossings
from . import idr, nerf


def samples_per_ray(config: Config) -> int:
    """Those that are placed."""
    return config.sampling.front + config.sampling.interval


@dataclass(frozen=True)
class Method:
    """One way from photographs to a surface."""

    field: Callable[[Config, torch.Generator], Field]
    schedule: Callable[[float, Config], tuple[float, float]]  # progress -> half-width of the interval, sharpness
    opacity: Callable[[Tensor, Tensor | float, float | Tensor], tuple[Tensor, Tensor]]  # level, length, sharpness -> see Solid.opacity
    render: Callable[[Rays, Solid, float | Tensor, Samples, BackgroundFn], tuple[Rendering, Crossings]]
    losses: Mapping[str, Callable[[Solid, Seen], Tensor]]  # by the name of its weight in LossConfig; in the order in which they are shown
    fused: bool  # the native training step knows it
    looks: Callable[[Config], int] = samples_per_ray  # points of a ray that may be culled, for the grid's error budget
    recordable: bool = True  # on a GPU no value decides a shape (see `Solid.dense`)
    wants_masks: bool = False  # without them the outline is not learned


def occupancy_field(config: Config, generator: torch.Generator) -> OccupancyField:
    """The hash-encoded one."""
    return OccupancyField(config.field, generator)


UNISURF = Method(  # Oechsle, Peng and Geiger 2021
    field=occupancy_field,
    schedule=shrinking,
    opacity=occupancy,
    render=render_unified,
    losses={"color": photometric, "mask": silhouette_term, "smooth": smoothness, "points": at_points},
    fused=True,
)
NERF = Method(  # Mildenhall et al. 2020
    field=nerf.DensityField,
    schedule=nerf.whole_ray,
    opacity=density,
    render=nerf.render,
    losses={"color": photometric, "mask": mask_term},
    fused=False,
    looks=lambda config: config.grid.steps,
)
IDR = Method(  # Yariv et al. 2020
    field=idr.field,
    schedule=idr.schedule,
    opacity=idr.opacity,
    render=idr.render,
    losses={"color": idr.photometric, "mask": idr.silhouette, "eikonal": idr.eikonal, "smooth": smoothness},
    fused=False,
    recordable=False,
    wants_masks=True,
)
WILD = UNISURF  # with what configs/wild.toml has different: colours see an embedding of the photograph
METHODS = {"unisurf": UNISURF, "nerf": NERF, "idr": IDR, "wild": WILD}
