"""Each harm to a healthy scene is found, named, and undone by the flag that the finding names."""

import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
from captures import PINHOLE, ball, looking_at
from PIL import Image, ImageFilter
from test_checkpoint import SMALL

from fastsurf import cli
from fastsurf.cameras import Camera, load_pycolmap
from fastsurf.config import SceneConfig, load_config
from fastsurf.demo_scene import make_scene
from fastsurf.doctor import examine, findings, largest_gap, odd_lens
from fastsurf.errors import SceneError
from fastsurf.hooks import Note
from fastsurf.quality import alike, measure
from fastsurf.reconstruction import reconstruct
from fastsurf.scene import load_scene

needs_features = pytest.mark.skipif(load_pycolmap() is None, reason="no pycolmap")


@pytest.fixture(scope="module")
def healthy(tmp_path_factory):
    folder = tmp_path_factory.mktemp("healthy")
    make_scene(folder, views=20, test=0, size=160)
    return folder


@pytest.fixture
def scene_copy(healthy, tmp_path):
    """Photographs may be replaced, never written into."""
    folder = tmp_path / "scene"
    shutil.copytree(healthy, folder)
    return folder


def harm_poses(folder, change):
    file = folder / "transforms_train.json"
    tree = json.loads(file.read_text())
    for frame in tree["frames"]:
        frame["transform_matrix"] = np.asarray(change(np.array(frame["transform_matrix"]))).tolist()
    file.write_text(json.dumps(tree))


def harm_photograph(folder, change, k=7):
    file = folder / "images" / f"train_{k:03d}.png"
    changed = change(Image.open(file))
    file.unlink()
    changed.save(file)


def serious(scene):
    return [f for f in findings(scene) if f.severity != "note"]


def test_a_healthy_scene_has_nothing_but_notes(healthy):
    assert serious(load_scene(healthy)) == []


@needs_features
def test_features_confirm_the_poses_of_a_healthy_scene(healthy):
    found, facts = examine(load_scene(healthy))
    assert facts["best"] == facts["read_as"] == "opengl" and facts["matches"] >= 40 and facts["pixels"] < 1
    assert {f.severity for f in found} == {"note"}


TURN, MIRROR_X, MIRROR_Y = np.diag([1, -1, -1, 1]), np.diag([-1, 1, 1, 1]), np.diag([1, -1, 1, 1])
HARMS = {
    "axes": lambda m: m @ TURN,
    "inverse": np.linalg.inv,
    "a mirrored axis": lambda m: m @ MIRROR_X,
    "a left-handed world": lambda m: MIRROR_Y @ m @ TURN @ MIRROR_Y,
}


@needs_features
@pytest.mark.parametrize("harm", HARMS)
def test_poses_in_another_convention_are_refused_and_the_named_flag_reads_them(scene_copy, healthy, harm):
    harm_poses(scene_copy, HARMS[harm])
    with pytest.raises(SceneError) as e:
        load_scene(scene_copy)
    flag = re.search(r"--set scene\.convention=([\w-]+)", str(e.value))[1]
    right, read = load_scene(healthy), load_scene(scene_copy, SceneConfig(convention=flag))
    for a, b in zip(right.capture.views, read.capture.views, strict=True):
        np.testing.assert_allclose(b.center, a.center, atol=1e-6)
        np.testing.assert_allclose(b.c2w[:, 2], a.c2w[:, 2], atol=1e-6)
        assert np.linalg.det(b.c2w[:, :3]) > 0
    assert read.radius == pytest.approx(right.radius, rel=0.05) and any("poses are read as" in note for note in read.notes)
    assert [f for f in findings(read) if f.severity != "note"] == []


