"""The whole way, small, on the reference backend: what lands on disk, in which frame, and what is refused."""

import copy
import json
import time

import numpy as np
import pytest
import torch
import trimesh
from safetensors.torch import save_file
from test_checkpoint import SMALL

from fastsurf.backends.reference import ReferenceBackend
from fastsurf.config import load_config
from fastsurf.errors import BackendError, CheckpointError, MeshError, UsageError
from fastsurf.hooks import MeshProgress, Note, PhaseDone, PhaseStarted, Saved, TrainState
from fastsurf.meshio import read_mesh
from fastsurf.model import Model
from fastsurf.reconstruction import fit_to, reconstruct, without_effect
from fastsurf.runs import eval_run, mesh_run, picture_names, render_run
from fastsurf.scene import load_scene
from fastsurf.training import Training, learn


@pytest.fixture(scope="module")
def finished(tiny_folder, tmp_path_factory):
    run, events = tmp_path_factory.mktemp("run") / "r", []
    result = reconstruct(tiny_folder, load_config(None, SMALL), run=run, hooks=[events.append])
    return result, events


def test_a_run_folder_holds_what_it_should(finished):
    result, _ = finished
    files = {"begun.json", "config.toml", "log.jsonl", "checkpoint.safetensors", "preview.png", "first_mesh.ply", "mesh.ply", "mesh.json"}
    assert {p.name for p in result.run.iterdir()} == files
    lines = [json.loads(line) for line in (result.run / "log.jsonl").read_text().splitlines()]
    steps = [line for line in lines if line["event"] == "step"]
    assert steps[-1]["step"] == 24 and set(steps[-1]) >= {"seconds", "loss", "psnr", "half_width", "occupied", "samples_per_second"}
    assert load_config(str(result.run / "config.toml")).train.steps == 24


def test_events_tell_the_story_in_order(finished):
    _, events = finished
    phases = [(type(e), e.name) for e in events if isinstance(e, PhaseStarted | PhaseDone)]
    assert phases == [(t, n) for n in ("read", "train", "mesh") for t in (PhaseStarted, PhaseDone)]
    assert [e.step for e in events if isinstance(e, TrainState)] == list(range(1, 25))
    assert any(isinstance(e, MeshProgress) for e in events)
    assert [e.what for e in events if isinstance(e, Saved)][-1] == "mesh"


def test_the_mesh_is_solid_coloured_and_in_the_input_frame(finished, tiny):
    result, _ = finished
    mesh = trimesh.load(result.mesh_path, process=False)
    assert mesh.is_watertight and mesh.volume > 0
    np.testing.assert_allclose(mesh.bounds.mean(0), tiny.center, atol=0.5 * tiny.radius)
    assert mesh.visual.vertex_colors.shape == (len(mesh.vertices), 4)
    outward = (mesh.vertex_normals * result.mesh.normals).sum(1)
    assert np.mean(outward > 0.5) > 0.9


def test_moving_and_scaling_the_cameras_moves_and_scales_the_mesh(tiny_folder, tmp_path, finished):
    """A scene in kilometres, far from the origin, is the same scene."""
    scale, shift = 1000.0, np.array([400_000.0, 5_600_000.0, 120.0])
    moved = tmp_path / "moved"
    moved.mkdir()
    (moved / "images").symlink_to(tiny_folder / "images")
    for name in ("transforms_train.json", "transforms_test.json"):
        tree = json.loads((tiny_folder / name).read_text())
        for frame in tree["frames"]:
            pose = np.array(frame["transform_matrix"])
            pose[:3, 3] = pose[:3, 3] * scale + shift
            frame["transform_matrix"] = pose.tolist()
        (moved / name).write_text(json.dumps(tree))
    result = reconstruct(moved, load_config(None, SMALL), run=tmp_path / "r")
    here = finished[0].mesh.vertices * scale + shift
    np.testing.assert_allclose(result.mesh.vertices.min(0), here.min(0), atol=0.02 * scale)
    np.testing.assert_allclose(result.mesh.vertices.max(0), here.max(0), atol=0.02 * scale)


def test_stopping_early_still_saves_and_meshes(tiny, tmp_path):
    asked = []

    def stop():
        asked.append(True)
        return len(asked) == 5

    result = reconstruct(tiny, load_config(None, SMALL), run=tmp_path / "r", should_stop=stop)
    assert result.stopped and result.state.step == 5 and result.mesh_path.exists()
    again = reconstruct(tiny, load_config(None, SMALL), run=tmp_path / "r", go_on=True)
    assert again.state.step == 24 and not again.stopped


