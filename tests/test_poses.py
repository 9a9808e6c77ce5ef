"""Cameras of bare photographs: they are the true ones up to a similarity, whoever is stopped goes on, and failures say why."""

import itertools
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import corner
import numpy as np
import pytest
from captures import looking_at
from PIL import Image
from test_cli import TINY, fails, process, run

pytest.importorskip("pycolmap")  # no wheel for some systems

from fastsurf import poses, reconstruction
from fastsurf.cameras import Camera, View
from fastsurf.config import PosesConfig, SceneConfig, load_config
from fastsurf.demo_scene import CENTER, DISTANCE, FIELD_OF_VIEW, photograph
from fastsurf.errors import BackendError, ConfigError, SceneError, UsageError
from fastsurf.formats import load
from fastsurf.hooks import MeshProgress, Note, PhaseDone, PhaseStarted, Saved
from fastsurf.poses import find_poses, is_bare
from fastsurf.scene import load_scene
from fastsurf.sfm import _adjust, _contradictions, _with_distortion, camera_groups, likeness, pairs_of, upright

SIDE = 300  # pixels of the turntable's photographs
MODEL_FILES = ("cameras.bin", "images.bin", "points3D.bin")


@pytest.fixture(scope="module")
def walk(tmp_path_factory):
    """Folder of eight photographs of known cameras."""
    folder = tmp_path_factory.mktemp("walk") / "photos"
    corner.walk(folder)
    return folder


@pytest.fixture(scope="module")
def made(walk, tmp_path_factory):
    """The scene that they become, and the events on the way."""
    events = []
    return find_poses(walk, tmp_path_factory.mktemp("made") / "scene", threads=1, hooks=[events.append]), events


def similarity(moving, fixed):
    """Scale, rotation (3, 3) and shift (3,) that take points (n, 3) to others, least squares (Umeyama 1991)."""
    m, f = moving.mean(0), fixed.mean(0)
    U, S, Vt = np.linalg.svd((fixed - f).T @ (moving - m))
    D = np.diag([1, 1, np.sign(np.linalg.det(U @ Vt))])
    scale = np.trace(np.diag(S) @ D) / ((moving - m) ** 2).sum()
    return scale, U @ D @ Vt, f - scale * U @ D @ Vt @ m


def against(found, true):
    """Camera centres' errors relative to the cameras' spread, and rotations' errors in degrees, after a similarity; each (n,)."""
    by_name = {Path(view.name).stem: view for view in true}
    pairs = [(view, by_name[Path(view.name).stem]) for view in found]
    centers, wanted = (np.stack([pair[k].center for pair in pairs]) for k in (0, 1))
    scale, turn, shift = similarity(centers, wanted)
    spread = np.sqrt(((wanted - wanted.mean(0)) ** 2).sum(1).mean())
    off = np.linalg.norm(scale * centers @ turn.T + shift - wanted, axis=1) / spread
    cosines = [(np.trace((turn @ view.c2w[:, :3]).T @ other.c2w[:, :3]) - 1) / 2 for view, other in pairs]
    return off, np.degrees(np.arccos(np.clip(cosines, -1, 1)))


def test_cameras_are_the_true_ones_up_to_a_similarity(walk, made, tmp_path):
    true = corner.walk(tmp_path)
    capture = load(made[0].scene)
    assert (capture.format, len(capture.views), capture.notes) == ("colmap", 8, ())
    off, turned = against(capture.views, true)
    assert off.max() < 5e-3 and turned.max() < 0.3
    focal = capture.views[0].camera.focal[0]
    assert abs(focal / corner.CAMERA.focal[0] - 1) < 0.01
    assert len({view.camera for view in capture.views}) == 1


def test_what_is_reported_is_what_was_found(made):
    found, events = made
    assert found.placed == tuple(f"{k:03d}.png" for k in range(8)) and found.left_out == () and found.sizes == (8,)
    assert 0 < found.error < 0.5 and found.track > 3 and found.pairs == 28 and found.features > 500
    assert len(load(found.scene).points) == found.points > 500
    assert [e.name for e in events if isinstance(e, PhaseStarted)] == ["read", "features", "matching", "mapping"]
    assert [e.name for e in events if isinstance(e, PhaseDone)] == list(found.seconds) == ["read", "features", "matching", "mapping"]
    assert not [e for e in events if isinstance(e, Note)] and Saved("scene", found.scene) in events
    progress = [e for e in events if isinstance(e, MeshProgress)]
    assert all(0 <= e.done <= 1 for e in progress) and {e.detail.split()[0] for e in progress} >= {"features", "matching", "mapping"}


