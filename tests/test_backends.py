"""Every operation against its definition, and the native kernels against the reference, with first and second derivatives.

Points keep a distance from cell faces and from the ReLU's kink: there a derivative jumps, and rounding decides on which side.
"""

import itertools
import math

import pytest
import torch
from torch import Tensor
from torch.autograd import grad, gradcheck, gradgradcheck

from fastsurf.backends import Aim, Parameters, Placed, choose_backend, native
from fastsurf.backends.native import NativeBackend
from fastsurf.backends.reference import ReferenceBackend
from fastsurf.config import GridConfig
from fastsurf.encoding import entries, growth, level_table
from fastsurf.errors import BackendError
from fastsurf.grid import OccupancyGrid
from fastsurf.rays import make_rays
from fastsurf.sampling import place_jittered
from fastsurf.surface import Crossings, march, search

REFERENCE = ReferenceBackend()
SHAPES = [  # levels, hidden, outputs, points
    (8, 64, 16, 500),
    (16, 16, 16, 97),
    (5, 128, 16, 96),
    (3, 48, 13, 7),
    (4, 20, 1, 1),
    (1, 64, 16, 8),
]


def native_backend(instructions: str, threads: int = 2) -> NativeBackend:
    try:
        return NativeBackend(threads, instructions)
    except BackendError as e:
        pytest.skip(str(e))


@pytest.fixture(params=["avx2", "portable"])
def fast(request) -> NativeBackend:
    return native_backend(request.param)


@pytest.fixture(params=["reference", "avx2", "portable"])
def backend(request):
    return REFERENCE if request.param == "reference" else native_backend(request.param)


class Problem:
    """A field with its points, in float32; `cast` gives it in another precision with gradients to be taken."""

    def __init__(self, levels: int, hidden: int, outputs: int, n: int, seed: int = 0, log2_entries: int = 10):
        g = torch.Generator().manual_seed(seed)
        self.levels = level_table(levels, log2_entries, 4, growth(levels, 4, 21))
        self.table = torch.randn(entries(self.levels), 2, generator=g)
        sizes = [(hidden, 2 * levels), (outputs, hidden)]
        self.weights = [torch.randn(size, generator=g) / math.sqrt(size[1]) for size in sizes]
        x = torch.rand(2 * n + 50, 3, generator=g)
        p = torch.stack([x.double() * v.scale + 0.5 for v in self.levels], 1)
        z = REFERENCE.encode(x.double(), self.table.double(), self.levels) @ self.weights[0].double().T
        clear = ((p - p.round()).abs() > 1e-4).flatten(1).all(1) & (z.abs() > 1e-4).all(1)
        self.x = x[clear][:n]
        assert len(self.x) == n
        self.d_out, self.d_gradient = torch.randn(n, outputs, generator=g), torch.randn(n, 3, generator=g)

    def cast(self, kind: torch.dtype) -> tuple[Tensor, Tensor, list[Tensor]]:
        return self.x.to(kind), self.table.to(kind).requires_grad_(), [w.to(kind).requires_grad_() for w in self.weights]


def assert_near(found, wanted, tolerance=1e-5):
    """Relative error of each tensor's norm."""
    for a, b in zip(found, wanted, strict=True):
        assert a.shape == b.shape
        assert (a.double() - b.double()).norm() <= tolerance * b.double().norm() + 1e-30, (a, b)


# ---- the reference is what it says


def test_reference_encoding_has_the_derivatives_of_finite_differences():
    problem = Problem(3, 16, 1, 3, log2_entries=5)
    x, table, _ = problem.cast(torch.float64)
    x.requires_grad_()

    def encode(x, table):
        return REFERENCE.encode(x, table, problem.levels)

    assert gradcheck(encode, (x, table), eps=1e-6)
    assert gradgradcheck(encode, (x, table), eps=1e-6)


def test_reference_field_has_the_derivatives_of_finite_differences():
    problem = Problem(3, 16, 3, 5, log2_entries=6)
    x, table, weights = problem.cast(torch.float64)
    assert gradcheck(lambda t, a, b: REFERENCE.field(x, t, problem.levels, [a, b]), (table, *weights), eps=1e-7)


