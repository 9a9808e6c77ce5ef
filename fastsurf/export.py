"""What leaves: a mesh with coloured vertices or with a texture, or points, in the input's units or scaled; and what is told of it.

A scale multiplies every coordinate of the world, about its origin; so cameras and depth pictures scaled alike still fit.
"""

import difflib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from . import __version__, meshio, texture
from .appearance import MEAN
from .cameras import View
from .errors import UsageError
from .files import write_whole
from .hooks import Hook, MeshProgress, Note, Saved
from .mesh import Faces, Floats, Mesh, Texture, sample_surface
from .model import Model
from .output import Output, companions, read_scale
from .pictures import vertex_colors
from .scene import Scene
from .solidity import Report, crossings, inspect, make_solid, simplify

REPORT = "mesh.json"
MOSTLY = 0.9  # share of the texture that photographs see; below it a line says so


@dataclass(frozen=True)
class Surface:
    """A finished mesh and where its colours come from; `center` and `radius` are the scene box."""

    mesh: Mesh  # in the input's units
    model: Model
    center: Floats  # (3,)
    radius: float
    view: int = MEAN  # the photograph whose appearance it has
    report: Report | None = None  # of the mesh, where it is known

    def painted(self, vertices: Floats, faces: Faces) -> Mesh:
        """Another mesh of the same surface, (v, 3) in the world: normals and colours from the field."""
        return paint(self.model, self.center, self.radius, (vertices - self.center) / self.radius, faces, True, self.view)

    def colors(self, points: Floats) -> npt.NDArray[np.uint8]:
        """The field's colours (n, 3) of world points (n, 3) on it."""
        colors = self.painted(points, np.zeros((0, 3), np.int32)).colors
        assert colors is not None
        return colors


def paint(model: Model, center: npt.ArrayLike, radius: float, vertices: Floats, faces: Faces, colored: bool, view: int,
          events: Hook = lambda _: None) -> Mesh:  # fmt: skip
    """The mesh with these vertices (v, 3) in scene units, in the world: normals and colours from the field."""
    normals, colors = vertex_colors(model, vertices, colored, view, events)
    return Mesh(np.asarray(center, np.float64) + radius * vertices, faces, normals, colors)


def write(
    path: Path, surface: Surface, output: Output, scene: Scene | None, events: Hook, comments: Sequence[str] = ()
) -> tuple[Mesh, Report]:
    """Write what is wanted of a surface: the mesh as it was written, or the one that the points lie on, and what it is.

    Args:
        scene: the photographs, where `output.wants_photographs`.

    Raises:
        UsageError: no such cameras. MeshError: see write_mesh, make_solid and unwrap.
    """
    factor = scale_factor(output.scale, scene.capture.views if scene is not None else ())
    comments = [f"made by fastsurf {__version__}", *comments]
    if factor != 1:
        comments.append(f"scaled by {factor:.9g} from the units of the input")
    mesh, picture = _finished(surface, output, events), None
    if output.points:
        places, _, _ = sample_surface(mesh.vertices, mesh.faces, output.points, np.random.default_rng(0))
        meshio.write_points(path, scaled(surface.painted(places, np.zeros((0, 3), np.int32)), factor), comments)
        events(Saved("points", path))
    elif output.texture:
        assert scene is not None
        picture = _texture(surface, mesh, output.texture, scene, events)
    mesh = scaled(mesh, factor)
    report = surface.report if mesh is surface.mesh else None
    report = report or inspect(mesh.vertices, mesh.faces)
    if not output.points:
        meshio.write_mesh(path, mesh, comments, picture)
        for file in (path, *companions(path, picture is not None)):
            events(Saved("mesh" if file == path else "texture", file))
    if output.watertight and (crossed := crossings(mesh.vertices, mesh.faces)):
        events(Note(f"the solid is closed, but {crossed:,} pairs of its faces pass through each other; slicers unite them"))
    return mesh, report