def test_a_scene_stands_upright(made):
    ups = np.stack([-view.c2w[:, 1] for view in load(made[0].scene).views]).mean(0)
    np.testing.assert_allclose(ups / np.linalg.norm(ups), [0, 0, 1], atol=1e-6)


def test_a_scene_holds_all_that_it_needs_and_nothing_half_done(made, walk):
    assert {p.name for p in made[0].scene.iterdir()} == {"images", "sparse", "database.db", "poses.json", "colmap.log"}
    assert {p.name for p in (made[0].scene / "sparse").iterdir()} == {"0"}
    assert (made[0].scene / "images/000.png").samefile(walk / "000.png")
    record = json.loads((made[0].scene / "poses.json").read_text())
    assert record["source"] == str(walk.resolve()) and record["found"]["placed"] == list(made[0].placed)


def test_a_finished_scene_is_not_made_again(made, walk):
    started = time.monotonic()
    again = find_poses(walk, made[0].scene, hooks=[lambda event: pytest.fail(str(event))])
    assert time.monotonic() - started < 1 and again == replace(made[0], seconds={})


class Enough(Exception):
    """Raised by a hook."""


@pytest.mark.parametrize("stage", ["features", "mapping"])
def test_what_is_stopped_goes_on_and_ends_the_same(made, walk, tmp_path, stage):
    """Also with another number of threads."""
    seen = []

    def stop(event):
        if isinstance(event, MeshProgress) and event.detail.startswith(stage) and event.done > 0:
            raise Enough

    with pytest.raises(Enough):
        find_poses(walk, tmp_path / "scene", threads=1, hooks=[stop])
    assert not (tmp_path / "scene/sparse").exists()
    with pytest.raises(SceneError):
        load(tmp_path / "scene")
    find_poses(walk, tmp_path / "scene", threads=2, hooks=[seen.append])
    first = [e.done for e in seen if isinstance(e, MeshProgress) and e.detail.startswith("features")][:1]
    assert first > [0] if stage == "features" else not first
    for name in MODEL_FILES:
        assert (tmp_path / "scene/sparse/0" / name).read_bytes() == (made[0].scene / "sparse/0" / name).read_bytes()


def test_masks_come_along(made, walk, tmp_path):
    (tmp_path / "capture").mkdir()
    shutil.copytree(walk, tmp_path / "capture/images")
    (tmp_path / "capture/masks").mkdir()
    for file in walk.glob("*.png"):
        Image.new("L", (corner.CAMERA.width, corner.CAMERA.height), 255).save(tmp_path / "capture/masks" / file.name)
    assert is_bare(tmp_path / "capture")
    find_poses(tmp_path / "capture", tmp_path / "scene")
    assert all(view.mask == tmp_path / "scene/masks" / view.name for view in load(tmp_path / "scene").views)


class Turntable:
    """Photographs of the demo's solid that turns before a wall that stands still, and masks of it."""

    def __init__(self, folder, n=7, step=10.0):
        self.folder, self.true = folder, []
        wall = Image.fromarray(corner.wallpaper(20)).resize((SIDE, SIDE))
        for sub in ("images", "masks"):
            (folder / sub).mkdir(parents=True)
        for k in range(n):
            turn, focal = np.radians(step * k), 0.5 * SIDE / np.tan(0.5 * FIELD_OF_VIEW)
            c2w = looking_at(CENTER + DISTANCE * np.array([0.9 * np.cos(turn), 0.9 * np.sin(turn), 0.43]), CENTER)
            seen = Image.fromarray(photograph(c2w, focal, SIDE))
            self.true.append(View(f"{k}.png", folder / f"images/{k}.png", None, Camera("PINHOLE", SIDE, SIDE, (1.0, 1.0, 0.0, 0.0)), c2w))
            before = wall.copy()
            before.paste(seen, mask=seen.getchannel("A"))
            before.save(folder / f"images/{k}.png")
            seen.getchannel("A").save(folder / f"masks/{k}.png")


@pytest.fixture(scope="module")
def turntable(tmp_path_factory):
    return Turntable(tmp_path_factory.mktemp("turntable"))


@pytest.fixture(scope="module")
def turned(turntable, tmp_path_factory):
    """The scene that it becomes, and the events on the way."""
    events = []
    return find_poses(turntable.folder, tmp_path_factory.mktemp("turned") / "scene", hooks=[events.append]), events


