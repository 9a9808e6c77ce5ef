import pytest
import torch
from solids import Sphere, grid_around, parallel_rays

from fastsurf.backends.reference import ReferenceBackend
from fastsurf.rays import make_rays
from fastsurf.surface import first_crossing

BACKEND = ReferenceBackend()


def exact_hits(rays, radius):
    b = (rays.origins * rays.directions).sum(1)
    inside = b**2 - ((rays.origins**2).sum(1) - radius**2)
    return inside > 0, -b - inside.clamp(min=0).sqrt()


def test_first_crossing_of_a_sphere_is_exact():
    rays, sphere = parallel_rays(), Sphere()
    found = first_crossing(sphere.level, rays, sphere.occupied, 0.01, 8, BACKEND)
    hit, t = exact_hits(rays, 0.5)
    grazing = (rays.origins[:, :2].norm(dim=1) - 0.5).abs() < 1e-3  # may pass between two marching points
    assert (found.hit == hit)[~grazing].all() and 50 < found.hit.sum() < 350
    torch.testing.assert_close(found.t[found.hit], t[found.hit], atol=1e-5, rtol=0)
    assert (found.t[~found.hit] == rays.t_far[~found.hit]).all()


def test_secant_steps_matter():
    rays, sphere = parallel_rays(), Sphere()
    errors = []
    for steps in (0, 2, 8):
        found = first_crossing(sphere.level, rays, sphere.occupied, 0.05, steps, BACKEND)
        errors.append((found.t - exact_hits(rays, 0.5)[1])[found.hit].abs().max())
    assert errors[0] > 10 * errors[1] > 10 * errors[2]


def test_the_nearer_of_two_spheres_is_found():
    near, far = Sphere(center=torch.tensor([0.0, 0.0, -0.5]), radius=torch.tensor(0.2)), Sphere(center=torch.tensor([0.0, 0.0, 0.5]))

    def level(x):
        return torch.maximum(near.level(x), far.level(x))

    rays = parallel_rays(spread=0.1)
    found = first_crossing(level, rays, grid_around(level), 0.01, 8, BACKEND)
    assert found.hit.all() and (rays.at(found.t)[:, 2] < -0.25).all()


def test_a_ray_that_enters_the_box_inside_the_solid_crosses_there():
    rays, sphere = parallel_rays(spread=0.3), Sphere(radius=torch.tensor(5.0))
    found = first_crossing(sphere.level, rays, sphere.occupied, 0.01, 8, BACKEND)
    assert found.hit.all()
    torch.testing.assert_close(found.t, rays.t_near, atol=1e-6, rtol=0)


def test_culled_cells_count_as_outside():
    rays, sphere = parallel_rays(), Sphere()
    found = first_crossing(sphere.level, rays, torch.zeros_like(sphere.occupied), 0.01, 8, BACKEND)
    assert not found.hit.any() and (found.count == 0).all()


@pytest.mark.parametrize("level", [-1.0, 1.0])
def test_a_constant_level_has_no_crossing_or_one_at_the_box(level):
    rays = parallel_rays(20)
    found = first_crossing(lambda x: torch.full((len(x),), level), rays, torch.ones(8, 8, 8, dtype=torch.bool), 0.02, 8, BACKEND)
    assert (found.hit == (level > 0)).all()
    assert torch.isfinite(found.t).all()


def test_moving_solid_and_rays_together_changes_nothing():
    rays, shift = parallel_rays(spread=0.4), torch.tensor([0.11, -0.07, 0.05])
    here, there = Sphere(radius=torch.tensor(0.3)), Sphere(radius=torch.tensor(0.3), center=shift)
    a = first_crossing(here.level, rays, here.occupied, 0.01, 8, BACKEND)
    moved = make_rays(rays.origins + shift, rays.directions)
    b = first_crossing(there.level, moved, there.occupied, 0.01, 8, BACKEND)
    assert (a.hit == b.hit).float().mean() > 0.995  # a grazing ray may differ
    both = a.hit & b.hit
    torch.testing.assert_close(a.t[both], b.t[both], atol=2e-5, rtol=0)


def test_no_rays():
    sphere = Sphere()
    found = first_crossing(sphere.level, parallel_rays(0), sphere.occupied, 0.01, 8, BACKEND)
    assert found.t.shape == (0,)