def test_reference_field_is_its_parts_and_their_autograd_gradient():
    problem = Problem(8, 64, 16, 50)
    x, table, weights = problem.cast(torch.float64)
    x.requires_grad_()
    out = REFERENCE.mlp(REFERENCE.encode(x, table, problem.levels), weights)
    (gradient,) = grad(out[:, 0].sum(), x, create_graph=True)
    found = REFERENCE.field(x, table, problem.levels, weights)
    assert_near(found, (out, gradient), 1e-12)
    by = (problem.d_out.double(), problem.d_gradient.double())
    assert_near(grad(found, (table, *weights), by), grad((out, gradient), (table, *weights), by), 1e-12)


# ---- native equals reference, whose float64 values are taken as the truth


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("shape", SHAPES)
def test_field_with_all_its_gradients(fast, shape, seed):
    problem = Problem(*shape, seed)

    def values(backend, kind):
        x, table, weights = problem.cast(kind)
        out, gradient = backend.field(x, table, problem.levels, weights)
        d_out, d_gradient = problem.d_out.to(kind), problem.d_gradient.to(kind)
        parameters = (table, *weights)
        return (
            out, gradient, backend.field_value(x, table, problem.levels, weights),
            *grad(out, parameters, d_out, retain_graph=True),
            *grad(gradient, parameters, d_gradient, retain_graph=True),
            *grad((out, gradient), parameters, (d_out, d_gradient)),
        )  # fmt: skip

    assert_near(values(fast, torch.float32), values(REFERENCE, torch.float64))


@pytest.mark.parametrize("shape", SHAPES)
def test_encoding_differentiated_twice(fast, shape):
    problem = Problem(*shape)

    def values(backend, kind):
        x, table, _ = problem.cast(kind)
        x.requires_grad_()
        h = backend.encode(x, table, problem.levels)
        u = h.detach().cos().requires_grad_()
        d_x, d_table = grad(h, (x, table), u, create_graph=True)
        by = (problem.d_gradient.to(kind), d_table.detach().sin())
        return (
            h, d_x, d_table,
            *grad(d_x, (x, table, u), by[0], retain_graph=True),
            *grad(d_table, (x, u), by[1], retain_graph=True),
            *grad((d_x, d_table), (x, table, u), by),
        )  # fmt: skip

    assert_near(values(fast, torch.float32), values(REFERENCE, torch.float64), 2e-5)


@pytest.mark.parametrize("n", [1, 7, 96, 1000])
@pytest.mark.parametrize("widths", [(40, 64, 64, 8), (37, 64, 3), (5, 9), (16, 128, 32, 24, 16, 1)])
def test_mlp(backend, widths, n):
    g = torch.Generator().manual_seed(n)
    pairs = list(itertools.pairwise(widths))
    layers = torch.nn.Sequential(*(m for a, b in pairs for m in (torch.nn.Linear(a, b, bias=False), torch.nn.ReLU())))[:-1].double()
    for weight in layers.parameters():
        torch.nn.init.kaiming_uniform_(weight, generator=g)
    x = torch.randn(2 * n + 50, widths[0], generator=g)
    y = x.double()
    clear = torch.ones(len(x), dtype=torch.bool)
    for layer in layers[:-1]:
        y = layer(y)
        if isinstance(layer, torch.nn.Linear):
            clear &= (y.abs() > 1e-5).all(1)
    x = x[clear][:n].requires_grad_()
    assert len(x) == n
    d = torch.randn(n, widths[-1], generator=g)
    weights = [w.detach().float().requires_grad_() for w in layers.parameters()]
    layers.load_state_dict({name: w for name, w in zip(layers.state_dict(), weights, strict=True)})
    found = backend.mlp(x, weights)
    exact_x = x.detach().double().requires_grad_()
    exact = layers(exact_x)
    assert_near((found, *grad(found, (x, *weights), d)), (exact, *grad(exact, (exact_x, *layers.parameters()), d.double())))


def test_adam_is_the_usual_one(backend):
    g = torch.Generator().manual_seed(0)
    p = torch.randn(70_001, generator=g)
    wanted = p.clone().requires_grad_()
    optimizer = torch.optim.Adam([wanted], lr=1e-2, betas=(0.9, 0.99), eps=1e-15)
    m, v = torch.zeros_like(p), torch.zeros_like(p)
    for step in range(1, 6):
        wanted.grad = torch.randn(len(p), generator=g) * (torch.rand(len(p), generator=g) < 0.3)
        backend.adam_(p, wanted.grad, m, v, step, 1e-2, (0.9, 0.99), 1e-15)
        optimizer.step()
    torch.testing.assert_close(p, wanted.detach(), atol=2e-6, rtol=0)
    assert m.abs().sum() > 0 and v.min() >= 0


