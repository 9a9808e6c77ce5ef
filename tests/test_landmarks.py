"""Sparse points: which count, what training asks of them, and how they are made where a scene brings none."""

import math
from dataclasses import replace

import captures
import corner
import numpy as np
import pytest
import torch
from test_backends import native_backend

from fastsurf import reconstruction
from fastsurf.bounds import COMMON_VIEW, points_box
from fastsurf.cameras import Capture, project
from fastsurf.checkpoint import read_begun, read_header
from fastsurf.child import ChildError
from fastsurf.config import SceneConfig, load_config
from fastsurf.errors import CheckpointError
from fastsurf.hooks import Note, PhaseDone
from fastsurf.landmarks import A_STEP, BEFORE, FEWEST, INSIDE, MARGIN, Landmarks, landmarks_of, neighbours, plan, triangulate
from fastsurf.losses import points_loss
from fastsurf.model import fade
from fastsurf.scene import load_scene

SIZE = (1000, True)
SMALL = [
    "train.steps=12", "train.rays=64", "field.levels=4", "field.log2_entries=10", "field.width=16", "color.width=16", "grid.resolution=16",
    "grid.steps=32", "mesh.resolution=24", "mesh.min_component=0", "scene.radius=0.9", "scene.center=[0.6,0.6,0.6]",
]  # fmt: skip


@pytest.fixture(scope="module")
def walk(tmp_path_factory):
    """Eight photographs of a papered corner, as a capture that brings no points."""
    folder = tmp_path_factory.mktemp("walk")
    return Capture(folder, "corner", tuple(corner.walk(folder)))


@pytest.fixture(scope="module")
def made(walk, tmp_path_factory):
    """Points (n, 3) and sightings made of all photographs but the first."""
    pytest.importorskip("pycolmap")  # no wheel for some systems
    scene, told = load_scene(walk, SceneConfig(center=(0.6, 0.6, 0.6), radius=0.9)), []
    found = triangulate(walk, scene.images, range(1, 8), scene.center, SIZE, tmp_path_factory.mktemp("work") / "w", seed=0, threads=1,
                        on_progress=lambda done, what: told.append((done, what)))  # fmt: skip
    assert {what.split()[0] for _, what in told} == {"features", "matching"} and all(0 <= done <= 1 for done, _ in told)
    return found


def test_known_points_are_surface_at_landmarks_and_empty_before_them():
    origins = torch.nn.functional.normalize(torch.randn(500, 3, generator=torch.Generator().manual_seed(0)), dim=1) * 3
    points = origins / 3 * torch.linspace(-0.5, 0.9, 500)[:, None]
    known = Landmarks(points, origins).draw(torch.Generator().manual_seed(1))
    assert known.points.shape == (A_STEP * (1 + BEFORE), 3) and known.occupancy.unique().tolist() == [0.0, 0.5]
    surface, free = known.points[known.occupancy == 0.5], known.points[known.occupancy == 0.0].view(A_STEP, BEFORE, 3)
    drawn = (surface[:, None] == points).all(-1)  # which of them each is
    assert drawn.any(1).all() and drawn.any(0).sum() > A_STEP / 2
    start = origins[drawn.int().argmax(1)][:, None]
    way, whole = (free - start).norm(dim=-1), (surface[:, None] - start).norm(dim=-1)
    torch.testing.assert_close(start + (surface[:, None] - start) * (way / whole)[..., None], free, atol=1e-5, rtol=0)
    assert (way <= whole - MARGIN + 1e-5).all() and free.abs().max() <= 1 + 1e-5


def test_a_landmark_at_the_edge_of_the_box_leaves_no_place_before_it():
    """Its camera inside the margin, even: nothing may come out that is not finite, or beyond the landmark."""
    point, origin = torch.tensor([[0.0, 0.0, 0.97]]), torch.tensor([[0.0, 0.0, 0.98]])
    known = Landmarks(point, origin).draw(torch.Generator().manual_seed(1))
    assert known.points.isfinite().all() and known.points[:, 2].min() >= 0.97 - 1e-6


