"""From an occupancy field to a mesh: marching cubes over occupied cells only, welded exactly, and cleaned.

The lattice has `resolution` cells along the scene box [-1, 1]^3, so lattice point i lies at -1 + 2 i / resolution. The field is positive
inside. Marching cubes (Lorensen and Cline 1987) is asked for its topology alone, on signs: every vertex then sits on a known lattice
edge, which makes welding exact, and its place on that edge comes from the field's two values.

The field is looked at twice: on a coarse lattice, and then at every lattice point of the coarse cells that may hold surface (`_Coarse`).
"""

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .errors import BackendError, MeshError

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Faces = npt.NDArray[np.int32]

_BLOCK = 32  # lattice cells along the edge of a block, and along x of a slab
_MARGIN = 2.0  # a coarse cell is passed over if no corner's value lies closer to 0 than this times the steepest change round about
_BATCH = 1 << 18  # points of the field at once


@dataclass(frozen=True, eq=False)
class Mesh:
    """A triangle mesh in the world's frame and units; faces run counter-clockwise seen from outside."""

    vertices: Floats  # (v, 3)
    faces: Faces  # (f, 3)
    normals: npt.NDArray[np.float32]  # (v, 3) unit, outwards
    colors: npt.NDArray[np.uint8] | None = None  # (v, 3) sRGB


def extract(
    level_fn: Callable[[Tensor], Tensor],
    occupied: Tensor,
    resolution: int,
    closed: bool,
    on_progress: Callable[[float], None] | None = None,
) -> tuple[Floats, Faces]:
    """The surface level_fn = 0 as vertices (v, 3) in scene coordinates and faces (f, 3), oriented outwards.

    Watertight where the field is: no cracks between blocks. Memory beyond the mesh is one slab of the lattice.

    Args:
        level_fn: points (n, 3) float32 -> (n,) float, positive inside. Called with up to 2^18 points.
        occupied: (g, g, g) bool over the scene box, indexed [x, y, z]: cells that may hold surface or solid. The field is evaluated
            there and one cell further; everything else counts as outside.
        resolution: cells along the scene box.
        closed: the solid ends at the box, with faces on it; otherwise the surface is left open there.
        on_progress: called with the share done, in [0, 1].

    Raises:
        MeshError: there is no surface, and why.
        BackendError: the field is not finite.
    """
    lattice = _Lattice(level_fn, occupied, resolution, on_progress)
    stride = resolution + 1
    keys, places, corners = [], [], []  # of vertices: lattice edge (v,), position (v, 3); of faces: vertices (f, 3)
    found = 0
    for start, values in lattice.blocks(closed):
        inside = values > 0
        if closed:
            _clear_border(inside, start, resolution)
        if not inside.any() or inside.all():
            continue
        ends, axes, faces = _march(inside)
        t = _crossing(values, inside, ends, axes)
        ends += start
        keys.append(((ends[:, 0] * stride + ends[:, 1]) * stride + ends[:, 2]) * 3 + axes)
        places.append(ends + t[:, None] * np.eye(3)[axes])
        corners.append(faces + found)
        found += len(axes)
    lattice.check_sides()
    if not found:
        raise MeshError(f"no surface: the field crosses 0 nowhere on {resolution} cells; a higher resolution may find it")
    _, at, index = np.unique(np.concatenate(keys), return_index=True, return_inverse=True)
    vertices = -1 + 2 / resolution * np.concatenate(places)[at]
    return vertices, index.ravel()[np.concatenate(corners)].astype(np.int32)


