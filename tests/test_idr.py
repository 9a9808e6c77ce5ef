"""IDR: its field, its losses, and what comes out of it."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from captures import ball_mask, sphere_of_cameras
from PIL import Image
from test_checkpoint import SMALL as SMALLEST

from fastsurf.backends import choose_backend
from fastsurf.backends.reference import ReferenceBackend
from fastsurf.cameras import Camera, Capture, View, unproject, world_to_pixels
from fastsurf.checkpoint import resume, save_checkpoint
from fastsurf.color import ColorHead
from fastsurf.config import ColorConfig, FieldConfig, check, load_config
from fastsurf.corrections import Corrections, rotations
from fastsurf.errors import BackendError, ConfigError, SceneError, UsageError
from fastsurf.formats import load
from fastsurf.formats.transforms import written
from fastsurf.hooks import Note
from fastsurf.methods.distance import HashDistance, MlpDistance
from fastsurf.methods.idr import mask_loss
from fastsurf.model import Model
from fastsurf.rays import make_rays
from fastsurf.reconstruction import reconstruct
from fastsurf.runs import render_run
from fastsurf.scene import load_scene
from fastsurf.tracing import intersection
from fastsurf.training import Training, train

REFERENCE = ReferenceBackend()
SMALL = [*(s for s in SMALLEST if not s.startswith(("grid.update", "backend"))), "grid.update_every=64"]
LIGHT = ["train.rays=256", "field.levels=6", "field.log2_entries=14", "field.finest_resolution=96", "train.preview_every=1000"]
FIELD = FieldConfig(levels=3, log2_entries=10, finest_resolution=40, width=16)


def native():
    try:
        return choose_backend("native")
    except BackendError as e:
        pytest.skip(str(e))


def rough_field(seed: int = 0) -> HashDistance:
    """A sphere with bumps, float64."""
    generator = torch.Generator().manual_seed(seed)
    field = HashDistance(FIELD, generator).double()
    with torch.no_grad():
        field.net.table.copy_(torch.randn(field.net.table.shape, generator=generator) * 0.3)
    return field


def crossing(field, origin, direction, t_in=2.0):
    """Along one ray, by bisection (float64)."""
    low, high = torch.tensor(1.0, dtype=torch.float64), torch.tensor(t_in, dtype=torch.float64)
    for _ in range(60):
        middle = (low + high) / 2
        inside = field.level((origin + middle * direction)[None], REFERENCE)[0] > 0
        low, high = (low, middle) if inside else (middle, high)
    return origin + low * direction


@pytest.mark.parametrize("seed", [0, 1])
def test_the_intersection_moves_with_the_hash_field_and_the_camera(seed):
    """Equation 3 against finite differences of the true crossing: every kind of parameter, camera centre, direction."""
    field = rough_field(seed)
    origin = torch.tensor([0.1, -0.2, -2.0], dtype=torch.float64)
    direction = torch.nn.functional.normalize(torch.tensor([0.02, 0.1, 1.0], dtype=torch.float64), dim=0)
    weigh = torch.tensor([0.3, -0.5, 0.8], dtype=torch.float64)
    c, v = origin.clone().requires_grad_(), direction.clone().requires_grad_()
    x0 = crossing(field, origin, direction)
    at = field.sample(x0[None], REFERENCE)
    assert abs(at.level.item()) < 1e-12
    rays = make_rays(c[None], v[None])
    x = intersection(rays, ((x0 - origin) @ direction)[None], at.level, -at.normal * at.slope[:, None])[0]
    torch.testing.assert_close(x, x0)
    parameters = list(field.parameters())
    *by_parameter, by_c, by_v = torch.autograd.grad(x @ weigh, [*parameters, c, v])

    def slope(change, h=1e-6):
        values = []
        for sign in (1, -1):
            change(sign * h)
            values.append(crossing(field, origin, direction) @ weigh)
            change(-sign * h)
        return (values[0] - values[1]) / (2 * h)

    for p, gradient in zip(parameters, by_parameter, strict=True):
        flat = p.data.view(-1)
        for i in gradient.abs().view(-1).topk(3).indices.tolist():  # those that matter at this point
            torch.testing.assert_close(slope(lambda d, flat=flat, i=i: flat[i].add_(d)), gradient.view(-1)[i], atol=1e-6, rtol=1e-4)
    for value, gradient in ((origin, by_c), (direction, by_v)):
        for i in range(3):
            torch.testing.assert_close(slope(lambda d, value=value, i=i: value[i].add_(d)), gradient[i], atol=1e-6, rtol=1e-4)


def test_a_colour_at_the_intersection_moves_with_the_field_and_the_camera():
    """The whole chain M(x, n, v, z), normals and features at the moving point included."""
    field = rough_field()
    head = ColorHead(ColorConfig(width=16), torch.Generator().manual_seed(3)).double()
    origin = torch.tensor([0.1, -0.2, -2.0], dtype=torch.float64)
    direction = torch.nn.functional.normalize(torch.tensor([0.02, 0.1, 1.0], dtype=torch.float64), dim=0)

    def color(x, v):
        return head(x[None], field.sample(x[None], REFERENCE), v[None], None, REFERENCE).sum()

    c = origin.clone().requires_grad_()
    x0 = crossing(field, origin, direction)
    at = field.sample(x0[None], REFERENCE)
    t = ((x0 - origin) @ direction)[None]
    x = intersection(make_rays(c[None], direction[None]), t, at.level, -at.normal * at.slope[:, None])[0]
    by_table, by_w1, by_c = torch.autograd.grad(color(x, direction), [field.net.table, field.net.w1, c])

    def slope(flat, i, h=1e-6):
        values = []
        for sign in (1, -1):
            flat[i] += sign * h
            values.append(color(crossing(field, origin, direction).requires_grad_(), direction).detach())
            flat[i] -= sign * h
        return (values[0] - values[1]) / (2 * h)

    for p, gradient in ((field.net.table.data, by_table), (field.net.w1.data, by_w1), (origin, by_c)):
        for i in gradient.abs().view(-1).topk(3).indices.tolist():
            torch.testing.assert_close(slope(p.view(-1), i), gradient.view(-1)[i], atol=1e-6, rtol=1e-4)


def test_both_ways_to_sample_the_hash_field_agree_on_both_backends():
    """In x or not, by autograd or by the backend's own operation."""
    field = rough_field().float()
    points = torch.rand(200, 3, generator=torch.Generator().manual_seed(1)) * 1.6 - 0.8
    samples = [field.sample(x, backend) for backend in (REFERENCE, native()) for x in (points, points.clone().requires_grad_())]
    for name in ("level", "feature", "normal", "slope"):
        first, *others = (getattr(s, name) for s in samples)
        for other in others:
            torch.testing.assert_close(other, first, atol=2e-4, rtol=2e-4)
    torch.testing.assert_close(field.level(points, native()), samples[0].level, atol=1e-4, rtol=0)


