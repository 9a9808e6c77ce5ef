"""Our Triton kernels behind the backend's names, on one NVIDIA GPU; they are compiled at first use and kept in Triton's cache.

Nothing here waits for the GPU. Sums over points that end in the table's gradient are atomic additions, whose order is not fixed, so
that last bits differ from run to run; all else repeats. A network that does not fit into the fused MLP (see `_fits`) goes through
PyTorch's matrix products.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from ..encoding import PRIMES, Level
from ..errors import BackendError
from ..rays import Rays

MOST_STEPS = 1 << 24  # lattice points of a ray: counted exactly in float32
BOX_DIAGONAL = 2 * 3**0.5
HIDDEN_CHUNK = 64  # hidden units of the field that are in registers together
FUSED_LAYERS, FUSED_WEIGHTS = 4, 1 << 14  # of the fused MLP at most; its weights' gradients are summed in registers
PROGRAMS_PER_SM = 2  # that sum weight gradients
# Launch parameters: points of a program (or RAYS with AHEAD points each), its warps, the registers of a thread where they are fewer than it
# would take, and how products are made: in float32 ("ieee"), as three TF32 products that come within 5e-7 of it ("tf32x3"), or of
# half inputs ("half"). The fastest of those tried on an H100, each kernel by itself (tools/gpu_check.py times them together).
Launch = dict[str, Any]
SEARCH: dict[str, Launch] = {
    "field_value": {"PRECISION": "ieee", "BLOCK": 32, "num_warps": 4, "maxnreg": 128},
    "bracket": {"PRECISION": "ieee", "RAYS": 4, "AHEAD": 8, "num_warps": 4, "maxnreg": 168},
    "refine": {"PRECISION": "ieee", "RAYS": 16, "num_warps": 4},
}
LAUNCH: dict[str, dict[str, Launch]] = {
    "exact": {
        **SEARCH,
        "field": {"PRECISION": "ieee", "BLOCK": 32, "num_warps": 4, "maxnreg": 168},
        "field_backward": {"PRECISION": "tf32x3", "BLOCK": 32, "num_warps": 4},
        "mlp": {"PRECISION": "tf32x3", "BLOCK": 64, "num_warps": 4},
        "mlp_backward": {"PRECISION": "tf32x3", "BLOCK": 32, "num_warps": 4},
    },
    "fast": {
        **SEARCH,
        "field": {"PRECISION": "half", "BLOCK": 32, "num_warps": 4, "maxnreg": 128},
        "field_backward": {"PRECISION": "half", "BLOCK": 32, "num_warps": 8},
        "mlp": {"PRECISION": "half", "BLOCK": 64, "num_warps": 4, "maxnreg": 128},
        "mlp_backward": {"PRECISION": "half", "BLOCK": 64, "num_warps": 4, "maxnreg": 255},
    },
}
INTERPRETER_SMS = 2


class TritonBackend:
    """Triton kernels. Float32 on one GPU, the current one."""

    name = "triton"
    capturable = True
    note = ""

    def __init__(self, precision: str = "exact", device: torch.device | str = "cuda") -> None:
        """
        Args:
            precision: exact (float32, or as good) or fast (half inputs and float32 sums in the matrix products of `field` and `mlp`).
            device: cpu is for tests, in Triton's interpreter (TRITON_INTERPRET=1).

        Raises:
            BackendError: no Triton, no GPU that PyTorch can use, or kernels that can't be compiled and run.
        """
        if precision not in LAUNCH:
            raise BackendError(f"no precision {precision!r}: want exact or fast")
        try:
            import triton  # type: ignore[import-untyped, unused-ignore]

            from . import triton_kernels
        except ImportError as e:
            raise BackendError(f"Triton can't be imported ({e}): pip install triton (Linux only), or --backend native") from None
        self.device = torch.device(device)
        self._interpreted = bool(triton.knobs.runtime.interpret)
        if self.device.type == "cuda" and not torch.cuda.is_available():
            raise BackendError("no NVIDIA GPU that this PyTorch can use: want a CUDA build of torch and a driver, or --backend native")
        if self.device.type != "cuda" and not self._interpreted:
            raise BackendError(f"the triton backend wants device cuda, found {self.device}: use --backend native")
        self.precision = precision
        self._version, self._kernels = triton.__version__, triton_kernels
        capability = torch.cuda.get_device_capability(self.device) if self.device.type == "cuda" else (0, 0)
        self._launch = launch_parameters(precision, capability)
        sms = torch.cuda.get_device_properties(self.device).multi_processor_count if self.device.type == "cuda" else INTERPRETER_SMS
        self._programs = PROGRAMS_PER_SM * sms
        self._tables: dict[int, tuple[Sequence[Level], Tensor, dict[str, int]]] = {}
        self._try_out()

    @property
    def detail(self) -> str:
        machine = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "interpreter"
        return f"{machine}, Triton {self._version}, {'float32' if self.precision == 'exact' else 'half'}"

    def encode(self, x: Tensor, table: Tensor, levels: Sequence[Level]) -> Tensor:
        """See `Backend.encode`."""
        h: Tensor = _Encode.apply(self, levels, x, table)  # type: ignore[no-untyped-call]
        return h

    def mlp(self, x: Tensor, weights: Sequence[Tensor]) -> Tensor:
        """See `Backend.mlp`."""
        widths = (x.shape[1], *(w.shape[0] for w in weights))
        assert all(w.shape == (b, a) for w, (a, b) in zip(weights, pairwise(widths), strict=True)), [x.shape, *(w.shape for w in weights)]
        if _fits(widths):
            y: Tensor = _Mlp.apply(self, widths, x, *weights)  # type: ignore[no-untyped-call]
            return y
        for weight in weights[:-1]:
            x = torch.relu(x @ weight.T)
        return x @ weights[-1].T

    def field(self, x: Tensor, table: Tensor, levels: Sequence[Level], weights: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """See `Backend.field`."""
        first, second = weights
        out, gradient = _Field.apply(self, levels, x.detach(), table, first, second)  # type: ignore[no-untyped-call]
        return out, gradient

    def field_value(self, x: Tensor, table: Tensor, levels: Sequence[Level], weights: Sequence[Tensor]) -> Tensor:
        """See `Backend.field_value`."""
        n = len(x)
        value = torch.empty(n, device=self.device)
        if n:
            arguments, sizes = self._field(table, levels, weights)
            launch = self._launch["field_value"]
            self._kernels.field_value[(_blocks(n, launch["BLOCK"]),)](
                self._points(x), *arguments, value, n, **sizes, **launch, num_stages=1
            )
        return value

    def occupied_steps(
        self, rays_o: Tensor, rays_d: Tensor, t_near: Tensor, t_far: Tensor, occupied: Tensor, step: float, most: int
    ) -> tuple[Tensor, Tensor]:
        """See `Backend.occupied_steps`. A step is refused when the scene box's diagonal has more than 2^24 of them: the rays themselves
        are not looked at, which would mean waiting for the GPU."""
        n, cells = len(t_near), occupied.shape[0]
        assert occupied.dtype == torch.bool and occupied.shape == (cells, cells, cells), (occupied.dtype, occupied.shape)
        assert rays_o.shape == rays_d.shape == (n, 3) and t_far.shape == (n,), (rays_o.shape, rays_d.shape, t_near.shape, t_far.shape)
        assert step > 0 and most >= 0, (step, most)
        if BOX_DIAGONAL / step > MOST_STEPS:
            raise ValueError(f"{BOX_DIAGONAL / step:.0f} lattice points on a ray, want at most {MOST_STEPS}: is the step {step} too small?")
        t, count = torch.empty(n, most, device=self.device), torch.empty(n, dtype=torch.int64, device=self.device)
        if n:
            rays = [self._float(a) for a in (rays_o, rays_d, t_near, t_far)]
            cells_in_use = self._on_device(occupied).contiguous().view(torch.int8)
            self._kernels.occupied_steps[(n,)](
                *rays, cells_in_use, t, count, cells, step, most, CHUNK=128, num_warps=1, enable_fp_fusion=False
            )
        return t, count

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
        n, most = lattice.shape
        o, d, t_near, t_far = self._points(rays.origins), self._points(rays.directions), self._float(rays.t_near), self._float(rays.t_far)
        assert all(len(a) == n for a in (o, d, t_near, t_far, count)) and count.dtype == torch.int64, (n, count.dtype, len(o), len(count))
        t, hit = torch.empty(n, device=self.device), torch.empty(n, dtype=torch.bool, device=self.device)
        if n:
            ends = torch.empty(n, 4, device=self.device)
            field, sizes = self._field(table, levels, weights)
            marching, closing = self._launch["bracket"], self._launch["refine"]
            self._kernels.bracket[(_blocks(n, marching["RAYS"]),)](
                o, d, t_near, self._float(lattice), self._on_device(count).contiguous(), *field, ends, n, most, prior_radius,
                **sizes, **marching, num_stages=1,
            )  # fmt: skip
            self._kernels.refine[(_blocks(n, closing["RAYS"]),)](
                o, d, t_near, t_far, ends, *field, t, hit.view(torch.int8), n, step, secant_steps, prior_radius,
                **sizes, **closing, num_stages=1,
            )  # fmt: skip
        return t, hit

    def weights_of(self, alphas: Tensor) -> Tensor:
        """See `Backend.weights_of`."""
        weights: Tensor = _WeightsOf.apply(self, alphas)  # type: ignore[no-untyped-call]
        return weights

    def adam_(
        self, p: Tensor, grad: Tensor, m: Tensor, v: Tensor, step: int, rate: float, betas: tuple[float, float], eps: float
    ) -> None:
        """See `Backend.adam_`."""
        for a in (p, m, v):
            assert a.is_contiguous() and a.dtype == torch.float32 and a.shape == grad.shape, (a.shape, a.dtype, a.stride(), grad.shape)
        n = p.numel()
        if n:
            root = (1 - betas[1] ** step) ** -0.5
            self._kernels.adam[(_blocks(n, 1024),)](
                self._float(p), self._float(grad), m, v, n, rate / (1 - betas[0] ** step), *betas, eps, root, BLOCK=1024
            )

    def _try_out(self) -> None:
        """One small kernel: installed is not yet working. Adam's first step is as long as its rate."""
        p, gradient, m, v = (torch.full((1,), value, device=self.device) for value in (0.0, 1.0, 0.0, 0.0))
        try:
            self.adam_(p, gradient, m, v, 1, 0.5, (0.9, 0.99), 1e-15)
            moved = p.item()
        except Exception as e:
            line = (str(e).strip().splitlines() or [type(e).__name__])[0]
            raise BackendError(
                f"Triton is installed but does not work ({line}): it wants a C compiler, Python's headers and a GPU of compute capability "
                "7.5 or more; or use --backend native"
            ) from None
        if abs(moved + 0.5) > 1e-4:
            raise BackendError(f"Triton computes {moved:g} where -0.5 is right: another version may do; or use --backend native")

    def _grid(self, levels: Sequence[Level], entries: int) -> tuple[Tensor, dict[str, int]]:
        """The levels on the GPU, and their number; found again by the sequence's identity."""
        held = self._tables.get(id(levels))
        if held is None or held[0] is not levels:
            if len(self._tables) > 64:
                self._tables.clear()
            table = _levels(levels).to(self.device)
            held = self._tables[id(levels)] = (levels, table, {"LEVELS": len(levels), "LP": table.shape[1]})
        if levels[-1].offset + levels[-1].size > entries:
            raise BackendError(f"a table of {entries} entries, want {levels[-1].offset + levels[-1].size}: it can't take these levels")
        return held[1], held[2]

    def _table(self, table: Tensor) -> Tensor:
        assert table.ndim == 2 and table.shape[1] == 2, table.shape
        table = self._float(table)
        return table if table.data_ptr() % 8 == 0 else table.clone()  # both features are loaded together

    def _field(self, table: Tensor, levels: Sequence[Level], weights: Sequence[Tensor]) -> tuple[tuple[Tensor, ...], dict[str, int]]:
        """Arguments of the field's kernels: (table, levels, W1, W2), and the sizes they are compiled for."""
        first, second = weights
        packed, sizes = self._grid(levels, len(table))
        hidden = len(first)
        assert first.shape[1] == 2 * len(levels) and second.shape[1] == hidden, (len(levels), first.shape, second.shape)
        sizes = {**sizes, "HIDDEN": hidden, "CHUNK": min(_padded(hidden), HIDDEN_CHUNK)}
        return (self._table(table), packed, self._float(first), self._float(second)), sizes

    def _points(self, x: Tensor) -> Tensor:
        assert x.ndim == 2 and x.shape[1] == 3, x.shape
        return self._float(x)

    def _float(self, a: Tensor) -> Tensor:
        if a.dtype != torch.float32:
            raise BackendError(f"the triton backend wants float32, found {a.dtype}: use the reference backend")
        return self._on_device(a).detach().contiguous()

    def _on_device(self, a: Tensor) -> Tensor:
        if a.device.type != self.device.type:
            raise BackendError(f"the triton backend wants tensors on {self.device}, found one on {a.device}")
        return a