@needs_features
def test_a_wrong_convention_is_found_where_the_scene_still_loads(scene_copy, capsys):
    """Mirrored pictures: the lines of sight are right, only features tell."""
    harm_poses(scene_copy, lambda m: MIRROR_Y @ m @ MIRROR_Y)
    assert cli.main(["info", str(scene_copy), "--json", "--masks", "ignore"]) == 3
    facts = json.loads(capsys.readouterr().out)
    assert facts["usable"] is False and facts["findings"][0]["severity"] == "broken"
    assert facts["findings"][0]["fix"] == f"--set scene.convention={facts['convention']['best']}"
    fixed = load_scene(scene_copy, SceneConfig(convention=facts["convention"]["best"]))
    found, now = examine(fixed)
    assert now["best"] == now["read_as"] == facts["convention"]["best"] and {f.severity for f in found} == {"note"}


def test_swapped_masks_are_refused_and_the_named_flag_swaps_them_back(scene_copy, healthy):
    (scene_copy / "mask").mkdir()
    for file in sorted((scene_copy / "images").iterdir()):
        picture = Image.open(file)
        Image.fromarray(255 - np.array(picture.getchannel("A"))).save(scene_copy / "mask" / file.name)
        file.unlink()
        picture.convert("RGB").save(file)
    with pytest.raises(SceneError, match=r"masks look inverted.*--set scene\.invert_masks=true"):
        load_scene(scene_copy)
    swapped = load_scene(scene_copy, SceneConfig(invert_masks=True))
    assert swapped.radius == pytest.approx(load_scene(healthy).radius) and serious(swapped) == []