# ---- lattice points in occupied cells


def rays(n: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    d = torch.nn.functional.normalize(torch.randn(n, 3, generator=g), dim=1)
    return torch.randn(n, 3, generator=g), d, torch.rand(n, generator=g), 3 * torch.rand(n, generator=g)


@pytest.mark.parametrize("cells", [1, 7, 96])
@pytest.mark.parametrize("most", [0, 5, 400])
def test_occupied_steps_equal_the_reference_bit_for_bit(fast, cells, most):
    occupied = torch.rand(cells, cells, cells, generator=torch.Generator().manual_seed(1)) < 0.3
    found, wanted = (backend.occupied_steps(*rays(300), occupied, 0.0137, most) for backend in (fast, REFERENCE))
    assert torch.equal(found[0], wanted[0]) and torch.equal(found[1], wanted[1])


def test_occupied_steps_lie_in_a_slab(backend):
    occupied = torch.zeros(10, 10, 10, dtype=torch.bool)
    occupied[:, :, 6:8] = True  # 0.2 <= z < 0.6
    o, d = torch.tensor([[0.1, -0.3, -1.0]]), torch.tensor([[0.0, 0.0, 1.0]])
    t, count = backend.occupied_steps(o, d, torch.tensor([0.05]), torch.tensor([2.0]), occupied, 0.1, 8)
    assert count.tolist() == [4]
    torch.testing.assert_close(t, torch.tensor([[1.25, 1.35, 1.45, 1.55, 2.0, 2.0, 2.0, 2.0]]))


def test_occupied_steps_of_full_and_empty_grids(backend):
    o, d, near, far = rays(50)
    full = torch.ones(4, 4, 4, dtype=torch.bool)
    t, count = backend.occupied_steps(o, d, near, far, full, 0.25, 20)
    assert torch.equal(count, ((far - near) / 0.25).ceil().clamp(0).long())
    first = count > 0
    assert torch.equal(t[first, 0], near[first]) and torch.equal(t[~first], far[~first, None].expand(-1, 20))
    assert backend.occupied_steps(o, d, near, far, ~full, 0.25, 20)[1].sum() == 0


def test_spans_that_are_not_finite_have_no_points(backend):
    full, far = torch.ones(2, 2, 2, dtype=torch.bool), torch.tensor([float("nan"), float("inf"), 0.0, float("-inf"), 1.0])
    o, d = torch.zeros(5, 3), torch.ones(5, 3)
    assert backend.occupied_steps(o, d, torch.zeros(5), far, full, 0.5, 3)[1].tolist() == [0, 0, 0, 0, 2]
    for a in (o, d):
        a[1:] = float("nan")  # in some cell, never outside of the grid
    assert backend.occupied_steps(o, d, torch.zeros(5), torch.ones(5), full, 0.5, 3)[1].tolist() == [2] * 5


def test_a_step_too_small_to_count_is_refused(backend):
    full = torch.ones(2, 2, 2, dtype=torch.bool)
    with pytest.raises((ValueError, BackendError), match="step"):
        backend.occupied_steps(torch.zeros(1, 3), torch.ones(1, 3), torch.zeros(1), torch.ones(1), full, 1e-9, 3)


# ---- first crossings


class Bumps:
    """A ball with random bumps, rays from around it and from within, and the lattice in cells that may hold its surface."""

    def __init__(self, n: int = 300, share: float = 0.7, prior_radius: float = 0.6):
        problem = Problem(6, 64, 16, 0)
        g = torch.Generator().manual_seed(n)
        self.prior_radius = prior_radius
        self.field = (0.1 * problem.table, problem.levels, problem.weights)
        towards = torch.rand(n, 3, generator=g) * 2.4 - 1.2
        origins = torch.nn.functional.normalize(torch.randn(n, 3, generator=g), dim=1) * 4 * torch.rand(n, 1, generator=g)
        self.rays = make_rays(origins, torch.nn.functional.normalize(towards - origins, dim=1))
        self.occupied = torch.rand(24, 24, 24, generator=g) < share
        self.step = 0.03
        self.lattice = march(self.rays, self.occupied, self.step, REFERENCE, torch.rand(n, generator=g))

    def level(self, x: Tensor) -> Tensor:
        return REFERENCE.field_value((x * 0.5 + 0.5).clamp(0, 1), *self.field) + (self.prior_radius - x.norm(dim=1))

    def crossings(self, backend, secant_steps: int = 8) -> tuple[Tensor, Tensor]:
        return backend.first_crossing(self.rays, *self.lattice, self.step, secant_steps, self.prior_radius, *self.field)

    def parameters(self, sharpness: float) -> Parameters:
        table, levels, (first, second) = self.field
        return Parameters(table, levels, first, second, [], set(), self.prior_radius, sharpness)

    def placed(self, backend, offset: Tensor, jitter: Tensor, front: int, close: float = 1e-6) -> Placed:
        aim = Aim(self.rays, offset, jitter, front, 0.1, self.occupied, self.step, 8, close)
        return backend.place(aim, self.parameters(1.0))


@pytest.mark.parametrize("secant_steps", [0, 1, 8])
@pytest.mark.parametrize("share", [0.3, 1.0])
def test_first_crossings_are_those_of_the_general_search(backend, share, secant_steps):
    bumps = Bumps(share=share)
    t, hit = bumps.crossings(backend, secant_steps)
    wanted_t, wanted_hit = search(bumps.level, bumps.rays, *bumps.lattice, bumps.step, secant_steps)
    assert torch.equal(hit, wanted_hit) and 30 < hit.sum() < 270
    assert torch.equal(t[~hit], bumps.rays.t_far[~hit])
    slope = (bumps.level(bumps.rays.at(wanted_t + 1e-3)) - bumps.level(bumps.rays.at(wanted_t - 1e-3))) / 2e-3
    steep = hit & (slope.abs() > 0.2)  # else rounding decides where along the ray
    assert steep.sum() > 0.7 * hit.sum()
    torch.testing.assert_close(t[steep], wanted_t[steep], atol=1e-5, rtol=0)


def test_first_crossings_of_a_ball_are_exact(backend):
    bumps = Bumps(share=1.0)
    bumps.field[0].zero_()
    t, hit = bumps.crossings(backend)
    o, d = bumps.rays.origins, bumps.rays.directions
    b, c = (o * d).sum(1), (o * o).sum(1) - bumps.prior_radius**2
    exact = -b - (b * b - c).clamp(min=0).sqrt()
    assert hit[c < 0].all() and torch.equal(t[c < 0], bumps.rays.t_near[c < 0])  # starts inside
    clear = (c > 0) & ((b * b - c).abs() > 0.01) & (bumps.rays.t_far > bumps.rays.t_near)
    assert torch.equal(hit[clear], (b < 0)[clear] & (b * b > c)[clear]) and 30 < hit[clear].sum() < clear.sum()
    torch.testing.assert_close(t[clear & hit], exact[clear & hit], atol=1e-5, rtol=0)


@pytest.mark.parametrize("front, interval", [(8, 16), (0, 5), (3, 0)])
def test_samples_are_placed_as_by_the_general_search(fast, front, interval):
    bumps, g = Bumps(), torch.Generator().manual_seed(0)
    offset, jitter = torch.rand(300, generator=g), torch.rand(300, front + interval, generator=g)
    placed = bumps.placed(fast, offset, jitter, front)
    lattice = march(bumps.rays, bumps.occupied, bumps.step, REFERENCE, offset)
    t, hit = fast.first_crossing(bumps.rays, *lattice, bumps.step, 8, bumps.prior_radius, *bumps.field)
    found = Crossings(t, hit, *lattice, bumps.step)
    assert torch.equal(placed.hit, hit) and torch.equal(placed.surface, t) and 30 < hit.sum() < 270
    assert torch.equal(placed.on, bumps.rays.at(t)[hit])
    assert torch.equal(placed.t, place_jittered(bumps.rays, found, 0.1, front, jitter))


def test_a_rough_crossing_is_near_the_exact_one(fast):
    bumps, offset, jitter = Bumps(share=1.0), torch.full((300,), 0.5), torch.rand(300, 24)
    exact, rough = bumps.placed(fast, offset, jitter, 8), bumps.placed(fast, offset, jitter, 8, close=1e-2)
    assert torch.equal(exact.hit, rough.hit) and not torch.equal(exact.surface, rough.surface)
    moved = rough.surface != exact.surface
    assert moved.sum() > 30 and bumps.level(bumps.rays.at(rough.surface))[moved].abs().max() < 1e-2


def test_placing_does_not_feel_other_rays_or_threads(fast):
    bumps, offset, jitter = Bumps(333), torch.full((333,), 0.5), torch.rand(333, 24)
    first = bumps.placed(fast, offset, jitter, 8)
    for threads in (1, 5):
        again = bumps.placed(NativeBackend(threads, native.SETS[fast._set]), offset, jitter, 8)
        assert all(torch.equal(getattr(first, name), getattr(again, name)) for name in ("t", "hit", "surface", "on"))
    some = torch.tensor([332, 7, 64, 200])
    bumps.rays = bumps.rays[some]
    assert torch.equal(bumps.placed(fast, offset[some], jitter[some], 8).t, first.t[some])


def test_rays_that_are_not_finite_are_placed_without_harm(fast):
    bumps, offset, jitter = Bumps(), torch.full((300,), 0.5), torch.rand(300, 24)
    wanted = bumps.placed(fast, offset, jitter, 8)
    bumps.rays.origins[::7], bumps.rays.directions[3::7], bumps.rays.t_far[5::7] = float("nan"), float("inf"), float("nan")
    whole = torch.isin(torch.arange(300) % 7, torch.tensor([1, 2, 4, 6]))
    found = bumps.placed(fast, offset, jitter, 8)
    assert torch.equal(found.t[whole], wanted.t[whole]) and not found.hit[~whole].any()


def test_a_crossing_does_not_feel_other_rays_or_threads(fast):
    bumps = Bumps(333)  # several tasks, the last one partly filled
    t, hit = bumps.crossings(fast)
    for threads in (1, 5):
        again = bumps.crossings(NativeBackend(threads, native.SETS[fast._set]))
        assert torch.equal(again[0], t) and torch.equal(again[1], hit)
    some = torch.tensor([332, 7, 64, 200])
    bumps.rays, bumps.lattice = bumps.rays[some], (bumps.lattice[0][some], bumps.lattice[1][some])
    alone = bumps.crossings(fast)
    assert torch.equal(alone[0], t[some]) and torch.equal(alone[1], hit[some])


def test_rays_without_a_crossing(backend):
    assert [a.shape for a in Bumps(0).crossings(backend)] == [(0,), (0,)]
    for nothing in (Bumps(share=0.0), Bumps(prior_radius=-9.0)):
        t, hit = nothing.crossings(backend)
        assert not hit.any() and torch.equal(t, nothing.rays.t_far)


def test_rays_that_are_not_finite_cross_nothing_and_stay_alone(backend):
    bumps = Bumps()
    t, hit = bumps.crossings(backend)
    bumps.rays.origins[::7], bumps.rays.directions[3::7] = float("nan"), float("inf")
    broken = torch.isin(torch.arange(300) % 7, torch.tensor([0, 3]))
    found = bumps.crossings(backend)
    assert not found[1][broken].any() and torch.equal(found[1][~broken], hit[~broken])
    torch.testing.assert_close(found[0][~broken], t[~broken], atol=1e-5 if backend is REFERENCE else 0, rtol=0)


# ---- the occupancy grid


@pytest.mark.parametrize("cells", [5, 24])
def test_grid_updates_are_those_of_the_general_one(fast, cells):
    bumps = Bumps(0)
    parameters = bumps.parameters(sharpness=60.0)
    ours, wanted = (OccupancyGrid(GridConfig(resolution=cells), 24) for _ in range(2))
    for seed in range(12):
        a, b = (torch.Generator().manual_seed(seed) for _ in range(2))
        ours.update_natively(fast, parameters, a, everywhere=seed == 0)
        wanted.update(lambda x: torch.sigmoid(60.0 * bumps.level(x)), b, everywhere=seed == 0)
        assert torch.equal(a.get_state(), b.get_state())
        torch.testing.assert_close(ours.values, wanted.values, atol=1e-5, rtol=1e-3)
        near = (wanted.values / wanted.threshold - 1).abs() < 1e-2  # rounding decides about those
        assert near.any() or torch.equal(ours.occupied, wanted.occupied)
    assert cells == 5 or 0.1 < ours.share < 0.9


def test_grid_updates_are_the_same_bits_for_any_number_of_threads(fast):
    bumps, seen = Bumps(0), []
    for threads in (1, 2, 5):
        grid, generator = OccupancyGrid(GridConfig(resolution=24), 24), torch.Generator().manual_seed(0)
        for k in range(5):
            grid.update_natively(NativeBackend(threads, native.SETS[fast._set]), bumps.parameters(60.0), generator, everywhere=k == 0)
        seen.append(grid)
    assert all(torch.equal(seen[0].values, g.values) and torch.equal(seen[0].occupied, g.occupied) for g in seen)


# ---- what holds for all


def everything(backend, problem: Problem) -> list[Tensor]:
    _, table, weights = problem.cast(torch.float32)
    x = problem.x.clone().requires_grad_()
    out, gradient = backend.field(x, table, problem.levels, weights)
    y = backend.mlp(torch.cat([out, gradient, x], 1), [torch.ones(24, out.shape[1] + 6), weights[1][:, :24]])
    h = backend.encode(x, table, problem.levels)
    return [out, gradient, y, h, *grad((out, gradient, y, h), (x, table, *weights), (problem.d_out, problem.d_gradient, y.cos(), h.sin()))]


def test_same_bits_again_and_for_any_number_of_threads(fast):
    problem = Problem(8, 64, 16, 3333)  # more than 32 tiles, the last one partly filled
    first = everything(fast, problem)
    for threads in (2, 1, 5):
        for a, b in zip(first, everything(NativeBackend(threads, native.SETS[fast._set]), problem), strict=True):
            assert torch.equal(a, b)


def test_the_references_table_gradient_is_the_same_bits_again_and_for_any_number_of_threads():
    """Many points share an entry, and torch would sum them in any order."""
    problem, before, found = Problem(3, 16, 16, 3000, log2_entries=6), torch.get_num_threads(), []
    x, table, _ = problem.cast(torch.float32)
    try:
        for threads in (1, 2, 3, 2, 3):
            torch.set_num_threads(threads)
            h = REFERENCE.encode(x.requires_grad_(), table, problem.levels)
            (first,) = grad(h, table, problem.d_out[:, :6], retain_graph=True)
            (along,) = grad(h, x, problem.d_out[:, :6], create_graph=True)
            found.append((first, *grad(along, table, problem.d_gradient)))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for again in found for a, b in zip(found[0], again, strict=True))


