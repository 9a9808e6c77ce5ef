"""Photographs in the wild: what changes against clean ones is what was asked for, is written down, and nothing else changes."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastsurf import demo_scene
from fastsurf.demo_scene import make_scene
from fastsurf.demo_wild import DOME, Capsule, Light, Wild, dome, draw_figure, lights, passers_by
from fastsurf.formats import load
from fastsurf.scene import load_scene

VIEWS, TEST, SIZE = 6, 2, 64


def made(folder: Path, wild: Wild, seed: int = 0, views: int = VIEWS) -> Path:
    make_scene(folder, views, TEST, SIZE, seed, wild=wild)
    return folder


@pytest.fixture(autouse=True)
def without_truth(monkeypatch: pytest.MonkeyPatch) -> None:
    """The surface is none of these tests' business, and takes seconds."""
    monkeypatch.setattr(demo_scene, "_write_truth", lambda *_: None)


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo_scene, "_write_truth", lambda *_: None)
        return made(tmp_path_factory.mktemp("clean"), Wild())


def pictures(folder: Path, split: str = "train") -> list[np.ndarray]:
    return [np.asarray(Image.open(file)) for file in sorted((folder / "images").glob(f"{split}_*.png"))]


def linear(picture: np.ndarray) -> np.ndarray:
    s = picture[..., :3] / 255
    return np.where(s <= 0.04045, s / 12.92, ((s + 0.055) / 1.055) ** 2.4)


def test_settings_fill_their_range_evenly_and_cancel() -> None:
    wild = Wild(exposure=1.5, white_balance=0.5)
    found = lights(wild, 9, seed=3)
    for name, most in (("exposure", 1.5), ("white_balance", 0.5)):
        np.testing.assert_allclose(sorted(getattr(light, name) for light in found), np.linspace(-most, most, 9), atol=1e-12)
    assert found == lights(wild, 9, seed=3) != lights(wild, 9, seed=4)
    assert lights(wild, 1, 0) == [Light()] and lights(wild, 0, 0) == []
    np.testing.assert_allclose(Light(1.0, 1.0).gains.ravel(), [2 * np.sqrt(2), 2, np.sqrt(2)], rtol=1e-6)


def test_exposure_is_a_factor_on_light(clean: Path, tmp_path: Path) -> None:
    folder = made(tmp_path, Wild(exposure=1.0, white_balance=0.6))
    written = json.loads((folder / "gt" / "photographs.json").read_text())
    for k, (plain, seen) in enumerate(zip(pictures(clean), pictures(folder), strict=True)):
        about = written[f"train_{k:03d}.png"]
        gains = 2 ** (about["exposure"] + about["white_balance"] * np.array([0.5, 0, -0.5]))
        np.testing.assert_array_equal(plain[..., 3], seen[..., 3])
        usable = (plain[..., 3:] == 255) & (np.minimum(plain, seen)[..., :3] > 60) & (np.maximum(plain, seen)[..., :3] < 250)
        ratio = linear(seen)[usable] / (linear(plain) * gains)[usable]
        assert usable.sum() > 500 and np.abs(ratio - 1).max() < 0.06 and np.median(ratio) == pytest.approx(1, abs=0.005)
    for plain, seen in zip(pictures(clean, "test"), pictures(folder, "test"), strict=True):
        np.testing.assert_array_equal(plain, seen)


def test_passers_by_are_where_the_masks_say_and_in_no_two_pictures_alike(clean: Path, tmp_path: Path) -> None:
    folder = made(tmp_path, Wild(occluders=2, occluder_masks=True, sky=True))
    behind = made(tmp_path / "sky", Wild(sky=True))
    written = json.loads((folder / "gt" / "photographs.json").read_text())
    masks = [np.asarray(Image.open(file)) for file in sorted((folder / "ignore").iterdir())]
    assert len(masks) == VIEWS == len({mask.tobytes() for mask in masks})
    for k, (mask, free, seen) in enumerate(zip(masks, pictures(behind), pictures(folder), strict=True)):
        assert set(np.unique(mask)) == {0, 255} and 0.02 < (mask > 0).mean() < 0.6
        assert written[f"train_{k:03d}.png"]["covered"] == pytest.approx((mask > 0).mean(), abs=1e-4)
        np.testing.assert_array_equal(free[mask == 0], seen[mask == 0])
        assert (free != seen).any(2)[mask > 0].mean() > 0.95
    for free, seen in zip(pictures(behind, "test"), pictures(folder, "test"), strict=True):
        np.testing.assert_array_equal(free, seen)
    assert not (behind / "ignore").exists()
    made(folder, Wild(occluders=1, sky=True))
    assert not list((folder / "ignore").iterdir())  # those of the scene that was there before


