"""The Triton kernels against the reference in float64, on a GPU or in Triton's interpreter, and compiled for GPUs that aren't here.

Tests of values take the fixture `backend`: they run on a GPU where there is one. Where there is none, one test runs all of them again in
a second process with TRITON_INTERPRET=1, which Triton reads when it is imported.
"""

import importlib.util
import itertools
import math
import os
import subprocess
import sys

import pytest
import torch
from test_backends import Bumps, Problem, assert_near, rays
from torch.autograd import grad

from fastsurf.backends import triton as triton_backend
from fastsurf.backends.reference import ReferenceBackend
from fastsurf.backends.triton import LAUNCH, TritonBackend, launch_parameters
from fastsurf.compositing import weights_of
from fastsurf.errors import BackendError
from fastsurf.rays import Rays
from fastsurf.surface import search

INSTALLED = importlib.util.find_spec("triton") is not None
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
REFERENCE = ReferenceBackend()
SCALE = 1 if INTERPRETED else 50  # sizes on a GPU, where what differs between many programs counts
RAYS = 16 if INTERPRETED else 2000
TOLERANCE = {"exact": 1e-5, "fast": 5e-3}  # relative error of each result's norm
compiles = pytest.mark.skipif(INTERPRETED or not INSTALLED, reason="Triton is not installed, or interprets")
pytestmark = pytest.mark.filterwarnings("ignore:(invalid value|divide by zero|overflow):RuntimeWarning")  # NumPy's, in the interpreter


def repair_interpreter() -> None:
    """Two faults of Triton's (3.4 to 3.7): scalars are arrays of one element, which NumPy from 2.4 on makes no int of; and each call of a
    function within a kernel wraps the language once more, which costs two milliseconds, and more each time."""
    from triton.runtime import interpreter

    patch, patched = interpreter._patch_lang_tensor, set()

    def patch_tensor(tensor, *scope):  # what is undone afterwards, from Triton 3.5 on
        patch(tensor, *scope)
        set_attribute = scope[0].set_attr if scope else setattr
        set_attribute(tensor, "__index__", lambda self: self.handle.data.item())

    def call(self, *args, **kwargs):
        if self.fn.__module__ not in patched:
            patched.add(self.fn.__module__)
            interpreter._patch_lang(self.fn)
        return self.rewrite()(*args, **kwargs)

    interpreter._patch_lang_tensor, interpreter.InterpretedFunction.__call__ = patch_tensor, call


if INTERPRETED and INSTALLED:
    repair_interpreter()


def make_backend(precision: str = "exact") -> TritonBackend:
    if not INSTALLED:
        pytest.skip("Triton is not installed (it exists for Linux)")
    if not INTERPRETED and not torch.cuda.is_available():
        pytest.skip("no GPU: test_values_in_the_interpreter runs this")
    return TritonBackend(precision, DEVICE)


@pytest.fixture
def backend() -> TritonBackend:
    return make_backend()


@pytest.mark.parametrize("error", [RuntimeError("Failed to find C compiler.\nSet CC"), FileNotFoundError()])
def test_a_triton_that_does_not_work_is_one_line(backend, monkeypatch, error):
    class Broken:
        def __getitem__(self, grid):
            raise error

    monkeypatch.setattr(backend._kernels, "adam", Broken())
    with pytest.raises(BackendError, match="Triton is installed but does not work") as caught:
        make_backend()
    assert "\n" not in str(caught.value)


def test_a_triton_that_computes_something_else_is_refused(backend, monkeypatch):
    class Idle:
        def __getitem__(self, grid):
            return lambda *_, **__: None

    monkeypatch.setattr(backend._kernels, "adam", Idle())
    with pytest.raises(BackendError, match=r"computes 0 where -0.5 is right"):
        make_backend()


@pytest.fixture(params=["exact", "fast"])
def either(request) -> TritonBackend:
    return make_backend(request.param)


