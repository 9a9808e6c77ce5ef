"""The native library behind the backend's names: AVX2 where the processor has it, the same source in portable vectors elsewhere.

All arguments are handed over as contiguous float32 tensors on the CPU; whatever has to be copied for that stays alive until the
call returns. The library's notation and its promise about threads (the same bits for any number of them) are in `native/native.h`.
"""

import ctypes
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from ..compositing import weights_of
from ..encoding import Level
from ..errors import BackendError
from ..rays import Batch, Rays
from . import Aim, Gradients, Learned, Look, Parameters, Photographs, Placed, Refresh

ABI = 7
SETS = ("portable", "avx2")  # instruction sets, by the library's numbers
LIBRARY = "_fastsurf_native"
COLORS, HARMONICS = 3, 16  # outputs of the colour head that count, and its inputs for the direction
PROBLEMS = {
    2: "this processor lacks the instruction set",
    3: "an argument the library can't take, such as a table shorter than its levels or a step too small for a ray",
}


class _Level(ctypes.Structure):
    _fields_ = (
        ("scale", ctypes.c_float),
        ("resolution", ctypes.c_int32),
        ("offset", ctypes.c_uint32),
        ("size", ctypes.c_uint32),
        ("hashed", ctypes.c_int32),
    )


class _Step(ctypes.Structure):
    """native.h's Step."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("rays_o", "rays_d", "t_near", "t_far", "t")),
        *((name, ctypes.c_void_p) for name in ("occupied", "behind", "target", "mask", "pairs", "known", "wanted")),
        *((name, ctypes.c_int64) for name in ("n", "n_pairs", "n_known")),
        *((name, ctypes.c_int32) for name in ("samples", "cells")),
        *((name, ctypes.c_float) for name in ("prior_radius", "sharpness", "least_weight")),
        *((f"{name}_weight", ctypes.c_float) for name in ("color", "mask", "smooth", "points")),
        ("inputs", ctypes.c_int32),
        ("huber", ctypes.c_float),
        ("outlier", ctypes.c_float),
        ("plain_colors", ctypes.c_int32),
        ("appearance", ctypes.c_void_p),
        ("trust", ctypes.c_void_p),
        ("emphasis", ctypes.c_void_p),
        ("dimensions", ctypes.c_int32),
    )


class _Photographs(ctypes.Structure):
    """native.h's Photographs."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("nodes", "first", "counts", "per_pixel", "rotations", "origins")),
        *((name, ctypes.c_void_p) for name in ("offsets", "widths", "colors", "coverage")),
        ("n_views", ctypes.c_int64),
        *((f"{pool}_{name}", kind) for pool in ("object", "rest") for name, kind in (
            ("ends", ctypes.c_void_p), ("shifts", ctypes.c_void_p), ("runs", ctypes.c_int64), ("size", ctypes.c_int64)
        )),
    )  # fmt: skip


class _Seen(ctypes.Structure):
    """native.h's Seen."""

    _fields_ = tuple((name, ctypes.c_void_p) for name in ("origins", "directions", "t_near", "t_far", "rgb", "mask", "view", "pixel"))


class _Aim(ctypes.Structure):
    """native.h's Aim."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("rays_o", "rays_d", "t_near", "t_far")),
        ("n", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("offset", "jitter", "occupied")),
        *((name, ctypes.c_int32) for name in ("cells", "front", "interval", "secant_steps")),
        *((name, ctypes.c_float) for name in ("prior_radius", "step", "width", "close")),
    )


class _Placed(ctypes.Structure):
    """native.h's Placed."""

    _fields_ = tuple((name, ctypes.c_void_p) for name in ("t", "surface", "hit", "on", "hits"))


class _Refresh(ctypes.Structure):
    """native.h's Refresh."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("values", "occupied")),
        *((name, ctypes.c_int32) for name in ("cells", "lot", "everywhere")),
        ("seed", ctypes.c_uint32),
        *((name, ctypes.c_float) for name in ("threshold", "decay", "due", "sharpness", "prior_radius")),
    )


class _StepResult(ctypes.Structure):
    """native.h's StepResult."""

    _fields_ = tuple(
        (name, ctypes.c_void_p) for name in ("losses", "d_table", "d_w1", "d_w2", "d_head", "d_behind", "d_appearance", "errors")
    )


