"""From an occupancy field to a mesh: marching cubes where there is surface, welded exactly, and cleaned."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch import Tensor

from .errors import MeshError
from .extraction import LatticeField, extract_native, has_native
from .slabs import extract_slabs

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Faces = npt.NDArray[np.int32]

_BATCH = 1 << 18  # faces at once
LONG = 5.0  # times the least share of the area: the least share of the length


@dataclass(frozen=True, eq=False)
class Mesh:
    """A triangle mesh in the world's frame and units; faces run counter-clockwise seen from outside."""

    vertices: Floats  # (v, 3)
    faces: Faces  # (f, 3)
    normals: npt.NDArray[np.float32]  # (v, 3) unit, outwards
    colors: npt.NDArray[np.uint8] | None = None  # (v, 3) sRGB


@dataclass(frozen=True, eq=False)
class Texture:
    """A picture on a mesh: each corner of a face has its place in it."""

    uv: Floats  # (t, 2) in [0, 1], from the picture's lower left corner
    corners: Faces  # (f, 3) into uv; a place belongs to one vertex
    picture: npt.NDArray[np.uint8]  # (h, w, 3) sRGB, the top row first


def extract(
    level_fn: Callable[[Tensor], Tensor],
    occupied: Tensor,
    resolution: int,
    closed: bool,
    on_progress: Callable[[float], None] | None = None,
    threads: int = 0,
) -> tuple[Floats, Faces]:
    """The surface level_fn = 0 as vertices (v, 3) in scene coordinates and faces (f, 3), oriented outwards.

    Watertight where the field is. Memory goes with the surface, not with the lattice.

    Args:
        level_fn: points (n, 3) float32 -> (n,) float, positive inside. Called with up to 2^18 points.
        occupied: (g, g, g) bool over the scene box, indexed [x, y, z]: cells that may hold surface or solid. The field is evaluated
            there and one cell further; everything else counts as outside.
        resolution: cells along the scene box.
        closed: the solid ends at the box, with faces on it; otherwise the surface is left open there.
        on_progress: called with the share done, in [0, 1].
        threads: for what is not the field, with the native library; 0 follows `torch.get_num_threads()`.

    Raises:
        MeshError: there is no surface, and why.
        BackendError: the field is not finite.
    """
    cells = occupied.cpu().numpy().astype(bool)
    assert cells.ndim == 3 and len(set(cells.shape)) == 1, cells.shape
    if not cells.any():
        raise MeshError("no surface: nothing is occupied; look at the masks and the scene box with `fastsurf info`")
    cells, field = dilate(cells), LatticeField(level_fn, resolution)
    if has_native():
        vertices, faces = extract_native(field, cells, closed, on_progress, threads)
    else:
        vertices, faces = extract_slabs(field, cells, closed, on_progress)
    field.check_sides(float(cells.mean()))
    if not len(faces):
        raise MeshError(f"no surface: the field crosses 0 nowhere on {resolution} cells; a higher resolution may find it")
    return vertices, faces


def dilate(cells: Bools) -> Bools:
    """With all 26 neighbours."""
    for axis in range(3):
        grown = np.swapaxes(cells, 0, axis).copy()
        grown[1:] |= np.swapaxes(cells, 0, axis)[:-1]
        grown[:-1] |= np.swapaxes(cells, 0, axis)[1:]
        cells = np.swapaxes(grown, 0, axis)
    return cells


def clean(vertices: Floats, faces: Faces, min_component: float, fill_cavities: bool, spare_long: bool = False) -> tuple[Floats, Faces]:
    """Without small components and inner cavities; vertices keep their order.

    Args:
        vertices, faces: (v, 3) and (f, 3), oriented outwards; components share no vertices.
        min_component: components with less than this share of the largest one's area are dropped.
        fill_cavities: closed components that face inwards (their signed volume is negative) are dropped, with what floats in them; but not
            the largest component of all, if it lies in no other.
        spare_long: a small component stays if it is LONG times that share as long as the largest one (a rod that broke off).
    """
    label = components(vertices, faces)  # (f,)
    n = int(label.max()) + 1
    area = np.bincount(label, face_areas(vertices, faces), n)
    keep = np.ones(n, bool)
    if fill_cavities:
        volume = np.bincount(label, signed_volumes(vertices, faces), n)
        ends = np.cumsum(np.bincount(label, minlength=n))
        order = np.argsort(label.astype(np.min_scalar_type(n)), kind="stable")  # faces, component by component
        starts = np.append(0, ends[:-1])
        corner = vertices[faces[order[starts], 0]]  # (n, 3) one of each
        largest = int(area.argmax())
        for cavity in np.flatnonzero(volume < 0):
            if cavity == largest:
                low, high = _boxes(vertices, faces, label, n)
                if not ((low < low[largest]) & (high > high[largest])).all(1).any():
                    continue  # a room, say, which cameras see from within
            own = faces[order[ends[cavity - 1] if cavity else 0 : ends[cavity]]]
            if not is_watertight(own):
                continue
            keep[cavity] = False
            shell = vertices[own]
            low, high = shell.min((0, 1)), shell.max((0, 1))
            for other in np.flatnonzero(keep & (area < area[cavity]) & ((low < corner) & (corner < high)).all(1)):
                keep[other] = abs(winding(corner[other], shell)) <= 0.5
    small = keep & (area < min_component * area[keep].max(initial=0))
    if spare_long and small.any():
        low, high = _boxes(vertices, faces, label, n)
        length = np.linalg.norm(high - low, axis=1)
        small &= length < LONG * min_component * length[np.where(keep, area, -1.0).argmax()]
    return compact(vertices, faces[(keep & ~small)[label]])