class _Field(Function):
    @staticmethod
    def forward(
        ctx: Any, backend: TritonBackend, levels: Sequence[Level], x: Tensor, table: Tensor, first: Tensor, second: Tensor
    ) -> tuple[Tensor, Tensor]:
        x, n, outputs, launch = backend._points(x), len(x), len(second), backend._launch["field"]
        arguments, sizes = backend._field(table, levels, (first, second))
        sizes |= {"OUT": outputs, "OP": _padded(outputs)}
        out, gradient = torch.empty(n, outputs, device=x.device), torch.empty(n, 3, device=x.device)
        if n:
            backend._kernels.field[(_blocks(n, launch["BLOCK"]),)](
                x, *arguments, out, gradient, n, **sizes, **launch, num_stages=1
            )
        if any(ctx.needs_input_grad):
            ctx.save_for_backward(x, *arguments)
        ctx.backend, ctx.sizes = backend, sizes
        ctx.set_materialize_grads(False)
        return out, gradient

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out: Tensor | None, d_gradient: Tensor | None) -> tuple[Tensor | None, ...]:
        if d_out is None and d_gradient is None:
            return (None,) * 6
        x, table, levels, first, second = ctx.saved_tensors
        backend, n, launch = ctx.backend, len(x), ctx.backend._launch["field_backward"]
        _, _, _, to_table, *to_weights = ctx.needs_input_grad
        tiles = _blocks(n, launch["BLOCK"])
        programs = min(tiles, backend._programs)
        d_table = torch.zeros_like(table) if to_table else None
        partial = torch.empty(programs, first.numel() + second.numel(), device=x.device) if any(to_weights) else None
        if n:
            backend._kernels.field_backward[(programs,)](
                x, table, levels, first, second,
                *(x if a is None else backend._float(a) for a in (d_out, d_gradient, d_table, partial)), n, tiles,
                FIRST=d_out is not None, SECOND=d_gradient is not None, TO_TABLE=to_table, TO_WEIGHTS=partial is not None,
                **ctx.sizes, **launch, num_stages=1,
            )  # fmt: skip
        return None, None, None, d_table, *_summed(partial, (first, second))