def test_a_first_mesh_is_made_once(tiny, tmp_path):
    told = []
    stopping = {"run": tmp_path / "r", "hooks": [told.append], "should_stop": lambda: sum(isinstance(e, TrainState) for e in told) == 14}
    assert reconstruct(tiny, load_config(None, SMALL), **stopping).state.step == 14
    assert reconstruct(tiny, load_config(None, SMALL), run=tmp_path / "r", go_on=True, hooks=[told.append]).state.step == 24
    assert [e.what for e in told if isinstance(e, Saved)].count("first mesh") == 1


def test_an_existing_run_is_not_overwritten(tiny, finished):
    before = (finished[0].run / "checkpoint.safetensors").read_bytes()
    with pytest.raises(UsageError, match="--resume"):
        reconstruct(tiny, load_config(None, SMALL), run=finished[0].run)
    assert (finished[0].run / "checkpoint.safetensors").read_bytes() == before


def test_what_changes_nothing_is_said(tiny):
    def told(method, *sets):
        return without_effect(tiny, load_config(None, sets, method), ReferenceBackend())

    assert [told(method) for method in ("unisurf", "nerf", "idr", "wild")] == [[]] * 4
    assert told("nerf", "loss.smooth=0.1", "loss.points=0") == ["loss.smooth has no effect: nerf has no such loss"]
    assert told("unisurf", "loss.smooth=0.1", "precision=fast") == ["precision fast has no effect on a CPU"]
    assert told("idr", "scene.background=model") == ["scene.background=model has no effect: idr learns colours within masks alone"]


def test_a_background_is_learned_behind_masks(tiny_folder):
    scene = load_scene(tiny_folder)
    for image, mask in zip(scene.images, scene.masks, strict=True):
        image[mask < 255] = torch.tensor([0, 0, 255], dtype=torch.uint8)
    config = load_config(None, [*SMALL, "train.foreground=0", "loss.outlier=0"])
    run = Training(scene, Model(config, ReferenceBackend(), "model"), ReferenceBackend())
    run.model.grid.occupied.zero_()
    assert float(learn(run)[0]) == pytest.approx(1.5, rel=1e-3)  # it is grey at first, and off by one half in each channel
    assert run.model.background.weights[-1].grad.abs().sum() > 0


def test_resuming_nothing_is_refused(tiny, tmp_path):
    with pytest.raises(CheckpointError, match="no checkpoint"):
        reconstruct(tiny, load_config(None, SMALL), run=tmp_path / "r", go_on=True)


def test_a_run_is_not_resumed_with_other_photographs(tiny, tmp_path):
    early = load_config(None, [*SMALL, "train.steps=2"])
    reconstruct(tiny, early, run=tmp_path / "r")
    moved = copy.copy(tiny)
    moved.center = tiny.center + 0.01 * tiny.radius
    with pytest.raises(UsageError, match="another scene box"):
        reconstruct(moved, early, run=tmp_path / "r", go_on=True)
    with pytest.raises(UsageError, match=r"scene\.holdout 0, now it is 3"):
        reconstruct(tiny, load_config(None, [*SMALL, "scene.holdout=3"]), run=tmp_path / "r", go_on=True)


def test_a_checkpoint_that_says_too_little_is_damaged(tiny, tmp_path):
    (tmp_path / "r").mkdir()
    save_file({"a": torch.zeros(2)}, tmp_path / "r" / "checkpoint.safetensors", {"fastsurf": '{"format": 1}'})
    with pytest.raises(CheckpointError, match=r"damaged .*center"):
        reconstruct(tiny, load_config(None, SMALL), run=tmp_path / "r", go_on=True)


def test_an_empty_scene_gives_a_reason_and_no_file(tiny, tmp_path):
    config = load_config(None, [*SMALL, "train.steps=1", "field.prior_radius=-9.0"])
    with pytest.raises(MeshError):
        reconstruct(tiny, config, run=tmp_path / "r")
    assert not (tmp_path / "r" / "mesh.ply").exists() and (tmp_path / "r" / "checkpoint.safetensors").exists()


