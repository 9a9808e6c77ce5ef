from dataclasses import replace

import numpy as np
import pytest
import torch
from captures import ball, ball_mask
from PIL import Image

from fastsurf.config import SceneConfig
from fastsurf.scene import load_scene
from fastsurf.surroundings import find_masks

H, W = 90, 120


def in_the_dark(seed=0):
    """A bright ring round a black hole, with a dark spot on it, before black cloth with one fold that catches light; and the ring."""
    noise = np.random.default_rng(seed).integers(0, 6, (H, W, 3))
    y, x = np.mgrid[:H, :W]
    r = np.hypot(x - 60, y - 45)
    ring = (r < 30) & (r > 12)
    picture = noise + 40 * (x < 9)[..., None]
    picture[ring] = 180
    picture[(np.abs(x - 60) < 2) & (np.abs(y - 24) < 2)] = 0  # a dark spot, smaller than any hole
    return torch.from_numpy(picture.astype(np.uint8)), ring


def test_what_is_bright_before_black_is_the_object_and_black_that_it_encloses_is_not():
    pictures, rings = zip(*(in_the_dark(seed) for seed in range(3)), strict=True)
    masks = find_masks(pictures)
    assert masks is not None
    for mask, ring in zip(masks, rings, strict=True):
        assert mask.shape == ring.shape and set(np.unique(mask)) == {0, 255}
        wrong = (mask > 127) != ring
        assert wrong.sum() < 0.01 * ring.sum()  # corners that the median filter cuts
        assert mask[24, 60] == 255 and mask[45, 60] == 0 and not mask[:, :9].any()


def test_shadows_on_the_object_stay_its_own_and_dust_is_dropped():
    picture, ring = in_the_dark()
    shadow = (slice(40, 50), slice(75, 85))
    picture[shadow] = 30  # darker than the fold, brighter than black
    picture[80:84, 100:102] = 200
    (mask,) = find_masks([picture])
    assert (mask[shadow] == 255).all() and ring[shadow].all() and not mask[80:84, 100:102].any()


@pytest.mark.parametrize("spoil", ["grey", "an object that leaves the picture", "nothing there"])
def test_one_picture_with_other_surroundings_is_enough_to_find_none(spoil):
    good, other = in_the_dark()[0], in_the_dark(1)[0]
    assert find_masks([good, other]) is not None
    if spoil == "grey":
        other = other.clamp(min=20)
    elif spoil == "nothing there":
        other = other.clamp(max=5)
    else:
        other[30:, 40:80] = 180
    assert find_masks([good, other]) is None


def test_a_scene_in_the_dark_learns_from_these_masks(tmp_path):
    capture = ball(tmp_path, masks=False)
    for view in capture.views:
        shown = ball_mask(view, (0.0, 0.0, 0.0), 1.0)
        Image.fromarray(np.where(shown[..., None], 150, 3 * np.ones(3)).astype(np.uint8)).save(view.image)
    scene = load_scene(capture)
    assert scene.masks is not None and any("black surroundings" in note for note in scene.notes)
    assert scene.box_source.startswith("visual hull") and scene.radius < 1.5
    for i, view in enumerate(capture.views):
        shown = ball_mask(view, (0.0, 0.0, 0.0), 1.0)
        assert ((scene.masks[i].numpy() > 127) ^ shown).mean() < 2e-3
    asked_not_to = load_scene(replace(capture, box=(np.zeros(3), 1.0)), SceneConfig(masks="ignore"))
    assert asked_not_to.masks is None and not any("black surroundings" in note for note in asked_not_to.notes)