def _finished(surface: Surface, output: Output, events: Hook) -> Mesh:
    """With fewer faces and as a solid, as wanted. Done in scene units, where single precision is enough."""
    mesh = surface.mesh
    most = output.faces or (texture.faces_for(output.texture, len(mesh.faces)) if output.texture else len(mesh.faces))
    if not output.faces and most < len(mesh.faces):
        events(Note(f"simplified to {most:,} faces for the texture, from {len(mesh.faces):,}: --faces sets another number"))
    if most >= len(mesh.faces) and not output.watertight:
        return mesh
    events(MeshProgress(1.0, "simplifying"))
    vertices, faces = simplify((mesh.vertices - surface.center) / surface.radius, mesh.faces, most)
    if output.watertight:
        vertices, faces = make_solid(vertices, faces)
    return surface.painted(surface.center + surface.radius * vertices, faces)


def _texture(surface: Surface, mesh: Mesh, side: int, scene: Scene, events: Hook) -> Texture:
    events(MeshProgress(0.0, f"laying out {len(mesh.faces):,} faces"))
    uv, corners = texture.unwrap(mesh, side)
    views = surface.model.corrections.views(scene) if surface.model.corrections is not None else scene.capture.views
    photographs = [texture.Photograph(views[i], scene.images[i].numpy(), _counts(scene, i)) for i in scene.train]
    made, share, stops = texture.bake(
        surface.painted(mesh.vertices, mesh.faces) if mesh.colors is None else mesh, uv, corners, side, photographs,
        surface.colors, lambda done: events(MeshProgress(done, "texture")),
    )  # fmt: skip
    if share < MOSTLY:
        events(Note(f"{1 - share:.0%} of the texture is seen by no photograph: the field's colours are there"))
    if stops > 0:
        events(Note(f"photographs differ in exposure, by up to {stops:.1f} stops from their mean: evened out in the texture"))
    return made


def _counts(scene: Scene, view: int) -> npt.NDArray[np.bool_] | None:
    """(h, w), the pixels of a photograph that show the object."""
    counts = None if scene.masks is None else scene.masks[view].numpy() > 127
    if scene.ignored is not None:
        rest = ~scene.ignored[view].numpy()
        counts = rest if counts is None else counts & rest
    return counts


def scaled(mesh: Mesh, factor: float) -> Mesh:
    """Every coordinate times a factor."""
    return mesh if factor == 1 else replace(mesh, vertices=factor * mesh.vertices)


def scale_factor(text: str, views: Sequence[View]) -> float:
    """The factor that `--scale` means: itself, or what brings two of these cameras to a distance.

    Raises:
        UsageError: neither of the two, no such photographs, or cameras at one place.
    """
    factor, names = read_scale(text)
    if not names:
        return factor
    places = []
    for name in names:
        found = [view for view in views if name in (view.name, Path(view.name).name, Path(view.name).stem)]
        if len(found) != 1:
            near = difflib.get_close_matches(name, [view.name for view in views], n=1)
            hint = f"did you mean {near[0]}?" if near else f"the first is {views[0].name}" if views else "there are none"
            raise UsageError(f"--scale: {len(found) or 'no'} photographs are called {name!r}; {hint}")
        places.append(found[0].center)
    apart = float(np.linalg.norm(places[0] - places[1]))
    if not apart > 0:
        raise UsageError(f"--scale: the cameras of {names[0]} and {names[1]} are at one place")
    return factor / apart


def record(run: Path, file: str, report: Report, scale: float = 1.0, points: int = 0) -> None:
    """Add what a mesh is to RUN/mesh.json, by the file's name; or that it holds so many points instead."""
    path = run / REPORT
    try:
        known: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError):
        known = {}
    known[file] = {**({"points": points} if points else report.tree()), "scale": scale}
    write_whole(path, (json.dumps(known, indent=1) + "\n").encode())