def test_landmarks_are_seen_by_training_views_inside_the_box(tmp_path):
    capture = captures.ball(tmp_path, 4, masks=False)
    points = np.random.default_rng(0).uniform(-1, 1, (2 * FEWEST, 3))
    points[0] = 3.0
    sightings = np.array([(view, point) for point in range(len(points)) for view in (0, 1, 3)])
    found = landmarks_of(capture, [1, 2, 3], points, sightings, lambda x: x)
    kept = np.abs(points).max(1) < 0.98
    assert found is not None and len(found.points) == 2 * kept.sum() and found.count == kept.sum() < len(points)
    centers = torch.tensor(np.stack([capture.views[i].center for i in (1, 3)]), dtype=torch.float32)
    assert torch.equal(found.origins.unique(dim=0), centers.unique(dim=0))
    assert landmarks_of(capture, [1, 2, 3], points, sightings[: 3 * FEWEST // 2], lambda x: x) is None, "too few"
    assert landmarks_of(capture, [2], points, sightings, lambda x: x) is None, "seen by others"


def test_masks_say_more(tmp_path):
    points = np.random.default_rng(0).uniform(-1, 1, (2 * FEWEST, 3))
    sightings = np.array([(view, point) for point in range(len(points)) for view in range(4)])
    capture = replace(captures.ball(tmp_path, 8), points=points, sightings=sightings)
    assert load_scene(capture).landmarks is None
    without = load_scene(replace(capture, alpha_masks=False))
    assert without.landmarks is not None and without.landmarks.count > FEWEST


def test_the_loss_is_cross_entropy_and_still_pulls_far_away():
    logit = torch.tensor([-30.0, -1.0, 0.0, 2.0, 30.0], requires_grad=True)
    occupancy = torch.tensor([0.5, 0.5, 0.5, 0.0, 0.0])
    points_loss(logit, occupancy).backward()
    torch.testing.assert_close(logit.grad * 5, torch.sigmoid(logit.detach()) - occupancy)
    o = torch.sigmoid(logit.detach().double())[1:4]
    wanted = -(occupancy[1:4] * o.log() + (1 - occupancy[1:4]) * (1 - o).log()).mean()
    torch.testing.assert_close(points_loss(logit.detach()[1:4], occupancy[1:4]).double(), wanted)


def test_the_loss_fades_in_the_middle_of_a_run():
    assert [fade(t, 0.6) for t in (0.0, 0.3, 0.45, 0.6, 1.0)] == pytest.approx([1.0, 1.0, 0.5, 0.0, 0.0])
    assert fade(1.0, 99.0) == 1.0


def test_photographs_are_compared_with_those_from_nearly_the_same_side():
    turn = np.arange(40) * 2 * np.pi / 40
    centers = np.stack([np.cos(turn), np.sin(turn), 0 * turn], -1) * 3 + 5
    pairs = neighbours(centers, (5 - centers) / 3, np.full(3, 5.0))
    steps = {min((j - i) % 40, (i - j) % 40) for i, j in pairs}
    assert steps == {1, 2, 3, 4} and len(pairs) == 160 and pairs == sorted(pairs) and all(i < j for i, j in pairs)
    assert neighbours(centers[:2], centers[:2], np.zeros(3)) == [(0, 1)]


def test_photographs_are_reduced_where_time_is_short():
    shapes = [(1000, 1500)] * 50
    plans = [plan(shapes, seconds) for seconds in (math.inf, 80, 55, 1)]
    assert plans == [(1, (1000, True)), (1, (1000, False)), (1, (700, False)), None]
    assert plan(shapes * 6, 200) == (2, (700, False)) and plan(shapes * 6, 60) == (5, (700, False)) and plan(shapes * 6, 20) is None


def test_points_lie_on_the_walls_and_where_photographs_saw_them(walk, made):
    points, sightings = made
    assert len(points) > 300 and np.median(np.abs(points).min(1)) < 0.005 and np.quantile(np.abs(points).min(1), 0.9) < 0.02
    assert sorted(set(sightings[:, 0])) == list(range(1, 8)) and (np.bincount(sightings[:, 1]) >= 3).all()
    for i in range(1, 8):
        view, seen = walk.views[i], points[sightings[sightings[:, 0] == i, 1]]
        pixels = project(view.camera, (seen - view.center) @ view.c2w[:, :3])
        assert ((pixels > 0) & (pixels < (view.camera.width, view.camera.height))).all()


def test_the_same_bits_again(walk, made, tmp_path):
    scene = load_scene(walk, SceneConfig(center=(0.6, 0.6, 0.6), radius=0.9))
    again = triangulate(walk, scene.images, range(1, 8), scene.center, SIZE, tmp_path / "w", seed=0, threads=2, on_progress=lambda *_: None)
    assert all(np.array_equal(a, b) for a, b in zip(made, again, strict=True)) and not (tmp_path / "w").exists()


def run(walk, folder, *sets, **how):
    events = []
    reconstruction.reconstruct(load_scene(walk, load_config(None, [*SMALL, *sets]).scene), load_config(None, [*SMALL, *sets]), run=folder,
                               hooks=[events.append], **how)  # fmt: skip
    return [e.text for e in events if isinstance(e, Note)], [e for e in events if isinstance(e, PhaseDone) and e.name == "read"]


def test_a_run_makes_points_keeps_them_and_goes_on_with_them(walk, tmp_path, monkeypatch):
    pytest.importorskip("pycolmap")
    monkeypatch.setitem(reconstruction.STEP_TAKES, "cpu", 1.0)
    notes, (read,) = run(walk, tmp_path / "run")
    assert not any("sparse points" in note for note in notes) and " points" in read.detail
    assert (tmp_path / "run/points.npz").is_file() and not list((tmp_path / "run").glob(".points*"))
    monkeypatch.setattr(reconstruction, "triangulate", None)  # not made again
    _, (again,) = run(walk, tmp_path / "run", go_on=True)
    assert again.detail == read.detail
    monkeypatch.setattr(reconstruction, "triangulate", lambda *_, **__: (_ for _ in ()).throw(ChildError("COLMAP ended with SIGSEGV")))
    notes, (read,) = run(walk, tmp_path / "run", force=True)
    assert "went on without sparse points: COLMAP ended with SIGSEGV" in notes and "points" not in read.detail
    assert not (tmp_path / "run/points.npz").exists(), "those of a run before are not of this one"


def test_points_of_a_run_that_was_replaced_are_not_taken_for_its_successors(walk, made, tmp_path):
    np.savez(tmp_path / "points.npz", points=made[0], sightings=made[1])
    assert look(walk, tmp_path, "scene.points=ignore")[0].landmarks is None
    assert not (tmp_path / "points.npz").exists()


@pytest.mark.parametrize("arrays", [{}, {"points": np.zeros((4, 3))}, {"points": np.zeros((4, 3)), "sightings": np.full((1, 2), 9)},
                                    {"points": np.zeros(4), "sightings": np.zeros((1, 2), int)}])  # fmt: skip
def test_points_that_are_none_are_damaged(walk, tmp_path, arrays):
    np.savez(tmp_path / "points.npz", **arrays)
    config = load_config(None, SMALL)
    with pytest.raises(CheckpointError, match=r"points\.npz: damaged"):
        reconstruction.find_landmarks(load_scene(walk, config.scene), config, native_backend("portable"), tmp_path, True, lambda _: None)


def look(walk, folder, *sets):
    """The scene after `find_landmarks`, and what that said."""
    config, events = load_config(None, [*SMALL, *sets]), []
    scene = load_scene(walk, config.scene)
    return reconstruction.find_landmarks(scene, config, native_backend("portable"), folder, False, events.append), events


@pytest.mark.parametrize("setting", ["scene.points=ignore", "loss.points=0", "method=nerf"])
def test_points_are_made_only_where_they_are_used(walk, tmp_path, setting, monkeypatch):
    monkeypatch.setitem(reconstruction.STEP_TAKES, "cpu", 1.0)
    monkeypatch.setattr(reconstruction, "triangulate", None)
    scene, events = look(walk, tmp_path, setting)
    assert scene.landmarks is None and not events


def test_a_guessed_box_is_chosen_again_from_the_points(walk, made, tmp_path, monkeypatch):
    guess = load_scene(walk)
    assert guess.box_source == COMMON_VIEW
    located = guess.with_points(*made)
    box = points_box([walk.views[i] for i in guess.train], made[0])
    assert np.array_equal(located.center, box.center) and located.radius == box.radius != guess.radius
    assert guess.landmarks is None and located.landmarks.count > FEWEST and located.landmarks.points.abs().max() < INSIDE
    assert guess.with_points(made[0][:50], made[1][made[1][:, 1] < 50]) is guess, "too few"
    chosen = load_scene(walk, SceneConfig(center=(0.6, 0.6, 0.6), radius=0.9))
    assert chosen.with_points(*made).radius == 0.9, "the user's own stays"

    monkeypatch.setitem(reconstruction.STEP_TAKES, "cpu", 1.0)
    anywhere = ["scene.radius=none", "scene.center=none"]
    notes, _ = run(walk, tmp_path / "run", *anywhere)
    assert any(note.startswith("the scene box, a guess from the cameras, was chosen again from") for note in notes)
    begun, header = read_begun(tmp_path / "run/begun.json"), read_header(tmp_path / "run/checkpoint.safetensors")
    assert begun.radius == header.radius != guess.radius
    run(walk, tmp_path / "run", *anywhere, go_on=True)  # in the same box, else it is refused


def test_too_short_a_run_says_so(walk, tmp_path, monkeypatch):
    pytest.importorskip("pycolmap")
    monkeypatch.setattr(reconstruction, "triangulate", None)
    scene, (note,) = look(walk, tmp_path, "train.steps=1")
    assert scene.landmarks is None and "no time for sparse points" in note.text and "--minutes" in note.text