def test_a_point_does_not_feel_its_neighbours(fast):
    problem = Problem(6, 64, 16, 205)
    x, table, weights = problem.cast(torch.float32)
    out, gradient = fast.field(x, table, problem.levels, weights)
    value = fast.field_value(x, table, problem.levels, weights)
    for i in (0, 7, 95, 96, 200, 204):
        one, one_gradient = fast.field(x[i : i + 1], table, problem.levels, weights)
        assert torch.equal(one[0], out[i]) and torch.equal(one_gradient[0], gradient[i])
        assert torch.equal(fast.field_value(x[i : i + 1], table, problem.levels, weights)[0], value[i])


def test_no_points(backend):
    problem = Problem(4, 64, 16, 0)
    found = everything(backend, problem)
    assert [len(a) for a in found[:5]] == [0] * 5
    assert all(not a.any() for a in found[5:])
    empty = torch.empty(0)
    t, count = backend.occupied_steps(torch.empty(0, 3), torch.empty(0, 3), empty, empty, torch.ones(3, 3, 3, dtype=torch.bool), 0.1, 4)
    assert t.shape == (0, 4) and count.shape == (0,)
    assert backend.field_value(*problem.cast(torch.float32)[:2], problem.levels, problem.weights).shape == (0,)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e30, -7.5, 3.0])
