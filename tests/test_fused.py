"""The fused step against autograd: on the same kernels, and on the reference in float64, which is taken as the truth.

Samples keep a distance from cell faces and from the field's ReLU kinks: there a derivative jumps, and rounding decides on which side.
"""

import math
from dataclasses import replace

import pytest
import torch
from test_backends import REFERENCE, assert_near, native_backend
from torch import Tensor

from fastsurf.backends import FusedBackend, Gradients, Look, Parameters, native
from fastsurf.backends.native import NativeBackend
from fastsurf.config import load_config
from fastsurf.landmarks import Landmarks
from fastsurf.losses import Seen, Weights, photometric, points_loss, silhouette_term, smooth_loss
from fastsurf.model import Model
from fastsurf.rays import Batch, Rays, make_rays
from fastsurf.render import LEAST_WEIGHT, shade
from fastsurf.surface import Crossings
from fastsurf.training import Training, learn, loss_names

SMALL = [
    "field.sharpness_max=6", "field.levels=4", "field.log2_entries=10", "field.base_resolution=4", "field.finest_resolution=21",
    "grid.resolution=12",
]  # fmt: skip
PHOTOGRAPHS = 5  # where each has an embedding
# The mask's loss divides by the light that an opaque ray lets through, a small difference of float32 numbers, on autograd's side too.
MASK_TOLERANCE = 5e-4


@pytest.fixture(params=["avx2", "portable"])
def fast(request) -> NativeBackend:
    return native_backend(request.param)


