"""What can be made of a surface, as it is asked for. Light, so that a wrong wish is refused before anything is loaded."""

import importlib.util
from dataclasses import dataclass
from pathlib import Path

from .errors import UsageError

LEAST_FACES = 4  # of a solid: a tetrahedron
LEAST_SIDE, MOST_SIDE = 64, 16384  # texels


@dataclass(frozen=True)
class Output:
    """What is made of the surface.

    Attributes:
        faces: simplified to about so many; 0: all, but for a texture what faces_for says.
        watertight: the file must hold a solid.
        texture: texels along each side of a picture on it, baked from the photographs; 0: colours stand at the vertices.
        points: so many points on it instead of a mesh; 0: the mesh.
        scale: a factor, or "A,B=DISTANCE": what makes two cameras so far apart, named like their photographs.
    """

    faces: int = 0
    watertight: bool = False
    texture: int = 0
    points: int = 0
    scale: str = "1"

    def check(self, path: Path) -> None:
        """Before any work is done.

        Raises:
            UsageError: what doesn't go together, makes no sense, or is not installed.
        """
        if self.faces and self.faces < LEAST_FACES:
            raise UsageError(f"--faces wants {LEAST_FACES} or more, found {self.faces}")
        if self.texture and not LEAST_SIDE <= self.texture <= MOST_SIDE:
            raise UsageError(f"--texture wants {LEAST_SIDE} to {MOST_SIDE} texels, found {self.texture}")
        if self.points < 0:
            raise UsageError(f"--points wants 1 or more, found {self.points}")
        if self.points and (self.texture or self.watertight):
            raise UsageError("--points makes points instead of a mesh: they have no texture, and aren't watertight")
        if self.points and path.suffix.lower() != ".ply":
            raise UsageError(f"{path}: --points wants a file ending in .ply")
        for package, wanted, extra in (("xatlas", self.texture, "texture"), ("manifold3d", self.watertight, "solid")):
            if wanted and importlib.util.find_spec(package) is None:
                raise UsageError(f"{package} is not installed: pip install 'fastsurf[{extra}]'")
        companions(path, bool(self.texture))
        read_scale(self.scale)

    @property
    def wants_photographs(self) -> bool:
        """Whether they have to be there."""
        return bool(self.texture) or "=" in self.scale


def companions(path: Path, textured: bool) -> list[Path]:
    """The files that are written beside a mesh; UsageError where the format holds no texture, but there is one."""
    if not textured:
        return []
    if path.suffix.lower() not in (".obj", ".glb"):
        raise UsageError(f"{path}: a texture wants a file ending in .glb (one file) or .obj (with .mtl and .png)")
    return [path.with_suffix(".png"), path.with_suffix(".mtl")] if path.suffix.lower() == ".obj" else []


def read_scale(text: str) -> tuple[float, tuple[str, ...]]:
    """Factor or distance, and the two photographs that it is between, or none; UsageError if it is neither."""
    names, equals, number = text.rpartition("=")
    pair = tuple(name.strip() for name in names.split(",")) if equals else ()
    try:
        value = float(number)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf") or len(pair) not in (0, 2) or (pair and (not all(pair) or pair[0] == pair[1])):
        raise UsageError(f"--scale wants a factor, such as 2.5, or the distance of two cameras, a.jpg,b.jpg=1.20; found {text!r}")
    return value, pair
