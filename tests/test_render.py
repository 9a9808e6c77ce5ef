import numpy as np
import pytest
import torch
from solids import Sphere, parallel_rays

from fastsurf.compositing import Rendering
from fastsurf.pictures import NEAREST, STEEPEST, orbit_of, orbit_rays
from fastsurf.render import Samples, render_surface, render_unified, render_volume


def white(rays):
    return torch.ones(len(rays), 3)


@pytest.mark.parametrize("sharpness, width", [(2000.0, 1e-4), (8.0, 1e4)])
def test_unified_rendering_meets_its_limits(sharpness, width):
    """Towards width 0 it is surface rendering, towards the whole ray volume rendering."""
    sphere, rays = Sphere(sharpness=sharpness), parallel_rays()
    if width > 1:
        sphere.occupied[:] = True  # a soft solid reaches everywhere
        limit = render_volume(rays, sphere, Samples(0, 256), white)[0]
        unified = render_unified(rays, sphere, width, Samples(0, 256), white)[0]
    else:
        limit = render_surface(rays, sphere, white)[0]
        unified = render_unified(rays, sphere, width, Samples(8, 16), white)[0]
    assert limit.hit.any() and not limit.hit.all()
    torch.testing.assert_close(unified.rgb, limit.rgb, atol=1e-2, rtol=0)
    torch.testing.assert_close(unified.opacity, limit.opacity, atol=1e-2, rtol=0)


def test_empty_rays_give_the_background():
    sphere, rays = Sphere(), parallel_rays()
    outside = rays.origins[:, :2].norm(dim=1) > 0.55
    for rendering, _ in (
        render_unified(rays, sphere, 0.05, Samples(8, 16), white),
        render_volume(rays, sphere, Samples(8, 16), white),
        render_surface(rays, sphere, white),
    ):
        torch.testing.assert_close(rendering.rgb[outside], torch.ones(int(outside.sum()), 3), atol=1e-5, rtol=0)
        torch.testing.assert_close(rendering.depth[outside], rays.t_far[outside], atol=1e-4, rtol=0)


def test_culling_empty_cells_changes_nothing():
    sphere, rays = Sphere(sharpness=200.0), parallel_rays()
    culled = render_unified(rays, sphere, 0.05, Samples(8, 16), white)[0]
    sphere.occupied = torch.ones_like(sphere.occupied)
    everywhere = render_unified(rays, sphere, 0.05, Samples(8, 16), white)[0]
    near_edge = (rays.origins[:, :2].norm(dim=1) - 0.5).abs() < 0.05
    torch.testing.assert_close(culled.rgb[~near_edge], everywhere.rgb[~near_edge], atol=2 / 255, rtol=0)


@pytest.mark.parametrize("width", [0.01, 0.3])
def test_every_sample_evaluated_or_some_is_the_same_picture(width):
    some, every = Sphere(sharpness=60.0), Sphere(sharpness=60.0, dense=True)
    some.radius.requires_grad_()
    every.radius.requires_grad_()
    pictures = [render_unified(parallel_rays(), solid, width, Samples(8, 16), white)[0] for solid in (some, every)]
    for name in Rendering.__dataclass_fields__:
        torch.testing.assert_close(*(getattr(picture, name) for picture in pictures), msg=name)
    a, b = (torch.autograd.grad(picture.rgb.square().sum(), solid.radius) for picture, solid in zip(pictures, (some, every), strict=True))
    torch.testing.assert_close(a, b)


def test_growing_the_solid_raises_the_opacity_at_its_edge():
    sphere = Sphere(sharpness=50.0, radius=torch.tensor(0.5, requires_grad=True))
    rays = parallel_rays()
    rendering = render_unified(rays, sphere, 0.2, Samples(8, 16), white)[0]
    (gradient,) = torch.autograd.grad(rendering.opacity.sum(), sphere.radius)
    assert torch.isfinite(gradient) and gradient > 0


def test_rays_that_miss_the_box_see_the_background():
    rays = parallel_rays(10)
    rays.origins[:, 0] = 2.0
    from fastsurf.rays import make_rays

    missing = make_rays(rays.origins, rays.directions)
    rendering = render_unified(missing, Sphere(), 0.1, Samples(4, 4), white)[0]
    assert (rendering.rgb == 1).all() and (rendering.opacity == 0).all()


def around(azimuths, elevation, distance=3.0):
    """Places of cameras (n, 3) round z."""
    flat = np.cos(elevation)
    return distance * np.stack([flat * np.cos(azimuths), flat * np.sin(azimuths), np.full_like(azimuths, np.sin(elevation))], -1)


def test_an_orbit_goes_all_the_way_round_where_cameras_did():
    orbit = orbit_of(around(np.linspace(0.0, 2 * np.pi, 9)[:-1], 0.4), np.array([0.0, 0, 1]), 12, 0.7)
    assert np.diff(orbit.azimuths) == pytest.approx(2 * np.pi / 12) and orbit.elevation == pytest.approx(0.4)
    for rays in orbit_rays(orbit, 3):
        middle, up = rays.directions[4], rays.directions[1] - rays.directions[7]
        assert torch.allclose(-rays.origins[4] / 3.0, middle, atol=1e-6) and up[2] > 0, "it looks at the middle, upright"
        across = torch.arccos(rays.directions[3] @ rays.directions[5])
        assert float(across) == pytest.approx(2 * np.arctan(np.tan(0.35) * 2 / 3), abs=1e-3), "from the outer pixels' centres"


@pytest.mark.parametrize("up", [(0.0, 0, 1), (0.0, -1, 0), (0.6, 0.0, 0.8)])
def test_an_orbit_stays_before_the_side_that_was_photographed(up):
    """There and back between the outermost cameras, without a jump, at their height and distance; so whichever way is up."""
    seen = np.array([-2.9, 2.6, -2.5, 2.9, 3.1])  # across the seam of angles
    turn = np.linalg.qr(np.array([up, (0.1, 0.9, 0.3), (0.9, 0.2, -0.1)]).T)[0][:, [1, 2, 0]]
    turn = turn * np.array([1.0, 1.0, np.sign(turn[:, 2] @ up)])
    orbit = orbit_of(around(seen, -0.1, 2.5) @ turn.T, np.array(up), 16, 0.7)
    places = np.stack([rays.origins[0].numpy() for rays in orbit_rays(orbit, 1)]) @ turn
    azimuths = np.arctan2(places[:, 1], places[:, 0]) % (2 * np.pi)
    assert azimuths.min() == pytest.approx(2.6, abs=1e-5) and azimuths.max() == pytest.approx(2 * np.pi - 2.5, abs=1e-5)
    steps = np.diff(azimuths, append=azimuths[0])
    assert np.abs(steps).max() < 0.3 and (steps > 0).sum() == (steps < 0).sum() == 8
    np.testing.assert_allclose(np.linalg.norm(places, axis=1), 2.5, rtol=1e-5)
    np.testing.assert_allclose(places[:, 2] / 2.5, np.sin(-0.1), atol=1e-5)


def test_an_orbit_of_cameras_anywhere_is_one():
    for centers in (np.zeros((2, 3)), around(np.zeros(3), np.pi / 2), around(np.zeros(2), -1.5, 0.3)):
        orbit = orbit_of(centers, np.array([0.0, 0, 1]), 4, 0.7)
        assert abs(orbit.elevation) <= STEEPEST and orbit.radius >= NEAREST
        assert all(rays.directions.isfinite().all() for rays in orbit_rays(orbit, 2))
