"""A run looked at from outside: what is read of it as it changes, photographs seen through a pinhole, and the page that a browser gets.

What needs viser, TensorBoard, or Playwright and Chromium besides is skipped where they are not installed.
"""

import errno
import html
import importlib.util
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import urllib.request
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from captures import LENSES
from fake_events import fake_events, fake_step
from test_checkpoint import SMALL
from test_cli import PACKAGE, fails

from fastsurf.cameras import Camera, project, unproject, up_of
from fastsurf.cli import main
from fastsurf.config import load_config
from fastsurf.errors import CheckpointError, UsageError
from fastsurf.files import png
from fastsurf.following import CURVE, Following, Log
from fastsurf.hooks import Note, PhaseDone, PhaseStarted, Preview, TrainState
from fastsurf.mesh import Mesh
from fastsurf.meshio import write_mesh
from fastsurf.pictures import preview_png
from fastsurf.pinhole import OUTSIDE, fitting_view, through_pinhole
from fastsurf.rays import box_edges
from fastsurf.reconstruction import reconstruct
from fastsurf.ui.jsonlines import JsonLines
from fastsurf.viewer import Looking, as_glb, free_port, literally, status

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
COLOUR = (180, 120, 60)
TONES = 20  # by which the page shows colours otherwise: it maps tones


def needs(module, extra):
    return pytest.mark.skipif(importlib.util.find_spec(module) is None, reason=f"not installed: pip install 'fastsurf[{extra}]'")


needs_viser, needs_tensorboard = needs("viser", "viewer"), needs("tensorboard", "tensorboard")


@pytest.fixture(scope="module")
def finished(tiny_folder, tmp_path_factory):
    """A run of 24 steps, not to be changed; written for TensorBoard, too, where that is installed."""
    run = tmp_path_factory.mktemp("run") / "r"
    sets = [word for setting in SMALL for word in ("--set", setting)]
    board = ["--tensorboard"] if importlib.util.find_spec("tensorboard") else []
    assert main(["reconstruct", str(tiny_folder), "--run", str(run), *sets, *board, "--quiet"]) == 0
    return run


@pytest.fixture()
def run(finished, tmp_path):
    """A copy to change."""
    return Path(shutil.copytree(finished, tmp_path / "r"))


def tetrahedron(following, size=0.5):
    """A mesh of one colour in the middle of the scene box, in the world."""
    corners = size * np.array([[1.0, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]])
    world = np.asarray(following.header.center) + following.header.radius * corners
    faces = np.array([[0, 1, 2], [0, 3, 1], [0, 2, 3], [1, 3, 2]], np.int32)
    return Mesh(world, faces, (corners / np.linalg.norm(corners[0])).astype(np.float32), np.full((4, 3), COLOUR, np.uint8))


def test_the_log_is_followed_line_by_line(tmp_path):
    log, lines = Log(tmp_path / "log.jsonl"), JsonLines(tmp_path / "log.jsonl", every=0.0)
    assert not log.update() and not log.begun_anew()
    events = list(fake_events(40))
    for event in events[:20]:
        lines(event)
    assert log.update() and log.phase == "train" and not log.finished and not log.update()
    last = [e for e in events[:20] if isinstance(e, TrainState)][-1]
    assert log.state.step == last.step and log.state.losses == pytest.approx(last.losses)
    for event in events[20:]:
        lines(event)
    lines.close()
    assert log.update() and log.finished and log.state.step == 40 and log.notes == ["intrinsics were for 1600x1200, rescaled to 800x600"]
    assert [step for step, _ in log.curve] == list(range(1, 41))
    half = json.dumps({"event": "step", "time": 0.0} | asdict(fake_step(41, 1.0)))
    with open(log.path, "a") as file:
        file.write(half)
    assert not log.update() and log.state.step == 40, "a line counts when it is whole"
    with open(log.path, "a") as file:
        file.write("\nnot JSON\n")
    assert log.update() and log.state.step == 41
    log.path.write_text("")
    assert log.begun_anew()


