import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from captures import LENSES, PINHOLE, ball, ball_mask, looking_at, moved, save
from PIL import Image
from test_backends import native_backend

from fastsurf.bounds import find_box
from fastsurf.cameras import Camera, project, unproject, world_to_pixels
from fastsurf.config import SceneConfig
from fastsurf.errors import SceneError
from fastsurf.pixels import pixel_directions, pool_of, runs_of
from fastsurf.scene import load_scene, split


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def pixels_of(batch):
    """View, column and row that a ball's picture says a sample is from."""
    u, v, view = (batch.rgb * 255).round().long().unbind(-1)
    return view, u, v


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    """Twelve views of a ball through four kinds of lenses."""
    return load_scene(ball(tmp_path_factory.mktemp("ball"), cameras=LENSES, center=(5.0, -3.0, 2.0), radius=0.8))


@pytest.mark.parametrize("view", range(4), ids=[c.model for c in LENSES])
def test_a_ray_projects_back_to_its_pixel(scene, view):
    rays, (h, w) = scene.rays(view)
    points = scene.to_world(rays.at(torch.full((len(rays),), 3.0)).numpy())
    truth = np.stack(np.meshgrid(np.arange(w) + 0.5, np.arange(h) + 0.5), -1).reshape(-1, 2)
    assert (h, w) == scene.images[view].shape[:2]
    np.testing.assert_allclose(world_to_pixels(scene.capture.views[view], points), truth, atol=1e-3)
    torch.testing.assert_close(rays.directions.norm(dim=-1), torch.ones(h * w))


def test_strided_rays_belong_to_strided_pixels(scene):
    whole, (_, w) = scene.rays(2)
    some, (rows, columns) = scene.rays(2, stride=5)
    assert scene.images[2][::5, ::5].shape[:2] == (rows, columns)
    torch.testing.assert_close(some.directions.view(rows, columns, 3), whole.directions.view(-1, w, 3)[::5, ::5])
    assert (some.image_index == 2).all()


def test_world_and_scene_undo_each_other(scene):
    points = np.random.default_rng(0).normal(size=(100, 3)) * 1e3
    np.testing.assert_allclose(scene.to_world(scene.to_scene(points)), points, rtol=0, atol=1e-10)
    np.testing.assert_allclose(scene.to_world(np.zeros((1, 3)))[0], scene.center)


def test_samples_are_the_pixels_their_rays_go_through(scene):
    batch = scene.sample(2000, generator(), 0.5)
    view, u, v = pixels_of(batch)
    assert (view == batch.rays.image_index).all()
    points = scene.to_world(batch.rays.at(torch.full((2000,), 2.5)).numpy())
    for i in range(12):
        mine = (view == i).numpy()
        expected = np.stack([u, v], -1)[mine] + 0.5
        np.testing.assert_allclose(world_to_pixels(scene.capture.views[i], points[mine]), expected, atol=1e-3)
        assert (batch.mask[mine] == (scene.masks[i][v[mine], u[mine]] > 127).float()).all()


@pytest.mark.parametrize("foreground", [0.0, 0.3, 0.75, 1.0])
def test_the_foreground_share_is_met_and_every_ray_meets_the_box(scene, foreground):
    batch = scene.sample(1000, generator(), foreground)
    assert len(batch.rays) == 1000
    assert (batch.mask > 0.5).sum() == round(1000 * foreground)
    assert (batch.rays.t_far > batch.rays.t_near).all()


