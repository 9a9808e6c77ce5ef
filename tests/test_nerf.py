"""NeRF: opacity against closed forms, levels that nest, and the whole way on a small scene."""

import math
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from solids import Sphere, parallel_rays
from test_checkpoint import SMALL, parameters

from fastsurf.backends import choose_backend
from fastsurf.backends.reference import ReferenceBackend
from fastsurf.checkpoint import resume, save_checkpoint
from fastsurf.cli import main
from fastsurf.compositing import DENSEST, density
from fastsurf.config import load_config
from fastsurf.demo_scene import make_scene
from fastsurf.errors import MeshError, UsageError
from fastsurf.field import FieldSample
from fastsurf.mesh import extract, is_watertight
from fastsurf.meshio import read_mesh
from fastsurf.methods.nerf import DensityField, render
from fastsurf.metrics import read_truth, score_mesh
from fastsurf.model import Model
from fastsurf.reconstruction import reconstruct
from fastsurf.render import Samples, render_volume
from fastsurf.runs import eval_run, mesh_run, render_run
from fastsurf.sampling import toward_light
from fastsurf.scene import load_scene
from fastsurf.training import Training, train

TINY = [s for s in SMALL if "backend" not in s and "steps=24" not in s and "sampling" not in s] + ["train.steps=12", "sampling.interval=8"]


@dataclass
class Haze(Sphere):
    """A medium of one density between two planes of constant z; its colour says how deep a sample lies."""

    sigma: float = 1.5
    low: float = -0.5
    high: float = 0.5

    def __post_init__(self):
        self.occupied = torch.ones(8, 8, 8, dtype=torch.bool)

    def level(self, x):
        return torch.where((x[:, 2] > self.low) & (x[:, 2] < self.high), 0.0, -torch.inf)

    def sample(self, x):
        return FieldSample(self.level(x), torch.zeros(len(x), 15), torch.zeros_like(x))

    def opacity(self, level, length):
        return density(level, length, self.sigma)

    def color(self, x, sample, directions, view=None):
        return (x[:, 2:] + 1.0).expand(-1, 3) / 2.0


def black(rays):
    return torch.zeros(len(rays), 3)


@pytest.mark.parametrize("renderer", [render_volume, lambda rays, solid, *rest: render(rays, solid, 1.0, *rest)])
@pytest.mark.parametrize("samples", [1, 7, 64])
def test_a_haze_that_fills_the_box_is_as_opaque_whatever_the_number_of_samples(renderer, samples):
    rays = parallel_rays(50)
    haze = Haze(sigma=0.8, low=-2.0, high=2.0, march_step=2.0 / 128)
    rendering, _ = renderer(rays, haze, Samples(0, samples, torch.Generator().manual_seed(samples)), black)
    expected = torch.full((50,), 1 - math.exp(-0.8 * 2.0))
    torch.testing.assert_close(rendering.opacity, expected, atol=0.01, rtol=0)
    torch.testing.assert_close(rendering.optical_depth, torch.full((50,), 1.6), atol=0.02, rtol=0)
    assert rendering.hit.all() and torch.equal(rendering.t_surface, rendering.depth)


@pytest.mark.parametrize("sigma", [0.2, 3.0, 300.0])
def test_a_slab_of_haze_has_its_opacity_and_its_color(sigma):
    """opacity 1 - exp(-sigma L); the colour is the integral of exp(-sigma s) sigma c(s)."""
    rays = parallel_rays(50)
    haze = Haze(sigma=sigma, march_step=2.0 / 512)
    rendering, _ = render(rays, haze, 1.0, Samples(0, 64), black)
    s = torch.linspace(0, 1, 100001, dtype=torch.float64)
    seen = torch.trapezoid(torch.exp(-sigma * s) * sigma * (s + 0.5) / 2.0, s)
    torch.testing.assert_close(rendering.opacity, torch.full((50,), 1 - math.exp(-sigma)), atol=0.01, rtol=0)
    torch.testing.assert_close(rendering.rgb, torch.full((50, 3), float(seen)), atol=0.01, rtol=0)


def test_density_is_exp_of_the_level_and_no_gradient_overflows():
    level = torch.linspace(-20, 300, 65, dtype=torch.float64, requires_grad=True)
    alphas, depth = density(level, 0.01, 50.0)
    (alphas.sum() + depth.sum()).backward()
    log = level.detach() + math.log(50.0)
    small = log < DENSEST
    torch.testing.assert_close(depth.detach()[small], 0.01 * log[small].exp())
    torch.testing.assert_close(alphas, 1 - torch.exp(-depth))
    assert torch.isfinite(level.grad).all() and (level.grad > 0).all() and (depth.diff() > 0).all()


