from dataclasses import replace

import numpy as np
import pytest
from captures import PINHOLE, sphere_of_cameras

from fastsurf.cameras import Camera, View, rescale, unproject, world_to_pixels
from fastsurf.config import CHOICES
from fastsurf.conventions import AXES, CONVENTIONS, judge, other_poses, reread
from fastsurf.epipolar import Pair, fit, pick_pairs

BENT = Camera("OPENCV", 640, 480, (733.0, 747.0, 329.0, 234.0, 0.08, -0.15, 0.002, -0.001))


LARGE = rescale(PINHOLE, 640, 480)


def ring(n=40, camera=LARGE):
    poses = np.stack(sphere_of_cameras(n, target=(0.3, -0.2, 0.1), distance=4.0))
    return [View(f"{i}", None, None, camera, pose) for i, pose in enumerate(poses)]


def matches(views, noise=0.0):
    """Exact projections of random points, in pairs."""
    rng, poses = np.random.default_rng(0), np.stack([view.c2w for view in views])
    points = rng.uniform(-0.7, 0.7, (30, 3))
    found = []
    for i, j in pick_pairs(poses):
        ends = [unproject(views[k].camera, world_to_pixels(views[k], points) + noise * rng.normal(size=(30, 2))) for k in (i, j)]
        found.append(Pair(i, j, *ends, 1 / 747, 2.0))
    return found


def test_pairs_are_neighbours_and_the_same_however_poses_are_read():
    poses = np.stack([view.c2w for view in ring()])
    pairs = pick_pairs(poses)
    assert 5 <= len(pairs) <= 8 and all(i < j for i, j in pairs)
    angles = [np.degrees(np.arccos(np.clip((np.trace(poses[i, :, :3].T @ poses[j, :, :3]) - 1) / 2, -1, 1))) for i, j in pairs]
    assert max(angles) < 60
    for other in other_poses(poses, "opencv").values():
        assert pick_pairs(other) == pairs


@pytest.mark.parametrize("camera", [LARGE, BENT], ids=lambda c: c.model)
def test_true_poses_fit_and_noise_is_measured_in_pixels(camera):
    views = ring(camera=camera)
    poses = np.stack([view.c2w for view in views])
    exact, noisy = fit(matches(views), poses), fit(matches(views, noise=1.0), poses)
    assert exact.distance < 1e-3 and exact.share == 1 and exact.matches >= 150
    assert 0.3 < noisy.distance < 1.5  # of two ends, each off by 0.67 pixels in the median


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e5])
def test_the_world_s_frame_makes_no_difference(scale):
    views = ring()
    poses = np.stack([view.c2w for view in views])
    moved = np.concatenate([poses[:, :, :3], scale * poses[:, :, 3:] + 7], -1)
    assert fit(matches(views), moved).share == 1


def test_no_matches_say_nothing():
    assert fit([], np.stack([view.c2w for view in ring()])).matches == 0


@pytest.mark.parametrize("truth", CONVENTIONS)
@pytest.mark.parametrize("taken", ["opengl", "opencv-w2c"])
def test_features_tell_each_convention_from_all_others(truth, taken):
    views = ring()
    pairs = matches(views, noise=0.5)
    wrong = reread(np.stack([view.c2w for view in views]), truth, taken)  # what a loader makes of poses written as `truth`
    verdict = judge([replace(v, c2w=pose) for v, pose in zip(views, wrong, strict=True)], taken, pairs)
    assert verdict.best == truth and verdict.fits[truth].share > 0.95
    assert sorted(f.share for f in verdict.fits.values())[-2] < 0.6


@pytest.mark.parametrize("truth", ["opengl", "opencv", "opencv-w2c"])
def test_lines_of_sight_tell_that_something_is_wrong_without_features(truth):
    views = ring()
    wrong = reread(np.stack([view.c2w for view in views]), truth, "opengl")
    verdict = judge([replace(v, c2w=pose) for v, pose in zip(views, wrong, strict=True)], "opengl", None)
    assert (verdict.best == "opengl") == (truth == "opengl") and not verdict.fits
    assert verdict.looking[truth] == 1


def test_reading_back_and_forth_changes_nothing():
    poses = np.stack([view.c2w for view in ring()])
    for a in CONVENTIONS:
        np.testing.assert_allclose(reread(reread(poses, "opencv", a), a, "opencv"), poses, atol=1e-12)


def test_the_configuration_knows_every_convention():
    assert set(CHOICES["scene.convention"]) == {"format", "auto", *CONVENTIONS}
    assert len({*AXES.values()}) == 8