class _Mlp(Function):
    @staticmethod
    def forward(ctx: Any, backend: TritonBackend, widths: tuple[int, ...], x: Tensor, *weights: Tensor) -> Tensor:
        x, matrices, n = backend._float(x), tuple(backend._float(w) for w in weights), len(x)
        launch = backend._launch["mlp"]
        sizes = {"WIDTHS": widths, "PADDED": tuple(_padded(w) for w in widths)}
        y = torch.empty(n, widths[-1], device=x.device)
        if n:
            backend._kernels.mlp[(_blocks(n, launch["BLOCK"]),)](x, matrices, y, n, **sizes, **launch, num_stages=1)
        if any(ctx.needs_input_grad):
            ctx.save_for_backward(x, *matrices)
        ctx.backend, ctx.sizes = backend, sizes
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, *weights = ctx.saved_tensors
        backend, n, launch = ctx.backend, len(x), ctx.backend._launch["mlp_backward"]
        _, _, to_x, *to_weights = ctx.needs_input_grad
        tiles, size = _blocks(n, launch["BLOCK"]), sum(w.numel() for w in weights)
        programs = min(tiles, backend._programs)
        dx = torch.empty_like(x) if to_x else None
        partial = torch.empty(programs, size, device=x.device) if any(to_weights) else None
        if n:
            backend._kernels.mlp_backward[(programs,)](
                x, tuple(weights), backend._float(dy), x if dx is None else dx, x if partial is None else partial, n, tiles,
                SIZE=size, TO_X=to_x, TO_WEIGHTS=partial is not None, **ctx.sizes, **launch, num_stages=1,
            )  # fmt: skip
        return None, None, dx, *_summed(partial, weights)