def test_a_turntable_before_a_wall_needs_masks(turntable, turned, tmp_path):
    found, events = turned
    off, angles = against(load(found.scene).views, turntable.true)
    assert len(found.placed) == 7 and off.max() < 0.03 and angles.max() < 3
    notes = [e.text for e in events if isinstance(e, Note)]
    assert notes == ["features are looked for inside the masks alone (--masks ignore: everywhere, if the surroundings stood still too)"]
    with pytest.raises(SceneError, match="what they show did: walk round a thing that stands still, or give masks of one that turns"):
        find_poses(turntable.folder, tmp_path / "scene", PosesConfig(masks="ignore", features=400))


def test_a_whole_turn_of_a_pattern_that_repeats(tmp_path):
    """Every eighth of a turn looks alike: three quarters of the pairs are wrong ones, and the first model is; the second knows them."""
    table, events = Turntable(tmp_path / "in", 24, 15.0), []
    found = find_poses(table.folder, tmp_path / "scene", hooks=[events.append])
    off, angles = against(load(found.scene).views, table.true)
    assert len(found.placed) == 24 and off.max() < 0.02 and angles.max() < 2
    assert [camera["model"] for camera in found.cameras] == ["SIMPLE_RADIAL"]  # a narrow thing in the middle says little about the lens
    (note,) = [e.text for e in events if isinstance(e, Note) and "look alike" in e.text]
    left_out, pairs = map(int, re.findall(r"\d+", note))
    assert pairs == found.pairs == 276 and 140 < left_out < 240
    import pycolmap

    with pycolmap.Database.open(tmp_path / "scene/database.db") as db:
        assert sum(n >= 15 for n in db.read_two_view_geometry_num_inliers()[1]) == 276
    assert {p.name for p in (tmp_path / "scene/sparse").iterdir()} == {"0"}


def test_features_lie_inside_masks(turntable, turned):
    import pycolmap

    with pycolmap.Database.open(turned[0].scene / "database.db") as db:
        for image in db.read_all_images():
            x, y = np.asarray(db.read_keypoints(image.image_id))[:, :2].astype(int).T
            assert len(x) > 300 and (np.asarray(Image.open(turntable.folder / "masks" / image.name))[y, x] > 127).all()


def test_what_is_to_be_ignored_gives_no_features(turntable, turned, tmp_path):
    """The wall marked in white is as good as masks of the thing: the same cameras to the bit. Training leaves it out, too."""
    shutil.copytree(turntable.folder / "images", tmp_path / "in/images")
    (tmp_path / "in/ignore").mkdir()
    for view in turntable.true:
        mask = Image.open(turntable.folder / "masks" / view.name)
        mask.point(lambda level: 255 - level).save(tmp_path / "in/ignore" / f"{view.name}.png")
    events = []
    scene = find_poses(tmp_path / "in", tmp_path / "scene", hooks=[events.append]).scene
    assert [e.text for e in events if isinstance(e, Note)] == ["7 of 7 photographs say what to ignore: no features are looked for there"]
    for name in MODEL_FILES:
        assert (scene / "sparse/0" / name).read_bytes() == (turned[0].scene / "sparse/0" / name).read_bytes()
    for ignored, mask in zip(load_scene(scene).ignored, load_scene(turned[0].scene).masks, strict=True):
        assert (ignored == (mask < 128)).all()
    other = "holds a scene of other photographs or options"
    with pytest.raises(UsageError, match=other):
        find_poses(tmp_path / "in", tmp_path / "scene", ignored="none")
    with pytest.raises(SceneError, match=r"scene\.ignore: want auto, none or a folder, found 'nowhere'"):
        find_poses(tmp_path / "in", tmp_path / "scene", ignored="nowhere")