def test_samples_follow_the_generator(scene):
    first, again, other = (scene.sample(256, generator(seed), 0.75).rgb for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("n, foreground", [(1500, 0.75), (9, 0.0), (9, 1.0), (0, 0.5)])
def test_native_samples_are_the_same(scene, n, foreground):
    backend = native_backend("portable")
    wanted, found = scene.sample(n, generator(), foreground), scene.sample(n, generator(), foreground, backend)
    assert torch.equal(found.rays.image_index, wanted.rays.image_index) and torch.equal(found.rgb, wanted.rgb)
    assert torch.equal(found.mask, wanted.mask) and torch.equal(found.rays.origins, wanted.rays.origins)
    for name in ("directions", "t_near", "t_far"):
        torch.testing.assert_close(getattr(found.rays, name), getattr(wanted.rays, name), atol=1e-5, rtol=0)


def test_native_samples_without_masks(tmp_path):
    backend = native_backend("portable")
    scene = load_scene(ball(tmp_path, n=4, masks=False))
    wanted, found = scene.sample(500, generator(), 0.75), scene.sample(500, generator(), 0.75, backend)
    assert found.mask is wanted.mask is None and torch.equal(found.rgb, wanted.rgb)
    torch.testing.assert_close(found.rays.directions, wanted.rays.directions, atol=1e-6, rtol=0)


def test_background_samples_are_all_the_pixels_that_meet_the_box_outside_masks(scene):
    drawn = {tuple(p) for p in torch.stack(pixels_of(scene.sample(400_000, generator(), 0.0)), -1).tolist()}
    expected = set()
    for i in scene.train:
        rays, (_, w) = scene.rays(i)
        useful = (rays.t_far > rays.t_near) & (scene.masks[i].reshape(-1) <= 127)
        expected |= {(i, int(k) % w, int(k) // w) for k in useful.nonzero()}
    assert drawn <= expected
    assert len(drawn) > 0.97 * len(expected)  # a few percent aren't met by chance


def test_sampling_is_uniform_over_views_of_different_sizes(tmp_path):
    small = Camera("PINHOLE", 48, 36, (55.0, 56.0, 24.0, 18.0))
    scene = load_scene(ball(tmp_path, n=4, cameras=(PINHOLE, small)))
    batch = scene.sample(40_000, generator(), 1.0)
    share = torch.bincount(batch.rays.image_index, minlength=4) / 40_000
    sizes = torch.tensor([float((scene.masks[i] > 127).sum()) for i in range(4)])
    torch.testing.assert_close(share, sizes / sizes.sum(), atol=0.01, rtol=0)
    _, u, _ = pixels_of(batch)
    left = torch.tensor([float((scene.masks[i][:, : scene.masks[i].shape[1] // 2] > 127).sum()) for i in range(4)]).sum() / sizes.sum()
    widths = torch.tensor([scene.images[i].shape[1] for i in range(4)])[batch.rays.image_index]
    assert abs(float((u < widths // 2).float().mean()) - float(left)) < 0.01


def test_without_masks_all_pixels_that_meet_the_box_are_drawn_alike(tmp_path):
    scene = load_scene(ball(tmp_path, masks=False), SceneConfig(center=(0.0, 0.0, 0.0), radius=0.5))
    batch = scene.sample(5000, generator(), 0.75)
    assert batch.mask is None and scene.masks is None
    assert (batch.rays.t_far > batch.rays.t_near).all()


def test_held_out_views_are_never_drawn(tmp_path):
    scene = load_scene(ball(tmp_path), SceneConfig(holdout=4))
    assert scene.test == [0, 4, 8] and len(scene.train) == 9
    assert not set(scene.sample(5000, generator(), 0.75).rays.image_index.tolist()) & {0, 4, 8}


def test_a_captures_own_split_wins(tmp_path):
    views = [replace(v, split="test" if i in (3, 5) else "train") for i, v in enumerate(ball(tmp_path).views)]
    assert split(views, holdout=0) == split(views, holdout=4) == ([0, 1, 2, 4, 6, 7, 8, 9, 10, 11], [3, 5])


def test_moving_scene_and_cameras_together_changes_nothing(tmp_path):
    capture = ball(tmp_path, cameras=LENSES)
    here, there = load_scene(capture), load_scene(moved(capture, 250.0, np.array([4e3, -7e3, 1e3])))
    np.testing.assert_allclose(there.to_scene(250.0 * here.to_world(np.eye(3)) + [4e3, -7e3, 1e3]), np.eye(3), atol=1e-6)
    a, b = (s.sample(500, generator(), 0.75) for s in (here, there))
    torch.testing.assert_close(a.rgb, b.rgb)
    torch.testing.assert_close(a.rays.origins, b.rays.origins, atol=1e-5, rtol=0)
    torch.testing.assert_close(a.rays.t_near, b.rays.t_near, atol=1e-5, rtol=0)


def test_a_far_origin_costs_no_precision(tmp_path):
    """Geo-referenced: metres, six digits before the point."""
    scene = load_scene(moved(ball(tmp_path), 1.0, np.array([431_000.0, 5_412_000.0, 300.0])))
    rays, _ = scene.rays(0, stride=7)
    points = scene.to_world(rays.at(torch.full((len(rays),), 3.0)).numpy())
    v, u = np.mgrid[0:72:7, 0:96:7]
    np.testing.assert_allclose(world_to_pixels(scene.capture.views[0], points), np.stack([u, v], -1).reshape(-1, 2) + 0.5, atol=1e-3)


def test_rays_of_pixels_without_an_answer_miss_the_box(tmp_path):
    """Barrel distortion so strong that the corners see nothing."""
    lens = Camera("SIMPLE_RADIAL", 96, 72, (60.0, 48.0, 36.0, -0.35))
    capture = ball(tmp_path, cameras=(lens,), masks=False)
    blind = np.isnan(unproject(lens, np.array([[0.5, 0.5], [48.0, 36.0]]))).any(-1)
    assert blind.tolist() == [True, False]
    scene = load_scene(capture, SceneConfig(center=(0.0, 0.0, 0.0), radius=3.0))
    rays, _ = scene.rays(0)
    assert torch.isfinite(rays.directions).all() and rays.t_far[0] == rays.t_near[0]
    assert torch.isfinite(scene.sample(2000, generator(), 0.75).rays.directions).all()
    assert (scene.sample(2000, generator(), 0.75).rays.t_far > 0).all()


@pytest.mark.parametrize("camera", [
    Camera("PINHOLE", 1600, 1067, (1400.0, 1400.0, 800.0, 533.5)),
    Camera("OPENCV", 900, 1600, (1146.3, 1145.4, 462.1, 804.4, 0.0578, -0.0805, -0.00098, 0.00016)),
    Camera("OPENCV_FISHEYE", 1200, 900, (520.0, 520.0, 600.0, 450.0, -0.02, 0.005, 0.001, 0.0)),
    Camera("PINHOLE", 2, 1, (2.0, 2.0, 1.0, 0.5)),
], ids=lambda c: f"{c.model}-{c.width}")  # fmt: skip
def test_interpolated_directions_are_the_lens_models(camera):
    directions = pixel_directions([camera, camera])
    pixels = np.random.default_rng(1).integers(0, (camera.width, camera.height), (3000, 2))
    found = directions(torch.ones(3000, dtype=torch.int64), *torch.from_numpy(pixels).T)
    back = project(camera, np.concatenate([found.numpy(), np.ones((3000, 1))], -1))
    np.testing.assert_allclose(back, pixels + 0.5, atol=1e-3)
    assert len(directions.nodes) <= max(16, camera.width * camera.height // 4)


def test_a_pool_is_the_set_it_was_made_of():
    rng = np.random.default_rng(0)
    parts = [(0, rng.random(50) < 0.3), (50, np.zeros(20, bool)), (70, np.ones(30, bool)), (200, rng.random(40) < 0.9)]
    truth = sorted(int(k) for offset, chosen in parts for k in offset + np.flatnonzero(chosen))
    pool = pool_of([runs_of(chosen, offset) for offset, chosen in parts])
    drawn = pool.draw(200 * len(truth), generator())
    values, counts = drawn.unique(return_counts=True)
    assert len(pool) == len(truth) and values.tolist() == truth
    assert counts.min() > 130 and counts.max() < 280  # 200 expected, 5 standard deviations
    assert len(pool.draw(0, generator())) == 0 and len(pool_of([runs_of(np.zeros(5, bool), 0)])) == 0


def test_large_photographs_are_reduced_with_their_cameras(tmp_path):
    capture = ball(tmp_path, cameras=LENSES)
    scene = load_scene(capture, SceneConfig(max_side=48))
    assert all(image.shape == (36, 48, 3) for image in scene.images) and all(mask.shape == (36, 48) for mask in scene.masks)
    assert any("reduced" in note for note in scene.notes)
    point = np.array([[0.3, -0.4, 0.2]])
    for before, after in zip(capture.views, scene.capture.views, strict=True):
        np.testing.assert_allclose(world_to_pixels(after, point), world_to_pixels(before, point) / 2, atol=1e-9)
    inside = scene.images[0][18, 24].tolist()  # inside the ball: the mean of 2 x 2 pixels
    assert inside[:2] == pytest.approx([48.5, 36.5], abs=1)


def test_alpha_is_laid_over_white_where_masks_are_ignored(tmp_path):
    scene = load_scene(ball(tmp_path), SceneConfig(masks="ignore", center=(0.0, 0.0, 0.0), radius=1.2))
    assert scene.masks is None
    assert scene.images[3][0, 0].tolist() == [255, 255, 255] and scene.images[3][36, 49].tolist() == [49, 36, 3]


def with_mask_files(capture, folder, change=lambda mask: mask):
    """The capture with masks in files of their own."""
    views = []
    for view in capture.views:
        mask = np.asarray(Image.open(view.image).getchannel("A"))
        path = folder / f"mask_{view.name}"
        Image.fromarray(change(mask)).save(path)
        views.append(replace(view, mask=path))
    return replace(capture, views=tuple(views), alpha_masks=False)


def test_masks_of_ones_and_of_another_size_are_understood(tmp_path):
    capture = ball(tmp_path, center=(0.0, 0.0, 0.0))
    plain = load_scene(capture)
    ones = load_scene(with_mask_files(capture, tmp_path, lambda m: m // 255))
    larger = load_scene(with_mask_files(capture, tmp_path, lambda m: np.kron(m, np.ones((2, 2), np.uint8))))
    for scene in (ones, larger):
        assert all(torch.equal(a, b) for a, b in zip(plain.masks, scene.masks, strict=True))


def test_the_hulls_box_holds_the_ball_and_little_more(tmp_path):
    scene = load_scene(ball(tmp_path, n=12, cameras=LENSES, center=(5.0, -3.0, 2.0), radius=0.8))
    assert "hull" in scene.box_source
    reach = np.abs(scene.center - [5.0, -3.0, 2.0]).max()
    assert 0.8 + reach <= scene.radius < 1.5 * 0.8


def test_the_hull_bears_a_wrong_mask_and_finds_a_ball_off_the_middle(tmp_path):
    capture = ball(tmp_path, n=20, center=(0.0, 0.0, 0.0), radius=1.0)
    away = np.array([0.35, -0.3, 0.25])
    for i, view in enumerate(capture.views):
        save(view, ball_mask(view, away if i != 7 else -3 * away, 0.3), i)
    scene = load_scene(capture)
    assert 0.3 + np.abs(scene.center - away).max() <= scene.radius < 1.5 * 0.3


def test_sparse_points_give_a_box_without_their_outliers(tmp_path):
    rng = np.random.default_rng(0)
    ball_points = rng.normal(size=(800, 3))
    ball_points *= 0.7 / np.linalg.norm(ball_points, axis=-1, keepdims=True)
    far = rng.normal(size=(60, 3)) * 30
    capture = replace(ball(tmp_path, masks=False), points=np.concatenate([ball_points, far, [[np.nan] * 3]]))
    scene = load_scene(capture)
    assert "sparse points" in scene.box_source
    assert 0.7 + np.abs(scene.center).max() <= scene.radius < 1.5 * 0.7


def test_cameras_alone_give_a_box_where_they_look_and_outside_of_which_they_stand(tmp_path):
    scene = load_scene(ball(tmp_path, masks=False, center=(10.0, 0.0, 1.0)))
    assert "common view" in scene.box_source
    np.testing.assert_allclose(scene.center, [10.0, 0.0, 1.0], atol=0.1)
    positions = scene.to_scene(np.stack([view.center for view in scene.capture.views]))
    assert np.abs(positions).max(-1).min() > 1 and scene.radius > 1.0


def test_trust_goes_configuration_masks_points_stated_cameras(tmp_path):
    capture = ball(tmp_path)
    masks = [np.asarray(Image.open(v.image).getchannel("A")) for v in capture.views]
    points = np.random.default_rng(0).uniform(-0.5, 0.5, (100, 3))
    stated = (np.zeros(3), 1.1)
    sources = [find_box(capture.views, *given).source for given in
               ((masks, points, stated), (None, points, stated), (None, points[:5], stated), (None, None, None))]  # fmt: skip
    assert ["hull" in sources[0], "points" in sources[1], "stated" in sources[2], "cameras" in sources[3]] == [True] * 4
    chosen = load_scene(capture, SceneConfig(center=(0.1, 0.0, 0.0), radius=2.0))
    assert chosen.center.tolist() == [0.1, 0.0, 0.0] and chosen.radius == 2.0
    partly = load_scene(capture, SceneConfig(radius=2.0))
    assert partly.radius == 2.0 and np.abs(partly.center).max() < 0.4


def blacken(capture):
    for i, view in enumerate(capture.views):
        save(view, np.zeros((72, 96)), i)
    return capture


def invert(capture):
    for i, view in enumerate(capture.views):
        save(view, np.asarray(Image.open(view.image).getchannel("A")) == 0, i)
    return capture


def truncate(capture):
    file = capture.views[4].image
    file.write_bytes(file.read_bytes()[:200])
    return capture


def look_away(capture):
    """The classic slip: OpenGL poses read as OpenCV."""
    return replace(capture, views=tuple(replace(v, c2w=v.c2w * [1, -1, -1, 1]) for v in capture.views), alpha_masks=False)


def look_away_with_masks(capture):
    return replace(look_away(capture), alpha_masks=True)


def move_apart(capture):
    """Each camera sees a ball of its own."""
    views = [replace(v, c2w=v.c2w + np.array([[0, 0, 0, 5.0 * i]] * 3)) for i, v in enumerate(capture.views)]
    return replace(capture, views=tuple(views))


def look_in_parallel(capture):
    pose = capture.views[0].c2w
    shifts = [pose[:, :3] @ [0.1 * i, 0, 0] for i in range(12)]
    views = [replace(v, c2w=np.c_[pose[:, :3], pose[:, 3] + s]) for v, s in zip(capture.views, shifts, strict=True)]
    return replace(capture, views=tuple(views), alpha_masks=False)


def drop_a_mask(capture):
    capture = with_mask_files(capture, capture.path)
    return replace(capture, views=(replace(capture.views[0], mask=None), *capture.views[1:]))


def crop_masks(capture):
    return with_mask_files(capture, capture.path, lambda mask: np.ascontiguousarray(mask[:, :50]))


def break_masks(capture):
    capture = with_mask_files(capture, capture.path)
    capture.views[2].mask.write_text("no picture")
    return capture


@pytest.mark.parametrize("spoil, config, words", [
    (blacken, {}, "all 12 masks are black"),
    (invert, {}, "masks look inverted"),
    (truncate, {}, "004.png can't be read"),
    (look_away, {}, "don't look at one scene"),
    (look_away_with_masks, {}, "no common object"),
    (move_apart, {}, "no common object"),
    (look_in_parallel, {}, "in parallel"),
    (drop_a_mask, {}, "no mask for photograph 000.png"),
    (crop_masks, {}, "another aspect"),
    (break_masks, {}, "mask_002.png can't be read"),
    (lambda capture: capture, {"center": (90.0, 0.0, 0.0), "radius": 0.1}, "no camera looks at the scene box"),
    (lambda capture: capture, {"center": (1.6, 0.0, 0.0), "radius": 0.05}, "no mask shows anything inside the scene box"),
    (lambda capture: capture, {"radius": -1.0}, "radius must be positive"),
    (lambda capture: capture, {"center": (float("nan"), 0.0, 0.0)}, "must be finite"),
    (lambda capture: capture, {"holdout": 1}, "left to learn from"),
    (lambda capture: capture, {"max_side": 0}, "max_side"),
], ids=lambda x: getattr(x, "__name__", None))  # fmt: skip
def test_unusable_input_is_refused_in_one_line(tmp_path, spoil, config, words):
    with pytest.raises(SceneError, match=words) as e:
        load_scene(spoil(ball(tmp_path)), SceneConfig(**config))
    assert "\n" not in str(e.value)


def test_views_that_see_nothing_are_noted_and_not_drawn(tmp_path):
    capture = ball(tmp_path, masks=False)
    stray = replace(capture.views[5], c2w=looking_at(capture.views[5].center, 3 * capture.views[5].center))
    views = (*capture.views[:5], stray, *capture.views[6:])
    scene = load_scene(replace(capture, views=views), SceneConfig(center=(0.0, 0.0, 0.0), radius=1.2))
    assert scene.blind == [5]
    assert 5 not in scene.sample(3000, generator(), 0.75).rays.image_index


@pytest.mark.parametrize("name", ["bob", "nefertiti"])
def test_real_hulls_hold_the_true_mesh_and_little_more(shared_data, name):
    scene = load_scene(shared_data / name)
    truth = np.load(shared_data / name / "gt" / "points.npz")["points"]
    inside = scene.to_scene(truth)
    assert np.abs(inside).max() <= 1
    assert np.ptp(inside, axis=0).max() > 2 / 1.5
    assert len(scene.test) == 8


@pytest.mark.parametrize("name", ["bob", "nefertiti", "table"])
def test_true_points_project_into_masks_and_see_their_colour(shared_data, name):
    scene = load_scene(shared_data / name, SceneConfig(center=(0.0, 0.0, 0.0), radius=1.5))
    truth = np.load(shared_data / name / "gt" / "points.npz")["points"][::100]
    for i in scene.train[::9]:
        pixels = np.floor(world_to_pixels(scene.capture.views[i], truth)).astype(int)
        seen = ((pixels >= 0) & (pixels < (400, 400))).all(-1)
        assert seen.mean() > 0.5
        if scene.masks is not None:
            u, v = pixels[seen].T
            assert (scene.masks[i].numpy()[v, u] > 0).mean() > 0.995


def test_a_table_without_masks_gets_a_box_of_its_evaluated_size(shared_data):
    scene = load_scene(shared_data / "table", format="colmap")
    truth = np.load(shared_data / "table" / "gt" / "points.npz")["points"]
    assert (np.abs(scene.to_scene(truth)) <= 1).all(-1).mean() > 0.95
    assert scene.radius < 1.5 * np.ptp(truth, axis=0).max() / 2


FOLDERS = ["colmap_chessman", "middlebury_templesparsering", "ngp_fox", "strecha_fountain_p11", "dtu_scan65", "nerf_synthetic_chair_400",
           "nerd_moldgoldcape"]  # fmt: skip


@pytest.mark.parametrize("name", FOLDERS)
def test_real_captures_load_with_a_box_before_the_cameras(shared_data, name):
    scene = load_scene(shared_data / name, SceneConfig(max_side=200))
    positions = scene.to_scene(np.stack([view.center for view in scene.capture.views]))
    assert np.abs(positions).max(-1).min() > 1 and not scene.blind
    corners = scene.to_world(np.array(list(itertools.product([-0.5, 0.5], repeat=3))))
    for i in scene.train[:: max(1, len(scene.train) // 5)]:
        assert np.isfinite(world_to_pixels(scene.capture.views[i], corners)).all()
    batch = scene.sample(512, generator(), 0.75)
    assert torch.isfinite(batch.rays.directions).all() and batch.rgb.std() > 0.02