class _Lattice:
    """Field values on the lattice, where there may be surface."""

    def __init__(
        self, level_fn: Callable[[Tensor], Tensor], occupied: Tensor, resolution: int, on_progress: Callable[[float], None] | None
    ) -> None:
        cells = occupied.cpu().numpy().astype(bool)
        assert cells.ndim == 3 and len(set(cells.shape)) == 1, cells.shape
        if not cells.any():
            raise MeshError("no surface: nothing is occupied; look at the masks and the scene box with `fastsurf info`")
        self.level_fn, self.resolution, self.on_progress = level_fn, resolution, on_progress
        self.cells = _dilate(cells)
        g = len(cells)
        self.cell_of = np.minimum(np.arange(resolution + 1) * g // resolution, g - 1)  # (resolution + 1,)
        self.low, self.high = np.inf, -np.inf
        self.coarse = _Coarse(self)

    def in_use(self, *index: Ints) -> Bools:
        """Whether the lattice points with these indices along x, y and z, broadcast, lie in cells that may hold something."""
        use: Bools = self.cells[tuple(self.cell_of[i] for i in index)]
        return use

    def evaluate(self, points: Ints) -> npt.NDArray[np.float32]:
        """The field at lattice points (n, 3)."""
        values = np.empty(len(points), np.float32)
        for k in range(0, len(points), _BATCH):
            places = (points[k : k + _BATCH] * (2 / self.resolution) - 1).astype(np.float32)
            level = self.level_fn(torch.from_numpy(places)).detach().cpu().numpy().reshape(-1)
            if not np.isfinite(level).all():
                raise BackendError(f"the field is not finite at {np.sum(~np.isfinite(level))} of {len(level)} points: training went wrong")
            values[k : k + _BATCH] = level
            self.low, self.high = min(self.low, float(level.min())), max(self.high, float(level.max()))
        return values

    def blocks(self, closed: bool) -> Iterator[tuple[Ints, npt.NDArray[np.float32]]]:
        """(first lattice point (3,), values) of all blocks that may hold surface; neighbours share their border.

        Values are -1 where nothing is occupied; where the coarse lattice shows one side alone they are right in sign only.
        """
        r, coarse, last = self.resolution, self.coarse, None
        for x in range(0, r, _BLOCK):
            slab = np.full((min(x + _BLOCK, r) - x + 1, r + 1, r + 1), np.nan, np.float32)
            wanted = coarse.wanted(x, x + len(slab) - 1)
            if last is not None:
                slab[0], wanted[0] = last, False
            fresh = np.flatnonzero(wanted)
            rows, columns = np.divmod(fresh.astype(np.int32 if wanted.size < 1 << 31 else np.int64), r + 1)
            points = np.stack([rows // (r + 1) + x, rows % (r + 1), columns], 1)
            use = self.in_use(*points.T)
            slab.reshape(-1)[fresh[use]] = self.evaluate(points[use])
            for y in range(0, r, _BLOCK):
                for z in range(0, r, _BLOCK):
                    values = slab[:, y : y + _BLOCK + 1, z : z + _BLOCK + 1]
                    if coarse.may_cross(np.array([x, y, z]), values, closed):
                        a, b, c = values.shape
                        index = np.ix_(np.arange(x, x + a), np.arange(y, y + b), np.arange(z, z + c))
                        yield np.array([x, y, z]), np.where(np.isnan(values), coarse.sign(*index), values)
            last = slab[-1]
            if self.on_progress:
                self.on_progress((x + len(slab) - 1) / r)

    def check_sides(self) -> None:
        """Raise if the field has one sign alone: what surface there is would be that of the grid or the box."""
        if self.high <= 0:
            raise MeshError(f"no surface: the field is negative (empty) in all {self.cells.mean():.1%} of the scene box that is occupied")
        if self.low > 0:
            raise MeshError(
                f"no surface: the field is positive (solid) in all {self.cells.mean():.1%} of the scene box that is occupied;"
                " the box may lie inside the object"
            )


class _Coarse:
    """The field on every `stride`-th lattice point, and which coarse cells may hold surface (`near`).

    The others are passed over: their corners agree in sign, and none lies closer to 0 than _MARGIN times the steepest change between
    neighbouring corners, there or in the cells round about. The middle of a cell is sqrt(3) / 2 strides from a corner, and the slope
    along an axis at least 1 / sqrt(3) of the whole, so they hold no surface where the field is nowhere more than _MARGIN / 1.5 times as
    steep as it looks from corner to corner. What is found does not depend on where the blocks lie.
    """

    def __init__(self, lattice: _Lattice) -> None:
        from scipy.ndimage import maximum_filter

        r = lattice.resolution
        self.lattice, self.stride = lattice, 1 << max(2, (r // 128).bit_length() - 1)
        n = -(-r // self.stride)  # cells an axis
        self.at = np.minimum(np.arange(n + 1) * self.stride, r)  # lattice indices
        self.use = lattice.in_use(*np.ix_(self.at, self.at, self.at))
        self.values = np.full(self.use.shape, -1, np.float32)
        self.values[self.use] = lattice.evaluate(self.at[np.argwhere(self.use)])

        steep = np.zeros((n, n, n), np.float32)  # steepest change along an edge of the cell
        for axis in range(3):
            values, use = np.moveaxis(self.values, axis, 0), np.moveaxis(self.use, axis, 0)
            change = np.where(use[1:] & use[:-1], np.abs(np.diff(values, axis=0)), 0)
            across = np.maximum(change[:, 1:], change[:, :-1])
            np.maximum(np.moveaxis(steep, axis, 0), np.maximum(across[:, :, 1:], across[:, :, :-1]), out=np.moveaxis(steep, axis, 0))
        steep = maximum_filter(steep, 3)
        low = self._corners(np.where(self.use, self.values, np.inf)).min(0)
        high = self._corners(np.where(self.use, self.values, -np.inf)).max(0)
        whole, some = self._used()
        bound = _MARGIN * steep * np.where(whole, 1, 2)  # a corner in use may lie at the other end
        self.near = some & ((low <= bound) & (high >= -bound) | ~whole & (high > 0) | (low > high))
        self.solid = some & ~self.near & (low > 0)  # (n, n, n)

    @staticmethod
    def _corners(a: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """(8, n, n, n)."""
        ends = slice(None, -1), slice(1, None)
        return np.stack([a[x, y, z] for x in ends for y in ends for z in ends])

    def _used(self) -> tuple[Bools, Bools]:
        """Whether all, and any, lattice points of each coarse cell are in use."""
        cells, of = self.lattice.cells, self.lattice.cell_of[self.at]
        whole, some = cells.copy(), cells.copy()
        for axis in range(3):  # a cell's lattice points lie in grid cells of[i] .. of[i + 1]
            sums = np.concatenate([np.zeros_like(whole.take([0], axis), np.int32), whole.cumsum(axis, np.int32)], axis)
            any_sums = np.concatenate([np.zeros_like(some.take([0], axis), np.int32), some.cumsum(axis, np.int32)], axis)
            length = np.expand_dims(of[1:] - of[:-1] + 1, [k for k in range(3) if k != axis])
            whole = sums.take(of[1:] + 1, axis) - sums.take(of[:-1], axis) == length
            some = any_sums.take(of[1:] + 1, axis) - any_sums.take(of[:-1], axis) > 0
        return whole, some

    def wanted(self, first: int, end: int) -> Bools:
        """Lattice points of near cells in planes first .. end along x, (end - first + 1, r + 1, r + 1)."""
        k, r = self.stride, self.lattice.resolution
        start = max(first // k - 1, 0)
        wanted = self.near[start : end // k + 1]
        for axis in range(3):
            wanted = np.repeat(wanted, k, axis)
            wanted = np.concatenate([wanted, np.zeros_like(wanted.take([0], axis))], axis)
            ahead, behind = (np.swapaxes(wanted, 0, axis)[part] for part in (slice(1, None), slice(None, -1)))
            ahead |= behind.copy()
        return np.ascontiguousarray(wanted[first - start * k : end - start * k + 1, : r + 1, : r + 1])

    def sign(self, *index: Ints) -> npt.NDArray[np.float32]:
        """1 or -1 at lattice points with these indices, broadcast, in cells that are passed over; -1 where nothing is in use."""
        cell = tuple(np.minimum(i // self.stride, len(self.near) - 1) for i in index)
        return np.where(self.solid[cell] & self.lattice.in_use(*index), np.float32(1), np.float32(-1))

    def may_cross(self, start: Ints, values: npt.NDArray[np.float32], closed: bool) -> bool:
        """Whether there are two sides, or a solid that the box cuts, in a block from lattice point `start`; NaN: not evaluated."""
        end = start + values.shape - 1
        block = tuple(slice(a // self.stride, -(-b // self.stride)) for a, b in zip(start, end, strict=True))
        solid, near = self.solid[block], self.near[block]
        inside = solid.any() or (values > 0).any()
        at_border = closed and (start.min() == 0 or end.max() == self.lattice.resolution)
        return bool(inside and (at_border or not (solid | near).all() or (values <= 0).any()))


def _dilate(cells: Bools) -> Bools:
    """With all 26 neighbours."""
    for axis in range(3):
        grown = np.swapaxes(cells, 0, axis).copy()
        grown[1:] |= np.swapaxes(cells, 0, axis)[:-1]
        grown[:-1] |= np.swapaxes(cells, 0, axis)[1:]
        cells = np.swapaxes(grown, 0, axis)
    return cells


def _clear_border(inside: Bools, start: Ints, resolution: int) -> None:
    """Nothing on the surface of the scene box is inside, in place; `inside` is a block from lattice point `start`."""
    for axis in range(3):
        planes = np.swapaxes(inside, 0, axis)
        if start[axis] == 0:
            planes[0] = False
        if start[axis] + len(planes) - 1 == resolution:
            planes[-1] = False


def _march(inside: Bools) -> tuple[Ints, Ints, Ints]:
    """Marching cubes on signs: for each vertex the lattice point (v, 3) before it and the axis (v,) of its edge; faces (f, 3)."""
    import mcubes

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # PyMCubes 0.1.6 sets array shapes in place
        vertices, faces = mcubes.marching_cubes(np.where(inside, 1.0, -1.0), 0.0)
    halves = np.rint(2 * vertices).astype(np.int64)  # two coordinates are whole, the third lies half-way
    assert ((halves % 2).sum(1) == 1).all()
    return halves // 2, (halves % 2).argmax(1), faces.astype(np.int64)


def _crossing(values: npt.NDArray[np.float32], inside: Bools, ends: Ints, axes: Ints) -> Floats:
    """Where along its lattice edge each vertex lies, (v,) in [0, 1]: where the field, taken linear, is 0.

    Kept off the ends by a thousandth, for faces of some area. Where a point of the box's border was declared outside, the vertex is
    that point.
    """
    nexts = ends + np.eye(3, dtype=np.int64)[axes]
    a, b = (values[tuple(p.T)].astype(np.float64) for p in (ends, nexts))
    t = np.clip(a / np.where(a == b, 1, a - b), 1e-3, 1 - 1e-3)
    cut = (a > 0) & (b > 0)
    crossing: Floats = np.where(cut, inside[tuple(ends.T)], t)
    return crossing


def clean(vertices: Floats, faces: Faces, min_component: float, fill_cavities: bool) -> tuple[Floats, Faces]:
    """Without small components and inner cavities; vertices keep their order.

    Args:
        vertices, faces: (v, 3) and (f, 3), oriented outwards; components share no vertices.
        min_component: components with less than this share of the largest one's area are dropped.
        fill_cavities: closed components that face inwards (their signed volume is negative) are dropped, with what floats in them.
    """
    label = components(vertices, faces)  # (f,)
    n = int(label.max()) + 1
    area = np.bincount(label, face_areas(vertices, faces), n)
    keep = np.ones(n, bool)
    if fill_cavities:
        volume = np.bincount(label, signed_volumes(vertices, faces), n)
        for cavity in np.flatnonzero(volume < 0):
            if not is_watertight(faces[label == cavity]):
                continue
            keep[cavity] = False
            shell = vertices[faces[label == cavity]]
            low, high = shell.min((0, 1)), shell.max((0, 1))
            for other in np.flatnonzero(keep):
                corner = vertices[faces[np.argmax(label == other), 0]]
                if (low < corner).all() and (corner < high).all() and abs(winding(corner, shell)) > 0.5 and area[other] < area[cavity]:
                    keep[other] = False
    keep &= area >= min_component * area[keep].max(initial=0)
    return compact(vertices, faces[keep[label]])


def simplify(vertices: Floats, faces: Faces, most: int) -> tuple[Floats, Faces]:
    """At most about `most` faces, by quadric edge collapse (Garland and Heckbert 1997); the mesh itself if it has no more."""
    if len(faces) <= most:
        return vertices, faces
    import fast_simplification

    # single precision inside: safe in scene units
    points, triangles = fast_simplification.simplify(vertices.astype(np.float32), faces, target_count=most)
    return compact(points.astype(np.float64), triangles.astype(np.int32))


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
    of_face: Ints = np.unique(label[faces[:, 0]], return_inverse=True)[1].ravel()
    return of_face


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
    return _by_face(lambda a, b, c: 0.5 * np.linalg.norm(np.cross(b - a, c - a), axis=1), vertices, faces)


def signed_volumes(vertices: Floats, faces: Faces) -> Floats:
    """Volume (f,) of the tetrahedra between faces and the vertices' middle; over a closed mesh they add up to its volume."""
    middle = vertices.mean(0)
    return _by_face(lambda a, b, c: ((a - middle) * np.cross(b - middle, c - middle)).sum(1) / 6, vertices, faces)


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
