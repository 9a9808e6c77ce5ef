"""Photographs taken in the wild: what an appearance may touch, what is shown of it, and pixels that are not learned from."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from captures import ball
from PIL import Image
from test_checkpoint import SMALL

from fastsurf.backends import choose_backend, native
from fastsurf.checkpoint import read_header, resume, save_checkpoint
from fastsurf.config import SceneConfig, load_config
from fastsurf.errors import ConfigError, SceneError, UsageError
from fastsurf.meshio import read_mesh
from fastsurf.model import Model
from fastsurf.patches import ACROSS, FLAT, Patches
from fastsurf.pictures import fit_appearance, render_rays, vertex_colors
from fastsurf.rays import Batch, make_rays
from fastsurf.reconstruction import reconstruct
from fastsurf.runs import eval_run, mesh_run, open_run, render_run
from fastsurf.scene import load_scene
from fastsurf.training import Training, background_color, learn, train

BACKEND = "native" if native.available() else "reference"
WILD = [*SMALL, f"backend={BACKEND}", "color.appearance=3", "scene.background=model", "train.preview_every=1000"]
POINTS = torch.rand(200, 3, generator=torch.Generator().manual_seed(0)) - 0.5


def training(scene, *sets, background="model"):
    backend = choose_backend(BACKEND)
    return Training(scene, Model(load_config(None, [*WILD, "loss.transient=2", *sets]), backend, background, len(scene.images)), backend)


@pytest.fixture(scope="module")
def learned(tiny):
    """A model whose photographs have become different."""
    run = training(tiny)
    for _ in train(run):
        pass
    run.model.appearance.table.data[tiny.train] += torch.randn(len(tiny.train), 3, generator=torch.Generator().manual_seed(1))
    return run.model


@pytest.fixture(scope="module")
def run(tiny_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("wild") / "r"
    reconstruct(tiny_folder, load_config(None, [*WILD, "train.rate_grid=0.05"]), run=folder)
    return folder


def colors(model, view):
    sample = model.sample(POINTS)
    return model.color(POINTS, sample, sample.normal, None if view is None else torch.full((len(POINTS),), view)).detach()


def test_the_method_is_its_configuration():
    config = load_config(method="wild")
    assert config.method == "wild" and config.color.appearance == 8 and config.scene.background == "model"
    with pytest.raises(ConfigError, match=r"color\.appearance: want 0 to 11, found 12"):
        reconstruct("nowhere", load_config(None, ["color.appearance=12"]), run="nowhere")


def test_colours_differ_between_photographs_and_geometry_does_not(learned, tiny):
    rays = tiny.rays(tiny.train[0], stride=3)[0]
    first, second = (render_rays(learned, replace(rays, image_index=torch.full_like(rays.image_index, i))) for i in tiny.train[:2])
    assert (first.rgb - second.rgb).abs().max() > 1e-3
    for name in ("opacity", "optical_depth", "depth", "normal", "t_surface"):
        torch.testing.assert_close(getattr(first, name), getattr(second, name), atol=0, rtol=0)


def test_the_background_is_each_photographs_own(learned, tiny):
    rays = tiny.rays(tiny.train[0], stride=3)[0]
    a, b = (background_color(learned, replace(rays, image_index=torch.full_like(rays.image_index, i)), None) for i in tiny.train[:2])
    assert (a - b).abs().max() > 1e-3


def test_what_belongs_to_no_photograph_shows_the_mean(learned, tiny):
    appearance, held_out = learned.appearance, tiny.test[0]
    torch.testing.assert_close(appearance.mean(), appearance.table.detach()[tiny.train].mean(0))
    assert torch.equal(colors(learned, None), colors(learned, -1)) and torch.equal(colors(learned, -1), colors(learned, held_out))
    assert not torch.equal(colors(learned, -1), colors(learned, tiny.train[0]))
    before = colors(learned, -1)
    kept = appearance.table.data.clone()
    appearance.table.data[tiny.train] = appearance.mean()
    torch.testing.assert_close(colors(learned, tiny.train[3]), before)
    appearance.table.data.copy_(kept)


def test_held_out_photographs_stay_unlearned(tiny):
    run = training(tiny)
    for _ in train(run):
        pass
    table = run.model.appearance.table.detach()
    assert table[tiny.train].any(1).all() and not table[tiny.test].any()


def test_embeddings_are_blamed_through_colours_alone(tiny):
    run = training(tiny, "loss.color=0", "loss.smooth=0.1", background="white")
    learn(run)
    assert not run.model.appearance.table.grad.any()
    run = training(tiny, background="white")
    learn(run)
    assert run.model.appearance.table.grad.any()


@pytest.mark.parametrize("stop", [5, 9, 20])  # before and after patches are judged
def test_a_resumed_run_ends_like_one_left_alone(tiny, tmp_path, stop):
    alone, first, second = training(tiny), training(tiny), training(tiny)
    for _ in train(alone):
        pass
    for state in train(first):
        if state.step == stop:
            break
    save_checkpoint(tmp_path / "c.safetensors", first)
    resume(tmp_path / "c.safetensors", second)
    for _ in train(second):
        pass
    for name, p in alone.model.state_dict().items():
        assert torch.equal(p, second.model.state_dict()[name]), name
    assert alone.patches.errors.any() and (alone.patches.trusted < 1).any()
    for name, t in alone.patches.tensors().items():
        assert torch.equal(t, second.patches.tensors()[name]), name
    names = [view.name for view in tiny.capture.views]
    assert list(read_header(tmp_path / "c.safetensors").photographs) == names


def test_a_run_goes_on_with_its_own_photographs_alone(tiny, tmp_path):
    run = training(tiny)
    save_checkpoint(tmp_path / "c.safetensors", run)
    views = tiny.capture.views
    tiny.capture = replace(tiny.capture, views=(*views[:-1], replace(views[-1], name="other.png")))
    try:
        with pytest.raises(UsageError, match="made from 14 photographs, and the scene now holds 14, or others"):
            resume(tmp_path / "c.safetensors", training(tiny))
    finally:
        tiny.capture = replace(tiny.capture, views=views)


def test_colours_of_a_mesh_are_of_the_photograph_that_is_named(run, tmp_path):
    header, model = open_run(run, choose_backend(BACKEND))
    name = header.photographs[3]
    index = header.photograph(name)
    assert index == 3 == header.photograph(name.removeprefix("images/")) == header.photograph(name.removeprefix("images/")[:-4])
    for appearance, view in ((None, -1), ("mean", -1), (name, 3)):
        mesh, _ = mesh_run(run, tmp_path / "m.ply", appearance=appearance, backend=BACKEND)
        scene_points = (mesh.vertices - np.array(header.center)) / header.radius
        wanted = vertex_colors(model, scene_points, view=view)[1].astype(int)
        assert np.abs(read_mesh(tmp_path / "m.ply").colors.astype(int) - wanted).max() <= 1
    assert (wanted != vertex_colors(model, scene_points)[1]).any()


def test_names_of_photographs_are_checked(run, tiny_folder, tmp_path):
    with pytest.raises(UsageError, match=r"--appearance: no photograph is named 'train_3'; want mean, or .* such as \S*train_\d+"):
        render_run(run, "test", tmp_path / "p", backend=BACKEND, appearance="train_3")
    reconstruct(tiny_folder, load_config(None, [*SMALL, f"backend={BACKEND}", "train.steps=1"]), run=tmp_path / "plain")
    with pytest.raises(UsageError, match="one appearance for all photographs"):
        mesh_run(tmp_path / "plain", tmp_path / "m.ply", appearance="mean", backend=BACKEND)
    with pytest.raises(UsageError, match="--fit-appearance"):
        eval_run(tmp_path / "plain", fit=True, backend=BACKEND)


def test_pictures_look_like_the_photograph_that_is_named(run, tmp_path):
    own, other = tmp_path / "own", tmp_path / "other"
    header = read_header(run / "checkpoint.safetensors")
    train = [name for name in header.photographs if "train" in name]
    render_run(run, "train", own, backend=BACKEND)
    render_run(run, "train", other, backend=BACKEND, appearance=train[1])
    stem = train[1].removeprefix("images/")
    assert (own / stem).read_bytes() == (other / stem).read_bytes()
    first = train[0].removeprefix("images/")
    assert (own / first).read_bytes() != (other / first).read_bytes()
    assert (own / "normal" / first).read_bytes() == (other / "normal" / first).read_bytes()


def test_fitting_finds_how_a_photograph_was_taken(tiny):
    """Of a picture that the model itself made with another photograph's embedding."""
    run = training(tiny, "train.steps=150", "train.rays=256")
    for _ in train(run):
        pass
    learned = run.model
    learned.appearance.table.data[tiny.train] += torch.randn(len(tiny.train), 3, generator=torch.Generator().manual_seed(1))
    rays, (h, w) = tiny.rays(tiny.test[0])
    state = {name: p.clone() for name, p in learned.state_dict().items()}
    target = render_rays(learned, replace(rays, image_index=torch.full_like(rays.image_index, tiny.train[4]))).rgb
    before = (render_rays(learned, rays).rgb - target).abs().mean()
    left = (torch.arange(h * w) % w < w // 2).nonzero()[:, 0]
    fit_appearance(learned, rays[left], target[left], tiny.test[0])
    right = torch.ones(h * w, dtype=torch.bool).index_fill(0, left, False)
    after = (render_rays(learned, rays[right]).rgb - target[right]).abs().mean()
    changed = [name for name, p in learned.state_dict().items() if not torch.equal(p, state[name])]
    assert after < 0.1 * before and sorted(changed) == ["appearance.learned", "appearance.table"]


def test_a_photograph_of_which_no_pixel_counts_has_the_mean_appearance(tiny):
    model, (rays, _) = training(tiny).model, tiny.rays(tiny.test[0])
    model.appearance.table.data[tiny.train] += torch.randn(len(tiny.train), 3, generator=torch.Generator().manual_seed(1))
    fit_appearance(model, rays[:0], torch.zeros(0, 3), tiny.test[0])
    torch.testing.assert_close(model.appearance.table[tiny.test[0]], model.appearance.table[tiny.train].mean(0))


def test_the_right_half_is_scored_after_fitting_the_left(run):
    plain, fitted = (eval_run(run, fit=fit, backend=BACKEND) for fit in (False, True))
    assert plain["psnr"] != fitted["psnr"] and len(fitted["views"]) == 2


# ---- pixels to ignore


def ignoring(folder, n=12):
    """A ball without masks; in the first two photographs some pixels are to be ignored."""
    capture = ball(folder, n, masks=False)
    (folder / "ignore").mkdir()
    bad = np.zeros((72, 96), np.uint8)
    bad[10:40, 20:50] = 255
    Image.fromarray(bad).save(folder / "ignore" / "000.png")
    Image.fromarray(np.full((36, 48), 255, np.uint8)).save(folder / "ignore" / "001.png")  # all of it, at half the size
    return capture


BOX = SceneConfig(center=(0.0, 0.0, 0.0), radius=1.1)


def test_ignored_pixels_are_not_drawn(tmp_path):
    scene = load_scene(ignoring(tmp_path), BOX)
    assert any("2 of 12 photographs say what to ignore: 9% of all pixels" in note for note in scene.notes)
    rgb = (scene.sample(60_000, torch.Generator().manual_seed(0), 0.0).rgb * 255).round().long()
    u, v, view = rgb.unbind(1)
    first = view == 0
    assert first.sum() > 1000 and not (first & (v >= 10) & (v < 40) & (u >= 20) & (u < 50)).any()
    assert not (view == 1).any() and (view == 2).any()
    kept = load_scene(scene.capture, replace(BOX, ignore="none"))
    assert kept.ignored is None and (kept.sample(5000, torch.Generator().manual_seed(0), 0.0).rgb[:, 2] * 255).round().eq(1).any()


def test_ignored_pixels_are_not_scored(tiny_folder, run, tmp_path):
    plain = eval_run(run, backend=BACKEND)["views"]
    name = next(name for name in plain)
    file = tiny_folder / "ignore" / f"{name.removeprefix('images/')[:-4]}.png"
    file.parent.mkdir()
    Image.fromarray(np.where(np.arange(48) < 24, 255, 0).astype(np.uint8)[None].repeat(48, 0)).save(file)
    try:
        scored = eval_run(run, backend=BACKEND)["views"]
    finally:
        file.unlink()
        file.parent.rmdir()
    assert scored[name] != plain[name] and all(scored[other] == plain[other] for other in plain if other != name)


def test_other_places_for_what_to_ignore(tmp_path):
    capture = ignoring(tmp_path)
    (tmp_path / "ignore").rename(tmp_path / "people")
    assert load_scene(capture, BOX).ignored is None
    assert load_scene(capture, replace(BOX, ignore="people")).ignored is not None
    (tmp_path / "people" / "000.png").rename(tmp_path / "dynamic_mask_003.png")
    found = load_scene(capture, BOX)
    assert [i for i, picture in enumerate(found.ignored) if picture.any()] == [3]


def test_what_is_wrong_with_pictures_of_what_to_ignore(tmp_path):
    capture = ignoring(tmp_path)
    with pytest.raises(SceneError, match=r"scene\.ignore: want auto, none or a folder, found 'nowhere'"):
        load_scene(capture, replace(BOX, ignore="nowhere"))
    (tmp_path / "ignore" / "000.png").rename(tmp_path / "ignore" / "x.png")
    (tmp_path / "ignore" / "001.png").rename(tmp_path / "ignore" / "y.png")
    with pytest.raises(SceneError, match=r"none of its 2 pictures is named as a photograph, such as 000\.png"):
        load_scene(capture, BOX)
    Image.fromarray(np.zeros((50, 96), np.uint8)).save(tmp_path / "ignore" / "002.png")
    with pytest.raises(SceneError, match="is 96x50, its photograph 96x72"):
        load_scene(capture, BOX)
    for i in range(12):
        Image.fromarray(np.full((72, 96), 255, np.uint8)).save(tmp_path / "ignore" / f"{i:03d}.png")
    with pytest.raises(SceneError, match="nothing is left to learn from"):
        load_scene(capture, BOX)


# ---- passers-by that nobody marked


def test_every_pixel_has_its_own_patch():
    """Patches are squares of one photograph, and every pixel is in one."""
    shapes = [(30, 100), (90, 50), (5, 5)]
    patches = Patches([torch.zeros(h, w, 3, dtype=torch.uint8) for h, w in shapes], torch.device("cpu"))
    seen, first = set(), 0
    for view, (h, w) in enumerate(shapes):
        n = h * w
        batch = Batch(rays_of(n, view), torch.zeros(n, 3), None, first + torch.arange(n))
        of = patches.of(batch).view(h, w)
        for k in of.unique().tolist():
            rows, columns = (of == k).nonzero().unbind(1)
            area = (rows.max() - rows.min() + 1) * (columns.max() - columns.min() + 1)
            assert area == (of == k).sum() and max(h, w) / ACROSS <= patches.edge[view] <= max(h, w) / ACROSS + 1
            assert k not in seen
            seen.add(k)
        first += n
    assert seen == set(range(len(patches.errors)))


def rays_of(n, view):
    return make_rays(torch.zeros(n, 3), torch.tensor([0.0, 0.0, 1.0]).expand(n, 3), torch.full((n,), view))


PLAIN = torch.full((32, 32, 3), 100, dtype=torch.uint8)  # a photograph, each of whose pixels is a patch


def judged(image, errors, times=2.0):
    """How far patches (32, 32) of a photograph are trusted, by errors (32, 32, 3); NaN where no ray went."""
    patches = Patches([image], torch.device("cpu"))
    patches.note(torch.arange(1024), errors.view(-1, 3))
    assert (patches.trust(torch.arange(1024)) == 1).all()  # before the first judgement
    patches.judge(times)
    return patches.trust(torch.arange(1024)).view(32, 32)


def test_patches_far_worse_than_most_count_for_little():
    errors = torch.full((32, 32, 3), 0.03)
    errors[20:25] = torch.tensor([-0.5, 0.1, 0.0])
    errors[25:] = torch.nan
    trust = judged(PLAIN, errors)
    assert (trust[:19] > 0.9).all() and (trust[20:25] < 0.02).all() and (trust[26:] == 1).all()  # of the last nothing is known


def test_neighbours_vote():
    """One patch that is off among others that are not is a highlight, say, or chance."""
    errors = torch.full((32, 32, 3), 0.05)
    errors[8, 8] = errors[20:24, 20:24] = 0.3
    trust = judged(PLAIN, errors)
    assert trust[8, 8] > 0.5 and (trust[20:24, 20:24].max() < 0.5) and trust[2, 2] > 0.9
    torch.testing.assert_close(judged(PLAIN, errors.flip(0)), trust.flip(0))


def test_errors_count_for_the_contrast_that_a_photograph_has():
    """Where it is full of details, a scene that is still blurred is off by as much as somebody in front of a wall."""
    g = torch.Generator().manual_seed(0)
    image, errors = PLAIN.clone(), torch.full((32, 32, 3), 0.02)
    image[:, 16:] = torch.randint(0, 256, (32, 16, 3), generator=g, dtype=torch.uint8)
    errors[:, 16:], errors[4:10, 4:10] = 0.2, 0.2
    trust = judged(image, errors)
    assert (trust[:, 18:] > 0.7).all() and (trust[5:9, 5:9] < 0.1).all()
    noise = image[:, 18:].float() / 255
    wanted = torch.stack([noise[k : k + 3, :3].reshape(9, 3).std(0, correction=0).sum() for k in (3, 9)])  # round rows 4 and 10, column 19
    contrast = Patches([image], torch.device("cpu")).contrast.view(32, 32)
    torch.testing.assert_close(contrast[[4, 10], 19], wanted + FLAT, atol=1e-5, rtol=0)
    torch.testing.assert_close(contrast[:, :14], torch.full((32, 14), FLAT), atol=1e-3, rtol=0)


def test_a_picture_without_errors_is_trusted():
    patches = Patches([PLAIN], torch.device("cpu"))
    patches.judge(2.0)
    patches.note(torch.arange(1024), torch.zeros(1024, 3))
    patches.judge(2.0)
    assert (patches.trust(torch.arange(1024)) == 1).all()


def test_errors_either_way_cancel_and_those_one_way_stay():
    patches, g = Patches([PLAIN], torch.device("cpu")), torch.Generator().manual_seed(0)
    for _ in range(40):
        texture = torch.randn(1, 3, generator=g) * 0.3
        patches.note(torch.tensor([7, 7, 8]), torch.cat([texture, -texture, torch.full((1, 3), 0.2)]))
    assert patches.errors[7].abs().max() < 1e-3 and not patches.errors[9].any()
    torch.testing.assert_close(patches.errors[8], torch.full((3,), 0.2))
    assert patches.visits[7:10].tolist() == [80, 40, 0]
    for _ in range(60):  # what has changed is soon all that counts
        patches.note(torch.tensor([8]), torch.zeros(1, 3))
    assert patches.errors[8].abs().max() < 1e-3


def test_both_ways_to_learn_note_the_same(tiny):
    run = training(tiny)
    if run.fused is None:
        pytest.skip("the native library isn't built")
    run.fused.close, run.fused.longest = 0.0, 1.0
    state, noted = run.generator.get_state(), []
    for fused in (run.fused, None):
        run.fused = fused
        run.generator.set_state(state)
        run.patches = Patches(tiny.images, torch.device("cpu"))
        learn(run)
        noted.append([run.patches.errors, run.patches.visits])
    assert noted[0][1].sum() == 64
    torch.testing.assert_close(*noted, atol=1e-4, rtol=0)