def test_a_long_curve_is_thinned_evenly(tmp_path):
    log, lines = Log(tmp_path / "log.jsonl"), JsonLines(tmp_path / "log.jsonl", every=0.0)
    for event in (e for e in fake_events(4 * CURVE) if isinstance(e, TrainState)):
        lines(event)
    lines.close()
    log.update()
    steps = np.array([step for step, _ in log.curve])
    assert CURVE / 2 <= len(steps) <= CURVE and steps[0] == 1 and len(set(np.diff(steps))) == 1 and steps[-1] > 3.9 * CURVE


def test_what_is_seen_of_a_run(finished, tiny):
    before = {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in sorted(finished.rglob("*"))}
    following = Following(finished)
    assert following.update() == {"log", "preview", "scene", "mesh", "points"} and following.update() == set() and following.problems == {}
    assert before == {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in sorted(finished.rglob("*"))}, "nothing is written"
    views = tiny.capture.views
    np.testing.assert_allclose([v.center for v in following.views], tiny.to_scene(np.stack([v.center for v in views])), atol=1e-9)
    assert all(np.array_equal(a.c2w[:, :3], b.c2w[:, :3]) for a, b in zip(following.views, views, strict=True))
    assert following.held_out == set(tiny.test) != set()
    np.testing.assert_allclose(following.up, [0, 0, 1], atol=0.2)
    assert following.mesh_name == "mesh.ply" and np.abs(following.mesh.vertices).max() < 1.001 and following.points is None
    assert (following.preview.view, following.preview.step) == (views[tiny.test[0]].name, 24)
    photo = tiny.images[tiny.test[0]].numpy()
    np.testing.assert_array_equal(following.preview.pixels[:, : photo.shape[1]], photo)
    assert following.preview.pixels.shape == (len(photo), 3 * photo.shape[1], 3)
    said = status(following)
    assert said.startswith("**finished**") and "| step | 24 (100%) |" in said and f"mesh.ply, {len(following.mesh.faces):,} faces" in said
    assert "| photographs | 14, 2 held out |" in said


def test_a_run_is_followed_as_it_changes(run):
    mesh, checkpoint = run / "mesh.ply", run / "checkpoint.safetensors"
    saved = checkpoint.read_bytes()
    begun, first = (run / "begun.json").read_bytes(), (run / "first_mesh.ply").read_bytes()
    for file in (mesh, checkpoint, run / "begun.json", run / "first_mesh.ply", run / "preview.png"):
        file.unlink()
    following = Following(run)
    assert following.update() == {"log"} and following.header is None and "when the photographs are read" in status(following)
    (run / "begun.json").write_bytes(begun)
    assert following.update() == {"scene", "points"} and len(following.views) == 14 and following.mesh is None
    checkpoint.write_bytes(saved)
    assert following.update() == set() and following.header.step == 24, "the same scene"
    (run / "first_mesh.ply").write_bytes(first)
    assert following.update() == {"mesh"} and following.mesh_name == "first_mesh.ply"
    write_mesh(mesh, tetrahedron(following))
    assert following.update() == {"mesh"} and following.mesh_name == "mesh.ply"
    np.testing.assert_allclose(np.abs(following.mesh.vertices), 0.5, atol=1e-5)
    write_mesh(mesh, tetrahedron(following, 0.25))
    assert following.update() == {"mesh"}
    np.testing.assert_allclose(np.abs(following.mesh.vertices), 0.25, atol=1e-5)
    checkpoint.write_bytes(saved)
    assert following.update() == set(), "another checkpoint of the same scene changes nothing"
    world = np.asarray(following.header.center) + following.header.radius * np.array([[0.5, 0, 0], [0, 0, -1]])
    np.savez(run / "points.npz", points=world, sightings=np.zeros((0, 2), int))
    assert following.update() == {"points"}
    np.testing.assert_allclose(following.points, [[0.5, 0, 0], [0, 0, -1]], atol=1e-9)
    (run / "points.npz").write_bytes(b"nonsense")
    assert following.update() == {"points"} and "points.npz" in following.problems["points"]
    np.savez(run / "points.npz", points=world, sightings=np.zeros((0, 2), int))
    assert following.update() == {"points"} and following.problems == {}
    mesh.unlink()
    assert following.update() == {"mesh"} and following.mesh_name == "first_mesh.ply"
    mesh.write_bytes(b"ply\nnonsense")
    assert following.update() == {"mesh"} and following.update() == set()
    assert "mesh.ply" in following.problems["mesh"] and "mesh.ply" in status(following)
    preview = Preview("b.png", *(np.full((4, 6, 3), level, np.uint8) for level in (10, 20, 30)))
    (run / "preview.png").write_bytes(preview_png(preview, 7))
    assert following.update() == {"preview"} and (following.preview.view, following.preview.step) == ("b.png", 7)
    assert following.preview.pixels[0, ::6, 0].tolist() == [30, 10, 20]
    (run / "preview.png").write_bytes(png(preview.rgb))
    assert following.update() == {"preview"} and (following.preview.view, following.preview.step) == ("", None)
    (run / "preview.png").write_bytes(b"nonsense")
    assert following.update() == {"preview"} and following.preview is None and "preview.png" in status(following)
    (run / "preview.png").unlink()
    assert following.update() == {"preview"} and "preview" not in following.problems


