
import pytest
import torch
from solids import parallel_rays

from fastsurf.backends.reference import ReferenceBackend
from fastsurf.color import ColorHead, spherical_harmonics
from fastsurf.config import ColorConfig, FieldConfig
from fastsurf.errors import ConfigError
from fastsurf.field import FieldSample, OccupancyField
from fastsurf.surface import march, search

BACKEND = ReferenceBackend()
SMALL = FieldConfig(levels=4, log2_entries=12, finest_resolution=60, prior_radius=0.6)


def trained(seed=0, scale=0.05, config=SMALL):
    """A field with parameters large enough to matter."""
    generator = torch.Generator().manual_seed(seed)
    field = OccupancyField(config, generator).double()
    with torch.no_grad():
        field.table.copy_((torch.rand(field.table.shape, generator=generator, dtype=torch.float64) - 0.5) * scale)
        field.w2[0] *= 10
    return field


def points(n=64, seed=1):
    return (torch.rand(n, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2 - 1) * 0.95


def test_an_untrained_field_is_the_prior_sphere():
    field, x = OccupancyField(SMALL, torch.Generator().manual_seed(0)), points(500).float()
    level = field.level(x, BACKEND)
    torch.testing.assert_close(level, 0.6 - x.norm(dim=1), atol=1e-3, rtol=0)
    normal = field.sample(x, BACKEND).normal
    torch.testing.assert_close(normal, x / x.norm(dim=1, keepdim=True), atol=0.05, rtol=0)


def test_the_normal_is_minus_the_gradient_of_the_level():
    field, x, eps = trained(), points(), 1e-6
    normal = field.sample(x, BACKEND).normal
    columns = [(field.level(x + eps * e, BACKEND) - field.level(x - eps * e, BACKEND)) / (2 * eps) for e in torch.eye(3).double()]
    gradient = torch.stack(columns, 1)
    expected = -gradient / gradient.norm(dim=1, keepdim=True)
    close = ((normal - expected).abs() < 1e-4).all(1)
    assert close.double().mean() > 0.95  # the rest sits on a face between two cells


def test_training_a_normal_reaches_the_table():
    """The second-order term: gradients of the normal with respect to table and weights agree with finite differences."""
    field, x = trained(), points(16)
    direction = torch.randn(16, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)

    def value():
        return (field.sample(x, BACKEND).normal * direction).sum()

    gradients = torch.autograd.grad(value(), [field.table, field.w1, field.w2])
    for p, gradient in zip((field.table, field.w1, field.w2), gradients, strict=True):
        step = torch.randn(p.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
        eps = 1e-7
        with torch.no_grad():
            p += eps * step
            up = value()
            p -= 2 * eps * step
            down = value()
            p += eps * step
        torch.testing.assert_close((up - down) / (2 * eps), (gradient * step).sum(), rtol=1e-4, atol=1e-6)


def test_levels_come_in_one_after_another():
    config = FieldConfig(levels=4, log2_entries=12, finest_resolution=60, first_levels=2, grow_until=0.5)
    field, x = trained(scale=1.0, config=config), points()
    values = []
    for progress in (0.0, 0.25, 0.5, 1.0):
        field.set_progress(progress)
        values.append(field.level(x, BACKEND))
    assert not torch.equal(values[0], values[1]) and not torch.equal(values[1], values[2])
    assert torch.equal(values[2], values[3])
    field.set_progress(0.0)
    field.sample(x, BACKEND).level.sum().backward()
    first_unused = field.levels[2].offset
    assert field.table.grad[:first_unused].abs().sum() > 0 and field.table.grad[first_unused:].abs().sum() == 0


def test_spherical_harmonics_are_orthonormal():
    d = torch.randn(200_000, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = spherical_harmonics(d / d.norm(dim=1, keepdim=True))
    product = 4 * torch.pi * y.T @ y / len(d)
    torch.testing.assert_close(product, torch.eye(16).double(), atol=0.03, rtol=0)


@pytest.mark.parametrize("inputs", ["x,n,h,d", "n,d", "x"])
def test_the_colour_head_sees_only_its_inputs(inputs):
    head = ColorHead(ColorConfig(inputs=inputs), torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)
    x, d, n, h = (torch.randn(8, k, generator=generator) for k in (3, 3, 3, 15))
    base = head(x, FieldSample(x[:, 0], h, n), d, None, BACKEND)
    assert base.shape == (8, 3) and (base > 0).all() and (base < 1).all()
    changed = {
        "x": head(x + 1, FieldSample(x[:, 0], h, n), d, None, BACKEND),
        "n": head(x, FieldSample(x[:, 0], h, n + 1), d, None, BACKEND),
        "h": head(x, FieldSample(x[:, 0], h + 1, n), d, None, BACKEND),
        "d": head(x, FieldSample(x[:, 0], h, n), d.flip(1), None, BACKEND),
    }
    for key, value in changed.items():
        assert torch.equal(value, base) == (key not in inputs.split(","))


def test_an_unknown_colour_input_is_refused():
    with pytest.raises(ConfigError, match="x,q"):
        ColorHead(ColorConfig(inputs="x,q"), torch.Generator())


def test_its_own_search_finds_the_crossings_of_its_level():
    """Also while levels come in."""
    config = FieldConfig(levels=4, log2_entries=12, finest_resolution=60, first_levels=2, grow_until=0.5)
    field, rays = trained(scale=1.0, config=config).float(), parallel_rays(60)
    lattice = march(rays, torch.ones(8, 8, 8, dtype=torch.bool), 0.02, BACKEND)
    for progress in (0.1, 1.0):
        field.set_progress(progress)
        t, hit = field.first_crossing(rays, *lattice, 0.02, 8, BACKEND)
        wanted_t, wanted_hit = search(lambda x: field.level(x, BACKEND), rays, *lattice, 0.02, 8)
        assert torch.equal(hit, wanted_hit) and hit.any()
        torch.testing.assert_close(t, wanted_t)