class NativeBackend:
    """The C++ kernels. Float32 on the CPU."""

    name = "native"
    device = torch.device("cpu")
    capturable = False

    def __init__(self, threads: int = 0, instructions: str | None = None) -> None:
        """
        Args:
            threads: 0 follows `torch.get_num_threads()` at every call.
            instructions: one of SETS; None takes the best that runs here.

        Raises:
            BackendError: the library is missing, of another version, or its instructions don't run here.
        """
        self.note = ""
        self._library = _load()
        known = [name for number, name in enumerate(SETS) if self._library.fastsurf_has(number)]
        if instructions is not None and instructions not in known:
            raise BackendError(f"the native library has no {instructions} kernels for this processor: it has {', '.join(known)}")
        self._set = SETS.index(instructions or known[-1])
        self._threads = threads

    @property
    def detail(self) -> str:
        threads = self.thread_count()
        return f"{SETS[self._set].upper() if self._set else 'portable'}, {threads} thread{'s' if threads > 1 else ''}"

    def encode(self, x: Tensor, table: Tensor, levels: Sequence[Level]) -> Tensor:
        """See `Backend.encode`."""
        h: Tensor = _Encode.apply(self, tuple(levels), x, table)  # type: ignore[no-untyped-call]
        return h

    def mlp(self, x: Tensor, weights: Sequence[Tensor]) -> Tensor:
        """See `Backend.mlp`."""
        y: Tensor = _Mlp.apply(self, x, *weights)  # type: ignore[no-untyped-call]
        return y

    def field(self, x: Tensor, table: Tensor, levels: Sequence[Level], weights: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """See `Backend.field`."""
        first, second = weights
        out, gradient = _Field.apply(self, tuple(levels), x.detach(), table, first, second)  # type: ignore[no-untyped-call]
        return out, gradient

    def field_value(self, x: Tensor, table: Tensor, levels: Sequence[Level], weights: Sequence[Tensor]) -> Tensor:
        """See `Backend.field_value`."""
        first, second = weights
        value = torch.empty(len(x))
        self._call("field_value", *_grid(tuple(levels), table), *_net(levels, first, second), _points(x), len(x), value)
        return value

    def occupied_steps(
        self, rays_o: Tensor, rays_d: Tensor, t_near: Tensor, t_far: Tensor, occupied: Tensor, step: float, most: int
    ) -> tuple[Tensor, Tensor]:
        """See `Backend.occupied_steps`."""
        n, cells = len(t_near), occupied.shape[0]
        assert occupied.dtype == torch.bool and occupied.shape == (cells, cells, cells), (occupied.dtype, occupied.shape)
        assert rays_o.shape == rays_d.shape == (n, 3) and t_far.shape == (n,), (rays_o.shape, rays_d.shape, t_near.shape, t_far.shape)
        t, count = torch.empty(n, most), torch.empty(n, dtype=torch.int64)
        assert step > 0 and most >= 0, (step, most)
        rays = [_float(a) for a in (rays_o, rays_d, t_near, t_far)]
        self._call("occupied_steps", *rays, n, occupied.contiguous(), cells, step, most, t, count)
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
        bundle = [_points(rays.origins), _points(rays.directions), _float(rays.t_near), _float(rays.t_far)]
        assert all(len(a) == n for a in (*bundle, count)) and count.dtype == torch.int64, (n, count.dtype, *(len(a) for a in bundle))
        t, hit = torch.empty(n), torch.empty(n, dtype=torch.bool)
        field = (*_grid(tuple(levels), table), *_net(levels, *weights), prior_radius)
        self._call("first_crossing", *field, *bundle, n, _float(lattice), count.contiguous(), most, step, secant_steps, t, hit)
        return t, hit

    def weights_of(self, alphas: Tensor) -> Tensor:
        """See `Backend.weights_of`."""
        return weights_of(alphas)

    def see(self, photographs: Photographs, drawn: Tensor, n_object: int) -> Batch:
        """See `FusedBackend.see`."""
        p, n = photographs, len(drawn)
        floats = [_float(a) for a in (p.nodes, p.per_pixel, p.rotations, p.origins)]
        counts = [p.first, p.counts, p.offsets, p.widths, drawn, *(a for pool in p.pools for a in pool[:2])]
        assert all(a.dtype == torch.int64 and a.is_contiguous() for a in counts), [(a.dtype, a.stride()) for a in counts]
        assert p.colors.is_contiguous() and p.colors.dtype == torch.uint8 and (p.coverage is None or p.coverage.is_contiguous())
        nodes, per_pixel, rotations, origins = (a.data_ptr() for a in floats)
        packed = _Photographs(
            nodes, p.first.data_ptr(), p.counts.data_ptr(), per_pixel, rotations, origins, p.offsets.data_ptr(), p.widths.data_ptr(),
            p.colors.data_ptr(), None if p.coverage is None else p.coverage.data_ptr(), len(p.widths),
            *(a for ends, shifts, size in p.pools for a in (ends.data_ptr(), shifts.data_ptr(), len(ends), size)),
        )  # fmt: skip
        o, d, near, far, rgb = torch.empty(n, 3), torch.empty(n, 3), torch.empty(n), torch.empty(n), torch.empty(n, 3)
        mask, (view, pixel) = None if p.coverage is None else torch.empty(n), torch.empty(2, n, dtype=torch.int64)
        seen = _Seen(*(None if a is None else a.data_ptr() for a in (o, d, near, far, rgb, mask, view, pixel)))
        self._call("see", ctypes.byref(packed), drawn, n, n_object, ctypes.byref(seen))
        return Batch(Rays(o, d, near, far, view), rgb, mask, pixel)

    def place(self, aim: Aim, parameters: Parameters) -> Placed:
        """See `FusedBackend.place`."""
        rays, p, (n, samples), cells = aim.rays, parameters, aim.jitter.shape, len(aim.occupied)
        assert aim.occupied.dtype == torch.bool and aim.occupied.shape == (cells,) * 3, (aim.occupied.dtype, aim.occupied.shape)
        bundle = [_points(rays.origins), _points(rays.directions), _float(rays.t_near), _float(rays.t_far)]
        drawn = [_float(aim.offset), _float(aim.jitter)]
        assert all(len(a) == n for a in (*bundle, *drawn)) and aim.front <= samples, (n, *(a.shape for a in (*bundle, *drawn)), aim.front)
        occupied = aim.occupied.contiguous()
        packed = _Aim(
            *(a.data_ptr() for a in bundle), n, *(a.data_ptr() for a in (*drawn, occupied)), cells, aim.front, samples - aim.front,
            aim.secant_steps, p.prior_radius, aim.step, aim.width, aim.close,
        )  # fmt: skip
        t, surface, hit, on = torch.empty(n, samples), torch.empty(n), torch.empty(n, dtype=torch.bool), torch.empty(n + 1, 3)
        hits = torch.empty(1, dtype=torch.int64)
        placed = _Placed(*(a.data_ptr() for a in (t, surface, hit, on, hits)))
        self._call("place", *_grid(tuple(p.levels), p.table), *_net(p.levels, p.w1, p.w2), ctypes.byref(packed), ctypes.byref(placed))
        return Placed(t, hit, surface, on[: int(hits)])

    def update_grid(self, refresh: Refresh, parameters: Parameters) -> None:
        """See `FusedBackend.update_grid`."""
        r, p = refresh, parameters
        cells = len(r.values)
        for a, kind in ((r.values, torch.float32), (r.occupied, torch.bool)):
            assert a.shape == (cells,) * 3 and a.dtype == kind and a.is_contiguous(), (a.shape, a.dtype, a.stride())
        packed = _Refresh(
            r.values.data_ptr(), r.occupied.data_ptr(), cells, r.lot, r.everywhere, r.seed,
            r.threshold, r.decay, r.due, p.sharpness, p.prior_radius,
        )  # fmt: skip
        self._call("update_grid", *_grid(tuple(p.levels), p.table), *_net(p.levels, p.w1, p.w2), ctypes.byref(packed))

    def train_step(self, look: Look, parameters: Parameters, gradients: Gradients) -> Learned:
        """See `FusedBackend.train_step`."""
        rays, p = look.rays, parameters
        n, cells = len(rays), look.occupied.shape[0]
        assert look.t.ndim == 2 and look.pairs.ndim == 3 and look.pairs.shape[::2] == (2, 3), (look.t.shape, look.pairs.shape)
        assert look.occupied.dtype == torch.bool and look.occupied.shape == (cells, cells, cells), look.occupied.shape
        assert len(look.known) == len(look.wanted), (look.known.shape, look.wanted.shape)
        bundle = [_points(rays.origins), _points(rays.directions), _float(rays.t_near), _float(rays.t_far), _float(look.t)]
        colors = [_points(look.behind), _points(look.target), None if look.mask is None else _float(look.mask)]
        embedded = None if look.appearance is None else _float(look.appearance)
        trust, emphasis = (None if a is None else _float(a) for a in (look.trust, look.emphasis))
        per_ray = [a for a in (*bundle, *colors, embedded, trust) if a is not None]
        assert all(len(a) == n for a in per_ray) and (embedded is None or embedded.ndim == 2), [a.shape for a in per_ray]
        assert emphasis is None or emphasis.shape == look.pairs.shape[1:2], (emphasis.shape, look.pairs.shape)
        dimensions = 0 if embedded is None else embedded.shape[1]
        used = _used_part(p.head, COLORS, HARMONICS + p.w2.shape[0] - 1 + 6 + dimensions)
        widths, head = _layers(used)
        losses, d_behind, d_head = torch.empty(5), torch.empty(n, 3), torch.empty_like(head)
        held = [*bundle, look.occupied.contiguous(), *colors, _float(look.pairs), _points(look.known), _float(look.wanted)]
        step = _Step(
            *(None if a is None else a.data_ptr() for a in held), n, look.pairs.shape[1], len(look.known), look.t.shape[1], cells,
            p.prior_radius, p.sharpness, look.least_weight, *look.weights, sum(1 << "dhnx".index(key) for key in p.inputs),
            look.huber, look.outlier, look.plain_colors,
            *(None if a is None else a.data_ptr() for a in (embedded, trust, emphasis)), dimensions,
        )  # fmt: skip
        d_embedded = None if embedded is None else torch.empty_like(embedded)
        errors = torch.empty(n, 3)
        into = [losses, gradients.table, gradients.w1, gradients.w2, d_head, d_behind, d_embedded, errors]
        for a, b in zip((gradients.table, gradients.w1, gradients.w2), (p.table, p.w1, p.w2), strict=True):
            assert a.shape == b.shape and a.is_contiguous() and a.dtype == torch.float32, (a.shape, b.shape, a.dtype)
        result = _StepResult(*(None if a is None else a.data_ptr() for a in into))
        field = (*_grid(tuple(p.levels), p.table), *_net(p.levels, p.w1, p.w2))
        layout = (ctypes.c_int32 * len(widths))(*widths)
        self._call("train_step", *field, layout, len(p.head), head, ctypes.byref(step), ctypes.byref(result))
        parts = torch.split(d_head, [w.numel() for w in used])
        for gradient, part, w in zip(gradients.head, parts, used, strict=True):
            gradient.zero_()[: w.shape[0], : w.shape[1]] = part.view_as(w)
        return Learned(losses, d_behind, d_embedded, errors)

    def adam_(
        self, p: Tensor, grad: Tensor, m: Tensor, v: Tensor, step: int, rate: float, betas: tuple[float, float], eps: float
    ) -> None:
        """See `Backend.adam_`."""
        for a in (p, m, v):
            assert a.is_contiguous() and a.dtype == torch.float32 and a.shape == grad.shape, (a.shape, a.dtype, a.stride(), grad.shape)
        root = (1 - betas[1] ** step) ** -0.5
        self._call("adam", p, _float(grad), m, v, p.numel(), rate / (1 - betas[0] ** step), *betas, eps, root)

    def thread_count(self) -> int:
        """Of the next call."""
        return self._threads or torch.get_num_threads()

    def _call(self, function: str, *arguments: Any) -> None:
        """`arguments` holds every tensor until the library is done with its memory."""
        pointers = [a.data_ptr() if isinstance(a, Tensor) else a for a in arguments]
        call(function, *pointers, instructions=self._set, threads=self.thread_count())


def available() -> bool:
    """Whether the library can be loaded."""
    try:
        _load()
    except BackendError:
        return False
    return True


def call(function: str, *arguments: Any, instructions: int = 0, threads: int = 0) -> None:
    """Call fastsurf_`function`; `instructions` counts in SETS, 0 threads follow `torch.get_num_threads()`."""
    code = getattr(_load(), f"fastsurf_{function}")(instructions, threads or torch.get_num_threads(), *arguments)
    if code == 1:
        raise MemoryError(f"native {function}: out of memory")
    if code:
        raise BackendError(f"native {function}: {PROBLEMS.get(code, code)}")


class _Field(Function):
    @staticmethod
    def forward(
        ctx: Any, backend: NativeBackend, levels: tuple[Level, ...], x: Tensor, table: Tensor, first: Tensor, second: Tensor
    ) -> tuple[Tensor, Tensor]:
        n, width = len(x), 2 * len(levels)
        x, table, first, second = _points(x), _float(table), _float(first), _float(second)
        out, gradient = torch.empty(n, second.shape[0]), torch.empty(n, 3)
        saved: tuple[Tensor | None, ...] = (None, None, None)
        if any(ctx.needs_input_grad):
            rows, padded = _up(n), _up(width)
            saved = (torch.empty(rows * padded), torch.empty(rows * width * 3), torch.empty(rows * padded))
            ctx.save_for_backward(x, first, second, *saved)
        backend._call("field", *_grid(levels, table), *_net(levels, first, second), x, n, out, gradient, *saved)
        ctx.backend, ctx.levels, ctx.entries = backend, levels, len(table)
        ctx.set_materialize_grads(False)
        return out, gradient

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out: Tensor | None, d_gradient: Tensor | None) -> tuple[Tensor | None, ...]:
        x, first, second, *saved = ctx.saved_tensors
        n, (to_table, *to_weights) = len(x), ctx.needs_input_grad[3:]
        if d_out is None and d_gradient is None:
            return (None,) * 6
        d_table = torch.empty(ctx.entries, 2) if to_table else None
        d_first, d_second = (torch.empty_like(first), torch.empty_like(second)) if any(to_weights) else (None, None)
        g_h = torch.empty_like(saved[0]) if to_table and d_out is not None else None
        ctx.backend._call(
            "field_backward", *_levels(ctx.levels), ctx.entries, *_net(ctx.levels, first, second), x, n, *saved,
            None if d_out is None else _float(d_out), None if d_gradient is None else _float(d_gradient), g_h, d_table, d_first, d_second,
        )  # fmt: skip
        return None, None, None, d_table, d_first, d_second


