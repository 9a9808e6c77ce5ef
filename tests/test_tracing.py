"""Sphere tracing and the differentiable intersection, on solids whose crossings are known."""

import pytest
import torch
from solids import parallel_rays
from torch import Tensor

from fastsurf.rays import Rays, make_rays
from fastsurf.tracing import intersection, nearest, sphere_trace

MAJOR, MINOR = 0.5, 0.15


def sphere(x: Tensor, radius: float = 0.5) -> Tensor:
    return radius - x.norm(dim=-1)


def torus(x: Tensor) -> Tensor:
    """Round the z axis."""
    ring = x[:, :2].norm(dim=-1) - MAJOR
    return MINOR - torch.stack([ring, x[:, 2]], -1).norm(dim=-1)


def plate(x: Tensor, half: float = 0.002) -> Tensor:
    """A disc of radius 0.6 across z, a fiftieth of the torus thick."""
    out = torch.stack([x[:, 2].abs() - half, x[:, :2].norm(dim=-1) - 0.6], -1)
    return -(out.clamp(min=0).norm(dim=-1) + out.amax(-1).clamp(max=0))


def slanted(n: int = 500, seed: int = 1) -> Rays:
    """Rays from all sides through random points of the box."""
    g = torch.Generator().manual_seed(seed)
    origins = torch.nn.functional.normalize(torch.randn(n, 3, generator=g), dim=-1) * 3
    directions = torch.nn.functional.normalize(torch.rand(n, 3, generator=g) * 1.4 - 0.7 - origins, dim=-1)
    return make_rays(origins, directions)


def marched(level, rays: Rays, count: int = 3000) -> tuple[Tensor, Tensor]:
    """First sample inside, by brute force, and how deep each ray gets."""
    t = rays.t_near[:, None] + (rays.t_far - rays.t_near)[:, None] * torch.linspace(0, 1, count)
    levels = torch.stack([level(part) for part in rays.at(t)])
    return t.gather(1, (levels > 0).int().argmax(1, keepdim=True))[:, 0], levels.amax(1)


def test_crossings_of_a_sphere_are_exact_from_either_side():
    rays = parallel_rays(600)
    behind = make_rays(rays.origins * torch.tensor([1.0, 1.0, -1.0]), -rays.directions)
    b = rays.origins[:, :2].norm(dim=1)
    for r in (rays, behind):
        t, hit = sphere_trace(sphere, r, 8)
        clear = (b - 0.5).abs() > 1e-3
        assert torch.equal(hit[clear], (b < 0.5)[clear]) and 100 < hit.sum() < 500
        torch.testing.assert_close(t[hit], 3 - (0.25 - b[hit] ** 2).clamp(min=0).sqrt(), atol=2e-3, rtol=0)
        steep = hit & (b < 0.45)
        torch.testing.assert_close(t[steep], 3 - (0.25 - b[steep] ** 2).sqrt(), atol=2e-4, rtol=0)
        assert (t[~hit] == r.t_far[~hit]).all()


@pytest.mark.parametrize("level", [torus, lambda x: 0.4 * torus(x), lambda x: 1.2 * torus(x)], ids=["distance", "too short", "too long"])
def test_a_torus_is_found_even_where_the_field_is_no_exact_distance(level):
    """A slope of 0.4 needs more steps than there are, one of 1.2 steps into the solid and has to walk back."""
    rays = slanted()
    t, hit = sphere_trace(level, rays, 8)
    expected, depth = marched(torus, rays)
    clear = depth.abs() > 5e-3
    assert (hit == (depth > 0))[clear].float().mean() > 0.985 and 100 < hit.sum() < 450
    on = hit & (depth > 5e-3)
    torch.testing.assert_close(torus(rays[hit].at(t[hit])), torch.zeros(int(hit.sum())), atol=2e-4, rtol=0)
    assert ((t - expected).abs()[on] < 5e-3).float().mean() > 0.98, "the first crossing, not a later one"