@pytest.mark.parametrize("encoding", ["frequency", "none"])
def test_an_untrained_network_shows_a_sphere(encoding):
    field = MlpDistance(replace(FIELD, encoding=encoding), torch.Generator().manual_seed(0))
    x = torch.nn.functional.normalize(torch.randn(500, 3, generator=torch.Generator().manual_seed(1)), dim=-1)
    with torch.no_grad():
        sample = field.sample(torch.cat([0.5 * x, 0.9 * x]), REFERENCE)
    assert sample.level[:500].abs().mean() < 0.1 and sample.level[:500].abs().max() < 0.25
    assert (sample.normal * torch.cat([x, x])).sum(-1).mean() > 0.93
    assert 0.8 < sample.slope.mean() < 1.2
    assert (field.level(0.25 * x, REFERENCE) > 0).all() and (field.level(0.9 * x, REFERENCE) < 0).all()
    inside = field.level(torch.tensor([[0.1, 0.2, 0.3]]), REFERENCE)
    with torch.no_grad():
        torch.testing.assert_close(field.sample(torch.tensor([[0.1, 0.2, 0.3]]), REFERENCE).level, inside)


def test_the_mask_loss_becomes_the_distance_that_is_wrong():
    level, mask = torch.tensor([0.3, 0.3, -0.2, -0.2, 0.0]), torch.tensor([1.0, 0.0, 1.0, 0.0, 1.0])
    torch.testing.assert_close(mask_loss(level, mask, 1e4), torch.tensor([0.0, 0.3, 0.2, 0.0, math.log(2) / 1e4]), atol=1e-6, rtol=0)
    alpha = 50.0
    expected = torch.nn.functional.binary_cross_entropy_with_logits(alpha * level, mask, reduction="none") / alpha
    torch.testing.assert_close(mask_loss(level, mask, alpha), expected)