class _Mlp(Function):
    @staticmethod
    def forward(ctx: Any, backend: NativeBackend, x: Tensor, *weights: Tensor) -> Tensor:
        n, (widths, packed) = len(x), _layers(weights)
        assert x.shape[1] == widths[0], (x.shape, widths)
        x = _float(x)
        y, hidden = torch.empty(n, widths[-1]), None
        if any(ctx.needs_input_grad):
            hidden = torch.empty(n * sum(_up(w) for w in widths[1:-1]))
            ctx.save_for_backward(x, packed, hidden)
        backend._call("mlp", (ctypes.c_int32 * len(widths))(*widths), len(weights), packed, x, n, y, hidden)
        ctx.backend, ctx.widths = backend, widths
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, packed, hidden = ctx.saved_tensors
        widths, n = ctx.widths, len(x)
        dx, d_packed = torch.empty_like(x) if ctx.needs_input_grad[1] else None, torch.empty_like(packed)
        ctx.backend._call(
            "mlp_backward", (ctypes.c_int32 * len(widths))(*widths), len(widths) - 1, packed, x, n, hidden, _float(dy), dx, d_packed
        )
        shapes = list(zip(widths[1:], widths[:-1], strict=True))
        return None, dx, *(d.view(shape) for d, shape in zip(torch.split(d_packed, [a * b for a, b in shapes]), shapes, strict=True))