class _Encode(Function):
    """h = E(x, table): the gradient of (h, u) is x -> J^T u and table -> the scatter of u, both again differentiable."""

    @staticmethod
    def forward(ctx: Any, backend: TritonBackend, levels: Sequence[Level], x: Tensor, table: Tensor) -> Tensor:
        ctx.backend, ctx.levels = backend, levels
        ctx.save_for_backward(x, table)
        return _encode(backend, levels, x, table)

    @staticmethod
    def backward(ctx: Any, u: Tensor) -> tuple[Tensor | None, ...]:
        x, table = ctx.saved_tensors
        gradients = _EncodeBackward.apply(ctx.backend, ctx.levels, x, table, u, *ctx.needs_input_grad[2:])  # type: ignore[no-untyped-call]
        return None, None, *gradients


class _EncodeBackward(Function):
    @staticmethod
    def forward(
        ctx: Any, backend: TritonBackend, levels: Sequence[Level], x: Tensor, table: Tensor, u: Tensor, to_x: bool, to_table: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        ctx.backend, ctx.levels = backend, levels
        ctx.save_for_backward(x, table, u)
        ctx.set_materialize_grads(False)
        dx = _slope(backend, levels, x, table, u) if to_x else None
        return dx, _scatter(backend, levels, x, len(table), u, None) if to_table else None

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, q: Tensor | None, t: Tensor | None) -> tuple[Tensor | None, ...]:
        """q (n, 3) and t, like the table, are gradients with respect to J^T u and to the scatter of u."""
        backend, levels = ctx.backend, ctx.levels
        x, table, u = ctx.saved_tensors
        need_x, need_table, need_u = ctx.needs_input_grad[2:5]
        dx, du, d_table = None, None, None
        if q is not None:
            du, dx = _bend(backend, levels, x, table, u, q)
            d_table = _scatter(backend, levels, x, len(table), u, q) if need_table else None
        if t is not None:
            if need_x:
                slope = _slope(backend, levels, x, t, u)
                dx = slope if dx is None else dx + slope
            if need_u:
                along = _encode(backend, levels, x, t)
                du = along if du is None else du + along
        return None, None, dx if need_x else None, d_table, du if need_u else None, None, None