def test_the_renderers_inputs_have_two_names():
    head = ColorHead(ColorConfig(inputs="x,n,v,z"), torch.Generator())
    assert head.used == {"x", "n", "d", "h"}
    with pytest.raises(ConfigError, match=r"x \(or v for d"):
        ColorHead(ColorConfig(inputs="x,q"), torch.Generator())


@pytest.mark.parametrize("setting", ["train.cameras=true", "loss.eikonal=0.1", "field.encoding=none"])
def test_what_only_idr_knows_is_refused_elsewhere(setting):
    check(load_config(None, [setting], "idr"))
    with pytest.raises(ConfigError, match=f"^{setting.partition('=')[0]}=.* --method idr"):
        check(load_config(None, [setting]))


def photographed_ball(folder, n=16, radius=0.8, side=48):
    """A ball in the colours of its normals, with masks."""
    camera, views = Camera("PINHOLE", side, side, (1.6 * side, 1.6 * side, side / 2, side / 2)), []
    v, u = np.mgrid[:side, :side] + 0.5
    for i, c2w in enumerate(sphere_of_cameras(n, distance=4.0)):
        view = View(f"{i:03d}.png", folder / f"{i:03d}.png", None, camera, c2w)
        directions = np.c_[unproject(camera, np.stack([u, v], -1).reshape(-1, 2)), np.ones(side * side)] @ c2w[:, :3].T
        directions /= np.linalg.norm(directions, axis=1, keepdims=True)
        b = directions @ c2w[:, 3]
        t = -b - np.sqrt(np.maximum(b * b - c2w[:, 3] @ c2w[:, 3] + radius**2, 0))
        normals = (c2w[:, 3] + t[:, None] * directions) / radius
        alpha = ball_mask(view, (0, 0, 0), radius).reshape(-1, 1)
        pixels = np.concatenate([127.5 * (1 + np.clip(normals, -1, 1)), 255 * alpha], 1)
        Image.fromarray(pixels.reshape(side, side, 4).astype(np.uint8)).save(view.image)
        views.append(view)
    return Capture(folder, "ball", tuple(views), alpha_masks=True)


@pytest.fixture(scope="module")
def ball(tmp_path_factory):
    return photographed_ball(tmp_path_factory.mktemp("ball"))


@pytest.mark.parametrize("encoding, steps", [("hash", 400), ("none", 120)])
def test_a_ball_becomes_a_closed_mesh_of_its_radius(ball, tmp_path, encoding, steps):
    scene = load_scene(ball)
    sets = [f"train.steps={steps}", f"field.encoding={encoding}", "scene.radius=1.3", "mesh.resolution=64", *LIGHT]
    config = load_config(None, sets, "idr")
    mesh = reconstruct(scene, config, run=tmp_path / "run").mesh
    radii = np.linalg.norm(mesh.vertices, axis=1)
    assert abs(np.median(radii) - 0.8) < 0.025 and np.percentile(np.abs(radii - 0.8), 90) < 0.06
    edges = np.sort(np.concatenate([mesh.faces[:, [0, 1]], mesh.faces[:, [1, 2]], mesh.faces[:, [2, 0]]]), 1)
    assert (np.unique(edges, axis=0, return_counts=True)[1] == 2).all(), "closed"
    triangles = mesh.vertices[mesh.faces]
    assert np.einsum("ij,ij->i", triangles[:, 0], np.cross(triangles[:, 1], triangles[:, 2])).sum() > 0, "outwards"