def to(device, a):
    return a.detach().to(device).requires_grad_(a.requires_grad)


# ---- values


@pytest.mark.parametrize("shape", [(12, 64, 16, 40), (3, 48, 13, 7), (4, 20, 1, 1), (17, 130, 16, 33)])
def test_field_with_all_its_gradients(either, shape):
    levels, hidden, outputs, n = shape
    problem = Problem(levels, hidden, outputs, n * SCALE)

    def values(backend, kind, device):
        x, table, weights = problem.cast(kind)
        x, table, *weights = (to(device, a) for a in (x, table, *weights))
        out, gradient = backend.field(x, table, problem.levels, weights)
        d_out, d_gradient = problem.d_out.to(kind).to(device), problem.d_gradient.to(kind).to(device)
        parameters = (table, *weights)
        results = [
            out, gradient, *grad(out, parameters, 1e-6 * d_out, retain_graph=True),
            *grad(gradient, parameters, 1e-6 * d_gradient, retain_graph=True), *grad((out, gradient), parameters, (d_out, d_gradient)),
        ]  # fmt: skip
        return [a.detach().cpu() for a in results], backend.field_value(x, table, problem.levels, weights).cpu()

    found, found_value = values(either, torch.float32, DEVICE)
    wanted, wanted_value = values(REFERENCE, torch.float64, "cpu")
    # half rounding puts a hidden unit near 0 on the other side of the ReLU's kink, where the gradient of out[0] jumps
    assert_near(found, wanted, 1e-5 if either.precision == "exact" else 5e-2)
    assert_near(found[:1], wanted[:1], TOLERANCE[either.precision])
    assert_near([found_value], [wanted_value])


@pytest.mark.parametrize("shape", [(8, 64, 16, 70), (3, 16, 1, 7), (17, 16, 1, 20)])
def test_encoding_differentiated_twice(backend, shape):
    problem = Problem(*shape[:3], shape[3] * SCALE)

    def values(backend, kind, device):
        x, table, _ = problem.cast(kind)
        x, table = to(device, x.requires_grad_()), to(device, table)
        h = backend.encode(x, table, problem.levels)
        u = h.detach().cos().requires_grad_()
        d_x, d_table = grad(h, (x, table), u, create_graph=True)
        by = (problem.d_gradient.to(kind).to(device), d_table.detach().sin())
        results = (
            h, d_x, d_table, *grad(d_x, (x, table, u), by[0], retain_graph=True), *grad(d_table, (x, u), by[1], retain_graph=True),
            *grad((d_x, d_table), (x, table, u), by),
        )  # fmt: skip
        return [a.detach().cpu() for a in results]

    assert_near(values(backend, torch.float32, DEVICE), values(REFERENCE, torch.float64, "cpu"), 2e-5)


@pytest.mark.parametrize("n", [1, 150])
@pytest.mark.parametrize("widths", [(48, 64, 64, 16), (37, 64, 3), (5, 9), (16, 128, 32, 24, 16), (8, 16, 16, 16, 16, 16), (64, 256, 3)])
def test_mlp(either, widths, n):
    g = torch.Generator().manual_seed(n)
    x = torch.randn(2 * n * SCALE + 50, widths[0], generator=g)
    weights = [torch.randn(b, a, generator=g) / math.sqrt(a) for a, b in itertools.pairwise(widths)]
    y, clear = x.double(), torch.ones(len(x), dtype=torch.bool)
    for w in weights[:-1]:
        y = y @ w.double().T
        clear &= (y.abs() > 1e-5).all(1)
        y = y.relu()
    x = x[clear][: n * SCALE]
    assert len(x) == n * SCALE
    d = 1e-6 * torch.randn(n * SCALE, widths[-1], generator=g)  # small, as gradients of a mean are

    def values(backend, kind, device):
        inputs = [a.to(kind).to(device).requires_grad_() for a in (x, *weights)]
        y = backend.mlp(inputs[0], inputs[1:])
        return [a.detach().cpu() for a in (y, *grad(y, inputs, d.to(kind).to(device)))]

    found, wanted = values(either, torch.float32, DEVICE), values(REFERENCE, torch.float64, "cpu")
    assert_near(found, wanted, 1e-5 if either.precision == "exact" else 5e-2)
    assert_near(found[:1], wanted[:1], TOLERANCE[either.precision])


