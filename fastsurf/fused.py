"""A training step as one call of the backend: rendering, losses and every gradient, without autograd.

It computes what `render_unified`, the losses and their `backward` compute, from the same random numbers; tests compare the two.
"""

import torch
from torch import Tensor

from .backends import Aim, FusedBackend, Gradients, Look, Parameters, Placed
from .disputes import Disputes
from .landmarks import Known
from .losses import Weights, outlier_scale, smooth_share
from .model import Model
from .rays import Batch, Rays
from .render import LEAST_WEIGHT, Samples
from .sampling import random_jitter

CLOSE = 1 / 64  # of the interval's half-width: how near to 0 the level at a crossing is brought, an eighth of a default stratum
STRIDE, LONGEST = 1 / 8, 2.0  # of marching: this share of the half-width, but no more than so many steps of the grid at once
ON_SURFACE = 1e-6  # a level that small is rounding


class FusedStep:
    """The step of one model; gradients are written to the same memory every time."""

    def __init__(self, model: Model, backend: FusedBackend):
        self.model, self.backend, self.close, self.longest = model, backend, CLOSE, LONGEST
        field, head = model.occupancy_field(), model.head
        table, w1, w2 = (torch.empty_like(p, requires_grad=False) for p in (field.table, field.w1, field.w2))
        self.gradients = Gradients(table, w1, w2, [torch.empty_like(w, requires_grad=False) for w in head.weights])

    def __call__(
        self, batch: Batch, behind: Tensor, target: Tensor, samples: Samples, weights: Weights, trust: Tensor | None = None,
        known: Known | None = None, disputes: Disputes | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Leave gradients on the parameters.

        Args:
            behind, target: colours (n_rays, 3) of the background, and what the rays should show on it.
            trust: (n_rays,) factors of the rays' colour losses.
            known: points of known occupancy.
            disputes: where smoothness counts more; told of this step's rays.

        Returns:
            the losses in use, the mean squared error and the share of rays that hit: (n_losses + 2,); and the rays' colours
            less their targets, (n_rays, 3).
        """
        rays, generator, now = batch.rays, samples.generator, self.model.in_use()
        placed = self.place(rays, samples, now)
        with_mask, with_pairs = weights.mask > 0 and batch.mask is not None, weights.smooth > 0
        on = placed.on if with_pairs else placed.on[:0]
        jitter = torch.rand(len(on), 3, generator=generator) * 2.0 - 1.0
        pairs = torch.stack([on, on + jitter * weights.smooth_distance])
        emphasis = None if disputes is None else disputes.emphasis(on, rays.directions[placed.hit], jitter)
        appearance = self.model.appearance_of(rays.image_index)
        points, occupancy = (rays.origins[:0], rays.t_far[:0]) if known is None else (known.points, known.occupancy)
        left = weights.points * float(self.model.trust_points)
        smooth = weights.smooth * float(smooth_share(weights, self.model.early)) if with_pairs else 0.0
        look = Look(
            rays, placed.t, self.model.occupied, behind.detach(), target, batch.mask if with_mask else None, pairs,
            points, occupancy, (weights.color, weights.mask, smooth, left), LEAST_WEIGHT, weights.huber,
            outlier_scale(weights), bool(self.model.plain_colors),
            None if appearance is None else appearance.detach(), trust, emphasis,
        )  # fmt: skip
        learned = self.backend.train_step(look, now, self.gradients)
        if disputes is not None:
            disputes.note(batch, placed.surface, placed.hit, learned.errors)
        self._leave()
        outer = [(a, d) for a, d in ((behind, learned.behind), (appearance, learned.appearance)) if a is not None and a.requires_grad]
        if outer:
            torch.autograd.backward([a for a, _ in outer], [d for _, d in outer])
        used = torch.tensor([True, with_mask, with_pairs, known is not None, True])
        return torch.cat([learned.losses[used], placed.hit.float().mean()[None]]), learned.errors

    def place(self, rays: Rays, samples: Samples, now: Parameters) -> Placed:
        """First crossings, found as well as samples round them need, and those samples; `now`: the model's parameters."""
        model, n, generator = self.model, len(rays), samples.generator
        offset = random_jitter(n, 1, generator)[:, 0]
        jitter = random_jitter(n, samples.front + samples.interval, generator)
        grid, close = model.grid, max(self.close * model.width, ON_SURFACE)
        step = grid.step * min(max(STRIDE * model.width / grid.step, 1.0), self.longest)
        aim = Aim(rays, offset, jitter, samples.front, model.width, grid.occupied, step, grid.config.secant_steps, close)
        return self.backend.place(aim, now)

    def _leave(self) -> None:
        field, g = self.model.occupancy_field(), self.gradients
        if not field.complete:
            g.w1.mul_(field.fade)  # the call saw w1 * fade
        for p, gradient in zip([field.table, field.w1, field.w2, *self.model.head.weights], [g.table, g.w1, g.w2, *g.head], strict=True):
            p.grad = gradient
