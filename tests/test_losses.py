import math

import pytest
import torch

from fastsurf.compositing import Rendering
from fastsurf.config import LossConfig
from fastsurf.losses import (
    Seen,
    Weights,
    color_loss,
    mask_loss,
    outlier_scale,
    photometric,
    silhouette_loss,
    smooth_loss,
    smooth_share,
    weights_for,
)
from fastsurf.rays import Batch, Rays
from fastsurf.surface import Crossings


def test_color_loss_sums_channels_and_averages_rays():
    rgb, target = torch.zeros(2, 3), torch.tensor([[0.1, 0.2, 0.3], [0.0, 0.0, 0.0]])
    torch.testing.assert_close(color_loss(rgb, target), torch.tensor(0.3))


def test_huber_is_a_parabola_near_zero_and_l1_less_a_constant_far_from_it():
    error = torch.tensor([[0.0, 0.05, -0.1], [0.1, -0.3, 2.0]], dtype=torch.float64, requires_grad=True)
    loss = color_loss(error, torch.zeros_like(error), 0.1)
    torch.testing.assert_close(loss, torch.tensor((0.05**2 / 0.2 + 0.05 + 0.05 + 0.25 + 1.95) / 2, dtype=torch.float64))
    loss.backward()
    torch.testing.assert_close(error.grad, torch.tensor([[0.0, 0.5, -1.0], [1.0, -1.0, 1.0]], dtype=torch.float64) / 2)
    torch.testing.assert_close(color_loss(error, error * 0, 1e-9), color_loss(error, error * 0))


def test_a_ray_far_off_pulls_less_the_farther():
    error = torch.tensor([[0.1, -0.1, 0.05], [1.0, 0.0, 0.0], [1.0, 1.0, 1.0]], dtype=torch.float64, requires_grad=True)
    loss = color_loss(error, torch.zeros_like(error), outlier=0.25)
    torch.testing.assert_close(loss, torch.tensor((0.25 / 2 + 1 / 5 + 3 / 13) / 3, dtype=torch.float64))
    loss.backward()
    torch.testing.assert_close(error.grad.abs().amax(1), torch.tensor([1 / 4, 1 / 25, 1 / 169], dtype=torch.float64) / 3)


@pytest.mark.parametrize("plain", [0.0, 1.0])
def test_colours_can_learn_from_outliers_when_weights_do_not(plain):
    weight, colour = torch.tensor([[0.5], [0.8]], requires_grad=True), torch.tensor([[0.2, 0.4, 0.6], [1.0, 1.0, 1.0]], requires_grad=True)
    paint = weight.detach() * colour
    rgb, nothing = weight * colour, torch.zeros(2)
    rendering = Rendering(rgb, nothing, nothing, nothing, nothing, nothing, nothing > 0, nothing, paint)
    rays = Rays(torch.zeros(2, 3), torch.zeros(2, 3), nothing, nothing, nothing.long())
    found, batch = Crossings(nothing, nothing > 0, nothing[:, None], nothing.long(), 1.0), Batch(rays, rgb, None)
    loss = photometric(None, Seen(batch, rendering, found, torch.zeros(2, 3), Weights(outlier=0.3), plain, torch.Generator()))
    off = torch.tensor([0.6, 2.4])
    torch.testing.assert_close(loss, (off / (1 + off / 0.3)).mean())
    loss.backward()
    pull = (1 / (1 + off / 0.3) ** 2)[:, None] / 2  # of two rays
    torch.testing.assert_close(weight.grad, pull * colour.sum(1, keepdim=True))
    torch.testing.assert_close(colour.grad, (0.5 if plain else pull) * weight.expand(2, 3))


def test_outliers_have_a_scale_of_their_own_where_there_are_masks():
    def scale(config: LossConfig, masks: bool) -> float:
        return outlier_scale(weights_for(config, masks, False, 64))

    assert scale(LossConfig(), True) == 0.15 and scale(LossConfig(), False) == math.inf
    assert scale(LossConfig(outlier=0.0), True) == math.inf and scale(LossConfig(outlier=0.5), False) == 0.5


def test_only_masks_with_outliers_have_disputes():
    """Without masks it is the surroundings that stay wrong; and where no outlier is left out, colours say it all."""

    def most(config: LossConfig, masks: bool) -> float:
        return weights_for(config, masks, False, 64).disputed

    assert most(LossConfig(), True) == 16 and most(LossConfig(), False) == 0 and most(LossConfig(outlier=0.0), True) == 0
    assert most(LossConfig(disputed=3.0), False) == 3 and most(LossConfig(disputed=0.0), True) == 0


@pytest.mark.parametrize(
    ("masks", "photographs", "smooth", "points"), [(True, 9, 0.005, 0.08), (False, 9, 0.02, 0.08), (False, 64, 0.02, 0.02)]
)
def test_the_less_photographs_say_the_more_what_else_is_known_counts(masks, photographs, smooth, points):
    found = weights_for(LossConfig(mask=0.3), masks, False, photographs)
    assert (found.smooth, found.points, found.mask) == (smooth, pytest.approx(points), 0.3)
    assert [found.smooth * smooth_share(found, early) for early in (1.0, 0.5, 0.0)] == pytest.approx([0.005, (0.005 + smooth) / 2, smooth])
    assert smooth_share(weights_for(LossConfig(), masks, True, photographs), 1.0) == 1.0, "points say what the shape is"
    asked = weights_for(LossConfig(smooth=0.1, points=0.5), masks, False, photographs)
    assert (asked.smooth, asked.points, smooth_share(asked, 1.0)) == (0.1, 0.5, 1.0)
    assert smooth_share(weights_for(LossConfig(smooth_first=0.1, smooth=0.2), masks, False, photographs), 1.0) == 0.5


