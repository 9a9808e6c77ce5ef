import pytest
import torch
from solids import Sphere, parallel_rays

from fastsurf.config import FieldConfig, SamplingConfig
from fastsurf.render import find
from fastsurf.sampling import half_width, place, sharpness, strata


def test_interval_shrinks_exponentially_to_its_floor():
    config = SamplingConfig(delta_max=0.5, delta_min=0.02, delta_until=0.8)
    assert half_width(0.0, config) == 0.5
    assert half_width(0.4, config) == pytest.approx((0.5 * 0.02) ** 0.5)
    assert half_width(0.8, config) == pytest.approx(0.02)
    assert half_width(1.0, config) == 0.02


def test_sharpness_follows_the_interval_within_its_limits():
    config = FieldConfig(sharpness=40, sharpness_times_half_width=8, sharpness_max=400)
    assert [sharpness(w, config) for w in (1.0, 0.1, 0.001)] == [40, 80, 400]


def test_samples_are_sorted_and_where_they_should_be():
    rays, sphere, generator = parallel_rays(), Sphere(), torch.Generator().manual_seed(1)
    found = find(rays, sphere)
    t = place(rays, found, 0.05, 8, 16, generator)
    assert (t.diff(dim=1) >= 0).all()
    assert (t >= rays.t_near[:, None]).all() and (t <= rays.t_far[:, None]).all()
    surface = found.t[found.hit, None]
    assert ((t[found.hit, 8:] - surface).abs() <= 0.05 + 1e-6).all()
    assert (t[found.hit, :8] <= surface - 0.05 + 1e-6).all()


def test_rays_without_a_surface_are_sampled_in_occupied_space():
    rays, sphere = parallel_rays(), Sphere(sharpness=10.0)
    found = find(rays, sphere)
    t = place(rays, found, 0.05, 8, 16, None)
    passing = ~found.hit & (found.count > 30)
    distance = -sphere.level(rays.at(t)[passing].view(-1, 3))
    assert passing.sum() > 10 and distance.max() < 0.1 + 3**0.5 / 48 + sphere.march_step


def test_strata_hold_one_number_each_and_repeat_with_their_seed():
    u = strata(50, 10, torch.Generator().manual_seed(3))
    assert ((u * 10).long() == torch.arange(10)).all()
    assert torch.equal(u, strata(50, 10, torch.Generator().manual_seed(3)))