@pytest.mark.parametrize("shape", [(5, 24), (3, 1), (2, 1000), (70, 7)])
def test_weights_of_samples(backend, shape):
    g = torch.Generator().manual_seed(0)
    alphas = torch.rand(shape, generator=g) ** 3
    alphas[0, ::3], alphas[-1, ::5] = 1.0, 0.0
    d = torch.randn(shape, generator=g)
    wanted_from = alphas.double().requires_grad_()
    wanted = weights_of(wanted_from)
    found_from = alphas.to(DEVICE).requires_grad_()
    found = backend.weights_of(found_from)
    assert_near([found.detach().cpu()], [wanted.detach()], 1e-6)
    # an opaque sample lets 1e-6 through, of which float32 keeps one digit and a half: behind it, gradients are right to that
    assert_near([grad(found, found_from, d.to(DEVICE))[0].cpu()], grad(wanted, wanted_from, d.double()), 5e-2)
    alphas = alphas.clamp(max=0.99)
    wanted_from, found_from = alphas.double().requires_grad_(), alphas.to(DEVICE).requires_grad_()
    by = d.to(DEVICE)
    assert_near([grad(backend.weights_of(found_from), found_from, by)[0].cpu()], grad(weights_of(wanted_from), wanted_from, d.double()))


def test_adam_is_the_usual_one(backend):
    g = torch.Generator().manual_seed(0)
    start = torch.randn(7_001, generator=g)
    wanted, p = start.clone().requires_grad_(), start.to(DEVICE)
    optimizer = torch.optim.Adam([wanted], lr=1e-2, betas=(0.9, 0.99), eps=1e-15)
    m, v = torch.zeros_like(p), torch.zeros_like(p)
    for step in range(1, 4):
        wanted.grad = torch.randn(len(p), generator=g) * (torch.rand(len(p), generator=g) < 0.3)
        backend.adam_(p, wanted.grad.to(DEVICE), m, v, step, 1e-2, (0.9, 0.99), 1e-15)
        optimizer.step()
    torch.testing.assert_close(p.cpu(), wanted.detach(), atol=2e-6, rtol=0)


@pytest.mark.parametrize("cells, most", [(1, 300), (7, 5), (96, 300), (7, 0)])
def test_occupied_steps_equal_the_reference_bit_for_bit(backend, cells, most):
    occupied = torch.rand(cells, cells, cells, generator=torch.Generator().manual_seed(1)) < 0.3
    arguments = rays(20 * SCALE)
    wanted = REFERENCE.occupied_steps(*arguments, occupied, 0.0137, most)
    found = backend.occupied_steps(*(a.to(DEVICE) for a in arguments), occupied.to(DEVICE), 0.0137, most)
    assert all(torch.equal(a.cpu(), b) for a, b in zip(found, wanted, strict=True))


def test_spans_that_are_not_finite_have_no_points(backend):
    full = torch.ones(2, 2, 2, dtype=torch.bool, device=DEVICE)
    far = torch.tensor([math.nan, math.inf, 0.0, -math.inf, 1.0], device=DEVICE)
    o, d, near = torch.zeros(5, 3, device=DEVICE), torch.ones(5, 3, device=DEVICE), torch.zeros(5, device=DEVICE)
    t, count = backend.occupied_steps(o, d, near, far, full, 0.5, 3)
    assert count.tolist() == [0, 0, 0, 0, 2]
    torch.testing.assert_close(t[:4], far[:4, None].expand(4, 3), rtol=0, atol=0, equal_nan=True)
    for a in (o, d):
        a[1:] = math.nan  # in some cell, never outside of the grid
    assert backend.occupied_steps(o, d, near, torch.ones_like(far), full, 0.5, 3)[1].tolist() == [2] * 5