@pytest.mark.parametrize("what, change, words", [
    ("sharpness", lambda p: p.filter(ImageFilter.GaussianBlur(2.5)), "less sharp than their neighbours: images/train_007.png"),
    ("exposure", lambda p: Image.merge("RGBA", [*(c.point(lambda x: x // 4) for c in p.split()[:3]), p.getchannel("A")]), "darker"),
    ("exposure", lambda p: Image.merge("RGBA", [*(c.point(lambda x: 200 + x // 5) for c in p.split()[:3]), p.getchannel("A")]), "brighter"),
    ("masks", lambda p: Image.merge("RGBA", [*p.split()[:3], p.getchannel("A").point(lambda x: 0)]), "1 of 20 masks are empty"),
    ("masks", lambda p: Image.merge("RGBA", [*p.split()[:3], p.getchannel("A").point(lambda x: 255 - x)]), "1 of 20 masks look inverted"),
    ("masks", lambda p: Image.merge("RGBA", [*p.split()[:3], p.getchannel("A").point(lambda x: 255)]), "bright nearly everywhere"),
], ids=["blurred", "dark", "bright", "empty", "inverted", "full"])  # fmt: skip
def test_one_odd_photograph_is_named(scene_copy, what, change, words):
    harm_photograph(scene_copy, change)
    (found,) = (f for f in serious(load_scene(scene_copy)) if f.what == what or what != "masks")
    assert (found.severity, found.what) == ("doubtful", what) and words in found.found and "train_007" in found.found and found.fix


def test_a_photograph_that_is_there_twice_is_named_with_its_double(scene_copy):
    shutil.copy(scene_copy / "images/train_003.png", scene_copy / "images/train_011.png")
    (found,) = serious(load_scene(scene_copy, SceneConfig(center=(0.01, 0.0, 0.82), radius=1.25)))
    assert found.what == "duplicates" and "images/train_003.png and images/train_011.png" in found.found


def test_two_photographs_with_one_pose_are_named(scene_copy):
    file = scene_copy / "transforms_train.json"
    tree = json.loads(file.read_text())
    tree["frames"][4]["transform_matrix"] = tree["frames"][9]["transform_matrix"]
    file.write_text(json.dumps(tree))
    found = serious(load_scene(scene_copy))
    assert [f.what for f in found] == ["poses"] and "train_004.png and images/train_009.png" in found[0].found


@pytest.mark.parametrize("params, model, words", [
    ((5.0, 5.0, 48, 36), "PINHOLE", "degrees across"), ((9000.0, 9000.0, 48, 36), "PINHOLE", "degrees across"),
    ((110.0, 60.0, 48, 36), "PINHOLE", "oblong"), ((110.0, 110.0, 5, 36), "PINHOLE", "principal point"),
    ((110.0, 48, 36, 30.0), "SIMPLE_RADIAL", "distortion"), ((110.0, 48, 36, -3.0), "SIMPLE_RADIAL", "without a ray"),
])  # fmt: skip
def test_absurd_lenses_are_named(params, model, words):
    (odd,) = odd_lens(Camera(model, 96, 72, params))
    assert words in odd


@pytest.mark.parametrize("camera", [
    PINHOLE, Camera("SIMPLE_RADIAL", 96, 72, (110.0, 48.0, 36.0, -0.12)),
    Camera("OPENCV_FISHEYE", 96, 72, (30.0, 30.0, 48.0, 36.0, 0.02, -0.01, 0.003, 0.0)),
])  # fmt: skip
def test_usual_lenses_are_not(camera):
    assert odd_lens(camera) == []


def test_the_gap_is_the_angle_to_the_nearest_camera():
    above = np.array([[0.0, 0, 3], [0.1, 0, 3], [0, 0.1, 5]])
    gap, towards = largest_gap(above)
    assert gap == pytest.approx(180, abs=5) and towards[2] < -0.99
    assert largest_gap(np.concatenate([np.eye(3), -np.eye(3)]))[0] == pytest.approx(54.7, abs=3)


def test_a_box_that_is_far_too_small_is_named(tmp_path):
    scene = load_scene(ball(tmp_path, masks=False), SceneConfig(center=(0.0, 0.0, 0.0), radius=0.125))
    assert [f.what for f in serious(scene)] == ["box"]


def blind(folder):
    """A capture most of whose cameras look away from the box, but not from each other's point of sight: features could not tell."""
    capture = ball(folder, masks=False)
    return replace(capture, views=tuple(
        replace(v, c2w=looking_at(v.center, 3 * v.center)) if i < 7 else v for i, v in enumerate(capture.views)
    ))  # fmt: skip


def test_what_is_broken_is_refused_before_training_and_only_then(tmp_path):
    config = load_config(None, [*SMALL, "train.steps=2", "mesh.resolution=16"])
    scene = load_scene(blind(tmp_path), SceneConfig(center=(0.0, 0.0, 0.0), radius=1.2))
    with pytest.raises(SceneError, match=r"7 of 12 training views don't see the scene box.*scene\.check=ignore"):
        reconstruct(scene, config, run=tmp_path / "r")
    assert not (tmp_path / "r" / "checkpoint.safetensors").exists()
    events = []
    reconstruct(scene, replace(config, scene=replace(config.scene, check="ignore")), run=tmp_path / "r", hooks=[events.append], force=True)
    assert any(isinstance(e, Note) and e.text.startswith("broken: 7 of 12") for e in events)


def test_thumbnails_of_one_colour_are_no_doubles():
    plain, rng = np.full((40, 40, 3), 90, np.uint8), np.random.default_rng(0)
    noise = rng.integers(0, 255, (40, 40, 3)).astype(np.uint8)
    quality = measure([plain, plain, noise, noise], None)
    assert alike(quality.thumbnails, 0.1) == [(2, 3)]


def test_a_scene_that_can_t_be_loaded_has_findings_in_json_all_the_same(scene_copy, capsys):
    harm_poses(scene_copy, lambda m: m @ MIRROR_X)
    assert cli.main(["info", str(scene_copy), "--json"]) == 3
    shown = capsys.readouterr()
    facts = json.loads(shown.out)
    assert facts["usable"] is False and "left-handed" in facts["findings"][0]["found"] and shown.err.count("\n") == 1


def test_no_real_scene_is_called_broken_or_doubtful(shared_data):
    names = ("table", "nefertiti", "strecha_fountain_p11", "middlebury_templesparsering", "colmap_chessman")
    for name in names:
        assert serious(load_scene(shared_data / name)) == [], name