class Problem:
    """A bumpy ball, and rays from all round it; some miss the box, a third of the cells is culled."""

    def __init__(self, seed: int = 0, n: int = 300, samples: int = 24, n_pairs: int = 70, *sets: str, n_known: int = 130):
        g = torch.Generator().manual_seed(seed)
        self.model = Model(load_config(None, [*SMALL, f"train.seed={seed}", *sets]), REFERENCE, "random", PHOTOGRAPHS)
        field = self.model.field
        field.table.data.copy_(torch.randn(field.table.shape, generator=g) * 0.05)
        field.w2.data[0] *= 10
        self.model.set_progress(0.2)  # some levels are faded
        self.model.grid.occupied.copy_(torch.rand(12, 12, 12, generator=g) < 0.67)
        origins = torch.nn.functional.normalize(torch.randn(n, 3, generator=g), dim=1) * 3
        towards = torch.rand(n, 3, generator=g) * 1.6 - 0.8
        towards[::7] += 3  # past the box
        rays = make_rays(origins, torch.nn.functional.normalize(towards - origins, dim=1))
        u = (torch.arange(samples)[:, None] + torch.rand(n, samples, 8, generator=g)) / max(samples, 1)
        choices = rays.t_near[:, None, None] + u * (rays.t_far - rays.t_near)[:, None, None]  # the first one that is clear is taken
        clear = self.clear(rays.at(choices).view(-1, 3)).view(choices.shape)
        t = choices.gather(2, clear.int().argmax(2, keepdim=True))[..., 0]
        on = torch.rand(8 * n_pairs, 3, generator=g) - 0.5
        pairs = torch.stack([on, on + (torch.rand(on.shape, generator=g) - 0.5) * 0.02])
        pairs = pairs[:, self.clear(pairs[0]) & self.clear(pairs[1])][:, :n_pairs]
        assert pairs.shape[1] == n_pairs
        known, wanted = torch.rand(8 * n_known, 3, generator=g) * 2 - 1, torch.rand(n_known, generator=g)
        known = known[self.clear(known)][:n_known]
        assert len(known) == n_known
        behind, target, mask = torch.rand(n, 3, generator=g), torch.rand(n, 3, generator=g), torch.rand(n, generator=g)
        mask = (1.5 * mask - 0.25).clamp(0, 1)  # a sixth wholly inside, a sixth outside
        self.look = Look(rays, t, self.model.occupied, behind, target, mask, pairs, known, wanted, (1.0, 0.3, 0.2, 0.4), LEAST_WEIGHT)
        if self.model.appearance is not None:
            self.model.appearance.table.data.copy_(torch.randn(self.model.appearance.table.shape, generator=g))
            self.model.appearance.learned.fill_(True)
            rays = replace(rays, image_index=torch.randint(PHOTOGRAPHS, (n,), generator=g))
            self.look = replace(self.look, rays=rays, appearance=self.model.appearance_of(rays.image_index).detach())

    def clear(self, x: Tensor) -> Tensor:
        """Which points (n, 3) keep their distance."""
        field, x = self.model.field, (x.double() * 0.5 + 0.5).clamp(0, 1)
        p = torch.stack([x * v.scale + 0.5 for v in field.levels], 1)
        z = REFERENCE.encode(x, field.table.double(), field.levels) @ field.weights()[0].double().T
        culling = (x * 12 - (x * 12).round()).abs() > 1e-5
        return ((p - p.round()).abs() > 1e-4).flatten(1).all(1) & (z.abs() > 1e-5).all(1) & culling.all(1)

    def fused(self, backend: FusedBackend) -> list[Tensor]:
        """Losses, mean squared error, gradients: of the background, table, w1, w2 and the head."""
        field, head = self.model.field, self.model.head
        table, w1, w2, *weights = (torch.full_like(p, 7.0) for p in (field.table, field.w1, field.w2, *head.weights))
        gradients, sharpness = Gradients(table, w1, w2, weights), float(self.model.sharpness)
        used = field.table, field.levels, *field.weights(), list(head.weights), head.used, field.config.prior_radius
        parameters = Parameters(*used, sharpness)
        learned = backend.train_step(self.look, parameters, gradients)
        embedded = []
        if learned.appearance is not None:
            embedded = [torch.zeros(PHOTOGRAPHS, learned.appearance.shape[1]).index_add(0, self.look.rays.image_index, learned.appearance)]
        self.errors = learned.errors
        return [*learned.losses, learned.behind, gradients.table, gradients.w1 * field.fade, gradients.w2, *gradients.head, *embedded]

    def by_autograd(self, backend, kind: torch.dtype) -> list[Tensor]:
        """The same as the autograd path computes it."""
        look, model = self.look, Model(self.model.config, backend, "random", PHOTOGRAPHS)
        model.load_state_dict(self.model.state_dict())
        model.set_progress(0.2)
        model.to(kind)
        rays = Rays(*(getattr(look.rays, name).to(kind) for name in ("origins", "directions", "t_near", "t_far")), look.rays.image_index)
        behind = look.behind.to(kind).requires_grad_()
        nothing = Crossings(rays.t_far, rays.t_far > 99, look.t[:, :0], torch.zeros(len(rays), dtype=torch.int64), 1.0)
        rendering = shade(rays, model, look.t.to(kind), None, nothing, lambda _: behind)
        color, mask, smooth, points = look.weights
        asked = Weights(huber=look.huber, outlier=0.0 if math.isinf(look.outlier) else look.outlier)
        plain = float(look.plain_colors)
        outline = None if look.mask is None else look.mask.to(kind)
        batch, generator = Batch(rays, look.target, outline), torch.Generator()
        seen = Seen(batch, rendering, nothing, look.target.to(kind), asked, plain, generator, look.trust)
        losses = [color * photometric(model, seen)]
        losses.append(mask * silhouette_term(model, seen) if look.mask is not None else 0 * losses[0])
        pairs = look.pairs.to(kind).reshape(-1, 3)
        losses.append(smooth * smooth_loss(model.sample(pairs).normal, torch.ones(len(pairs) // 2, dtype=torch.bool), look.emphasis))
        level = model.sample(look.known.to(kind)).level
        losses.append(points * points_loss(model.sharpness * level, look.wanted.to(kind)) if len(level) else 0 * losses[0])
        parameters = [behind, model.field.table, model.field.w1, model.field.w2, *model.head.weights]
        parameters += [] if model.appearance is None else [model.appearance.table]
        gradients = torch.autograd.grad(sum(losses), parameters, materialize_grads=True)
        return [*losses, ((rendering.rgb - look.target) ** 2).mean(), *gradients]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_gradients_are_those_of_autograd(fast, seed):
    problem = Problem(seed)
    found, wanted = problem.fused(fast), problem.by_autograd(fast, torch.float32)
    assert_near(found, wanted, MASK_TOLERANCE)
    assert_near(found, problem.by_autograd(REFERENCE, torch.float64), MASK_TOLERANCE)
    problem.look = replace(problem.look, mask=None)
    assert_near(problem.fused(fast), problem.by_autograd(REFERENCE, torch.float64), 1e-5)


@pytest.mark.parametrize("weights", [(1.0, 0.0, 0.0, 0.0), (0.0, 1.0, 0.0, 0.0), (0.0, 0.0, 1.0, 0.0), (0.0, 0.0, 0.0, 1.0)])
def test_each_loss_alone(fast, weights):
    """The third reaches the parameters through the normal alone: its gradient is the second-order term."""
    problem = Problem(3)
    problem.look = replace(problem.look, weights=weights)
    assert_near(problem.fused(fast), problem.by_autograd(REFERENCE, torch.float64), 1e-4)


@pytest.mark.parametrize("huber", [0.05, 0.4, 10.0])
def test_huber(fast, huber):
    problem = Problem(13)
    problem.look = replace(problem.look, mask=None, huber=huber)
    assert_near(problem.fused(fast), problem.by_autograd(REFERENCE, torch.float64), 1e-5)


@pytest.mark.parametrize("outlier", [0.02, 0.3, 10.0])
@pytest.mark.parametrize("plain_colors", [False, True])
def test_outliers(fast, outlier, plain_colors):
    problem = Problem(13)
    problem.look = replace(problem.look, outlier=outlier, huber=0.1 * (outlier < 1), plain_colors=plain_colors)
    assert_near(problem.fused(fast), problem.by_autograd(REFERENCE, torch.float64), MASK_TOLERANCE)


def test_rays_that_count_for_less(fast):
    problem = Problem(13)
    g = torch.Generator().manual_seed(0)
    problem.look = replace(problem.look, mask=None, trust=torch.rand(300, generator=g), outlier=0.3, huber=0.1)
    found = problem.fused(fast)
    assert_near(found, problem.by_autograd(REFERENCE, torch.float64), 1e-5)
    problem.look = replace(problem.look, trust=None, outlier=float("inf"))
    problem.look = replace(problem.look, huber=0.0)
    loss = problem.fused(fast)[0]
    torch.testing.assert_close(problem.errors.abs().sum(1).mean(), loss)


def test_pairs_that_count_for_more(fast):
    problem = Problem(13, n_pairs=130)
    problem.look = replace(problem.look, mask=None)
    plain = problem.fused(fast)[2]
    problem.look = replace(problem.look, emphasis=torch.full((130,), 3.0))
    torch.testing.assert_close(problem.fused(fast)[2], 3 * plain)
    problem.look = replace(problem.look, emphasis=1 + 16 * torch.rand(130, generator=torch.Generator().manual_seed(0)))
    assert_near(problem.fused(fast), problem.by_autograd(REFERENCE, torch.float64), 1e-5)


@pytest.mark.parametrize(
    "dimensions, sets", [(1, []), (3, []), (8, []), (11, ["color.inputs=h", "color.hidden=1"]), (8, ["color.hidden=0"])]
)
def test_embeddings(fast, dimensions, sets):
    problem = Problem(16, 300, 24, 20, f"color.appearance={dimensions}", *sets)
    problem.look = replace(problem.look, mask=None)
    found = problem.fused(fast)
    assert_near(found, problem.by_autograd(fast, torch.float32), 1e-5)
    assert_near(found, problem.by_autograd(REFERENCE, torch.float64), 1e-5)
    assert found[-1].any(1).all()


def test_embeddings_move_colours_alone(fast):
    """What they do to the field they do through colours: without the colour loss nothing is left of them."""
    problem = Problem(16, 300, 24, 20, "color.appearance=8")
    problem.look = replace(problem.look, weights=(0.0, 0.3, 0.2, 0.1))
    first = problem.fused(fast)
    problem.look = replace(problem.look, appearance=problem.look.appearance + 1)
    again = problem.fused(fast)
    assert not first[-1].any() and all(torch.equal(a, b) for a, b in zip(first[:4] + first[5:], again[:4] + again[5:], strict=True))


@pytest.mark.parametrize("n_known", [0, 1, 96, 97, 500])
def test_any_number_of_known_points(fast, n_known):
    problem = Problem(17, 60, 8, 3, "color.inputs=x,h", n_known=n_known)
    problem.look = replace(problem.look, mask=None)
    found = problem.fused(fast)
    assert bool(found[3] > 0) == bool(n_known)
    assert_near(found, problem.by_autograd(fast, torch.float32), 1e-5)


def test_without_masks_and_pairs(fast):
    problem = Problem(4, n_pairs=0, n_known=0)
    problem.look = replace(problem.look, mask=None)
    found = problem.fused(fast)
    assert found[1] == found[2] == found[3] == 0
    assert_near(found, problem.by_autograd(fast, torch.float32), 1e-5)


@pytest.mark.parametrize(
    "sets",
    [
        ["color.inputs=x,d"], ["color.inputs=h"], ["color.inputs=n", "color.hidden=0"], ["color.hidden=16", "color.width=8"],
        ["field.width=20", "color.width=33", "color.hidden=1"],
    ],
)  # fmt: skip
def test_other_shapes(fast, sets):
    problem = Problem(5, 150, 10, 3, *sets)
    assert_near(problem.fused(fast), problem.by_autograd(fast, torch.float32), 1e-5)


@pytest.mark.parametrize("samples", [1, 5, 97, 200])
def test_any_number_of_samples(fast, samples):
    problem = Problem(6, 40, samples, 49)
    problem.look = replace(problem.look, mask=None)
    assert_near(problem.fused(fast), problem.by_autograd(fast, torch.float32), 5e-5)


def test_rays_without_samples_in_use_show_the_background(fast):
    problem = Problem(7, n_pairs=0, n_known=0)
    problem.look = replace(problem.look, occupied=torch.zeros_like(problem.look.occupied), mask=None)
    color, _, _, _, mse, d_behind, *gradients = problem.fused(fast)
    error = problem.look.behind - problem.look.target
    torch.testing.assert_close(color, error.abs().sum(1).mean())
    torch.testing.assert_close(mse, error.square().mean())
    torch.testing.assert_close(d_behind, error.sign() / len(error))
    assert not any(g.any() for g in gradients)


@pytest.mark.parametrize("n, n_pairs", [(0, 0), (0, 5)])
def test_no_rays(fast, n, n_pairs):
    found = Problem(8, n, 4, n_pairs, n_known=0).fused(fast)
    assert found[0] == found[4] == 0 and all(a.isfinite().all() for a in found)
    assert bool(found[2] > 0) == bool(n_pairs)


def test_same_bits_again_and_for_any_number_of_threads(fast):
    problem = Problem(9, 900, 24, 70, "color.appearance=8")
    first = problem.fused(fast)
    for threads in (2, 1, 5):
        again = problem.fused(NativeBackend(threads, native.SETS[fast._set]))
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@pytest.mark.parametrize("broken", ["table", "w2", "head"])
def test_what_is_not_finite_shows_in_the_loss(fast, broken):
    problem = Problem(10, 100)
    field = problem.model.field
    {"table": field.table, "w2": field.w2, "head": problem.model.head.weights[1]}[broken].data[:] = float("nan")
    assert problem.fused(fast)[0].isnan()


def test_positions_far_outside_or_not_finite_stay_in_bounds(fast):
    problem = Problem(11, 100)
    for value in (1e30, float("nan"), float("inf")):
        problem.look.t[::5] = value
        problem.look.pairs[:, 0] = value
        problem.look.known[0] = value
        problem.fused(fast)


def test_wrong_shapes_are_refused(fast):
    problem = Problem(12, 20)
    wrong = ("behind", (3, 3)), ("t", (3, 24)), ("pairs", (2, 3)), ("wanted", (3,)), ("emphasis", (3,))
    for name, shape in wrong:
        whole = problem.look
        problem.look = replace(whole, **{name: torch.zeros(shape)})
        with pytest.raises(AssertionError):
            problem.fused(fast)
        problem.look = whole


# ---- in training


def learned_both_ways(run):
    """Numbers and gradients of one step: those of the fused call, and autograd's of the same rays."""
    run.fused.close, run.fused.longest = 0.0, 1.0  # crossings as exact as autograd's
    state, seen, noted = run.generator.get_state(), [], []
    for fused in (run.fused, None):
        run.fused = fused
        run.generator.set_state(state)
        if run.disputes is not None:
            run.disputes.errors.copy_(torch.rand(run.disputes.errors.shape, generator=torch.Generator().manual_seed(1)))
        numbers = learn(run)
        noted.append(None if run.disputes is None else run.disputes.errors.clone())
        seen.append([numbers, *(p.grad.clone() for p in run.model.parameters())])
        for p in run.model.parameters():
            p.grad = None
    torch.testing.assert_close(*noted)
    return seen


@pytest.mark.parametrize(
    "background, sets",
    [
        ("random", []), ("random", ["loss.disputed=0"]), ("model", []), ("model", ["color.appearance=4"]),
        ("random", ["loss.huber=0.1", "train.seed=1"]),
    ],
)
def test_a_step_learns_what_autograd_learns(tiny, fast, background, sets):
    config = load_config(None, [*SMALL, "train.rays=200", "grid.steps=64", "train.steps=9", *sets])
    run = Training(tiny, Model(config, fast, background, len(tiny.images)), fast)
    run.model.field.w2.data[0] *= 10
    run.model.set_progress(0.2)
    run.model.update_grid(run.generator, everywhere=True)
    seen = learned_both_ways(run)
    assert_near(*seen, 1e-4)
    assert seen[0][0].shape == (6,) and seen[0][0][-2] > 0.1  # color, mask, smooth, mse, hit, flaw


def test_a_step_learns_from_landmarks_what_autograd_learns(tiny, fast):
    run = Training(tiny, Model(load_config(None, [*SMALL, "train.rays=200", "grid.steps=64", "train.steps=9"]), fast, "random"), fast)
    g = torch.Generator().manual_seed(0)
    cameras = torch.nn.functional.normalize(torch.randn(300, 3, generator=g), dim=1) * 3
    run.landmarks = Landmarks(torch.rand(300, 3, generator=g) - 0.5, cameras)
    run.model.set_progress(0.45)  # half of their weight is left
    run.model.update_grid(run.generator, everywhere=True)
    seen = learned_both_ways(run)
    assert_near(*seen, 1e-4)
    assert loss_names(run)[-1] == "points" and 0 < seen[0][0][3] < 0.5 * 0.02 * 10


def test_the_reference_goes_by_autograd(tiny):
    assert not isinstance(REFERENCE, FusedBackend)
    assert Training(tiny, Model(load_config(None, SMALL), REFERENCE, "random"), REFERENCE).fused is None
