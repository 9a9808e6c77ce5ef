"""The seam between the method and the machine, and the one place where a backend is chosen.

`reference` is plain PyTorch and defines the meaning; the others give the same values faster. Parameters are float32 (or float64 on
the reference) and laid out the same on all: `table (n_entries, 2)` as in `encoding.py`, MLP weights `[out, in]` without biases.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from ..encoding import Level
from ..errors import BackendError
from ..rays import Batch, Rays


class Backend(Protocol):
    """What a machine has to offer. Names follow nerfacc and tiny-cuda-nn where those have one."""

    name: str  # triton, cuda, native, reference
    note: str  # one line for the user, why a faster backend is not in use; mostly empty
    device: torch.device  # where parameters, rays and everything between them live
    capturable: bool  # nothing waits for a GPU or depends on its values: a step can be recorded as a CUDA graph

    @property
    def detail(self) -> str:
        """For people: "AVX2, 2 threads", "NVIDIA H100, Triton 3.6.0, float32"."""
        ...

    def encode(self, x: Tensor, table: Tensor, levels: Sequence[Level]) -> Tensor:
        """Hash encoding of positions x (n, 3) in [0, 1]: (n, 2 n_levels), level-major. Differentiable twice, in x and table; on cuda
        the second time by way of x's gradient alone."""
        ...

    def mlp(self, x: Tensor, weights: Sequence[Tensor]) -> Tensor:
        """ReLU between layers, none after the last: x (n, in) -> (n, out); weights [out, in]. Differentiable once."""
        ...

    def field(self, x: Tensor, table: Tensor, levels: Sequence[Level], weights: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Encoding and two-layer MLP in one: out (n, out), and the gradient (n, 3) of out[:, 0] with respect to x.

        Both are differentiable with respect to table and weights (the gradient's share is the second-order term), not to x.
        """
        ...

    def field_value(self, x: Tensor, table: Tensor, levels: Sequence[Level], weights: Sequence[Tensor]) -> Tensor:
        """out[:, 0] of `field`, (n,), without gradients: for marching, grid updates and meshing."""
        ...

    def occupied_steps(
        self, rays_o: Tensor, rays_d: Tensor, t_near: Tensor, t_far: Tensor, occupied: Tensor, step: float, most: int
    ) -> tuple[Tensor, Tensor]:
        """Lattice points t = t_near + k step, k = 0, 1, ..., that lie before t_far and in occupied cells, front to back.

        Args:
            rays_o, rays_d: (n_rays, 3), scene units; the grid covers [-1, 1]^3.
            t_near, t_far: (n_rays,), one lattice per ray.
            occupied: (g, g, g) bool, indexed [x, y, z].
            most: at most this many points of a ray are returned, the first ones.

        Returns:
            t (n_rays, most), padded with t_far, and count (n_rays,) int64, how many of them are points. Not finite rays have none.
        """
        ...

    def first_crossing(
        self,
        rays: Rays,
        lattice: Tensor,
        count: Tensor,
        step: float,
        secant_steps: int,
        prior_radius: float,
        table: Tensor,
        levels: Sequence[Level],
        weights: Sequence[Tensor],
    ) -> tuple[Tensor, Tensor]:
        """`surface.search` for the level field_value(x / 2 + 1/2) + prior_radius - |x|, x in scene units, clamped to the box.

        Args:
            lattice, count: as `occupied_steps` gives them.
            secant_steps: at most; a ray is done when its level is but rounding, below 1e-6.

        Returns:
            t (n_rays,), t_far where there is no crossing, and hit (n_rays,) bool.
        """
        ...

    def weights_of(self, alphas: Tensor) -> Tensor:
        """`compositing.weights_of`: weights (n_rays, n_samples) of samples of these opacities. Differentiable once."""
        ...

    def adam_(
        self, p: Tensor, grad: Tensor, m: Tensor, v: Tensor, step: int, rate: float, betas: tuple[float, float], eps: float
    ) -> None:
        """One Adam step in place, with bias correction; `step` counts from 1 (Kingma and Ba 2015)."""
        ...


@dataclass(frozen=True)
class Look:
    """What a training step sees: rays with samples on them, what they should show, and how deviations weigh."""

    rays: Rays
    t: Tensor  # (n_rays, n_samples) distances of the samples
    occupied: Tensor  # (g, g, g) bool; samples elsewhere have alpha 0
    behind: Tensor  # (n_rays, 3) colour of the background
    target: Tensor  # (n_rays, 3)
    mask: Tensor | None  # (n_rays,); None: the opacity is not judged
    pairs: Tensor  # (2, n_pairs, 3) points whose normals should agree
    known: Tensor  # (n_known, 3) points that should have the occupancies `wanted`, (n_known,)
    wanted: Tensor
    weights: tuple[float, float, float, float]  # of the losses: color, mask, smooth, points
    least_weight: float  # samples that weigh less have no colour
    huber: float = 0.0  # threshold of the colour loss
    outlier: float = math.inf  # and its scale of outliers
    plain_colors: bool = False  # colours, but not weights, are blamed as if there were no outliers
    appearance: Tensor | None = None  # (n_rays, a) embeddings of the rays' photographs, which the head sees
    trust: Tensor | None = None  # (n_rays,) factors of the rays' colour losses
    emphasis: Tensor | None = None  # (n_pairs,) factors of the pairs' distances


@dataclass(frozen=True)
class Parameters:
    """Field and colour head, as `field` and `mlp` take them."""

    table: Tensor
    levels: Sequence[Level]
    w1: Tensor
    w2: Tensor
    head: Sequence[Tensor]
    inputs: set[str]  # of the head that are not zero: d, h, n, x
    prior_radius: float
    sharpness: float


@dataclass(frozen=True)
class Gradients:
    """Room for the gradients of the parameters of the same names."""

    table: Tensor
    w1: Tensor
    w2: Tensor
    head: Sequence[Tensor]


@dataclass(frozen=True)
class Learned:
    """What a training step leaves besides `Gradients`."""

    losses: Tensor  # (5,): color, mask, smooth and points, weighed, and the mean squared error
    behind: Tensor  # (n_rays, 3), gradient of `Look.behind`
    appearance: Tensor | None  # (n_rays, a), of the embeddings
    errors: Tensor  # (n_rays, 3), colours less `Look.target`


@dataclass(frozen=True)
class Photographs:
    """What `Scene` draws pixels from: cameras and pools as in pixels.py, poses and one buffer of all pixels."""

    nodes: Tensor  # PixelDirections
    first: Tensor
    counts: Tensor
    per_pixel: Tensor
    rotations: Tensor  # (n_views, 3, 3), camera to scene
    origins: Tensor  # (n_views, 3)
    offsets: Tensor  # ImageStore
    widths: Tensor
    colors: Tensor
    coverage: Tensor | None
    pools: tuple[tuple[Tensor, Tensor, int], tuple[Tensor, Tensor, int]]  # ends, shifts and size; object and rest


@dataclass(frozen=True)
class Aim:
    """Rays that are searched for the surface, and how they get samples (sampling.py)."""

    rays: Rays
    offset: Tensor  # (n_rays,) in [0, 1], shifts each ray's marching lattice by that share of a step
    jitter: Tensor  # (n_rays, n_samples) in [0, 1), of each sample within its stratum
    front: int  # samples before the interval
    width: float  # half the interval
    occupied: Tensor  # (g, g, g) bool
    step: float  # of the lattice, scene units
    secant_steps: int  # at most
    close: float  # a level that small ends them


@dataclass(frozen=True)
class Placed:
    """Samples on rays."""

    t: Tensor  # (n_rays, n_samples)
    hit: Tensor  # (n_rays,) bool
    surface: Tensor  # (n_rays,) distance of the first crossing, t_far where there is none
    on: Tensor  # (n_hits, 3) the crossings, in the order of their rays


@dataclass(frozen=True)
class Refresh:
    """An update of the occupancy grid (grid.py)."""

    values: Tensor  # (g, g, g) float32, occupancies as last seen; overwritten
    occupied: Tensor  # (g, g, g) bool; overwritten
    threshold: float  # of occupancy
    decay: float
    due: float  # a cell in use that has sunk to this is looked at
    lot: int  # of so many cells that are not in use one is looked at
    seed: int
    everywhere: bool  # all cells are looked at


@runtime_checkable
class FusedBackend(Backend, Protocol):
    """One that also does a whole training step in one call."""

    def see(self, photographs: Photographs, drawn: Tensor, n_object: int) -> Batch:
        """`Source.sample`'s rays and colours of pixels drawn (n,) int64, the first `n_object` in the pool of the object."""
        ...

    def place(self, aim: Aim, parameters: Parameters) -> Placed:
        """`surface.march`, `surface.search` and `sampling.place` for the level of `first_crossing`."""
        ...

    def update_grid(self, refresh: Refresh, parameters: Parameters) -> None:
        """`OccupancyGrid.update` for sharpness times the level of `first_crossing`."""
        ...

    def train_step(self, look: Look, parameters: Parameters, gradients: Gradients) -> Learned:
        """Render, compare, and overwrite `gradients` with those of the sum of the losses (losses.py)."""
        ...


@dataclass(frozen=True)
class Found:
    """A backend on this machine."""

    name: str
    usable: bool
    detail: str  # what it runs on; if it can't be used, why not and what to do


def choose_backend(name: str = "auto", threads: int = 0, precision: str = "exact") -> Backend:
    """The backend to use, chosen once and passed down.

    Args:
        name: auto (the first of triton, cuda, native and reference that runs here; its `note` says what is missing where that costs
            speed), or one of them: triton is our own kernels, cuda tinycudann with nerfacc, for the same GPUs. Triton's are the
            faster ones (docs/gpu.md) and need nothing that PyTorch for Linux does not bring.
        threads: of the native backend; 0 follows `torch.get_num_threads()`.
        precision: exact (float32 throughout) or fast (matrix products take half inputs, on a GPU; a CPU has no use for it).

    Raises:
        BackendError: it can't run here; the message says why and what to do.
    """
    makers = _makers(threads, precision)
    if name in makers:
        return makers[name]()
    if name != "auto":
        raise BackendError(f"no backend {name!r}: want auto, {', '.join(makers)}")
    missing = ""
    for candidate in makers if torch.cuda.is_available() else ("native", "reference"):
        try:
            backend = makers[candidate]()
        except BackendError as e:
            missing = missing or str(e)
            continue
        if backend.name in ("native", "reference") and missing:
            backend.note = f"a slower backend ({backend.name}) is in use: {missing}"
        return backend
    raise AssertionError("reference runs everywhere")


def survey(threads: int = 0) -> list[Found]:
    """Every backend and whether it can be used here, in the order in which auto tries them."""
    found = []
    for name, make in _makers(threads, "exact").items():
        try:
            found.append(Found(name, True, make().detail))
        except BackendError as e:
            found.append(Found(name, False, str(e)))
    return found


def _makers(threads: int, precision: str) -> dict[str, Callable[[], Backend]]:
    def cuda() -> Backend:
        from .cuda import CudaBackend

        return CudaBackend(precision)

    def triton() -> Backend:
        from .triton import TritonBackend

        return TritonBackend(precision)

    def native() -> Backend:
        from .native import NativeBackend

        return NativeBackend(threads)

    def reference() -> Backend:
        from .reference import ReferenceBackend

        return ReferenceBackend()

    return {"triton": triton, "cuda": cuda, "native": native, "reference": reference}