def test_training_that_diverges_stops_with_a_line(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr("fastsurf.losses.color_loss", lambda rgb, target, *_, **__: (rgb - target).sum() * torch.nan)
    with pytest.raises(BackendError, match=r"diverged at step 20: the loss color is not finite, .* so it was 21 steps in a row"):
        reconstruct(tiny, load_config(None, SMALL), run=tmp_path / "r")


def test_the_finest_level_follows_the_photographs(tiny):
    fitted = fit_to(tiny, load_config())
    assert fitted.field.finest_resolution >= 256
    assert fit_to(tiny, load_config(None, ["field.finest_resolution=333"])).field.finest_resolution in (333, 334, 335)


def test_a_run_can_be_meshed_again(finished, tmp_path):
    mesh, report = mesh_run(finished[0].run, tmp_path / "again.glb", resolution=32)
    assert 0 < len(mesh.faces) < len(finished[0].mesh.faces)
    assert (tmp_path / "again.glb").exists() and report.faces == len(mesh.faces)
    same, _ = mesh_run(finished[0].run, tmp_path / "same.ply", backend="reference")
    np.testing.assert_array_equal(same.vertices, finished[0].mesh.vertices)


def test_a_run_can_be_rendered(finished, tmp_path):
    from PIL import Image

    written = render_run(finished[0].run, "test", tmp_path / "p", backend="reference")
    names = {str(p.relative_to(tmp_path / "p")) for p in written}
    assert {"test_000.png", "normal/test_000.png", "depth/test_000.png", "depth/test_000.npy"} <= names
    with Image.open(tmp_path / "p" / "test_000.png") as picture:
        assert picture.size == (48, 48)
    depth = np.load(tmp_path / "p" / "depth" / "test_000.npy")
    assert depth.shape == (48, 48) and np.isfinite(depth).all()
    with pytest.raises(UsageError, match="sideways"):
        render_run(finished[0].run, "sideways", tmp_path / "p")


def test_photographs_of_one_name_get_pictures_of_their_own():
    assert picture_names(["images/a.png", "images/b.jpg"]) == ["a", "b"]
    assert picture_names(["left/0001.png", "right/0001.png"]) == ["left_0001", "right_0001"]
    assert picture_names(["IMG_1.HEIC", "IMG_1.JPG", "sub/IMG_2.JPG"]) == ["IMG_1_HEIC", "IMG_1_JPG", "sub_IMG_2_JPG"]
    assert picture_names(["/data/left/1.png", "/data/right/1.png"]) == ["data_left_1", "data_right_1"], "not in the root folder"
    assert len(set(picture_names(["a/b.png", "c/b.png", "a_b.png"]))) == 3


def test_a_run_can_be_scored(finished, tiny_folder):
    scores = eval_run(finished[0].run, tiny_folder / "gt" / "mesh.ply")
    assert len(scores["views"]) == 2 and 5 < scores["psnr"] < 50 and 0 < scores["ssim"] < 1
    assert 0 < scores["mesh"]["f_score"] <= 1 and scores["mesh"]["chamfer"] > 0


def test_views_too_small_for_ssim_have_a_psnr_all_the_same(tiny_folder, tmp_path):
    reconstruct(tiny_folder, load_config(None, [*SMALL, "scene.max_side=10", "train.steps=2"]), run=tmp_path / "r")
    notes = []
    scores = eval_run(tmp_path / "r", hooks=[lambda e: notes.append(e.text) if isinstance(e, Note) else None])
    assert scores["psnr"] > 3 and scores["ssim"] is None and all(list(view) == ["psnr"] for view in scores["views"].values())
    assert notes == ["2 of 2 views have no SSIM, which wants 11 pixels along each side"]


def test_what_cannot_be_scored_is_said_before_any_work(finished, tiny_folder, tmp_path):
    with pytest.raises(UsageError, match="--gt"):
        eval_run(finished[0].run, mesh=finished[0].mesh_path)
    with pytest.raises(MeshError, match="no such file"):
        eval_run(tmp_path / "no-run", tiny_folder / "gt" / "mesh.ply", mesh=tmp_path / "none.ply")


def test_notes_of_the_scene_reach_the_user(tiny, tmp_path):
    events = []
    tiny.notes.append("something to know")
    try:
        reconstruct(tiny, load_config(None, [*SMALL, "train.steps=1"]), run=tmp_path / "r", hooks=[events.append])
    finally:
        tiny.notes.remove("something to know")
    assert Note("something to know") in events


def test_a_first_mesh_is_there_half_way(finished):
    first = read_mesh(finished[0].run / "first_mesh.ply")
    assert 0 < len(first.faces) < len(finished[0].mesh.faces)


def test_minutes_are_for_everything(tiny, tmp_path):
    """Training gets what reading and meshing leave, and a fifth at least."""
    config = load_config(None, [s for s in SMALL if "steps" not in s] + ["train.minutes=0.05"])
    run = Training(tiny, Model(fit_to(tiny, config), ReferenceBackend(), "random"), ReferenceBackend())
    run.seconds = 0.5
    assert run.progress() == pytest.approx(0.5 / 3)
    run.besides = 1.0
    assert run.progress() == pytest.approx(0.5 / 2)
    run.besides = 100.0
    assert run.progress() == pytest.approx(0.5 / 0.6)
    told = []
    reconstruct(tiny, config, run=tmp_path / "r", began=time.monotonic() - 100, hooks=[told.append])
    first = next(e for e in told if isinstance(e, TrainState))
    assert first.progress == pytest.approx(min(first.seconds / 0.6, 1.0))