class _Encode(Function):
    """h = E(x, table): the gradient of (h, u) is x -> J^T u and table -> the scatter of u, both again differentiable."""

    @staticmethod
    def forward(ctx: Any, backend: NativeBackend, levels: tuple[Level, ...], x: Tensor, table: Tensor) -> Tensor:
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
        ctx: Any, backend: NativeBackend, levels: tuple[Level, ...], x: Tensor, table: Tensor, u: Tensor, to_x: bool, to_table: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        ctx.backend, ctx.levels = backend, levels
        ctx.save_for_backward(x, table, u)
        ctx.set_materialize_grads(False)
        dx = torch.empty(len(x), 3) if to_x else None
        if dx is not None:
            backend._call("encode_jacobian", *_grid(levels, table), _points(x), len(x), _float(u), None, dx, None, None)
        return dx, _scatter(backend, levels, x, len(table), _float(u), None, None) if to_table else None

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, q: Tensor | None, t: Tensor | None) -> tuple[Tensor | None, ...]:
        """q (n, 3) and t, like the table, are gradients with respect to J^T u and to the scatter of u."""
        backend, levels = ctx.backend, ctx.levels
        x, table, u = ctx.saved_tensors
        u = _float(u)
        need_x, need_table, need_u = ctx.needs_input_grad[2:5]
        dx = torch.zeros(len(x), 3) if need_x else None
        du = torch.zeros_like(u) if need_u else None
        d_table = None
        if q is not None:
            q, along, bend = _float(q), torch.empty_like(u), torch.empty(len(x), 3)
            backend._call("encode_jacobian", *_grid(levels, table), _points(x), len(x), u, q, None, along, bend)
            dx = bend if dx is not None else None
            du = along if du is not None else None
            d_table = _scatter(backend, levels, x, len(table), None, u, q) if need_table else None
        if t is not None:
            if dx is not None:
                slope = torch.empty(len(x), 3)
                backend._call("encode_jacobian", *_grid(levels, t), _points(x), len(x), u, None, slope, None, None)
                dx = dx + slope
            if du is not None:
                du = du + _encode(backend, levels, x, t)
        return None, None, dx, d_table, du, None, None