def test_positions_far_outside_or_not_finite_stay_in_their_row(backend, value):
    problem = Problem(8, 64, 16, 100)
    clean = backend.field(problem.x, problem.table, problem.levels, problem.weights)
    problem.x[::9, 1] = value
    everything(backend, problem)  # nothing is read or written out of bounds
    found = backend.field(problem.x, problem.table, problem.levels, problem.weights)
    rows = torch.ones(100, dtype=torch.bool)
    rows[::9] = False
    assert all(torch.equal(a[rows], b[rows]) for a, b in zip(found, clean, strict=True)) or backend is REFERENCE
    if not math.isfinite(value):
        assert not found[0][~rows].isfinite().any()
        assert not backend.field_value(problem.x, problem.table, problem.levels, problem.weights)[~rows].isfinite().any()


def test_positions_a_little_outside_agree(fast):
    problem = Problem(8, 16, 1, 200)
    x = problem.x * 5 - 2
    assert_near([fast.encode(x, problem.table, problem.levels)], [REFERENCE.encode(x, problem.table, problem.levels)])


def test_broken_weights_are_not_hidden_by_the_relu(backend):
    problem = Problem(4, 16, 2, 10)
    problem.weights[0][3, 2] = float("nan")
    assert backend.field(problem.x, problem.table, problem.levels, problem.weights)[0].isnan().all()
    assert backend.mlp(torch.ones(4, 8), problem.weights).isnan().all()