class _WeightsOf(Function):
    @staticmethod
    def forward(ctx: Any, backend: TritonBackend, alphas: Tensor) -> Tensor:
        alphas = backend._float(alphas)
        ctx.save_for_backward(alphas)
        ctx.backend = backend
        weights = torch.empty_like(alphas)
        _along_rays(backend._kernels.weights_of, alphas, weights)
        return weights

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_weights: Tensor) -> tuple[Tensor | None, ...]:
        (alphas,) = ctx.saved_tensors
        d_alphas = torch.empty_like(alphas)
        _along_rays(ctx.backend._kernels.weights_of_backward, alphas, ctx.backend._float(d_weights), d_alphas)
        return None, d_alphas


def _along_rays(kernel: Any, alphas: Tensor, *others: Tensor) -> None:
    n, samples = alphas.shape
    if n and samples:
        padded = _padded(samples)
        rays = max(1, 1024 // padded)
        kernel[(_blocks(n, rays),)](alphas, *others, n, samples, RAYS=rays, SP=padded)


def _encode(backend: TritonBackend, levels: Sequence[Level], x: Tensor, table: Tensor) -> Tensor:
    h = torch.empty(len(x), 2 * len(levels), device=x.device)
    _over_points(backend, "encode", levels, len(table), x, backend._table(table), h)
    return h


def _slope(backend: TritonBackend, levels: Sequence[Level], x: Tensor, table: Tensor, u: Tensor) -> Tensor:
    dx = torch.empty(len(x), 3, device=x.device)
    _over_points(backend, "encode_slope", levels, len(table), x, backend._table(table), backend._float(u), dx)
    return dx


def _bend(backend: TritonBackend, levels: Sequence[Level], x: Tensor, table: Tensor, u: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
    u, q = backend._float(u), backend._points(q)
    du, dx = torch.empty_like(u), torch.empty(len(x), 3, device=x.device)
    _over_points(backend, "encode_bend", levels, len(table), x, backend._table(table), u, q, du, dx)
    return du, dx


def _scatter(backend: TritonBackend, levels: Sequence[Level], x: Tensor, entries: int, g: Tensor, q: Tensor | None) -> Tensor:
    d_table = torch.zeros(entries, 2, device=x.device)
    second = q is not None
    _over_points(backend, "scatter", levels, entries, x, d_table, backend._float(g), x if q is None else backend._points(q), SECOND=second)
    return d_table


def _over_points(
    backend: TritonBackend, kernel: str, levels: Sequence[Level], entries: int, x: Tensor, table: Tensor, *others: Tensor, **options: Any
) -> None:
    """A kernel of the hash grid alone: (x, table or its gradient, levels, ...)."""
    n, block = len(x), 64
    packed, sizes = backend._grid(levels, entries)
    if n:
        getattr(backend._kernels, kernel)[(_blocks(n, block),)](
            backend._points(x), table, packed, *others, n, **options, **sizes, BLOCK=block, num_warps=4, num_stages=1
        )


def _summed(partial: Tensor | None, weights: Sequence[Tensor]) -> tuple[Tensor | None, ...]:
    """Each weight's gradient from the programs' shares (programs, size)."""
    if partial is None:
        return (None,) * len(weights)
    parts = torch.split(partial.sum(0), [w.numel() for w in weights])
    return tuple(part.view_as(w) for part, w in zip(parts, weights, strict=True))


def _levels(levels: Sequence[Level]) -> Tensor:
    """What `triton_kernels._levels` reads: (7, number of levels padded) int32."""
    rows = torch.zeros(7, _padded(len(levels)), dtype=torch.int64)
    rows[4] = 8
    for i, level in enumerate(levels):
        along = PRIMES[1:] if level.hashed else (level.resolution, level.resolution**2)
        rows[1:, i] = torch.tensor([*along, level.offset, level.size, 2**32 // level.size, level.hashed])
    packed = ((rows + 2**31) % 2**32 - 2**31).to(torch.int32)  # unsigned numbers, bit by bit
    packed[0, : len(levels)] = torch.tensor([level.scale for level in levels]).view(torch.int32)
    return packed


def launch_parameters(precision: str, capability: tuple[int, int]) -> dict[str, Launch]:
    """LAUNCH for a GPU of this compute capability: before 8.0 there is no TF32."""
    plain = {"PRECISION": "ieee"} if capability < (8, 0) else {}
    return {name: launch | plain if launch["PRECISION"] == "tf32x3" else launch for name, launch in LAUNCH[precision].items()}


def _fits(widths: tuple[int, ...]) -> bool:
    """Whether the fused MLP takes these widths: 1 to 4 layers and, padded, at most 2^14 weights."""
    padded = [_padded(w) for w in widths]
    return 2 <= len(widths) <= FUSED_LAYERS + 1 and sum(a * b for a, b in pairwise(padded)) <= FUSED_WEIGHTS


def _padded(width: int) -> int:
    """A power of two, at least 16: what matrix products on a GPU take."""
    return max(16, 1 << (width - 1).bit_length())


def _blocks(n: int, block: int) -> int:
    return -(-n // block)