def test_previews_are_there_as_they_come(tiny, tmp_path):
    """In the run as they go to the hooks, each with its step; the last one is of a held-out view."""
    run, told, found = tmp_path / "r", [], []

    def look(event):
        if found and found[-1] is None:
            following = Following(run)
            following.update()
            found[-1] = following.preview
        if isinstance(event, Preview):
            told.append(event)
            found.append(None)

    reconstruct(tiny, load_config(None, [*SMALL, "train.preview_every=0"]), run=run, hooks=[look])
    assert [shown.step for shown in found] == list(range(1, 25)) and len({shown.view for shown in found}) == len(tiny.train)
    for event, shown in zip(told, found, strict=True):
        np.testing.assert_array_equal(shown.pixels, np.concatenate([event.photo, event.rgb, event.normal], axis=1))
        assert shown.view == event.view


def test_a_disk_without_room_for_previews_is_told_once(tiny, tmp_path, monkeypatch):
    from fastsurf import reconstruction

    write, seen = reconstruction.write_whole, []

    def full(path, data):
        if path.name == "preview.png":
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        write(path, data)

    monkeypatch.setattr(reconstruction, "write_whole", full)
    result = reconstruct(tiny, load_config(None, [*SMALL, "train.preview_every=0"]), run=tmp_path / "r", hooks=[seen.append])
    trained = next(k for k, event in enumerate(seen) if isinstance(event, PhaseDone) and event.name == "train")
    told = [event for event in seen[:trained] if isinstance(event, Note) and "the preview could not be written" in event.text]
    assert len(told) == 2, "the last one, which is another, is tried all the same"
    assert result.state.step == 24 and sum(isinstance(event, Preview) for event in seen) == 24 and not (tmp_path / "r/preview.png").exists()


def test_words_out_of_files_stay_words():
    """The page takes HTML in Markdown for its own."""
    evil = "<iframe srcdoc='<script>alert(1)</script>'> ![x](/etc/passwd) `a` | *b* &lt; _c_"
    assert not set(literally(evil)) & set("<>![]()`|*_'=") and html.unescape(literally(evil)) == evil
    assert literally("a photograph.png, 2/3: größe") == "a photograph.png, 2/3: größe"