def test_exact_distances_never_pass_through_thin_parts():
    rays = parallel_rays(500)
    t, hit = sphere_trace(plate, rays, 8)
    b = rays.origins[:, :2].norm(dim=1)
    clear = (b - 0.6).abs() > 1e-3
    assert torch.equal(hit[clear], (b < 0.6)[clear])
    torch.testing.assert_close(t[hit], torch.full((int(hit.sum()),), 3 - 0.002), atol=1e-4, rtol=0)


def test_rays_past_the_box_and_into_a_cut_solid():
    past = make_rays(torch.tensor([[0.0, 5.0, -3.0]]), torch.tensor([[0.0, 0.0, 1.0]]))
    assert not sphere_trace(sphere, past, 8)[1].any()
    inside = make_rays(torch.tensor([[0.0, 0.0, -3.0]]), torch.tensor([[0.0, 0.0, 1.0]]))
    t, hit = sphere_trace(lambda x: sphere(x, 1.5), inside, 8)
    assert hit.all() and t.item() == inside.t_near.item(), "the box cuts the solid"
    assert not sphere_trace(lambda x: -torch.ones(len(x)), inside, 8)[1].any()
    none = inside[:0]
    assert all(len(a) == 0 for a in sphere_trace(sphere, none, 8))


def test_nearest_finds_where_a_ray_passes_the_sphere():
    rays = parallel_rays(200)
    t = nearest(sphere, rays, (torch.arange(100) / 100).expand(200, 100))
    assert (rays.at(t)[:, 2].abs() <= 0.011).all(), "in the plane of the centre, up to a sample"


def turned(angles: Tensor, v: Tensor) -> Tensor:
    """v (3,) turned by small angles about x and y, by Rodrigues' formula."""
    axis = torch.cat([angles, angles.new_zeros(1)])
    size = axis.norm() + 1e-30
    k = axis / size
    return v * size.cos() + torch.linalg.cross(k, v) * size.sin() + k * (k @ v) * (1 - size.cos())


def test_the_intersection_moves_as_the_true_one_does():
    """Derivatives with respect to radius, camera centre and direction, against finite differences of the exact crossing (float64)."""
    radius = torch.tensor(0.5, dtype=torch.float64)
    center = torch.tensor([0.2, -0.1, -2.0], dtype=torch.float64)
    angles = torch.tensor([0.05, -0.08], dtype=torch.float64)
    along_z = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)

    def exact(radius: Tensor, center: Tensor, angles: Tensor) -> Tensor:
        v = turned(angles, along_z)
        b = center @ v
        return center + (-b - (b * b - center @ center + radius**2).sqrt()) * v

    def ours(radius: Tensor, center: Tensor, angles: Tensor) -> Tensor:
        v = turned(angles, along_z)
        rays = make_rays(center[None], v[None])
        t = ((exact(radius, center, angles) - center) @ v).detach()[None]
        x = rays.at(t).detach()
        return intersection(rays, t, radius - x.norm(dim=-1), -x / x.norm(dim=-1, keepdim=True))[0]

    at = (radius, center, angles)
    torch.testing.assert_close(ours(*at), exact(*at), atol=1e-12, rtol=0)
    found = torch.autograd.functional.jacobian(ours, at)
    for k, (jacobian, value) in enumerate(zip(found, at, strict=True)):
        for i in range(value.numel()):
            h = torch.zeros_like(value)
            h.view(-1)[i] = 1e-6
            plus, minus = (exact(*[v + s * h if j == k else v for j, v in enumerate(at)]) for s in (1, -1))
            torch.testing.assert_close(jacobian.reshape(3, -1)[:, i], (plus - minus) / 2e-6, atol=1e-6, rtol=1e-6)


def test_points_where_the_box_cuts_the_solid_stay_put():
    rays = make_rays(torch.tensor([[0.0, 0.0, -3.0]]), torch.tensor([[0.0, 0.0, 1.0]]))
    level = torch.tensor([0.5], requires_grad=True)
    x = intersection(rays, rays.t_near, level, torch.tensor([[0.0, 0.0, -1.0]]))
    assert not torch.autograd.grad(x.sum(), level)[0].any()