def _encode(backend: NativeBackend, levels: tuple[Level, ...], x: Tensor, table: Tensor) -> Tensor:
    h = torch.empty(len(x), 2 * len(levels))
    backend._call("encode", *_grid(levels, table), _points(x), len(x), h)
    return h


def _scatter(
    backend: NativeBackend, levels: tuple[Level, ...], x: Tensor, n_entries: int, g: Tensor | None, u: Tensor | None, q: Tensor | None
) -> Tensor:
    d_table = torch.empty(n_entries, 2)
    backend._call("scatter", *_levels(levels), n_entries, _points(x), len(x), g, u, q, d_table)
    return d_table


def _grid(levels: tuple[Level, ...], table: Tensor) -> tuple[Any, ...]:
    assert table.ndim == 2 and table.shape[1] == 2, table.shape
    return *_levels(levels), _float(table), len(table)


def _net(levels: Sequence[Level], first: Tensor, second: Tensor) -> tuple[Any, ...]:
    assert first.shape[1] == 2 * len(levels) and second.shape[1] == first.shape[0], (len(levels), first.shape, second.shape)
    return first.shape[0], second.shape[0], _float(first), _float(second)


def _used_part(weights: Sequence[Tensor], outputs: int, inputs: int) -> list[Tensor]:
    """An MLP's weights without those of the last outputs and inputs, which are padding."""
    used = [w.detach() for w in weights]
    used[0] = used[0][:, :inputs]
    used[-1] = used[-1][:outputs]
    return used


