import numpy as np
import pytest

from fastsurf import cameras
from fastsurf.cameras import ONE_FOCAL, TWO_FOCALS, Camera, View, project, rescale, shift_centers, unproject, world_to_pixels
from fastsurf.errors import SceneError

DISTORTION = {
    "SIMPLE_RADIAL": (0.05,), "RADIAL": (0.05, -0.02), "OPENCV": (0.06, -0.08, -1e-3, 2e-3), "SIMPLE_RADIAL_FISHEYE": (0.02,),
    "FULL_OPENCV": (0.06, -0.08, -1e-3, 2e-3, 0.03, 0.01, 0.02, -0.01), "OPENCV_FISHEYE": (0.02, -0.01, 0.003, -0.001),
    "RADIAL_FISHEYE": (0.02, -0.01), "FOV": (0.3,), "DIVISION": (-0.05,), "SIMPLE_DIVISION": (-0.05,), "EUCM": (0.5, 1.1),
    "THIN_PRISM_FISHEYE": (0.02, -0.01, 1e-3, -1e-3, 0.002, 0, 1e-3, 1e-3),
    "RAD_TAN_THIN_PRISM_FISHEYE": (0.02, -0.01, 0.002, 0, 0, 0, 1e-3, -1e-3, 1e-3, 0, 1e-3, 0),
}  # fmt: skip
WITHOUT_PYCOLMAP = ["SIMPLE_PINHOLE", "PINHOLE", "SIMPLE_RADIAL", "RADIAL", "OPENCV", "FULL_OPENCV"]


def camera(model, width=640, height=480):
    focal = (500.0,) if model in ONE_FOCAL else (500.0, 510.0)
    return Camera(model, width, height, (*focal, 310.5, 250.25, *DISTORTION.get(model, ())))


def pixels(n=200, seed=0):
    return np.random.default_rng(seed).uniform(0, 1, (n, 2)) * [640, 480]


@pytest.fixture
def no_pycolmap(monkeypatch):
    monkeypatch.setattr(cameras, "load_pycolmap", lambda: None)


@pytest.mark.parametrize("model", [*TWO_FOCALS, *ONE_FOCAL])
def test_a_ray_meets_its_pixel(model):
    uv = unproject(camera(model), pixels())
    depth = np.random.default_rng(1).uniform(0.5, 9, (len(uv), 1))
    assert np.isfinite(uv).all()
    np.testing.assert_allclose(project(camera(model), np.c_[uv, np.ones(len(uv))] * depth), pixels(), atol=1e-4)


@pytest.mark.parametrize("model", WITHOUT_PYCOLMAP)
def test_without_pycolmap_rays_are_the_same(model, monkeypatch):
    with_it = unproject(camera(model), pixels())
    monkeypatch.setattr(cameras, "load_pycolmap", lambda: None)
    np.testing.assert_allclose(unproject(camera(model), pixels()), with_it, atol=1e-8)
    points = np.c_[with_it, np.ones(len(with_it))] * 3
    np.testing.assert_allclose(project(camera(model), points), pixels(), atol=1e-6)


def test_without_pycolmap_other_models_say_what_is_needed(no_pycolmap):
    with pytest.raises(SceneError, match="OPENCV_FISHEYE needs pycolmap"):
        unproject(camera("OPENCV_FISHEYE"), pixels())


@pytest.mark.parametrize("model", ["PINHOLE", "OPENCV", "OPENCV_FISHEYE"])
def test_points_behind_a_camera_have_no_pixel(model):
    uv = project(camera(model), np.array([[0.1, 0.1, 1.0], [0.1, 0.1, -1.0], [0.1, 0.1, 0.0]]))
    assert np.isfinite(uv).all(axis=1).tolist() == [True, False, False]