def test_a_step_too_small_to_count_is_refused(backend):
    full = torch.ones(2, 2, 2, dtype=torch.bool, device=DEVICE)
    one = torch.ones(1, device=DEVICE)
    with pytest.raises(ValueError, match="step"):
        backend.occupied_steps(one.expand(1, 3), one.expand(1, 3), 0 * one, one, full, 1e-9, 3)


def crossings(backend, bumps: Bumps, secant_steps: int = 8):
    """`Bumps.crossings` on the backend's device; results on the CPU."""
    r, (table, levels, weights) = bumps.rays, bumps.field
    r = Rays(*(a.to(DEVICE) for a in (r.origins, r.directions, r.t_near, r.t_far, r.image_index)))
    lattice, count = (a.to(DEVICE) for a in bumps.lattice)
    field = (table.to(DEVICE), levels, [w.to(DEVICE) for w in weights])
    t, hit = backend.first_crossing(r, lattice, count, bumps.step, secant_steps, bumps.prior_radius, *field)
    return t.cpu(), hit.cpu()


@pytest.mark.parametrize("share, secant_steps", [(0.3, 8), (1.0, 8), (0.3, 1), (0.3, 0)])
def test_first_crossings_are_those_of_the_general_search(backend, share, secant_steps):
    bumps = Bumps(RAYS, share=share)
    t, hit = crossings(backend, bumps, secant_steps)
    wanted_t, wanted_hit = search(bumps.level, bumps.rays, *bumps.lattice, bumps.step, secant_steps)
    assert (hit != wanted_hit).sum() <= len(hit) // 500 and 0.1 < hit.float().mean() < 0.9  # a level that is but rounding has any sign
    assert torch.equal(t[~hit], bumps.rays.t_far[~hit])
    slope = (bumps.level(bumps.rays.at(wanted_t + 1e-3)) - bumps.level(bumps.rays.at(wanted_t - 1e-3))) / 2e-3
    steep = hit & wanted_hit & (slope.abs() > 0.2)  # else rounding decides where along the ray
    assert steep.sum() > 0.7 * hit.sum()
    torch.testing.assert_close(t[steep], wanted_t[steep], atol=1e-5, rtol=0)


def test_first_crossings_of_a_ball_are_exact(backend):
    bumps = Bumps(RAYS, share=1.0)
    bumps.field[0].zero_()
    t, hit = crossings(backend, bumps)
    o, d = bumps.rays.origins, bumps.rays.directions
    b, c = (o * d).sum(1), (o * o).sum(1) - bumps.prior_radius**2
    exact = -b - (b * b - c).clamp(min=0).sqrt()
    assert hit[c < 0].all() and torch.equal(t[c < 0], bumps.rays.t_near[c < 0])  # starts inside
    clear = (c > 0) & ((b * b - c).abs() > 0.01) & (bumps.rays.t_far > bumps.rays.t_near)
    assert torch.equal(hit[clear], (b < 0)[clear] & (b * b > c)[clear]) and 0 < hit[clear].sum() < clear.sum()
    torch.testing.assert_close(t[clear & hit], exact[clear & hit], atol=1e-5, rtol=0)


def test_rays_without_a_crossing(backend):
    assert [a.shape for a in crossings(backend, Bumps(0))] == [(0,), (0,)]
    for nothing in (Bumps(10, share=0.0), Bumps(10, prior_radius=-9.0)):
        t, hit = crossings(backend, nothing)
        assert not hit.any() and torch.equal(t, nothing.rays.t_far)


