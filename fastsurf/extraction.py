"""A level set on a lattice, with the native library: which points are wanted, and the triangles between them.

The lattice has `resolution` cells along the scene box [-1, 1]^3, so lattice point i lies at -1 + 2 i / resolution. The field is positive
inside. What the library does, from coarse to fine and then along the surface, is told in native/extraction.h; values of the field come
from here, so they may come from any backend.
"""

import ctypes
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .errors import BackendError, MeshError

BATCH = 1 << 18  # points of the field at once
MARGIN = 1.0  # how near to 0 a cell's values must be to be looked at more closely: native/extraction.h. Half of it lost nothing either


class LatticeField:
    """`level_fn` for numpy, and what was seen of it.

    Args:
        level_fn: points (n, 3) float32 -> (n,) float, positive inside. Called with up to BATCH points.
        resolution: cells along the scene box.
    """

    def __init__(self, level_fn: Callable[[Tensor], Tensor], resolution: int) -> None:
        self.level_fn, self.resolution = level_fn, resolution
        self.low, self.high = np.inf, -np.inf  # of all values

    def __call__(self, places: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Values (n,) at scene positions (n, 3).

        Raises:
            BackendError: they are not finite.
        """
        values = np.empty(len(places), np.float32)
        for k in range(0, len(places), BATCH):
            level = self.level_fn(torch.from_numpy(places[k : k + BATCH])).detach().cpu().numpy().reshape(-1)
            low, high = float(level.min()), float(level.max())
            if not (np.isfinite(low) and np.isfinite(high)):
                raise BackendError(f"the field is not finite at {np.sum(~np.isfinite(level))} of {len(level)} points: training went wrong")
            values[k : k + BATCH] = level
            self.low, self.high = min(self.low, low), max(self.high, high)
        return values

    def check_sides(self, share: float) -> None:
        """Raise if the field has one sign alone: what surface there is would be that of the grid or the box.

        Args:
            share: of the scene box that is occupied, for the message.
        """
        if self.high <= 0:
            raise MeshError(f"no surface: the field is negative (empty) in all {share:.1%} of the scene box that is occupied")
        if self.low > 0:
            raise MeshError(
                f"no surface: the field is positive (solid) in all {share:.1%} of the scene box that is occupied;"
                " the box may lie inside the object"
            )


def extract_native(
    field: LatticeField,
    cells: npt.NDArray[np.bool_],
    closed: bool,
    on_progress: Callable[[float], None] | None = None,
    threads: int = 0,
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int32]]:
    """Vertices (v, 3) in scene coordinates and faces (f, 3), outwards; both may be empty. The same for any number of threads.

    Args:
        cells: (g, g, g) over the scene box, indexed [x, y, z]: where the field is looked at; elsewhere it counts as -1.
        closed: points on the box count as outside.
        on_progress: called with the share done, in [0, 1].
        threads: 0 follows `torch.get_num_threads()`.
    """
    call = partial(_call, threads)
    cells = np.ascontiguousarray(cells)
    handle = ctypes.c_void_p()
    wanted, n_vertices, n_faces = ctypes.c_int64(), ctypes.c_int64(), ctypes.c_int64()
    call("open", field.resolution, closed, MARGIN, cells.ctypes.data, len(cells), ctypes.byref(handle))
    try:
        done = 0.0
        while True:
            call("plan", handle, ctypes.byref(wanted))
            if not wanted.value:
                break
            share = 0.6 * (1 - done)  # how many rounds are to come is not known before; each takes longer than the one before
            for first in range(0, wanted.value, BATCH):
                places = np.empty((min(BATCH, wanted.value - first), 3), np.float32)
                call("points", handle, first, len(places), places.ctypes.data)
                values = field(places)
                call("accept", handle, first, len(places), values.ctypes.data)
                if on_progress:
                    on_progress(done + share * (first + len(places)) / wanted.value)
            done += share
        call("size", handle, ctypes.byref(n_vertices), ctypes.byref(n_faces))
        vertices, faces = np.empty((n_vertices.value, 3)), np.empty((n_faces.value, 3), np.int32)
        call("write", handle, vertices.ctypes.data, faces.ctypes.data)
    finally:
        call("close", handle)
    if on_progress:
        on_progress(1.0)
    return vertices, faces


def has_native() -> bool:
    """Whether there is a native library."""
    from .backends.native import available

    return available()


def _call(threads: int, function: str, *arguments: Any) -> None:
    from .backends.native import call

    call(f"extraction_{function}", *arguments, threads=threads)
