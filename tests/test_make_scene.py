"""The demo scene is what it claims: one closed solid, photographed where its cameras say, with the truth beside it."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastsurf.cameras import world_to_pixels
from fastsurf.demo_scene import CENTER, RADIUS, camera_ring, make_scene, photograph, seen_by, trace, truth
from fastsurf.demo_solid import distance, normals
from fastsurf.formats import load
from fastsurf.mesh import Mesh, components, is_watertight, sample_surface
from fastsurf.metrics import read_truth, score_mesh
from fastsurf.shade import rasterise

VIEWS, TEST, SIZE = 10, 2, 96


@pytest.fixture(scope="module")
def solid() -> Mesh:
    return truth(256)


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made by the command, as a user would."""
    out = tmp_path_factory.mktemp("demo") / "scene"
    root = Path(__file__).parents[1]
    command = [sys.executable, "-W", "error", str(root / "tools" / "make_scene.py"), str(out)]
    options = {"views": VIEWS, "test": TEST, "size": SIZE}
    subprocess.run([*command, *(f"--{k}={v}" for k, v in options.items())], check=True, env={"PYTHONPATH": str(root)})
    return out


def test_the_solid_is_one_closed_piece_with_five_tunnels(solid: Mesh) -> None:
    assert is_watertight(solid.faces) and components(solid.vertices, solid.faces).max() == 0
    assert np.abs(distance(solid.vertices.T)).max() < 2e-4
    euler = len(solid.vertices) - len(solid.faces) // 2
    assert euler == 2 - 2 * 5  # four bores and the handle
    assert solid.colors is not None and solid.colors.std() > 30
    low, high = solid.vertices.min(0), solid.vertices.max(0)
    np.testing.assert_allclose((low + high) / 2, CENTER, atol=0.01)
    assert (np.abs(solid.vertices - CENTER) < RADIUS).all() and low[2] == pytest.approx(0, abs=1e-3)


def test_distance_never_oversteps(solid: Mesh) -> None:
    """Nine tenths of it, which is what the tracer steps, is nowhere more than the distance to the nearest point of the surface."""
    from scipy.spatial import cKDTree

    p = CENTER + np.random.default_rng(0).uniform(-1.6, 1.6, (10_000, 3))
    stated = distance(p.T)
    true = cKDTree(sample_surface(solid.vertices, solid.faces, 200_000, np.random.default_rng(0))[0]).query(p)[0]
    outside = stated > 0.02
    assert outside.sum() > 5_000
    assert (0.9 * stated[outside] / true[outside]).max() < 1


def test_normals_point_outwards(solid: Mesh) -> None:
    p = solid.vertices.T[:, ::7]
    n = normals(p, 1e-4)
    np.testing.assert_allclose(np.linalg.norm(n, axis=0), 1, atol=1e-9)
    flat = np.abs(distance(p + 0.01 * n) - 0.01) < 2e-3  # edges and creases aside
    assert flat.mean() > 0.95
    np.testing.assert_allclose((solid.normals.T[:, ::7] * n).sum(0)[flat], 1, atol=0.05)


def test_photographs_show_the_mesh(solid: Mesh, scene: Path) -> None:
    """Sphere tracing against the z-buffer, through the files: coverage and pixel rules agree to a fraction of a pixel."""
    for view in load(scene).views:
        image = np.asarray(Image.open(view.image))
        assert image.shape == (SIZE, SIZE, 4)
        alpha = image[..., 3] / 255
        fine = rasterise(solid, type(view.camera)("PINHOLE", 2 * SIZE, 2 * SIZE, tuple(2 * p for p in view.camera.params)), view.c2w)
        covered = (fine.face >= 0).reshape(SIZE, 2, SIZE, 2).mean((1, 3))
        assert np.abs(alpha - covered).sum() < 0.01 * covered.sum()
        y, x = np.mgrid[:SIZE, :SIZE]
        for axis in (x, y):
            assert (alpha * axis).sum() / alpha.sum() == pytest.approx((covered * axis).sum() / covered.sum(), abs=0.12)
        assert not alpha[[0, -1]].any() and not alpha[:, [0, -1]].any()  # the whole solid is in the picture
        assert (image[alpha == 0, :3] == 255).all()
        assert 0.2 < alpha.mean() < 0.6