def test_rays_that_are_not_finite_cross_nothing_and_stay_alone(backend):
    bumps = Bumps(RAYS)
    t, hit = crossings(backend, bumps)
    bumps.rays.origins[::7], bumps.rays.directions[3::7] = math.nan, math.inf
    broken = torch.isin(torch.arange(len(t)) % 7, torch.tensor([0, 3]))
    found_t, found_hit = crossings(backend, bumps)
    assert not found_hit[broken].any() and torch.equal(found_hit[~broken], hit[~broken])
    torch.testing.assert_close(found_t[~broken], t[~broken], atol=1e-6, rtol=0)


# ---- what holds for all


def everything(backend, problem: Problem):
    """Results of field, mlp and encode, and gradients with respect to x, the table and both weights."""
    _, table, weights = problem.cast(torch.float32)
    x, table, *weights = (to(DEVICE, a) for a in (problem.x.clone().requires_grad_(), table, *weights))
    out, gradient = backend.field(x, table, problem.levels, weights)
    y = backend.mlp(torch.cat([out, gradient, x], 1), [torch.ones(24, out.shape[1] + 6, device=DEVICE), weights[1][:, :24]])
    h = backend.encode(x, table, problem.levels)
    by = (problem.d_out.to(DEVICE), problem.d_gradient.to(DEVICE), y.detach().cos(), h.detach().sin())
    return [out, gradient, y, h, *grad((out, gradient, y, h), (x, table, *weights), by)]


def test_same_bits_again_but_for_the_table(backend):
    problem = Problem(6, 32, 16, 60 * SCALE)
    first, again = everything(backend, problem), everything(backend, problem)
    for i, (a, b) in enumerate(zip(first, again, strict=True)):
        assert torch.equal(a, b) or (i == 5 and (a - b).norm() < 1e-5 * a.norm())


def test_no_points(backend):
    problem = Problem(4, 64, 16, 0)
    found = everything(backend, problem)
    assert [len(a) for a in found[:5]] == [0] * 5
    assert all(not a.any() for a in found[5:])
    none, full = torch.empty(0, device=DEVICE), torch.ones(3, 3, 3, dtype=torch.bool, device=DEVICE)
    t, count = backend.occupied_steps(none.view(0, 3), none.view(0, 3), none, none, full, 0.1, 4)
    assert t.shape == (0, 4) and count.shape == (0,)
    field = (problem.table.to(DEVICE), problem.levels, [w.to(DEVICE) for w in problem.weights])
    assert backend.field_value(none.view(0, 3), *field).shape == (0,)
    assert backend.weights_of(none.view(0, 24)).shape == (0, 24) and backend.weights_of(none.view(3, 0)).shape == (3, 0)
    backend.adam_(none, none, none, none, 1, 0.1, (0.9, 0.99), 1e-15)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e30, -7.5, 3.0])
def test_positions_far_outside_or_not_finite_stay_in_their_row(backend, value):
    problem = Problem(6, 32, 16, 50)
    field = (problem.table.to(DEVICE), problem.levels, [w.to(DEVICE) for w in problem.weights])
    clean = backend.field(problem.x.to(DEVICE), *field)
    problem.x[::9, 1] = value
    everything(backend, problem)  # nothing is read or written out of bounds
    x = problem.x.to(DEVICE)
    found = backend.field(x, *field)
    rows = torch.ones(50, dtype=torch.bool)
    rows[::9] = False
    assert all(torch.equal(a[rows], b[rows]) for a, b in zip(found, clean, strict=True))
    if not math.isfinite(value):
        assert not found[0][~rows].isfinite().any()
        assert not backend.field_value(x, *field)[~rows].isfinite().any()


def test_positions_a_little_outside_agree(backend):
    problem = Problem(6, 16, 1, 60)
    x = problem.x * 5 - 2
    found = backend.encode(x.to(DEVICE), problem.table.to(DEVICE), problem.levels).cpu()
    assert_near([found], [REFERENCE.encode(x, problem.table, problem.levels)])


