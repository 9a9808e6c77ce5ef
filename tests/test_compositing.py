import torch

from fastsurf.compositing import blend, transmittance, weights_of


def test_weights_sum_to_the_opacity_and_at_most_one():
    alphas = torch.rand(100, 24, generator=torch.Generator().manual_seed(0))
    weights = weights_of(alphas)
    assert (weights >= 0).all() and (weights.sum(1) <= 1 + 1e-5).all()
    torch.testing.assert_close(weights.sum(1), 1 - (1 - alphas).prod(1), atol=1e-4, rtol=0)


def test_an_opaque_sample_hides_what_is_behind():
    alphas = torch.tensor([[0.0, 1.0, 1.0, 0.5]])
    torch.testing.assert_close(weights_of(alphas), torch.tensor([[0.0, 1.0, 0.0, 0.0]]), atol=2e-6, rtol=0)


def test_an_empty_sample_changes_nothing():
    alphas = torch.tensor([[0.3, 0.6, 0.2]])
    with_hole = torch.tensor([[0.3, 0.0, 0.6, 0.2]])
    torch.testing.assert_close(weights_of(with_hole)[:, [0, 2, 3]], weights_of(alphas))


def test_gradients_are_finite_and_right_even_when_opaque():
    alphas = torch.tensor([[0.2, 1.0, 0.7, 0.0]], dtype=torch.float64, requires_grad=True)
    values = torch.rand(1, 4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert torch.autograd.gradcheck(lambda a: blend(weights_of(a), values), (alphas,), eps=1e-8, atol=1e-4)


def test_transmittance_starts_at_one():
    assert (transmittance(torch.rand(5, 3))[:, 0] == 1).all()