def _boxes(vertices: Floats, faces: Faces, label: Ints, n: int) -> tuple[Floats, Floats]:
    """Corners (n, 3) of the boxes round the components, of which each face (f,) has its own."""
    of_vertex = np.full(len(vertices), n)  # n: of none
    of_vertex[faces] = label[:, None]
    low, high = np.full((n + 1, 3), np.inf), np.full((n + 1, 3), -np.inf)
    np.minimum.at(low, of_vertex, vertices)
    np.maximum.at(high, of_vertex, vertices)
    return low[:n], high[:n]


def compact(vertices: Floats, faces: Faces) -> tuple[Floats, Faces]:
    """Without vertices that no face uses."""
    used = np.zeros(len(vertices), bool)
    used[faces] = True
    return vertices[used], (np.cumsum(used) - 1)[faces].astype(np.int32)


def components(vertices: Floats, faces: Faces) -> Ints:
    """The component of each face, (f,) from 0: faces that share a vertex belong together."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    rows, columns = faces[:, [0, 1]].ravel(), faces[:, [1, 2]].ravel()
    graph = coo_matrix((np.ones(len(rows), np.int8), (rows, columns)), (len(vertices),) * 2)
    _, label = connected_components(graph, directed=False)
    of_face = label[faces[:, 0]]
    of_face_only: Ints = (np.cumsum(np.bincount(of_face) > 0) - 1)[of_face]  # vertices without a face are components of their own
    return of_face_only


def sample_surface(vertices: Floats, faces: Faces, n: int, rng: np.random.Generator) -> tuple[Floats, Floats, Ints]:
    """Random points (n, 3), uniform by area, the normals (n, 3) of their faces, and those faces (n,)."""
    ends = np.cumsum(face_areas(vertices, faces))
    of_face: Ints = np.searchsorted(ends, rng.random(n) * ends[-1], "right").clip(0, len(faces) - 1)
    a, b, c = np.moveaxis(vertices[faces[of_face]], 1, 0)
    u, v = np.sqrt(rng.random((n, 1))), rng.random((n, 1))
    normals = np.cross(b - a, c - a)
    normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-30)
    return (1 - u) * a + u * (1 - v) * b + u * v * c, normals, of_face


def face_areas(vertices: Floats, faces: Faces) -> Floats:
    """(f,)."""
    def area(a: Floats, b: Floats, c: Floats) -> Floats:
        normal = np.cross(b - a, c - a)
        areas: Floats = 0.5 * np.sqrt(np.einsum("fi,fi->f", normal, normal))
        return areas

    return _by_face(area, vertices, faces)


def signed_volumes(vertices: Floats, faces: Faces) -> Floats:
    """Volume (f,) of the tetrahedra between faces and the vertices' middle; over a closed mesh they add up to its volume."""
    middle = vertices.mean(0)
    return _by_face(lambda a, b, c: np.einsum("fi,fi->f", a - middle, np.cross(b - middle, c - middle)) / 6, vertices, faces)


def _by_face(f: Callable[[Floats, Floats, Floats], Floats], vertices: Floats, faces: Faces) -> Floats:
    """f of every face's three corners, a part at a time."""
    parts = [f(*np.moveaxis(vertices[faces[k : k + _BATCH]], 1, 0)) for k in range(0, len(faces), _BATCH)]
    return np.concatenate(parts) if parts else np.zeros(0)


def is_watertight(faces: Faces) -> bool:
    """Every directed edge occurs once, and so does its opposite."""
    start, end = faces.astype(np.int64), np.roll(faces, -1, 1).astype(np.int64)
    n = int(faces.max(initial=0)) + 1
    edges = np.sort((start * n + end).ravel())
    return len(edges) > 0 and bool((np.diff(edges) > 0).all() and (edges == np.sort((end * n + start).ravel())).all())


def winding(point: Floats, triangles: Floats) -> float:
    """How often the triangles (f, 3, 3) wind round a point (3,): 1 inside, 0 outside, -1 inside an inverted mesh.

    Sum of signed solid angles (Van Oosterom and Strackee 1983).
    """
    a, b, c = np.moveaxis(triangles - point, 1, 0)
    la, lb, lc = (np.linalg.norm(v, axis=1) for v in (a, b, c))
    numerator = (a * np.cross(b, c)).sum(1)
    denominator = la * lb * lc + (a * b).sum(1) * lc + (b * c).sum(1) * la + (c * a).sum(1) * lb
    return float(np.arctan2(numerator, denominator).sum() / (2 * np.pi))