@pytest.mark.parametrize("installed", [True, False])
def test_a_pixel_beyond_the_fold_of_a_distortion_has_no_ray(installed, monkeypatch):
    if not installed:
        monkeypatch.setattr(cameras, "load_pycolmap", lambda: None)
    folding = Camera("OPENCV", 400, 300, (200.0, 200.0, 200.0, 150.0, -0.9, 0.0, 0.0, 0.0))  # r (1 - 0.9 r^2) never exceeds 0.41
    uv = unproject(folding, np.array([[200.0, 150.0], [0.0, 0.0], [230.0, 160.0]]))
    assert np.isfinite(uv).all(axis=1).tolist() == [True, False, True]


@pytest.mark.parametrize("model", [*TWO_FOCALS, *ONE_FOCAL])
@pytest.mark.parametrize("size", [(320, 240), (1280, 960), (321, 239)])
def test_rescaling_keeps_rays(model, size):
    small = rescale(camera(model), *size)
    assert (small.width, small.height) == size
    np.testing.assert_allclose(unproject(small, pixels() * np.array(size) / [640, 480]), unproject(camera(model), pixels()), atol=1e-7)


def test_rescaling_maps_pixel_centres_as_averaging_pixels_does():
    half = rescale(camera("PINHOLE"), 320, 240)
    block = np.array([[10.5, 20.5], [11.5, 20.5], [10.5, 21.5], [11.5, 21.5]])  # these four become pixel (5, 10)
    np.testing.assert_allclose(unproject(half, np.array([[5.5, 10.5]]))[0], unproject(camera("PINHOLE"), block).mean(0), atol=1e-12)


def test_shifting_centres_moves_pixels():
    points = np.random.default_rng(0).normal((0, 0, 5), size=(20, 3))
    for model in ("SIMPLE_RADIAL", "OPENCV"):
        np.testing.assert_allclose(project(shift_centers(camera(model)), points), project(camera(model), points) + 0.5, atol=1e-9)


def test_full_opencv_is_opencvs_formula():
    k1, k2, p1, p2, k3 = 0.1, -0.05, 1e-3, -2e-3, 0.02
    model = Camera("FULL_OPENCV", 640, 480, (500.0, 510.0, 320.0, 240.0, k1, k2, p1, p2, k3, 0.0, 0.0, 0.0))
    x, y = 0.3, -0.2
    r2 = x * x + y * y
    radial = 1 + k1 * r2 + k2 * r2**2 + k3 * r2**3
    u = 500 * (x * radial + 2 * p1 * x * y + p2 * (r2 + 2 * x * x)) + 320
    v = 510 * (y * radial + p1 * (r2 + 2 * y * y) + 2 * p2 * x * y) + 240
    np.testing.assert_allclose(project(model, np.array([[x, y, 1.0]]))[0], [u, v], atol=1e-9)


def test_world_points_project_through_the_pose():
    turned = np.array([[0.0, 0, 1, -4], [1, 0, 0, 0], [0, 1, 0, 0]])  # at x = -4, looking along +x; image right is +y, down is +z
    view = View("a.png", None, None, Camera("PINHOLE", 100, 100, (50.0, 50.0, 50.0, 50.0)), turned)
    np.testing.assert_allclose(world_to_pixels(view, np.array([[0.0, 0, 0], [0, 4, 0], [0, 0, 2]])), [[50, 50], [100, 50], [50, 75]])


@pytest.mark.parametrize(
    "model, params, message",
    [
        ("EQUIRECTANGULAR", (4.0, 2.0), "not supported; want one of PINHOLE"),
        ("PINHOLE", (1.0, 2.0, 3.0), "has 4 parameters, found 3"),
        ("PINHOLE", (1.0, float("nan"), 3.0, 4.0), "finite"),
        ("PINHOLE", (1.0, -5.0, 3.0, 4.0), "positive focal"),
    ],
)
def test_impossible_cameras_are_refused(model, params, message):
    with pytest.raises(SceneError, match=message):
        Camera(model, 10, 10, params)