def test_mask_loss_is_the_cross_entropy_and_stays_finite():
    opacity = torch.tensor([0.0, 0.7, 0.25], requires_grad=True)
    loss = mask_loss(opacity, -torch.log(1 - opacity), torch.tensor([1.0, 0.0, 0.5]))
    wanted = -(math.log(1e-4) + math.log(0.3) + 0.5 * (math.log(0.25) + math.log(0.75))) / 3
    torch.testing.assert_close(loss, torch.tensor(wanted))
    loss.backward()
    assert torch.isfinite(opacity.grad).all()


def test_what_is_long_opaque_can_still_be_carved_away():
    depth = torch.tensor([0.5, 40.0, 4000.0], requires_grad=True)
    loss = mask_loss(torch.ones(3), depth, torch.zeros(3))
    loss.backward()
    torch.testing.assert_close(loss, torch.tensor((0.5 + 4 * (2 + math.log(10) + math.log(1000))) / 3))
    torch.testing.assert_close(depth.grad * depth, torch.tensor([0.5, 4.0, 4.0]) / 3)


def along(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Opacity, optical depth and the deepest sample's, of rays with samples of these logits (n, s)."""
    depths = torch.nn.functional.softplus(logits)
    return 1.0 - torch.exp(-depths.sum(1)), depths.sum(1), depths.amax(1)


def test_on_the_right_side_of_its_mask_a_ray_is_judged_by_its_deepest_sample():
    rays = [[-3.0, 2.0, 1.0], [-5.0, -2.0, -1.0], [0.5, -1.0, 0.3], [-0.1, -0.2, -4.0]]
    logits = torch.tensor(rays, dtype=torch.float64, requires_grad=True)
    mask, trust = torch.tensor([1.0, 0.0, 0.7, 0.4], dtype=torch.float64), torch.tensor([0.3, 0.5, 0.5, 0.5], dtype=torch.float64)
    loss = silhouette_loss(*along(logits), mask, trust)
    deepest = logits.detach().amax(1)
    wanted = torch.nn.functional.binary_cross_entropy_with_logits(deepest, mask, reduction="none")
    torch.testing.assert_close(loss, (torch.tensor([0.3, 1, 1, 1]) * wanted).mean(), check_dtype=False)
    loss.backward()
    pull = torch.zeros(4, 3, dtype=torch.float64)
    pull[range(4), logits.argmax(1)] = torch.tensor([0.3, 1, 1, 1]) * (torch.sigmoid(deepest) - mask) / 4
    torch.testing.assert_close(logits.grad, pull)


def test_on_the_wrong_side_all_samples_are_judged():
    """Also where there is nothing at all, of which no gradient may come that is not finite."""
    logits = torch.tensor([[3.0, 2.0, 9.0], [-4.0, -5.0, -1.0], [0.5, -1.0, 0.3], [-200.0, -200.0, -200.0]], requires_grad=True)
    opacity, depth, deepest = along(logits)
    mask, trust = torch.tensor([0.0, 1.0, 0.3, 1.0]), torch.full((4,), 0.2)
    torch.testing.assert_close(silhouette_loss(opacity, depth, deepest, mask, trust), mask_loss(opacity, depth, mask))
    silhouette_loss(opacity, depth, deepest, mask, trust).backward()
    assert torch.isfinite(logits.grad).all() and (logits.grad[0] > 0).all() and (logits.grad[1] < 0).all()
    nothing = torch.zeros(2, requires_grad=True)
    loss = silhouette_loss(nothing, nothing, nothing, torch.tensor([0.0, 1.0]), torch.ones(2))
    torch.testing.assert_close(loss, torch.tensor(-math.log(1e-4) / 2))
    loss.backward()
    assert torch.isfinite(nothing.grad).all()


def test_rays_that_graze_a_face_fill_as_they_carve():
    """A wall seen edge-on: of the rays past it and into it, mirrored, the pulls cancel, however many samples they have in its haze."""
    logits = torch.linspace(-2.0, 2.0, 8)[:, None].expand(8, 20).clone().requires_grad_()
    mask = (logits[:, 0] > 0).float().detach()
    opacity, depth, deepest = along(logits)
    silhouette_loss(opacity, depth, deepest, mask, torch.ones(8)).backward()
    assert logits.grad.sum().abs() < 1e-6 and logits.grad.abs().sum() > 0.1
    logits.grad = None
    mask_loss(*along(logits)[:2], mask).backward()
    assert logits.grad.sum() > 0.5, "what the mean opacity says carves alone"


def test_smooth_loss_is_zero_for_equal_normals():
    n = torch.nn.functional.normalize(torch.randn(10, 3, generator=torch.Generator().manual_seed(0)), dim=1)
    every = torch.ones(10, dtype=torch.bool)
    assert smooth_loss(torch.cat([n, n]), every) == 0
    torch.testing.assert_close(smooth_loss(torch.cat([n, -n]), every), torch.tensor(2.0))
    some = torch.arange(10) < 3
    torch.testing.assert_close(smooth_loss(torch.cat([n, torch.where(some[:, None], -n, n * 7)]), some), torch.tensor(2.0))
    assert smooth_loss(torch.cat([n, -n]), ~every) == 0
    torch.testing.assert_close(smooth_loss(torch.cat([n, -n]), some, 3.0 * some), torch.tensor(6.0))
