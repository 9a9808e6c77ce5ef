"""Which faces of a mesh the photographs show, and the mesh without the others.

Without masks nothing says what a wall looks like from behind: the field there is whatever training left. A photograph shows a face that
looks towards its camera where one of its rays ends on the surface in the face's cell of the scene box, or in a cell beside that: one
search a ray, however fine the mesh is. Cells are as wide as rays are apart.

What a photograph sees in front of the scene box (a floor that goes on towards the camera) is explained by rags inside it. Few photographs
look past the box's edge, so rags are shown by one or two of the many that have them in the frame, and surfaces by most.
"""

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from .cameras import world_to_pixels
from .config import MeshConfig
from .hooks import Hook, MeshProgress
from .info import pixel_footprint
from .mesh import Bools, Faces, Floats, Ints, clean, components, dilate, face_areas
from .model import Model
from .pictures import surface_depth
from .scene import Scene

FEWEST, MOST = 16, 128  # cells along the scene box
RAYS = 1 << 19  # of all photographs together, about
MOST_ASKED, SHARE_ASKED = 4, 0.1
SMALL = 0.01  # share of the shown area, below which a hidden patch is believed
CUT = 1e-4  # scene units: what a ray meets sooner after it enters the box is the box's cut through the solid


def trims(config: MeshConfig, masks: bool) -> bool:
    """Whether faces have to be shown to stay, of a scene with or without masks."""
    return config.shown_by > 0 if config.shown_by is not None else not (config.closed or masks)


def photographs_asked(config: MeshConfig, scene: Scene, vertices: Floats, faces: Faces) -> Ints:
    """How many photographs have to show each face for it to stay, (f,): as configured, else SHARE_ASKED of those to learn from that have it
    in the frame, 1 to MOST_ASKED.

    Args:
        vertices, faces: (v, 3) in scene units and (f, 3).
    """
    if config.shown_by is not None:
        return np.full(len(faces), config.shown_by)
    cells, which = np.unique(_cells(vertices[faces].mean(1), MOST), return_inverse=True)
    middles = (np.stack(np.unravel_index(cells, (MOST,) * 3), 1) + 0.5) * (2 / MOST) - 1
    world, framed = middles * scene.radius + scene.center, np.zeros(len(cells))
    for view in (scene.capture.views[i] for i in scene.train):
        pixels = world_to_pixels(view, world)
        framed += ((pixels >= 0) & (pixels <= (view.camera.width, view.camera.height))).all(1)
    asked: Ints = np.ceil(SHARE_ASKED * framed).clip(1, MOST_ASKED).astype(np.int64)[which]
    return asked


def times_shown(model: Model, scene: Scene, vertices: Floats, faces: Faces, enough: Ints, events: Hook) -> Ints:
    """How many of the photographs to learn from show each face, (f,), counted up to `enough` (f,).

    Args:
        vertices, faces: (v, 3) in scene units and (f, 3), the model's surface.
    """
    corners = vertices.astype(np.float32)
    a, b, c = (corners[faces[:, k]] for k in range(3))
    normals, middles = np.cross(b - a, c - a), (a + b + c) / 3
    pixels = sum(h * w for h, w in (scene.shapes[view] for view in scene.train))
    stride = max(1, math.ceil(math.sqrt(pixels / RAYS)))
    n = int(np.clip(2 * scene.radius / (stride * pixel_footprint(scene)), FEWEST, MOST))
    facing, cells = (normals * middles).sum(1), _cells(middles, n)
    times, left = np.zeros(len(faces), np.int64), np.arange(len(faces))  # faces that are not shown enough yet: soon few
    for done, view in enumerate(scene.train):
        events(MeshProgress(done / len(scene.train), "what photographs show"))
        rays, _ = scene.rays(view, stride)
        counted = rays.t_far > rays.t_near
        if scene.ignored is not None:
            counted &= ~scene.ignored[view][::stride, ::stride].reshape(-1)
        rays = rays[counted]
        if not len(rays):
            continue
        hit, t = surface_depth(model, rays, events)
        hit &= t > rays.t_near + CUT
        met = np.zeros((n, n, n), bool)
        met.reshape(-1)[_cells(rays[hit].at(t[hit]).numpy(), n)] = True
        near = left[dilate(met).reshape(-1)[cells[left]]]
        times[near[normals[near] @ rays.origins[0].numpy() > facing[near]]] += 1
        left = left[times[left] < enough[left]]
    return times


def trim(vertices: Floats, faces: Faces, shown: Bools, min_component: float) -> tuple[Floats, Faces]:
    """The part of a mesh that is shown, with small hidden patches; all of it where nothing is shown.

    Args:
        vertices, faces: (v, 3) and (f, 3).
        shown: (f,).
        min_component: as for `clean`, of what is then left.
    """
    if not shown.any():
        return vertices, faces
    area, hidden, kept = face_areas(vertices, faces), np.flatnonzero(~shown), shown.copy()
    patch = components(vertices, faces[hidden])
    small = np.bincount(patch, area[hidden]) < SMALL * area[shown].sum()
    kept[hidden[small[patch]]] = True
    return clean(vertices, faces[kept], min_component, fill_cavities=False)


def _cells(points: npt.NDArray[Any], n: int) -> Ints:
    """The cell, of n * n * n, in which each of (m, 3) points lies."""
    x, y, z = ((points + 1) * (0.5 * n)).astype(np.int64).clip(0, n - 1).T
    cells: Ints = (x * n + y) * n + z
    return cells