@needs_viser
def test_notes_and_names_are_shown_as_they_stand(run):
    from fastsurf.viewer import Viewer

    evil = "<img src=x onerror=alert(1)>"
    with open(run / "log.jsonl", "a") as file:
        for event in ({"event": "note", "text": evil}, {"event": "phase", "name": evil, "detail": ""}):
            file.write(json.dumps(event | {"time": 0.0}) + "\n")
    preview = Preview(evil, *(np.full((4, 6, 3), level, np.uint8) for level in (10, 20, 30)))
    (run / "preview.png").write_bytes(preview_png(preview, 1234))
    with Viewer(run) as viewer:
        viewer.following.views = tuple(replace(view, name=evil) for view in viewer.following.views)
        viewer._pick(None)
        texts = [viewer._status.content, viewer._preview_of.content, viewer._name.content]
        assert all(evil in html.unescape(text) and evil not in text for text in texts)
        assert viewer._preview_of.content.startswith("step 1,234 · ") and viewer._preview_place.visible
        assert viewer._preview.image.shape[1] >= 480 and viewer._preview.image[0, 0, 0] == 30


def test_cameras_and_box_are_there_before_anything_is_learned(tiny_folder, tiny, tmp_path):
    """With the first phase a run says what it is of; points and numbers follow."""
    looks, run = [], tmp_path / "r"

    def look(event):
        if isinstance(event, PhaseDone | PhaseStarted) and (run / "begun.json").exists():
            following = Following(run)
            looks.append((event.name, following.update(), following, status(following)))

    reconstruct(tiny_folder, load_config(None, SMALL), run=run, hooks=[look])
    phase, changed, following, said = looks[0]
    assert phase == "read" and changed >= {"scene", "points"} and following.mesh is None and not following.problems
    assert len(following.views) == 14 and following.held_out == set(tiny.test) and "| photographs | 14, 2 held out |" in said
    np.testing.assert_allclose(following.header.center, tiny.center)
    assert "The first mesh comes half-way." in said and looks[-1][0] == "mesh" and "half-way" not in looks[-1][3]
    assert not (run / "checkpoint.safetensors").stat().st_mtime_ns < (run / "begun.json").stat().st_mtime_ns
    (run / "begun.json").write_text('{"format": 1}')
    with pytest.raises(CheckpointError, match=r"begun\.json: damaged"):
        Following(run).update()


def test_a_run_whose_photographs_are_gone_still_shows_its_mesh(finished, monkeypatch):
    from fastsurf import following as module

    header = module.read_header
    monkeypatch.setattr(module, "read_header", lambda path: module.replace(header(path), scene="/nowhere"))
    following = Following(finished)
    assert "mesh" in following.update() and following.views == () and "no such folder: /nowhere" in status(following)


def test_up_is_what_the_cameras_agree_on():
    rolled = np.stack([np.eye(3, 4), np.eye(3, 4)])
    np.testing.assert_array_equal(up_of(rolled), [0, -1, 0])
    rolled[1, :, 1] *= -1
    np.testing.assert_array_equal(up_of(rolled), [0, 0, 1])


@pytest.mark.parametrize("camera", LENSES, ids=lambda c: c.model)
def test_a_photograph_seen_through_a_pinhole(camera):
    """Every pixel shows what lies in its direction; the whole photograph is in the window, and nothing twice."""
    import torch

    v, u = np.mgrid[: camera.height, : camera.width] + 0.5
    photograph = torch.from_numpy(np.stack([2 * u, 2 * v, np.full_like(u, 200)], -1).astype(np.uint8))
    width, height = 200, 120
    view = fitting_view(camera, width / height)
    seen = through_pinhole(photograph, camera, view, width, height)
    inside = seen[..., 2] > 100
    y, x = np.nonzero(inside)
    pixel = 2 * np.tan(view / 2) / height
    plane = np.stack([(x + 0.5 - width / 2) * pixel, (y + 0.5 - height / 2) * pixel, np.ones(len(x))], -1)
    wanted = project(camera, plane)
    assert np.abs(seen[y, x, :2] / 2 - wanted).max() < 1.3 and inside.mean() > 0.3 and (seen[~inside] == OUTSIDE).all()
    corners = unproject(camera, np.array([[0.0, 0], [camera.width, 0], [0, camera.height], [camera.width, camera.height]]))
    reach = np.tan(view / 2) * np.array([width / height, 1.0])
    assert (np.abs(corners) <= reach + 1e-9).all()
    red = seen[..., 0][inside]
    assert red.min() < 8 and red.max() > 2 * camera.width - 8, "from edge to edge"