def _layers(weights: Sequence[Tensor]) -> tuple[list[int], Tensor]:
    """Widths of an MLP from its inputs on, and its weights one after the other."""
    widths = [weights[0].shape[1], *(w.shape[0] for w in weights)]
    assert [w.shape[1] for w in weights] == widths[:-1], [w.shape for w in weights]
    return widths, torch.cat([_float(w).flatten() for w in weights])


@lru_cache(maxsize=64)
def _levels(levels: tuple[Level, ...]) -> tuple[Any, int]:
    packed = (_Level * len(levels))(*(_Level(v.scale, v.resolution, v.offset, v.size, v.hashed) for v in levels))
    return packed, len(levels)


def _points(x: Tensor) -> Tensor:
    assert x.ndim == 2 and x.shape[1] == 3, x.shape
    return _float(x)


def _float(a: Tensor) -> Tensor:
    if a.dtype != torch.float32 or a.device.type != "cpu":
        raise BackendError(f"the native backend wants float32 on the CPU, found {a.dtype} on {a.device}: use the reference backend")
    return a.detach().contiguous()


def _up(width: int) -> int:
    return -(-width // 8) * 8


@lru_cache(maxsize=1)
def _load() -> ctypes.CDLL:
    folder = Path(__file__).parent
    found = [path for suffix in (".so", ".dylib", ".dll") if (path := folder / f"{LIBRARY}{suffix}").is_file()]
    if not found:
        raise BackendError(f"no native library in {folder}: install GCC 12 or Clang, then install fastsurf again")
    try:
        library = ctypes.CDLL(str(found[0]))
        version = library.fastsurf_abi()
    except (OSError, AttributeError) as e:
        raise BackendError(f"{found[0]} can't be loaded ({e}): reinstall fastsurf") from None
    if version != ABI:
        raise BackendError(f"{found[0]} has version {version}, want {ABI}: reinstall fastsurf")
    pointer, i32, i64, f32 = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64, ctypes.c_float
    grid, net, points = [pointer, i32, pointer, i64], [i32, i32, pointer, pointer], [pointer, i64]
    arguments: dict[str, list[Any]] = {
        "encode": [*grid, *points, pointer],
        "encode_jacobian": [*grid, *points, *[pointer] * 5],
        "scatter": [pointer, i32, i64, *points, *[pointer] * 4],
        "field": [*grid, *net, *points, *[pointer] * 5],
        "field_backward": [pointer, i32, i64, *net, *points, *[pointer] * 9],
        "field_value": [*grid, *net, *points, pointer],
        "mlp": [pointer, i32, pointer, *points, *[pointer] * 2],
        "mlp_backward": [pointer, i32, pointer, *points, *[pointer] * 4],
        "first_crossing": [*grid, *net, f32, *[pointer] * 4, i64, pointer, pointer, i64, f32, i32, pointer, pointer],
        "see": [pointer, pointer, i64, i64, pointer],
        "place": [*grid, *net, pointer, pointer],
        "update_grid": [*grid, *net, pointer],
        "train_step": [*grid, *net, *[pointer, i32, pointer], *[pointer] * 2],
        "adam": [*[pointer] * 4, i64, *[f32] * 5],
        "occupied_steps": [*[pointer] * 4, i64, pointer, i32, f32, i64, pointer, pointer],
        "extraction_open": [i32, i32, f32, pointer, i32, pointer],
        "extraction_plan": [pointer, pointer],
        "extraction_points": [pointer, i64, i64, pointer],
        "extraction_accept": [pointer, i64, i64, pointer],
        "extraction_size": [*[pointer] * 3],
        "extraction_write": [*[pointer] * 3],
        "extraction_close": [pointer],
    }
    for name, types in arguments.items():
        function = getattr(library, f"fastsurf_{name}")
        function.argtypes, function.restype = [i32, i32, *types], i32
    return library
