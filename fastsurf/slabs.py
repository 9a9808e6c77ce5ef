"""Marching cubes over occupied cells, slab by slab, with PyMCubes: where there is no native library. `extraction.py` is the fast way.

Marching cubes (Lorensen and Cline 1987) is asked for its topology alone, on signs: every vertex then sits on a known lattice edge, which
makes welding exact, and its place on that edge comes from the field's two values. The field is looked at twice: on a coarse lattice, and
then at every lattice point of the coarse cells that may hold surface (`_Coarse`).
"""

import warnings
from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt

from .extraction import LatticeField

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Faces = npt.NDArray[np.int32]

MARGIN = 2.0  # a coarse cell is passed over if no corner's value lies closer to 0 than this times the steepest change round about
_BLOCK = 32  # lattice cells along the edge of a block, and along x of a slab


def extract_slabs(
    field: LatticeField, cells: Bools, closed: bool, on_progress: Callable[[float], None] | None = None
) -> tuple[Floats, Faces]:
    """As `extraction.extract_native`. Memory beyond the mesh is one slab of the lattice."""
    lattice, resolution = _Lattice(field, cells, on_progress), field.resolution
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
    if not found:
        return np.empty((0, 3)), np.empty((0, 3), np.int32)
    _, at, index = np.unique(np.concatenate(keys), return_index=True, return_inverse=True)
    vertices = -1 + 2 / resolution * np.concatenate(places)[at]
    return vertices, index.ravel()[np.concatenate(corners)].astype(np.int32)


class _Lattice:
    """Field values on the lattice, where there may be surface."""

    def __init__(self, field: LatticeField, cells: Bools, on_progress: Callable[[float], None] | None) -> None:
        self.field, self.resolution, self.cells, self.on_progress = field, field.resolution, cells, on_progress
        g = len(cells)
        self.cell_of = np.minimum(np.arange(self.resolution + 1) * g // self.resolution, g - 1)  # (resolution + 1,)
        self.coarse = _Coarse(self)

    def in_use(self, *index: Ints) -> Bools:
        """Whether the lattice points with these indices along x, y and z, broadcast, lie in cells that may hold something."""
        use: Bools = self.cells[tuple(self.cell_of[i] for i in index)]
        return use

    def evaluate(self, points: Ints) -> npt.NDArray[np.float32]:
        """The field at lattice points (n, 3)."""
        return self.field((points * (2 / self.resolution) - 1).astype(np.float32))

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


class _Coarse:
    """The field on every `stride`-th lattice point, and which coarse cells may hold surface (`near`).

    The others are passed over: their corners agree in sign, and none lies closer to 0 than MARGIN times the steepest change between
    neighbouring corners, there or in the cells round about. The middle of a cell is sqrt(3) / 2 strides from a corner, and the slope
    along an axis at least 1 / sqrt(3) of the whole, so they hold no surface where the field is nowhere more than MARGIN / 1.5 times as
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
        bound = MARGIN * steep * np.where(whole, 1, 2)  # a corner in use may lie at the other end
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