def test_views_and_odd_addresses(fast):
    problem = Problem(8, 64, 16, 50)
    x, table, weights = problem.x, problem.table, problem.weights
    wanted = fast.field(x, table, problem.levels[:5], [weights[0][:, :10].contiguous(), weights[1]])
    odd = torch.empty(3 * 50 + 1)[1:].view(50, 3).copy_(x)
    slipped = torch.empty(2 * len(table) + 1)[1:].view(-1, 2).copy_(table)
    for x_view in (odd, x.T.contiguous().T):
        found = fast.field(x_view, slipped, problem.levels[:5], [weights[0][:, :10], weights[1].T.contiguous().T])  # coarse levels alone
        assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


def test_unused_gradients_are_not_made(fast):
    problem = Problem(4, 16, 2, 30)
    _, table, weights = problem.cast(torch.float32)
    out, gradient = fast.field(problem.x, table, problem.levels, [w.detach() for w in weights])
    (found,) = grad((out, gradient), table, (problem.d_out, problem.d_gradient))
    out, gradient = fast.field(problem.x, table, problem.levels, weights)
    assert torch.equal(found, grad((out, gradient), (table, *weights), (problem.d_out, problem.d_gradient))[0])
    out, gradient = fast.field(problem.x, table.detach(), problem.levels, weights)
    assert len(grad((out, gradient), weights, (problem.d_out, problem.d_gradient))) == 2
    with torch.no_grad():
        assert not fast.field(problem.x, table, problem.levels, weights)[0].requires_grad