def test_without_a_sky_alpha_stays_the_solids(clean: Path, tmp_path: Path) -> None:
    folder = made(tmp_path, Wild(occluders=3))
    for plain, seen in zip(pictures(clean), pictures(folder), strict=True):
        np.testing.assert_array_equal(plain[..., 3], seen[..., 3])
        assert (seen[seen[..., 3] == 0, :3] == 255).all()
    assert any((plain != seen).any() for plain, seen in zip(pictures(clean), pictures(folder), strict=True))


def test_a_sky_leaves_no_masks_and_the_solid_as_it_was(clean: Path, tmp_path: Path) -> None:
    folder = made(tmp_path, Wild(occluders=1, occluder_masks=True, sky=True))
    capture = load(folder)
    assert not capture.alpha_masks and all(view.mask is None for view in capture.views)  # ignore/ is no mask of the object
    scene = load_scene(folder)
    assert scene.masks is None and len(scene.train) == VIEWS and len(scene.test) == TEST
    assert np.abs(scene.center - demo_scene.CENTER).max() < 0.2 and 0.8 < scene.radius < 2
    for plain, seen in zip(pictures(clean, "test"), pictures(folder, "test"), strict=True):
        assert seen.shape == (SIZE, SIZE, 3)
        whole = plain[..., 3] == 255
        assert np.abs(plain[whole, :3].astype(int) - seen[whole]).max() <= 1
        assert seen[plain[..., 3] == 0].std() > 10


def test_the_world_behind_stands_still() -> None:
    """What is seen depends on the point of the dome alone, wherever it is seen from; up is sky, down is not."""
    rng = np.random.default_rng(0)
    points = rng.normal(size=(3, 200))
    points *= DOME / np.linalg.norm(points, axis=0)
    eyes = [np.array([[4.0], [0], [1]]), np.array([[-1.0], [3], [2]])]
    first, second = (dome(eye, (points - eye) / np.linalg.norm(points - eye, axis=0)) for eye in eyes)
    np.testing.assert_allclose(first, second, atol=1e-4)
    assert (first >= 0).all() and first.std(1).min() > 0.05
    up, down = first[:, points[2] > 0.5 * DOME], first[:, points[2] < -0.5 * DOME]
    assert (up[2] > up[0] - 1e-3).mean() > 0.9 and (down[1] > down[2]).all()


def test_a_capsule_is_as_large_as_stated_and_lit_from_the_upper_right() -> None:
    light, cover = draw_figure([Capsule((0.5, 0.3), (0.5, 0.7), 0.1, 0.1, (0.5, 0.4, 0.3))], 200)
    assert cover.sum() / 200**2 == pytest.approx(0.2 * 0.4 + np.pi * 0.01, rel=0.01)
    assert light[0, 60, 110] > light[0, 60, 90] and light[0, 50, 100] > light[0, 150, 100]
    np.testing.assert_allclose(light[1] / np.maximum(light[0], 1e-9), np.where(light[0] > 0, 0.8, 0), atol=1e-5)


def test_the_seed_decides_and_options_leave_the_cameras_alone(clean: Path, tmp_path: Path) -> None:
    wild = Wild(exposure=0.5, occluders=2, sky=True)
    a, b = (made(tmp_path / name, wild, seed=5, views=3) for name in ("a", "b"))
    files = sorted(p.relative_to(a) for p in a.rglob("*") if p.is_file())
    assert len(files) == 3 + TEST + 3 and all((a / f).read_bytes() == (b / f).read_bytes() for f in files)
    same, other = (passers_by(2, SIZE, np.random.default_rng(seed))[1] for seed in (0, 1))
    assert (same != other).any()
    cameras = made(tmp_path / "c", Wild(exposure=1, occluders=2, sky=True)) / "transforms_train.json"
    assert cameras.read_bytes() == (clean / "transforms_train.json").read_bytes()


def test_the_command_says_what_it_wants(tmp_path: Path) -> None:
    root = Path(__file__).parents[1]
    words = [sys.executable, str(root / "tools" / "make_scene.py"), str(tmp_path / "out"), "--occluders", "-1"]
    answer = subprocess.run(words, env={"PYTHONPATH": str(root)}, capture_output=True, text=True)
    assert answer.returncode == 2 and "want 0 or more" in answer.stderr and not (tmp_path / "out").exists()