def test_through_a_pinhole_of_its_own_a_photograph_stays_as_it_is():
    import torch

    camera = Camera("PINHOLE", 40, 30, (50.0, 50.0, 20.0, 15.0))
    photograph = torch.randint(0, 255, (30, 40, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    np.testing.assert_array_equal(through_pinhole(photograph, camera, fitting_view(camera, 40 / 30), 40, 30), photograph.numpy())


def test_whoever_turns_away_from_a_camera_has_left_it():
    place, turn = np.array([1.0, 2, 3]), np.array([1.0, 0, 0, 0])
    looking = Looking(0, place, turn, (640, 480))
    assert not looking.left(np.zeros(3), turn), "on the way there"
    assert not looking.left(place, -turn) and looking.left(place, np.array([0.9, 0.435889894, 0, 0]))
    assert looking.left(place + 0.1, turn)


def test_the_box_has_twelve_edges():
    edges = box_edges()
    assert edges.shape == (12, 2, 3) and (np.abs(edges) == 1).all() and (np.abs(edges[:, 0] - edges[:, 1]).sum(1) == 2).all()


def test_a_port_is_checked_before_anything_is_served():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UsageError, match=f"127.0.0.1, port {port}"):
            free_port("127.0.0.1", port)
    assert free_port("127.0.0.1", port) == port and free_port("127.0.0.1") >= 8080
    with pytest.raises(UsageError, match="port 70000: want 1 to 65535"):
        free_port("127.0.0.1", 70000)
    with pytest.raises(UsageError, match=r"--host no\.such\.host\.invalid"):
        free_port("no.such.host.invalid")


def test_one_line_says_what_is_wrong(capsys, monkeypatch, tmp_path, finished):
    fails(capsys, 2, "view wants a RUN", "view")
    monkeypatch.setitem(sys.modules, "viser", None)
    fails(capsys, 2, r"pip install 'fastsurf\[viewer\]'", "view", finished)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    fails(capsys, 2, r"pip install 'fastsurf\[tensorboard\]'", "reconstruct", tmp_path, "--run", tmp_path / "r", "--tensorboard")
    assert not (tmp_path / "r").exists()
    with pytest.raises(CheckpointError, match="is no run"):
        Following(tmp_path)


@needs_viser
def test_what_is_no_run_is_one_line(capsys, tmp_path):
    fails(capsys, 3, "is no run", "view", tmp_path)
    fails(capsys, 3, "is no run", "view", tmp_path / "nothing")


@needs_viser
def test_the_page_and_its_socket_answer_and_a_new_mesh_is_sent(run):
    import viser
    import zstandard
    from websockets.sync.client import connect

    from fastsurf.viewer import Viewer

    with Viewer(run) as viewer:
        assert viewer.url == f"http://127.0.0.1:{viewer.port}"
        page = urllib.request.urlopen(viewer.url, timeout=20).read()
        assert b"<html" in page and len(page) > 100_000
        with connect(viewer.url.replace("http", "ws"), subprotocols=[f"viser-v{viser.__version__}"], max_size=None) as client:

            def hear(wanted):
                """Wait for it among the messages, each of two lengths, compressed words, and arrays as they are."""
                heard = b""
                while wanted not in heard:
                    frame = client.recv(timeout=20)
                    size, packed = np.frombuffer(frame[:16], "<u8").tolist()
                    heard += zstandard.ZstdDecompressor().decompress(frame[16 : 16 + packed], max_output_size=size) + frame[16 + packed :]

            hear(as_glb(viewer.following.mesh))
            assert viewer.update() == set()
            write_mesh(run / "mesh.ply", tetrahedron(viewer.following))
            assert viewer.update() == {"mesh"}
            hear(as_glb(viewer.following.mesh))
    with pytest.raises(OSError):
        urllib.request.urlopen(viewer.url, timeout=5)


@needs_viser
def test_ctrl_c_ends_it_with_nothing_said(finished):
    words = [sys.executable, "-m", "fastsurf", "view", str(finished)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(words, env=os.environ | {"PYTHONPATH": PACKAGE}, **pipes) as viewing:
        said = viewing.stdout.readline()
        assert "http://127.0.0.1:" in said and "Ctrl-C" in said
        viewing.send_signal(signal.SIGINT)
        assert viewing.communicate(timeout=60) == ("", "") and viewing.returncode == 0


@needs_viser
@pytest.mark.skipif(importlib.util.find_spec("playwright") is None or not CHROMIUM, reason="no Playwright with Chromium")
def test_a_browser_shows_the_mesh_in_its_colours_and_the_photograph_over_it(run):
    from PIL import Image
    from playwright.sync_api import sync_playwright

    from fastsurf.viewer import Viewer

    with Viewer(run) as viewer, sync_playwright() as browsers:
        browser = browsers.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--enable-unsafe-swiftshader"])
        page = browser.new_page(viewport={"width": 900, "height": 500})
        page.goto(viewer.url)
        page.get_by_text("finished").wait_for(timeout=30_000)

        def centre():
            """Mean colour of some pixels in the middle of the window."""
            picture = np.array(Image.open(io.BytesIO(page.screenshot(timeout=30_000))).convert("RGB"), float)
            return picture[245:256, 445:456].mean((0, 1))

        def wait_until(matches):
            for _ in range(60):
                if matches(found := centre()):
                    return
                page.wait_for_timeout(250)
            raise AssertionError(found)

        write_mesh(run / "mesh.ply", tetrahedron(viewer.following))
        viewer.update()
        wait_until(lambda colour: np.abs(colour - COLOUR).max() < TONES)
        page.get_by_text("Look through this camera").click()
        wait_until(lambda colour: np.abs(colour - COLOUR).max() < TONES and viewer._looking)
        viewer._wipe.value = 1.0
        viewer._put_behind_all()
        photograph = np.array(Image.open(viewer.following.views[0].image).convert("RGBA"), float)
        photograph = photograph[..., :3] * photograph[..., 3:] / 255 + 255 - photograph[..., 3:]
        middle = photograph[23:25, 23:25].mean((0, 1))
        wait_until(lambda colour: np.abs(colour - middle).max() < 25 < np.abs(middle - COLOUR).max())
        browser.close()


@needs_tensorboard
def test_tensorboard_reads_back_what_was_written(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from fastsurf.ui.tensorboard import TensorBoard

    now = [0.0]
    board = TensorBoard(tmp_path / "tensorboard", every=1.0, clock=lambda: now[0])
    assert not (tmp_path / "tensorboard").exists()
    steps = [fake_step(step, step / 26) for step in range(1, 27)]
    for state in steps:
        board(state)
        now[0] += 0.125
    board(Preview("a.png", *(np.full((6, 8, 3), level, np.uint8) for level in (200, 0, 100))))
    board.close()
    read = EventAccumulator(str(tmp_path / "tensorboard"))
    read.Reload()
    assert {"train/psnr", "train/loss", "train/occupied", "train/hit", "train/half_width", "loss/color"} <= set(read.Tags()["scalars"])
    assert [e.step for e in read.Scalars("train/psnr")] == [1, 9, 17, 25, 26], "a second between two, and the last one"
    wanted = [steps[k].losses["color"] for k in (0, 8, 16, 24, 25)]
    np.testing.assert_allclose([e.value for e in read.Scalars("loss/color")], wanted, rtol=1e-6)
    (picture,) = read.Images("preview/colour")
    assert (picture.step, picture.width, picture.height) == (26, 8, 6)


@needs_tensorboard
def test_reconstruct_writes_for_tensorboard(finished):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(finished / "tensorboard"))
    read.Reload()
    assert read.Scalars("train/psnr")[-1].step == 24 and read.Images("preview/normal")