def test_what_is_to_be_ignored_is_taken_out_of_masks(turntable, tmp_path):
    import pycolmap

    left = Image.new("L", (SIDE, SIDE))
    left.paste(255, (0, 0, SIDE // 2, SIDE))
    (tmp_path / "left").mkdir()
    left.save(tmp_path / "left/3.png")
    events = []
    find_poses(turntable.folder, tmp_path / "scene", PosesConfig(least=0.4), ignored=str(tmp_path / "left"), hooks=[events.append])
    assert "1 of 7 photographs say what to ignore: no features are looked for there" in [e.text for e in events if isinstance(e, Note)]
    with pycolmap.Database.open(tmp_path / "scene/database.db") as db:
        for image in db.read_all_images():
            x, y = np.asarray(db.read_keypoints(image.image_id))[:, :2].astype(int).T
            assert (np.asarray(Image.open(turntable.folder / "masks" / image.name))[y, x] > 127).all()
            assert (x < SIDE // 2).any() == (image.name != "3.png")
    for view in turntable.true:
        Image.new("L", (SIDE, SIDE), 255).save(tmp_path / "left" / view.name)
    with pytest.raises(SceneError, match="nothing is left of the photographs: white is to be ignored"):
        find_poses(turntable.folder, tmp_path / "none", ignored=str(tmp_path / "left"))


def test_masks_leave_with_the_scene_and_training_has_them(turntable, turned):
    scene = turned[0].scene
    assert {p.name for p in (scene / "sparse").iterdir()} == {"0"}
    for view, mask in zip(load(scene).views, load_scene(scene).masks, strict=True):
        assert view.mask == scene / "masks" / view.name
        assert (mask.numpy() == np.asarray(Image.open(turntable.folder / "masks" / view.name))).all()


@pytest.mark.parametrize("where", ["alpha", "a folder, swapped"])
def test_masks_are_found_wherever_the_loaders_find_them(turntable, turned, tmp_path, where):
    """Alpha channels, colours in front of nothing; or another folder, black and white swapped: the same cameras to the bit."""
    shutil.copytree(turntable.folder / "images", tmp_path / "in")
    (tmp_path / "cut").mkdir()
    for view in turntable.true:
        mask = Image.open(turntable.folder / "masks" / view.name)
        if where == "alpha":
            whole = Image.open(view.image)
            whole.putalpha(mask)
            whole.save(tmp_path / "in" / view.name)
        mask.point(lambda level: 255 - level).save(tmp_path / "cut" / view.name)
    config = PosesConfig(masks="auto" if where == "alpha" else str(tmp_path / "cut"))
    scene = find_poses(tmp_path / "in", tmp_path / "scene", config, invert_masks=where != "alpha").scene
    for name in MODEL_FILES:
        assert (scene / "sparse/0" / name).read_bytes() == (turned[0].scene / "sparse/0" / name).read_bytes()
    again = load_scene(scene, SceneConfig(invert_masks=where != "alpha"))
    assert all((a == b).float().mean() > 0.99 for a, b in zip(again.masks, load_scene(turned[0].scene).masks, strict=True))


def test_masks_that_cannot_be_are_refused(turntable, tmp_path):
    shutil.copytree(turntable.folder, tmp_path / "in")
    masks = tmp_path / "in/masks"
    (masks / "0.png").rename(tmp_path / "0.png")
    with pytest.raises(SceneError, match=r"no mask for 0.png \(1 of 7 missing\)"):
        find_poses(tmp_path / "in", tmp_path / "a")
    Image.open(tmp_path / "0.png").resize((SIDE, SIDE // 2)).save(masks / "0.png")
    with pytest.raises(SceneError, match="want the same shape"):
        find_poses(tmp_path / "in", tmp_path / "b")
    (masks / "0.png").write_bytes(b"nothing")
    with pytest.raises(SceneError, match=r"0.png can't be read"):
        find_poses(tmp_path / "in", tmp_path / "c")
    shutil.move(tmp_path / "0.png", masks / "0.png")
    with pytest.raises(SceneError, match=r"masks look inverted.*an image editor \(reconstruct: --set scene.invert_masks=true\) swaps"):
        find_poses(tmp_path / "in", tmp_path / "d", invert_masks=True)
    with pytest.raises(SceneError, match="want auto, ignore or a folder, found 'nowhere'"):
        find_poses(tmp_path / "in", tmp_path / "e", PosesConfig(masks="nowhere"))
    (tmp_path / "others").mkdir()
    shutil.copy(masks / "0.png", tmp_path / "others/another.png")
    with pytest.raises(SceneError, match=r"no mask for 0.png \(7 of 7 missing\)"):
        find_poses(tmp_path / "in", tmp_path / "f", PosesConfig(masks=str(tmp_path / "others")))


def test_other_masks_are_another_scene(turntable, turned, tmp_path):
    shutil.copytree(turned[0].scene, tmp_path / "scene")
    other = "holds a scene of other photographs or options"
    with pytest.raises(UsageError, match=other):
        find_poses(turntable.folder, tmp_path / "scene", PosesConfig(masks="ignore"))
    shutil.copytree(turntable.folder / "masks", tmp_path / "masks")
    with pytest.raises(UsageError, match=other):
        find_poses(turntable.folder, tmp_path / "scene", PosesConfig(masks=str(tmp_path / "masks")))
    assert find_poses(turntable.folder, tmp_path / "scene").placed == turned[0].placed


@pytest.mark.parametrize(("sets", "wanted"), [
    ((), ("auto", False)), (("scene.masks=ignore",), ("ignore", False)), (("scene.invert_masks=true",), ("auto", True)),
    (("scene.masks=cut", "poses.masks=ignore"), ("ignore", False)), (("scene.masks=cut",), ("cut", False)),
])  # fmt: skip
def test_reconstruct_finds_cameras_with_the_masks_that_it_learns_from(turntable, tmp_path, monkeypatch, sets, wanted):
    def asked(source, out, config, *, invert_masks, **rest):
        raise SceneError(f"{config.masks} {invert_masks}")

    (tmp_path / "cut").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(reconstruction, "find_poses", asked)
    with pytest.raises(SceneError, match="{} {}".format(*wanted)):
        reconstruction.reconstruct(turntable.folder, load_config(None, [*sets, "backend=reference"]), run=tmp_path / "run")


def test_pictures_are_written_after_colmap_was_loaded():
    """Loaded before Pillow, it ends the process there."""
    script = ("import io, numpy; from fastsurf.cameras import load_pycolmap; load_pycolmap(); from PIL import Image; "
              "noise = numpy.random.default_rng(0).integers(0, 256, (300, 300, 3), numpy.uint8); "
              "[Image.fromarray(noise).save(io.BytesIO(), 'PNG') for _ in range(5)]")  # fmt: skip
    assert subprocess.run([sys.executable, "-c", script], cwd=Path(poses.__file__).parents[1], capture_output=True).returncode == 0


def test_photographs_of_nothing_in_common_are_refused(tmp_path):
    for k in range(4):
        Image.fromarray(corner.wallpaper(10 + k)[:180, :240]).save(tmp_path / f"{k}.png")
    with pytest.raises(SceneError, match=r"0 of 4 photographs found their place, want 60%. Only 0 pairs of photographs fit together"):
        find_poses(tmp_path, tmp_path / "scene")
    assert not (tmp_path / "scene/sparse").exists()


def test_a_stranger_among_the_photographs_is_left_out_and_named(walk, tmp_path):
    shutil.copytree(walk, tmp_path / "in")
    Image.fromarray(corner.wallpaper(10)[:180, :240]).save(tmp_path / "in/stranger.png")
    events = []
    found = find_poses(tmp_path / "in", tmp_path / "scene", hooks=[events.append])
    assert found.left_out == ("stranger.png",) and len(found.placed) == 8
    assert Note("8 of 9 photographs found their place; not stranger.png") in events
    with pytest.raises(UsageError, match="holds a scene of other photographs or options: --force replaces it"):
        find_poses(walk, tmp_path / "scene")
    assert find_poses(tmp_path / "in", tmp_path / "scene", PosesConfig(least=0.95)).left_out  # judged when it was made


def test_too_few_in_place_are_an_error_that_least_accepts(walk, tmp_path):
    shutil.copytree(walk, tmp_path / "in")
    for k in range(2):
        Image.fromarray(corner.wallpaper(10 + k)[:180, :240]).save(tmp_path / f"in/stranger{k}.png")
    with pytest.raises(SceneError, match=r"8 of 10 photographs found their place, want 90%.*--least 0.7 .*takes what there is"):
        find_poses(tmp_path / "in", tmp_path / "scene", PosesConfig(least=0.9))
    assert len(find_poses(tmp_path / "in", tmp_path / "scene", PosesConfig(least=0.7)).placed) == 8


@pytest.mark.parametrize("placed, n", [(9, 50), (3, 400), (29, 101), (7, 10)])
def test_the_least_that_is_offered_takes_what_there_is(placed, n, tmp_path):
    found = {"placed": [f"{k}.png" for k in range(placed)], "sizes": [placed], "features": 1000, "pairs": n}
    with pytest.raises(SceneError) as refused:
        poses._judge(found, n, PosesConfig(least=0.99), tmp_path, False)
    offered = re.search(r"--least (\S+) .*poses\.least=(\S+)\)", str(refused.value))
    assert offered is not None and offered[1] == offered[2]
    poses._judge(found, n, PosesConfig(least=float(offered[1])), tmp_path, False)


def test_force_replaces_only_what_was_made_here(made, walk, tmp_path):
    shutil.copytree(made[0].scene, tmp_path / "scene")
    (tmp_path / "scene/mine.txt").touch()
    found = find_poses(walk, tmp_path / "scene", PosesConfig(features=200), force=True)
    assert found.features < made[0].features and (tmp_path / "scene/mine.txt").exists()
    (tmp_path / "other").mkdir()
    (tmp_path / "other/mine.txt").touch()
    with pytest.raises(UsageError, match="holds other files"):
        find_poses(walk, tmp_path / "other", force=True)


def test_bad_requests_are_refused_before_any_work(walk, tmp_path):
    with pytest.raises(SceneError, match="no photographs in"):
        find_poses(tmp_path, tmp_path / "scene")
    shutil.copy(walk / "000.png", tmp_path)
    with pytest.raises(SceneError, match="found 1 photographs; cameras can be found for three or more"):
        find_poses(tmp_path, tmp_path / "scene")
    with pytest.raises(ConfigError, match=r"poses.pairs: want one of auto, all, sequence; found 'none'"):
        find_poses(walk, tmp_path / "scene", PosesConfig(pairs="none"))
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="is a file: want a folder"):
        find_poses(walk, tmp_path / "file")
    assert not (tmp_path / "scene").exists()


def test_photographs_that_cannot_be_read_are_named(walk, tmp_path):
    shutil.copytree(walk, tmp_path / "in")
    (tmp_path / "in/000.png").write_bytes((walk / "000.png").read_bytes()[:5000])  # COLMAP finds out, and goes on without
    assert find_poses(tmp_path / "in", tmp_path / "cut").left_out == ("000.png",)
    (tmp_path / "in/000.png").write_bytes(b"nothing")
    with pytest.raises(SceneError, match=r"photograph .*000.png can't be read"):
        find_poses(tmp_path / "in", tmp_path / "scene")


def test_without_pycolmap_there_is_one_line(walk, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(poses, "load_pycolmap", lambda: None)
    words = ("poses", walk, "-o", tmp_path / "s", "--quiet")
    fails(capsys, 4, "finding cameras needs pycolmap, which is not installed: pip install pycolmap", *words)
    monkeypatch.undo()
    monkeypatch.setattr(poses.metadata, "version", lambda name: "3.11.1")
    fails(capsys, 4, "needs pycolmap 4.2 or newer, found 3.11.1", *words)


def test_a_colmap_that_dies_is_reported(walk, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "executable", shutil.which("false"))
    with pytest.raises(BackendError, match=r"COLMAP ended with exit code 1: .*colmap.log\); the same command goes on where it was"):
        find_poses(walk, tmp_path / "scene")


def test_the_child_ends_when_nobody_listens(walk, tmp_path):
    """As when the parent was killed: stdin ends."""
    (tmp_path / "scene").mkdir()
    shutil.copytree(walk, tmp_path / "scene/images")
    job = {"scene": str(tmp_path / "scene"), "model": str(tmp_path / "scene/.sparse.part/0"), "pairs": "all", "cameras": "one",
           "max_side": 1000, "features": 2048, "seed": 0, "threads": 1}  # fmt: skip
    (tmp_path / "scene/.sparse.part").mkdir()
    child = subprocess.Popen(
        [sys.executable, "-m", "fastsurf.sfm"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        cwd=Path(poses.__file__).parents[1], text=True,
    )  # fmt: skip
    child.communicate(json.dumps(job) + "\n", timeout=20)
    assert child.returncode == 0 and not list((tmp_path / "scene/.sparse.part").rglob("*.bin"))


# the command line


def test_poses_says_what_was_found_and_what_comes_next(made, walk, capsys):
    code, out, _ = run(capsys, "poses", walk, "-o", made[0].scene)
    assert code == 0 and f"scene  {made[0].scene}\nplaced 8 of 8 photographs, off by 0." in out
    assert f"next   fastsurf reconstruct {made[0].scene} -o mesh.ply" in out and "SIMPLE_RADIAL, focal length 25" in out


def test_wrong_words_are_one_line(walk, tmp_path, capsys):
    fails(capsys, 2, "poses wants PHOTOS", "poses")
    fails(capsys, 2, "poses wants -o DIR", "poses", walk)
    words = ("poses", walk, "-o", tmp_path / "s", "--quiet")
    fails(capsys, 2, "poses has no --feature; did you mean --features?", *words, "--feature", "9")
    fails(capsys, 2, "poses.cameras: want one of auto, one, folder, each", *words, "--cameras", "two")
    fails(capsys, 2, "--masks wants auto, ignore or a folder of masks, found 'no'", *words, "--masks", "no")
    fails(capsys, 2, "--seed and --threads want 0 or more, found -1", *words, "--seed", "-1")


def test_ctrl_c_keeps_the_database(walk, tmp_path):
    out = tmp_path / "scene"
    child = process(["-m", "fastsurf", "poses", walk, "-o", out])
    for line in child.stdout:
        if line.startswith(("features", "matching")):
            break
    child.send_signal(signal.SIGINT)
    _, err = child.communicate(timeout=20)
    assert child.returncode == 130
    assert err == f"fastsurf: stopped; {out}/database.db is kept: the same command goes on from there\n"


def test_reconstruct_finds_cameras_first_and_only_once(walk, tmp_path, capsys):
    """Also where a folder is named from that of the photographs."""
    shutil.copytree(walk, tmp_path / "in")
    (tmp_path / "in/people").mkdir()
    Image.new("L", (24, 18)).save(tmp_path / "in/people/000.png")
    words = ["reconstruct", tmp_path / "in", "--run", tmp_path / "run", *TINY, "--set", "scene.ignore=people", "--quiet"]
    assert run(capsys, *words)[0] == 0
    events = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    assert [e["name"] for e in events if e["event"] == "phase"] == ["poses", "read", "train", "mesh"]
    assert next(e for e in events if e["event"] == "phase_done")["detail"] == "8 of 8 photographs placed"
    assert load(tmp_path / "run/poses").format == "colmap" and (tmp_path / "run/mesh.ply").is_file()
    before = (tmp_path / "run/poses/sparse/0/images.bin").stat().st_mtime_ns
    assert run(capsys, *words, "--resume")[0] == 0
    assert (tmp_path / "run/poses/sparse/0/images.bin").stat().st_mtime_ns == before


def test_a_folder_above_scenes_is_not_taken_for_photographs(made, walk, tmp_path):
    assert is_bare(walk) and not is_bare(made[0].scene)
    shutil.copytree(made[0].scene, tmp_path / "all/scene")
    shutil.copy(walk / "000.png", tmp_path / "all")
    assert not is_bare(tmp_path / "all")


# the parts


def test_pairs():
    assert pairs_of(4, "all", []) == [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]
    in_sequence = pairs_of(100, "sequence", [])
    assert {j - i for i, j in in_sequence} == {*range(1, 11), 16, 32, 64}
    alike = [[99]] + [[]] * 99
    assert (0, 99) in pairs_of(100, "sequence", alike) and (0, 99) in pairs_of(100, "auto", alike)
    assert {j - i for i, j in pairs_of(100, "auto", [])} == {*range(1, 6)}


def test_pictures_of_the_same_things_are_alike():
    rng = np.random.default_rng(0)
    things = rng.integers(0, 256, (3, 400, 128))
    seen = [things[k % 3][rng.permutation(400)[:300]] + rng.integers(-20, 20, (300, 128)) for k in range(12)]
    pictures = [np.clip(descriptors, 0, 255).astype(np.uint8) for descriptors in seen]
    for k, others in enumerate(likeness(pictures, seed=0)):
        assert sorted(others) == [i for i in range(12) if i != k] and {i % 3 for i in others[:3]} == {k % 3}


def test_upright_is_the_least_rotation_to_the_mean():
    rng = np.random.default_rng(0)
    for mean in [*rng.normal(size=(5, 3)), np.array([0, 0, 1.0]), np.array([0, 0, -1.0])]:
        ups = mean / np.linalg.norm(mean) + np.concatenate([(noise := rng.normal(0, 0.1, (4, 3))), -noise])
        turn = upright(ups)
        np.testing.assert_allclose(turn @ turn.T, np.eye(3), atol=1e-9)
        assert np.linalg.det(turn) > 0
        np.testing.assert_allclose(turn @ mean / np.linalg.norm(mean), [0, 0, 1], atol=1e-9)
        np.testing.assert_allclose((np.trace(turn) - 1) / 2, mean[2] / np.linalg.norm(mean), atol=1e-9)
    assert upright(np.array([[1.0, 0, 0], [-1, 0, 0.1]])) is None


@pytest.mark.parametrize(("n", "true", "finer"), [
    (24, (-0.2, 0.3, 0.01, -0.01), True), (24, (-0.2, 0.0, 0.0, 0.0), False), (12, (-0.2, 0.3, 0.01, -0.01), False),
])  # fmt: skip
def test_four_distortion_parameters_where_they_explain_more(n, true, finer):
    import pycolmap

    pycolmap.set_random_seed(0)
    options = pycolmap.SyntheticDatasetOptions()
    options.num_rigs, options.num_frames_per_rig, options.num_points3D = 1, n, 200
    options.camera_model_id = pycolmap.CameraModelId.OPENCV
    options.camera_width, options.camera_height, options.camera_params = 640, 480, [500.0, 500.0, 320.0, 240.0, *true]
    model = pycolmap.synthesize_dataset(options)
    noise = pycolmap.SyntheticNoiseOptions()
    noise.point2D_stddev = 0.3
    pycolmap.synthesize_noise(noise, model)
    (camera,) = model.cameras.values()
    camera.model, camera.params = pycolmap.CameraModelId.SIMPLE_RADIAL, [500.0, 320.0, 240.0, true[0]]
    _adjust(model, pycolmap.BundleAdjustmentOptions(), pycolmap.CancellationToken())
    before = model.compute_mean_reprojection_error()
    made = _with_distortion(model, pycolmap.CancellationToken())
    (camera,) = made.cameras.values()
    assert camera.model.name == ("OPENCV" if finer else "SIMPLE_RADIAL")
    if finer:
        assert made.compute_mean_reprojection_error() < 0.98 * before
        np.testing.assert_allclose(camera.params[:2], 500, rtol=0.01)
        np.testing.assert_allclose(camera.params[6:], true[2:], atol=2e-3)
    else:
        assert made is model and made.compute_mean_reprojection_error() == before


def test_pairs_that_contradict_a_model_are_told(tmp_path):
    """Those of a photograph that stands where it should not. Photographs from one spot contradict nothing: which way the camera moved
    between them is noise."""
    import pycolmap

    rng, target, focal = np.random.default_rng(0), np.zeros(3), 500.0
    centers = np.array([(4, 0, 0), (4, 0, 0), (4, 0, 0), (3.6, 1.8, 0), (2.8, 2.8, 0), (0, 4, 0)]) + rng.normal(0, 1e-5, (6, 3))
    poses = [looking_at(center, target) for center in centers]
    wrong = looking_at((0, 0, 4), target)
    x = rng.uniform(-1, 1, (200, 3))
    with pycolmap.Database.open(tmp_path / "database.db") as db:
        camera = pycolmap.Camera(camera_id=1, model="SIMPLE_PINHOLE", width=640, height=480, params=[focal, 320.0, 240.0])
        db.write_camera(camera, True)
        for i, c2w in enumerate(poses, 1):
            db.write_image(pycolmap.Image(image_id=i, name=str(i), camera_id=1), True)
            local = (x - c2w[:, 3]) @ c2w[:, :3]
            at = focal * local[:, :2] / local[:, 2:] + (320, 240) + rng.normal(0, 0.3, (len(x), 2))
            db.write_keypoints(i, at.astype(np.float32))
        same = np.stack([np.arange(len(x), dtype=np.uint32)] * 2, 1)
        for i, j in itertools.combinations(range(1, 7), 2):
            db.write_two_view_geometry(i, j, pycolmap.TwoViewGeometry(inlier_matches=same))

    def judged(poses):
        turned = [pycolmap.Rigid3d(c2w).inverse() for c2w in poses]
        images = {i: SimpleNamespace(camera=camera, cam_from_world=lambda rigid=rigid: rigid) for i, rigid in enumerate(turned, 1)}
        return _contradictions(SimpleNamespace(images=images, reg_image_ids=lambda: list(images)), tmp_path / "database.db")

    assert judged(poses) == (1.0, [])
    share, against = judged([*poses[:5], wrong])
    assert share < 0.8 and sorted(against) == [(i, 6) for i in range(1, 6)]
    assert judged(poses[:1]) == (0.0, [])


def test_cameras_are_shared_as_asked(tmp_path):
    for name, size in (("a/1.jpg", (32, 24)), ("a/2.jpg", (24, 32)), ("b/3.jpg", (32, 24))):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", size).save(tmp_path / name)
    names = ["a/1.jpg", "a/2.jpg", "b/3.jpg"]
    assert camera_groups(tmp_path, names, "auto") == [["a/1.jpg", "b/3.jpg"], ["a/2.jpg"]]
    assert camera_groups(tmp_path, names, "folder") == [["a/1.jpg", "a/2.jpg"], ["b/3.jpg"]]
    assert camera_groups(tmp_path, names, "one") == [names]
    assert camera_groups(tmp_path, names, "each") == [[name] for name in names]


# a real capture


def test_a_dozen_photographs_of_the_fox(shared_data, tmp_path):
    source = sorted((shared_data / "ngp_fox/images").iterdir())[:12]
    (tmp_path / "in").mkdir()
    for file in source:
        with Image.open(file) as image:
            image.resize((540, 960)).save(tmp_path / "in" / file.name, quality=95)
    found = find_poses(tmp_path / "in", tmp_path / "scene")
    off, turned = against(load(found.scene).views, load(shared_data / "ngp_fox").views)
    assert len(found.placed) == 12 and np.median(off) < 0.02 and np.median(turned) < 1.5
