import json
from dataclasses import replace

import numpy as np
import pytest
from captures import PINHOLE, ball, looking_at, moved

from fastsurf.config import SceneConfig
from fastsurf.doctor import findings, widest_angle
from fastsurf.info import pixel_footprint, suggested_resolution
from fastsurf.info import report as report_on
from fastsurf.scene import load_scene


def report(scene):
    return report_on(scene, findings(scene))


BOX = SceneConfig(center=(0.0, 0.0, 0.0), radius=1.2)


def test_a_pixel_on_the_object_is_distance_over_focal_length(tmp_path):
    scene = load_scene(ball(tmp_path, distance=5.6), BOX)
    assert pixel_footprint(scene) == pytest.approx(5.6 / 112)  # PINHOLE's larger focal length
    facts = report(scene)
    assert facts["pixel_share"] == pytest.approx(5.6 / 112 / 2.4)
    assert suggested_resolution(scene) == facts["finest_resolution"] == 512  # 96 cells would do: the least there is


@pytest.mark.parametrize("masks, views, cells", [(True, 12, 960), (False, 12, 256), (False, 32, 512), (False, 80, 960)])
def test_the_suggested_resolution_grows_with_pixels_and_without_masks_also_with_photographs(tmp_path, masks, views, cells):
    sharp = replace(PINHOLE, params=(12_000.0, 12_000.0, 49.3, 35.1))  # a long lens: 2 / (50 / 12000) pixels along the box
    scene = load_scene(ball(tmp_path, views, (sharp,), masks=masks, distance=50.0), replace(BOX, radius=1.0))
    assert suggested_resolution(scene) == cells


def test_lengths_are_in_world_units(tmp_path):
    capture = ball(tmp_path)
    shift = np.array([100.0, 0.0, -50.0])
    here, there = report(load_scene(capture)), report(load_scene(moved(capture, 30.0, shift)))
    assert there["pixel"] == pytest.approx(30 * here["pixel"])
    assert there["box"]["radius"] == pytest.approx(30 * here["box"]["radius"])
    np.testing.assert_allclose(there["box"]["center"], 30 * np.array(here["box"]["center"]) + shift, atol=1e-6)
    assert there["pixel_share"] == pytest.approx(here["pixel_share"])
    assert there["ring"] == here["ring"]


def test_the_report_is_plain_json_and_counts_right(tmp_path):
    scene = load_scene(ball(tmp_path), SceneConfig(holdout=6, max_side=48))
    facts = json.loads(json.dumps(report(scene), allow_nan=False))
    assert (facts["format"], facts["images"], facts["train"], facts["test"]) == ("ball", 12, 10, 2)
    assert facts["sizes"] == {"48x36": 12} and facts["camera_models"] == {"PINHOLE": 12} and facts["cameras"] == 1
    assert [view["split"] for view in facts["views"]] == ["test" if i % 6 == 0 else "train" for i in range(12)]
    assert 0.1 < facts["masks"]["object_share"] < 0.9
    assert facts["points"] == 0 and "hull" in facts["box"]["source"]
    assert facts["usable"] and {f["severity"] for f in facts["findings"]} <= {"note"} and any("reduced" in note for note in facts["notes"])


def test_the_widest_angle_is_what_the_cameras_span():
    turn = np.radians(np.arange(0, 91, 15))
    quarter = np.stack([3 * np.cos(turn), 3 * np.sin(turn), 0 * turn], -1)
    assert widest_angle(quarter) == pytest.approx(90)
    assert widest_angle(np.concatenate([quarter, -2 * quarter])) == pytest.approx(180)


def without_view(capture, i):
    """The i-th camera turned away."""
    center = capture.views[i].center
    views = [replace(v, c2w=looking_at(center, 3 * center)) if k == i else v for k, v in enumerate(capture.views)]
    return replace(capture, views=tuple(views))


def from_one_side(capture):
    return replace(capture, views=tuple(v for v in capture.views if v.center[2] > 2))


@pytest.mark.parametrize("change, config, words", [
    (lambda c: replace(c, views=c.views[:5]), BOX, "only 5 photographs"),
    (lambda c: without_view(c, 3), BOX, "1 of 20 training views don't see the scene box; the first is 003.png"),
    (lambda c: c, replace(BOX, radius=3.5), "cameras stand inside the scene box"),
    (from_one_side, BOX, "degrees round the scene"),
    (lambda c: c, SceneConfig(), "guess from the cameras alone"),
], ids=["few", "blind", "inside", "one-sided", "guess"])  # fmt: skip
def test_what_may_spoil_the_result_is_warned_of(tmp_path, change, config, words):
    facts = report(load_scene(change(ball(tmp_path, n=20, masks=False)), config))
    assert any(words in finding["found"] for finding in facts["findings"]), facts["findings"]


def test_a_scene_that_most_cameras_miss_is_not_usable(tmp_path):
    capture = ball(tmp_path, masks=False)
    for i in range(7):
        capture = without_view(capture, i)
    assert not report(load_scene(capture, BOX))["usable"]