# ---- errors and the choice


def test_native_refuses_what_it_can_not_do(fast):
    problem = Problem(4, 16, 2, 5)
    with pytest.raises(BackendError, match="float32 on the CPU"):
        fast.field(problem.x.double(), problem.table, problem.levels, problem.weights)
    with pytest.raises(BackendError, match="can't take"):
        fast.field(problem.x, problem.table[:100], problem.levels, problem.weights)  # the table is too short for the levels
    with pytest.raises(AssertionError):
        fast.field(problem.x, problem.table, problem.levels[:3], problem.weights)
    with pytest.raises(AssertionError):
        fast.mlp(torch.ones(3, 9), problem.weights)
    rays = [torch.ones(1, 3), torch.ones(1, 3), torch.zeros(1), torch.ones(1)]
    with pytest.raises(BackendError, match="can't take"):  # more cells than 32 bits can number
        fast._call("occupied_steps", *rays, 1, torch.zeros(1), 1300, 0.1, 1, torch.empty(1, 1), torch.empty(1, dtype=torch.int64))


def test_choice():
    assert choose_backend("reference").name == "reference"
    with pytest.raises(BackendError, match="want auto, triton, cuda, native, reference"):
        choose_backend("gpu")


def test_without_the_library_auto_says_so_and_native_fails(monkeypatch):
    monkeypatch.setattr(native, "LIBRARY", "_not_built")
    native._load.cache_clear()
    try:
        backend = choose_backend("auto")
        assert backend.name == "reference" and "no native library" in backend.note
        with pytest.raises(BackendError, match=r"no native library .* install"):
            choose_backend("native")
    finally:
        native._load.cache_clear()


def test_a_library_of_another_version_is_refused(fast, monkeypatch):
    monkeypatch.setattr(native, "ABI", 999)
    native._load.cache_clear()
    try:
        with pytest.raises(BackendError, match="version"):
            NativeBackend()
    finally:
        native._load.cache_clear()