def test_broken_weights_are_not_hidden_by_the_relu(either):
    problem = Problem(4, 16, 2, 10)
    problem.weights[0][3, 2] = math.nan
    table, weights = problem.table.to(DEVICE), [w.to(DEVICE) for w in problem.weights]
    assert either.field(problem.x.to(DEVICE), table, problem.levels, weights)[0].isnan().all()
    assert either.mlp(torch.ones(4, 8, device=DEVICE), weights).isnan().all()


def test_views_and_odd_addresses(backend):
    problem = Problem(6, 64, 16, 50)
    x, table, weights = problem.x.to(DEVICE), problem.table.to(DEVICE), [w.to(DEVICE) for w in problem.weights]
    wanted = backend.field(x, table, problem.levels[:5], [weights[0][:, :10].contiguous(), weights[1]])
    odd = torch.empty(3 * 50 + 1, device=DEVICE)[1:].view(50, 3).copy_(x)
    slipped = torch.empty(2 * len(table) + 1, device=DEVICE)[1:].view(-1, 2).copy_(table)
    for x_view in (odd, x.T.contiguous().T):
        found = backend.field(x_view, slipped, problem.levels[:5], [weights[0][:, :10], weights[1].T.contiguous().T])  # coarse levels
        assert_near(found, wanted, 1e-6)


def test_unused_gradients_are_not_made(backend):
    problem = Problem(4, 16, 2, 30)
    _, table, weights = problem.cast(torch.float32)
    x, table, *weights = (to(DEVICE, a) for a in (problem.x, table, *weights))
    by = (problem.d_out.to(DEVICE), problem.d_gradient.to(DEVICE))
    (found,) = grad(backend.field(x, table, problem.levels, [w.detach() for w in weights]), table, by)
    both = grad(backend.field(x, table, problem.levels, weights), (table, *weights), by)
    assert_near([found], both[:1], 1e-6)
    assert_near(grad(backend.field(x, table.detach(), problem.levels, weights), weights, by), both[1:], 1e-6)
    with torch.no_grad():
        assert not backend.field(x, table, problem.levels, weights)[0].requires_grad


def test_what_it_can_not_do_is_refused(backend):
    problem = Problem(4, 16, 2, 5)
    x, table, weights = problem.x.to(DEVICE), problem.table.to(DEVICE), [w.to(DEVICE) for w in problem.weights]
    with pytest.raises(BackendError, match="float32"):
        backend.field(x.double(), table, problem.levels, weights)
    with pytest.raises(BackendError, match="entries"):
        backend.field(x, table[:100], problem.levels, weights)
    with pytest.raises(AssertionError):
        backend.field(x, table, problem.levels[:3], weights)
    with pytest.raises(AssertionError):
        backend.mlp(torch.ones(3, 9, device=DEVICE), weights)
    assert backend.name == "triton" and backend.note == "" and "float32" in backend.detail and "\n" not in backend.detail


# ---- compiled for GPUs that aren't here

NET = {"LEVELS": 12, "LP": 16, "HIDDEN": 64, "CHUNK": 64}
GRID = {"LEVELS": 8, "LP": 16, "BLOCK": 64}  # the background's
COLOR = {"WIDTHS": (48, 64, 64, 16), "PADDED": (64, 64, 64, 16)}
INTS = {"n", "tiles", "cells", "most", "samples", "secant_steps"}
FLOATS = {"step", "prior_radius", "rate", "beta1", "beta2", "eps", "root"}
POINTERS = {"levels": "*i32", "count": "*i64", "occupied": "*i8", "hit": "*i8"}
WITHOUT_PRODUCTS = {  # kernel: (sizes, warps)
    "encode": (GRID, 4), "encode_slope": (GRID, 4), "encode_bend": (GRID, 4), "scatter": ({**GRID, "SECOND": True}, 4),
    "occupied_steps": ({"CHUNK": 128}, 1),
    "weights_of": ({"RAYS": 32, "SP": 32}, 4), "weights_of_backward": ({"RAYS": 32, "SP": 32}, 4), "adam": ({"BLOCK": 1024}, 4),
}  # fmt: skip
PRODUCTS = {
    "field_value": NET, "bracket": NET, "refine": NET,
    "field": {**NET, "OUT": 16, "OP": 16},
    "field_backward": {**NET, "OUT": 16, "OP": 16, "FIRST": True, "SECOND": True, "TO_TABLE": True, "TO_WEIGHTS": True},
    "mlp": COLOR,
    "mlp_backward": {**COLOR, "SIZE": 8192, "TO_X": True, "TO_WEIGHTS": True},
}  # fmt: skip