def test_samples_gather_where_light_comes_from_and_cover_the_ray():
    weights = torch.zeros(3, 20)
    weights[0, 12] = 1.0
    weights[1, 3:7] = 0.25
    edges = toward_light(weights, torch.tensor([20, 10, 0]), 16)
    torch.testing.assert_close(edges[:, [0, -1]], torch.tensor([[0.0, 1.0]]).expand(3, 2))
    assert (edges.diff() > 0).all()
    torch.testing.assert_close(edges[2], torch.linspace(0, 1, 17))
    assert ((edges[0] > 12 / 20) & (edges[0] < 13 / 20)).sum() >= 13
    assert ((edges[1] > 3 / 10) & (edges[1] < 7 / 10)).sum() >= 13


def nerf_model(backend, *sets):
    config = load_config(None, [*TINY, *sets], "nerf")
    model = Model(config, backend, "random")
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for p in model.field.parameters():
            p += 0.1 * torch.randn(p.shape, generator=generator)
    return model


def test_backends_agree_on_the_density_and_what_it_learns():
    x = torch.rand(500, 3, generator=torch.Generator().manual_seed(0)) * 1.8 - 0.9
    found = []
    for backend in (ReferenceBackend(), choose_backend("native", 1)):
        model = nerf_model(backend)
        sample = model.sample(x)
        assert not sample.normal.any()
        (sample.level.sum() + (sample.feature**2).sum()).backward()
        with torch.no_grad():
            normal = model.sample(x).normal
        torch.testing.assert_close(model.level(x), sample.level.detach(), atol=1e-4, rtol=1e-5)
        found.append([sample.level.detach(), normal, *(p.grad for p in model.field.parameters())])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, atol=2e-3, rtol=1e-4)


def test_the_normal_points_to_where_it_is_thinner():
    model = nerf_model(ReferenceBackend())
    x = torch.rand(300, 3, generator=torch.Generator().manual_seed(1)) - 0.5
    with torch.no_grad():
        normal = model.sample(x).normal
    thinner = model.level(x + 1e-4 * normal) < model.level(x - 1e-4 * normal)
    assert thinner.float().mean() > 0.97  # a cell's border within the step may turn one


def test_colors_that_see_the_normal_get_it_while_learning():
    x = torch.rand(20, 3) - 0.5
    assert nerf_model(ReferenceBackend(), "color.inputs=x,n,h,d").sample(x).normal.norm(dim=1).allclose(torch.ones(20))


def test_levels_nest():
    """A denser level lies within a thinner one, and each where the blob has that density."""
    def level_at(sigma):
        return lambda x: 6.0 - 8.0 * x.norm(dim=-1) - math.log(sigma)  # density exp(6 - 8 r)

    inner = 0.0
    for sigma in (500.0, 50.0, 1.0):
        if sigma > math.exp(6.0):
            with pytest.raises(MeshError, match="negative"):
                extract(level_at(sigma), torch.ones(16, 16, 16, dtype=torch.bool), 64, True)
            continue
        vertices, faces = extract(level_at(sigma), torch.ones(16, 16, 16, dtype=torch.bool), 64, True)
        radius = np.linalg.norm(vertices, axis=1)
        np.testing.assert_allclose(radius, (6.0 - math.log(sigma)) / 8.0, atol=2e-3)
        assert radius.min() > inner and is_watertight(faces)
        inner = radius.max()


def test_the_chosen_level_moves_the_surface_and_not_the_density():
    thin, dense = (nerf_model(ReferenceBackend(), f"field.density_level={sigma}") for sigma in (2.0, 200.0))
    x = torch.rand(100, 3) - 0.5
    torch.testing.assert_close(thin.level(x) - dense.level(x), torch.full((100,), math.log(100.0)))
    for a, b in zip(thin.opacity(thin.level(x), 0.01), dense.opacity(dense.level(x), 0.01), strict=True):
        torch.testing.assert_close(a, b)


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    """A NeRF of some hundred steps, and the scene's folder."""
    folder = tmp_path_factory.mktemp("scene")
    make_scene(folder, views=16, test=2, size=64)
    sets = [
        "train.steps=250", "train.rays=256", "grid.resolution=32", "grid.steps=96", "field.levels=6", "field.log2_entries=13",
        "field.width=32", "color.width=32", "sampling.interval=16", "mesh.resolution=64",
    ]  # fmt: skip
    run = tmp_path_factory.mktemp("run") / "r"
    return reconstruct(folder, load_config(None, sets, "nerf"), run=run), folder


