"""tinycudann for the hash encoding and the colour head, nerfacc for the walk through the occupancy grid.

Both are NVIDIA-only, are compiled on the user's machine and fail in many ways, so they are imported here alone and tried out before
anything is built on them. tiny-cuda-nn has second derivatives for its grid encoding but not for its networks: the field's two-layer MLP
is therefore torch's, its gradient J^T W1^T (m v) is written out as in `reference.py`, and the second-order term goes through the encoding's
own double backward. What neither package offers (first crossing, compositing, Adam) is `triton.py`'s where Triton is there.
"""

import math
import os
import time
import warnings
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..encoding import FEATURES, Level, entries, level_table
from ..errors import BackendError
from ..rays import Rays
from . import Backend
from .reference import ReferenceBackend

INSTALL_TCNN = "pip install --no-build-isolation 'git+https://github.com/NVlabs/tiny-cuda-nn/#subdirectory=bindings/torch'"
INSTALL_NERFACC = "pip install nerfacc"
INSTEAD = "or use --backend triton, which needs neither"
FUSED_WIDTHS = (16, 32, 64, 128)  # of tiny-cuda-nn's fully fused MLP
STALE = 600.0  # seconds after which a build's lock is taken for a left-over


class CudaBackend:
    """tinycudann and nerfacc on one GPU, the current one."""

    name = "cuda"
    capturable = False  # nerfacc waits for its counts

    def __init__(self, precision: str = "exact") -> None:
        """
        Args:
            precision: exact (float32 throughout) or fast (half inputs of matrix products; the colour head is tiny-cuda-nn's fused MLP,
                which sums in half too).

        Raises:
            BackendError: there is no GPU, or one of the packages is missing or does not work.
        """
        if not torch.cuda.is_available():
            raise BackendError("no NVIDIA GPU that this PyTorch can use: want a CUDA build of torch and a driver, or --backend native")
        self.note, self.fast = "", precision == "fast"
        self.device = torch.device("cuda", torch.cuda.current_device())
        self._tcnn, self._nerfacc = _tinycudann(), _nerfacc()
        self._others = _others(precision, self.device)
        self._try_out()

    @property
    def detail(self) -> str:
        precision = "half" if self.fast else "float32"
        return f"{torch.cuda.get_device_name(self.device)}, tinycudann and nerfacc, {precision}"

    def encode(self, x: Tensor, table: Tensor, levels: Sequence[Level]) -> Tensor:
        """See `Backend.encode`."""
        if not len(x):
            return self._others.encode(x, table, levels)
        h: Tensor = torch.func.functional_call(_encoding(self._tcnn, tuple(levels)), {"params": table.reshape(-1)}, (x,))
        return h

    def mlp(self, x: Tensor, weights: Sequence[Tensor]) -> Tensor:
        """See `Backend.mlp`. The fused MLP takes one hidden width of 16, 32, 64 or 128, and widths outside that are multiples of 16."""
        inputs, hidden, outputs = x.shape[1], {w.shape[0] for w in weights[:-1]}, weights[-1].shape[0]
        fused = len(hidden) == 1 and hidden <= set(FUSED_WIDTHS) and inputs % 16 == outputs % 16 == 0
        if not (self.fast and fused and len(x)):
            return self._others.mlp(x, weights)
        network = _network(self._tcnn, inputs, outputs, hidden.pop(), len(weights) - 1)
        packed = torch.cat([w.reshape(-1) for w in weights])
        y: Tensor = torch.func.functional_call(network, {"params": packed}, (x,))
        return y.float()

    def field(self, x: Tensor, table: Tensor, levels: Sequence[Level], weights: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """See `Backend.field`."""
        if not len(x):
            return self._others.field(x, table, levels, weights)
        first, second = weights
        keep = torch.is_grad_enabled()
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            h = self.encode(x, table, levels)
            z = self._product(h, first)
            out = self._product(torch.relu(z), second)
            u = self._product((z > 0) * second[0], first.T)  # gradient of out[:, 0] with respect to h
            (gradient,) = torch.autograd.grad(h, x, u, create_graph=keep)
        return (out, gradient) if keep else (out.detach(), gradient.detach())

    @torch.no_grad()
    def field_value(self, x: Tensor, table: Tensor, levels: Sequence[Level], weights: Sequence[Tensor]) -> Tensor:
        """See `Backend.field_value`."""
        first, second = weights
        return (torch.relu(self.encode(x, table, levels) @ first.T) @ second[:1].T)[:, 0]

    @torch.no_grad()
    def occupied_steps(
        self, rays_o: Tensor, rays_d: Tensor, t_near: Tensor, t_far: Tensor, occupied: Tensor, step: float, most: int
    ) -> tuple[Tensor, Tensor]:
        """See `Backend.occupied_steps`.

        nerfacc puts a sample in the middle of each of its steps and adds steps up in float32: rays start at t_near, their lattice half
        a step before it, and the number of each step is read off its middle. It never returns from a ray that is not finite, and divides
        by zero without rays, so those do not reach it.
        """
        n = len(t_near)
        t, count = t_far[:, None].repeat(1, most), torch.zeros(n, dtype=torch.int64, device=self.device)
        if not n or not most:
            return t, count
        span = t_far - t_near
        whole = torch.isfinite(torch.cat([rays_o, rays_d, t_near[:, None], t_far[:, None]], 1)).all(1) & (span > 0)
        start = torch.where(whole[:, None], rays_o + t_near[:, None] * rays_d, 3.0).contiguous()  # 3: outside of the grid
        direction = torch.where(whole[:, None], rays_d, 3**-0.5).contiguous()
        grid = _estimator(self._nerfacc, occupied.shape[0], self.device)
        grid.binaries = occupied[None]
        ray, begin, end = grid.sampling(
            start, direction, near_plane=-step, t_min=torch.full_like(span, -0.5 * step), t_max=torch.where(whole, span, 0.0),
            render_step_size=step, early_stop_eps=0.0,
        )  # fmt: skip
        count.index_add_(0, ray, torch.ones_like(ray))
        place = torch.arange(len(ray), device=self.device) - (count.cumsum(0) - count)[ray]
        k = (0.5 * (begin + end) / step).round()
        fits = place < most
        t[ray[fits], place[fits]] = t_near[ray[fits]] + k[fits] * step
        return t, count.clamp(max=most)

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
        """See `Backend.first_crossing`."""
        return self._others.first_crossing(rays, lattice, count, step, secant_steps, prior_radius, table, levels, weights)

    def weights_of(self, alphas: Tensor) -> Tensor:
        """See `Backend.weights_of`."""
        return self._others.weights_of(alphas)

    def adam_(
        self, p: Tensor, grad: Tensor, m: Tensor, v: Tensor, step: int, rate: float, betas: tuple[float, float], eps: float
    ) -> None:
        """See `Backend.adam_`."""
        self._others.adam_(p, grad, m, v, step, rate, betas, eps)

    def _product(self, x: Tensor, weight: Tensor) -> Tensor:
        """x (n, in) times weight (out, in) transposed."""
        return (x.half() @ weight.half().T).float() if self.fast else x @ weight.T

    def _try_out(self) -> None:
        """One small use of each package: installed is not yet working."""
        levels = level_table(2, 4, 2, 2.0)
        table = torch.zeros(entries(levels), FEATURES, device=self.device)
        ray = torch.tensor([[-2.0, 0.1, 0.1]], device=self.device), torch.tensor([[1.0, 0.0, 0.0]], device=self.device)
        ends = torch.tensor([1.0], device=self.device), torch.tensor([3.0], device=self.device)
        try:
            self.encode(torch.full((1, 3), 0.5, device=self.device), table, levels)
        except BackendError:
            raise
        except Exception as e:
            raise BackendError(f"tinycudann is installed but does not work ({_line(e)}): {INSTALL_TCNN}; {INSTEAD}") from None
        _refuse_stale_lock()
        try:
            full = torch.ones(2, 2, 2, dtype=torch.bool, device=self.device)
            _, count = self.occupied_steps(*ray, *ends, full, 0.5, 8)
        except Exception as e:
            raise BackendError(
                f"nerfacc is installed but does not work ({_line(e)}): it compiles itself at first use and wants nvcc and ninja; {INSTEAD}"
            ) from None
        if count.item() != 4:
            raise BackendError(f"nerfacc finds {count.item()} steps where there are 4: {INSTALL_NERFACC} again; {INSTEAD}")


def _tinycudann() -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it was built for another generation of GPUs, for one
            import tinycudann
    except (ImportError, OSError) as e:
        raise BackendError(f"tinycudann is missing ({_line(e)}): {INSTALL_TCNN}; {INSTEAD}") from None
    return tinycudann


def _nerfacc() -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # its docstrings', when Python compiles them
            import nerfacc
    except (ImportError, OSError) as e:
        raise BackendError(f"nerfacc is missing ({_line(e)}): {INSTALL_NERFACC}; {INSTEAD}") from None
    return nerfacc


def _others(precision: str, device: torch.device) -> Backend:
    """Where the rest comes from: Triton, or plain PyTorch on the GPU."""
    try:
        from .triton import TritonBackend

        return TritonBackend(precision, device)
    except BackendError:
        return ReferenceBackend(device=device)


def _line(e: Exception) -> str:
    text = str(e).strip().splitlines()
    return text[0] if text else type(e).__name__


def _refuse_stale_lock() -> None:
    """A build of nerfacc that was cut short leaves a lock on which every later one waits for ever."""
    from torch.utils.cpp_extension import get_default_build_root

    root = Path(os.environ.get("TORCH_EXTENSIONS_DIR") or get_default_build_root())
    for lock in root.glob("**/nerfacc_cuda/lock"):
        if time.time() - lock.stat().st_mtime > STALE:
            raise BackendError(f"a build of nerfacc was cut short and would wait for ever: remove {lock.parent}; {INSTEAD}")


@lru_cache(maxsize=16)
def _encoding(tcnn: Any, levels: tuple[Level, ...]) -> Any:
    """tiny-cuda-nn's module of that layout, in float32. Its own parameters are dropped: ours are passed in at each call."""
    encoding = tcnn.Encoding(3, encoding_config(levels), dtype=torch.float32)
    if encoding.params.numel() != FEATURES * entries(levels):
        found, wanted = encoding.params.numel(), FEATURES * entries(levels)
        raise BackendError(f"tinycudann lays out {found} parameters, want {wanted}: another version of its grid; {INSTEAD}")
    encoding.params = torch.nn.Parameter(torch.empty(0))
    return encoding


@lru_cache(maxsize=16)
def _network(tcnn: Any, inputs: int, outputs: int, width: int, hidden: int) -> Any:
    config = {"otype": "FullyFusedMLP", "activation": "ReLU", "output_activation": "None", "n_neurons": width, "n_hidden_layers": hidden}
    network = tcnn.Network(inputs, outputs, config)
    network.params = torch.nn.Parameter(torch.empty(0))
    return network


@lru_cache(maxsize=4)
def _estimator(nerfacc: Any, resolution: int, device: torch.device) -> Any:
    return nerfacc.OccGridEstimator(roi_aabb=[-1.0, -1.0, -1.0, 1.0, 1.0, 1.0], resolution=resolution, levels=1).to(device)


@lru_cache(maxsize=16)
def encoding_config(levels: tuple[Level, ...]) -> dict[str, Any]:
    """tiny-cuda-nn's configuration for a table of levels.

    It computes the table from the growth per level, which the table does not hold: of the float32 numbers around what the finest scale
    suggests, the one that gives exactly this table is taken.

    Raises:
        BackendError: no growth gives it.
    """
    base = round(levels[0].scale) + 1
    finest = np.float32(((levels[-1].scale + 1) / base) ** (1 / max(len(levels) - 1, 1)))
    log2_entries = max(math.ceil(math.log2(level.size)) for level in levels)
    for ulps in sorted(range(-64, 65), key=abs):
        growth = float(finest + ulps * np.spacing(finest))
        if level_table(len(levels), log2_entries, base, growth) == levels:
            return {
                "otype": "HashGrid", "n_levels": len(levels), "n_features_per_level": FEATURES, "log2_hashmap_size": log2_entries,
                "base_resolution": base, "per_level_scale": growth,
            }  # fmt: skip
    raise BackendError(f"no growth gives tinycudann this table of {len(levels)} levels, base {base}: {INSTEAD}")