def test_traced_rays_end_on_the_surface_they_met_first(solid: Mesh, scene: Path) -> None:
    view = load(scene).views[3]
    raster = rasterise(solid, view.camera, view.c2w)
    y, x = np.nonzero(raster.face >= 0)
    d = np.stack([(x + 0.5 - SIZE / 2) / view.camera.focal[0], (y + 0.5 - SIZE / 2) / view.camera.focal[1], np.ones(len(x))])
    scale = np.linalg.norm(d, axis=0)
    d = view.c2w[:, :3] @ (d / scale)
    t = trace(view.c2w[:, 3:], d, np.zeros(len(x)))
    assert np.isfinite(t).mean() > 0.99
    away = np.abs(t / scale - raster.depth[y, x])
    assert np.quantile(away, 0.95) < 5e-3
    p = view.c2w[:, 3:] + t * d
    assert np.abs(distance(p[:, np.isfinite(t)])).max() < 5e-3


def test_edges_are_smooth_and_the_inside_is_whole() -> None:
    from scipy.ndimage import label

    c2w = camera_ring(54, np.random.default_rng(0))[30]
    alpha = photograph(c2w, 490.0, 320)[..., 3]
    assert ((alpha > 0) & (alpha < 255)).sum() > 300
    _, pieces = label(alpha < 255)
    assert pieces <= 3  # background, perhaps the handle's hole and a bore; no pinholes along creases


def test_layout_is_that_of_a_scored_scene(scene: Path) -> None:
    capture = load(scene)
    splits = [view.split for view in capture.views]
    assert (splits.count("train"), splits.count("test")) == (VIEWS, TEST)
    assert capture.alpha_masks
    known = read_truth(scene)
    assert known.points is not None and known.normals is not None and known.mesh is not None and known.region is not None
    assert len(known.points) > 50_000
    assert np.abs(distance(known.points.T)).max() < 2e-4
    np.testing.assert_allclose(np.linalg.norm(known.normals, axis=1), 1, atol=1e-3)
    for view in capture.views:
        pixels = world_to_pixels(view, known.points)
        assert (pixels > 0).all() and (pixels < SIZE).all()
    score = score_mesh(known.mesh, known, [view for view in capture.views if view.split == "train"], samples=50_000)
    assert score["f_score_05"] == 1 and score["chamfer_pct"] < 0.01


def test_seen_means_seen() -> None:
    points = np.array([[0.0, 0.0, 1.645], [0.0, 0.0, 0.0], [0.0, 0.0, 0.36]])  # top of the knob, under the block, under the foot
    directions = np.array([[0, 0, 1.0], [0, 0, -1], [0, 0, 1]])
    above, below = np.array([0.5, 0.0, 5.0]), np.array([0.5, 0.0, -4.0])
    np.testing.assert_array_equal(seen_by(points, directions, [above, below], 1), [True, True, False])
    np.testing.assert_array_equal(seen_by(points, directions, [above, below], 2), [False, False, False])
    np.testing.assert_array_equal(seen_by(points, directions, [above, above + 0.1], 2), [True, False, False])


def test_the_seed_decides_the_cameras(tmp_path: Path) -> None:
    a, b, c = (camera_ring(5, np.random.default_rng(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(a, b)
    assert np.abs(np.array(a) - np.array(c)).max() > 0.01
    height = np.array([c2w[2, 3] - CENTER[2] for c2w in camera_ring(48, np.random.default_rng(0))])
    assert height.min() < -1 and height.max() > 3  # from below, and from above


def test_half_a_scene_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> Mesh:
        raise KeyboardInterrupt

    monkeypatch.setattr("fastsurf.demo_scene.truth", interrupted)
    (tmp_path / "transforms_train.json").write_text(json.dumps({"frames": []}))
    with pytest.raises(KeyboardInterrupt):
        make_scene(tmp_path, views=2, test=1, size=16)
    assert not list(tmp_path.glob("*.json"))