def test_a_small_scene_is_learned_and_meshed(learned):
    result, folder = learned
    assert result.state.psnr > 15 and is_watertight(result.mesh.faces)
    assert eval_run(result.run)["psnr"] > 17.5
    seen_from = [view for view in load_scene(folder).capture.views if view.split == "train"]
    assert score_mesh(result.mesh, read_truth(folder / "gt" / "mesh.ply"), seen_from, 4000)["chamfer"] < 0.2


def test_a_run_is_meshed_at_levels_that_nest(learned, tmp_path, capsys):
    result, _ = learned
    assert main(["mesh", str(result.run), "-o", str(tmp_path / "m.ply"), "--levels", "5,20,80", "--quiet"]) == 0
    assert {p.name for p in tmp_path.iterdir()} == {"m_5.ply", "m_20.ply", "m_80.ply"}
    volumes = []
    for name in ("m_5", "m_20", "m_80"):
        mesh = read_mesh(tmp_path / f"{name}.ply")
        a, b, c = np.moveaxis(mesh.vertices[mesh.faces], 1, 0)
        volumes.append(np.einsum("fi,fi->", a, np.cross(b, c)) / 6)
    assert volumes[0] > volumes[1] > volumes[2] > 0
    same, _ = mesh_run(result.run, tmp_path / "same.ply", density=10.0)
    np.testing.assert_array_equal(same.vertices, mesh_run(result.run, tmp_path / "again.ply")[0].vertices)
    assert main(["mesh", str(result.run), "-o", str(tmp_path / "m.ply"), "--levels", "0.01"]) == 2
    assert "is not looked at; want more" in capsys.readouterr().err


@pytest.mark.parametrize("levels", ["", "1,x", "-1", "0", "nan", "1,,2"])
def test_levels_that_are_none_are_refused(levels, capsys, tmp_path):
    assert main(["mesh", "x", "-o", str(tmp_path / "m.ply"), "--levels", levels]) == 2
    assert "--levels wants densities above 0" in capsys.readouterr().err


def test_other_methods_have_no_levels(tiny, tmp_path):
    backend = ReferenceBackend()
    save_checkpoint(tmp_path / "checkpoint.safetensors", Training(tiny, Model(load_config(None, SMALL), backend, "random"), backend))
    with pytest.raises(UsageError, match="made by unisurf, which has no density"):
        mesh_run(tmp_path, tmp_path / "m.ply", density=5.0)


def test_a_run_is_rendered(learned, tmp_path):
    from PIL import Image

    render_run(learned[0].run, "test", tmp_path)
    with Image.open(tmp_path / "test_000.png") as picture:
        assert picture.size == (64, 64)
    depth = np.load(tmp_path / "depth" / "test_000.npy")
    assert np.isfinite(depth).all() and np.ptp(depth) > 0.5


@pytest.mark.parametrize("backend, background", [("reference", "random"), ("native", "model")])
def test_a_resumed_run_ends_like_one_left_alone_for_any_number_of_threads(tiny, tmp_path, backend, background):
    def begin(threads):
        kernels = choose_backend(backend, threads)
        return Training(tiny, Model(load_config(None, TINY, "nerf"), kernels, background), kernels)

    alone, first, second = begin(1), begin(2), begin(2)
    assert isinstance(alone.model.field, DensityField) and alone.fused is None
    for _ in train(alone):
        pass
    for state in train(first):
        if state.step == 5:
            break
    save_checkpoint(tmp_path / "c.safetensors", first)
    resume(tmp_path / "c.safetensors", second)
    assert [state.step for state in train(second)] == list(range(6, 13))
    assert torch.equal(parameters(second), parameters(alone))
    assert torch.equal(second.model.grid.values, alone.model.grid.values)
    other = replace(second.config, method="unisurf")
    with pytest.raises(UsageError, match="the method nerf, now it is unisurf"):
        resume(tmp_path / "c.safetensors", Training(tiny, Model(other, second.backend, background), second.backend))