def training(scene, backend, *sets):
    return Training(scene, Model(load_config(None, [*SMALL, *sets], "idr"), backend, "random", len(scene.images)), backend)


@pytest.fixture
def one_thread():
    """For torch, whose threads would wait for each other on a machine that does anything else."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def everything(run):
    return {**run.model.state_dict(), **run.optimizer.tensors()}


@pytest.mark.parametrize("name", ["reference", "native"])
@pytest.mark.parametrize("sets", [["train.cameras=true"], ["field.encoding=frequency"]], ids=["cameras", "frequency"])
def test_a_resumed_run_ends_like_one_left_alone(tiny, tmp_path, one_thread, name, sets):
    backend = REFERENCE if name == "reference" else native()
    alone, first, second = (training(tiny, backend, "train.steps=12", *sets) for _ in range(3))
    losses = [state.losses for state in train(alone)][-1]
    assert list(losses) == ["color", "mask", "eikonal", "smooth"] and all(value > 0 for value in losses.values())
    for state in train(first):
        if state.step == 5:
            break
    save_checkpoint(tmp_path / "c.safetensors", first)
    resume(tmp_path / "c.safetensors", second)
    assert [state.step for state in train(second)] == list(range(6, 13))
    ours, theirs = everything(second), everything(alone)
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)
    if sets == ["train.cameras=true"]:
        turn = ours["corrections.turn"]
        assert "corrections.turn" in alone.model.state_dict() and not torch.equal(turn, Corrections(len(tiny.images)).turn)
        assert torch.equal(turn[tiny.test], Corrections(len(tiny.test)).turn), "nothing is learned of held-out views"


def test_rotations_turn_and_rays_of_no_photograph_stay():
    q = torch.tensor([[2.0, 0.0, 0.0, 0.0], [math.cos(0.3), math.sin(0.3), 0.0, 0.0]])
    expected = torch.tensor([[1.0, 0.0, 0.0], [0.0, math.cos(0.6), -math.sin(0.6)], [0.0, math.sin(0.6), math.cos(0.6)]])
    torch.testing.assert_close(rotations(q), torch.stack([torch.eye(3), expected]))
    poses = Corrections(2)
    with torch.no_grad():
        poses.turn.copy_(q)
        poses.shift[1] = torch.tensor([0.1, 0.0, 0.0])
    rays = make_rays(torch.tensor([[0.0, 0.0, -3.0]] * 3), torch.tensor([[0.0, 0.0, 1.0]] * 3), torch.tensor([0, 1, -1]))
    found = poses(rays)
    torch.testing.assert_close(found.directions, torch.stack([rays.directions[0], expected @ rays.directions[1], rays.directions[2]]))
    torch.testing.assert_close(found.origins[:, 0], torch.tensor([0.0, 0.1, 0.0]))


def disturbed(scene_capture, degrees=1.0, percent=1.0, seed=0):
    """The capture with every camera turned and moved at random, by that much on average."""
    rng, views = np.random.default_rng(seed), []
    for view in scene_capture.views:
        axis, shift = rng.normal(size=3), rng.normal(size=3)
        half = math.radians(degrees) / 2
        q = torch.tensor([[math.cos(half), *(math.sin(half) * axis / np.linalg.norm(axis))]])
        moved = view.center + 0.01 * percent * np.linalg.norm(view.center) * shift / np.linalg.norm(shift)
        views.append(replace(view, c2w=np.concatenate([rotations(q)[0].numpy() @ view.c2w[:, :3], moved[:, None]], 1)))
    return replace(scene_capture, views=tuple(views))


def disagreement(found, true, points):
    """Mean reprojection error, in pixels, of points triangulated by the found views from where the true ones see them: no gauge."""
    normal, right, lines = np.zeros((len(points), 3, 3)), np.zeros((len(points), 3)), []
    for view, of in zip(found, true, strict=True):
        xy = world_to_pixels(of, points)
        d = np.c_[unproject(view.camera, xy), np.ones(len(xy))] @ view.c2w[:, :3].T
        d /= np.linalg.norm(d, axis=1, keepdims=True)
        across = np.eye(3) - d[:, :, None] * d[:, None]
        normal, right = normal + across, right + across @ view.center
        lines.append((view, xy))
    at = np.linalg.solve(normal, right[..., None])[..., 0]
    return np.mean([np.linalg.norm(world_to_pixels(view, at) - xy, axis=1).mean() for view, xy in lines])


def test_disturbed_cameras_find_back(tiny, tmp_path):
    """Turned by 1 degree and moved by 1 %; what they agree on is free of the similarity that no photograph tells."""
    true = [view for view in tiny.capture.views if view.split == "train"]
    capture = replace(tiny.capture, views=tuple(true))
    noisy = disturbed(capture)
    points = tiny.center + tiny.radius * np.random.default_rng(1).uniform(-0.5, 0.5, (200, 3))
    config = load_config(None, ["train.cameras=true", "train.steps=250", "mesh.resolution=32", *LIGHT], "idr")
    scene = load_scene(noisy, replace(config.scene, center=tuple(tiny.center), radius=tiny.radius))
    reconstruct(scene, config, run=tmp_path)
    found = load(tmp_path / "cameras.json", outside=True).views
    assert [view.image for view in found] == [view.image for view in true]
    assert disagreement(found, true, points) < 0.7 * disagreement(noisy.views, true, points)


def test_the_corrected_cameras_can_be_read_back(tmp_path):
    from rings import transforms

    transforms(tmp_path, frame=lambda i: {"k1": 0.01 * i, "p2": 0.002} if i else {})
    capture = load(tmp_path)
    file = tmp_path / "run" / "cameras.json"
    file.parent.mkdir()
    file.write_text(json.dumps(written(capture.views)))
    with pytest.raises(SceneError, match=r"lies outside .*scene\.outside=true"):
        load(file)
    again = load(file, outside=True)
    for ours, theirs in zip(again.views, capture.views, strict=True):
        assert (ours.image.name, ours.camera, ours.split) == (theirs.image.name, theirs.camera, theirs.split)
        np.testing.assert_allclose(ours.c2w, theirs.c2w, atol=1e-12)


def test_one_runs_appearance_on_anothers_geometry(tiny, tmp_path):
    runs = []
    for seed, inputs in ((0, "x,n,v"), (1, "x,n,v"), (0, "x,n")):
        sets = ["backend=reference", "threads=1", "train.steps=12", f"train.seed={seed}", f"color.inputs={inputs}"]
        config = load_config(None, [*SMALL, *sets], "idr")
        runs.append(tmp_path / str(len(runs)))
        reconstruct(tiny, config, run=runs[-1])
    pictures = {}
    for name, a, b in (("own", 0, None), ("itself", 0, 0), ("other", 0, 1), ("theirs", 1, None)):
        out = tmp_path / f"out_{name}"
        render_run(runs[a], "test", out, backend="reference", threads=1, renderer=None if b is None else runs[b])
        pictures[name] = {kind: np.asarray(Image.open(next((out / kind).glob("*.png")))) for kind in (".", "normal")}
    assert np.array_equal(pictures["itself"]["."], pictures["own"]["."])
    assert np.array_equal(pictures["other"]["normal"], pictures["own"]["normal"])
    assert not np.array_equal(pictures["other"]["normal"], pictures["theirs"]["normal"])
    assert not np.array_equal(pictures["other"]["."], pictures["own"]["."])
    with pytest.raises(UsageError, match=r"its color\.inputs is x,n, that of the geometry x,n,v"):
        render_run(runs[0], "test", tmp_path / "none", backend="reference", threads=1, renderer=runs[2])


def test_without_masks_there_is_a_warning(tiny_folder, tmp_path):
    notes = []
    config = load_config(None, [*SMALL, "backend=reference", "threads=1", "scene.masks=ignore", "train.steps=3", "mesh.closed=true"], "idr")
    reconstruct(tiny_folder, config, run=tmp_path, hooks=[lambda e: notes.append(e.text) if isinstance(e, Note) else None])
    assert any("idr learns the outline from masks" in note for note in notes)