def compile_for(arch: int, name: str, sizes: dict, num_warps: int, **options: int):
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from fastsurf.backends import triton_kernels

    kernel = getattr(triton_kernels, name)

    def type_of(argument):
        if argument in sizes:
            return "constexpr"
        if argument == "weights" and "WIDTHS" in sizes:
            return ("*fp32",) * (len(sizes["WIDTHS"]) - 1)
        return "i32" if argument in INTS else "fp32" if argument in FLOATS else POINTERS.get(argument, "*fp32")

    signature = {argument: type_of(argument) for argument in kernel.arg_names}
    constants = {(kernel.arg_names.index(key),): value for key, value in sizes.items()}
    aligned = {(i,): [["tt.divisibility", 16]] for i, kind in enumerate(signature.values()) if kind[0] == "*"}
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=aligned)
    return triton.compile(source, target=GPUTarget("cuda", arch, 32), options={"num_warps": num_warps, "num_stages": 1, **options})


@pytest.fixture(scope="module")
def second_process():
    """This file's tests of values in Triton's interpreter."""
    command = [sys.executable, "-P", "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        yield process
        process.kill()


@compiles
@pytest.mark.parametrize("arch", [75, 90])
def test_every_kernel_is_compiled_ahead_of_time(second_process, arch, tmp_path, monkeypatch):  # both take a while: side by side
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    jobs = [(name, sizes, {"num_warps": warps}) for name, (sizes, warps) in WITHOUT_PRODUCTS.items()]
    for precision in LAUNCH:
        for name, launch in launch_parameters(precision, (arch // 10, arch % 10)).items():
            sizes = {key: value for key, value in launch.items() if key.isupper()}
            options = {key: value for key, value in launch.items() if key.islower()}
            jobs.append((name, {**PRODUCTS[name], **sizes}, options))
    for name, sizes, options in jobs:
        compiled = compile_for(arch, name, sizes, **options)
        assert compiled.asm["cubin"][:4] == b"\x7fELF", name
        assert compiled.metadata.shared <= 64 * 1024, (name, compiled.metadata.shared)  # all that sm_75 has


@compiles
def test_values_in_the_interpreter(second_process):
    output, _ = second_process.communicate(timeout=600)
    assert second_process.returncode == 0 and " passed" in output, output[-6000:]


# ---- the choice


def test_without_triton_the_error_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)
    with pytest.raises(BackendError, match=r"^Triton can't be imported .*pip install triton.*$"):
        TritonBackend()


@compiles
def test_without_a_gpu_the_error_is_one_line(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(BackendError, match=r"^no NVIDIA GPU .*--backend native$"):
        TritonBackend()
    with pytest.raises(BackendError, match=r"^the triton backend wants device cuda, found cpu.*$"):
        TritonBackend(device="cpu")
    with pytest.raises(BackendError, match=r"^no precision 'double': want exact or fast$"):
        TritonBackend("double")


def test_networks_that_are_fused():
    assert triton_backend._fits((48, 64, 64, 16)) and triton_backend._fits((32, 32, 32, 16)) and triton_backend._fits((5, 9))
    assert not triton_backend._fits((8, 16, 16, 16, 16, 16)) and not triton_backend._fits((64, 256, 256, 16))
