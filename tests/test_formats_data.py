"""Every real and rendered capture of the development data: loads, and known points fall on their pixels within half of one."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from fastsurf.cameras import load_pycolmap, project, shift_centers, unproject, world_to_pixels
from fastsurf.formats import load, sniff

HALF_PIXEL = 0.5
SUBPIXELS = 8  # along the side of a pixel, for silhouettes of meshes

# folder: format taken, views, held out, (width, height) of the first, masks, sparse points, stated box
EXPECTED = {
    "bob": ("transforms", 72, 8, (400, 400), "alpha", False, False),
    "colmap_chessman": ("colmap", 23, 0, (1000, 658), None, True, False),
    "dtu_scan65": ("idr", 49, 0, (800, 600), "files", False, True),
    "middlebury_templesparsering": ("middlebury", 16, 0, (640, 480), None, False, True),
    "nefertiti": ("transforms", 72, 8, (400, 400), "alpha", False, False),
    "nerd_moldgoldcape": ("llff", 119, 0, (800, 800), "files", False, False),
    "nerf_synthetic_chair_400": ("transforms", 120, 20, (400, 400), "alpha", False, False),
    "ngp_fox": ("transforms", 50, 0, (1080, 1920), None, False, False),
    "strecha_fountain_p11": ("strecha", 11, 0, (768, 512), None, False, False),
    "table": ("transforms", 72, 8, (400, 400), None, True, False),
}


def test_no_folder_is_forgotten(shared_data):
    assert sorted(p.name for p in shared_data.iterdir() if p.is_dir()) == sorted(EXPECTED)


@pytest.mark.parametrize("name", EXPECTED)
def test_every_folder_loads(shared_data, name):
    format, views, held_out, size, masks, points, box = EXPECTED[name]
    capture = load(shared_data / name)
    assert (capture.format, len(capture.views)) == (format, views)
    assert sum(view.split == "test" for view in capture.views) == held_out
    assert (capture.views[0].camera.width, capture.views[0].camera.height) == size
    found = "alpha" if capture.alpha_masks else "files" if all(view.mask for view in capture.views) else None
    assert found == masks
    assert (capture.points is not None, capture.box is not None) == (points, box)
    for view in capture.views:
        with Image.open(view.image) as image:
            assert image.size == (view.camera.width, view.camera.height)
        np.testing.assert_allclose(view.c2w[:, :3] @ view.c2w[:, :3].T, np.eye(3), atol=1e-9)


# rendered scenes: silhouettes of the true mesh against masks


def coverage(view, vertices, faces):
    """Share of each pixel that the projected mesh covers, (h, w)."""
    w, h = view.camera.width, view.camera.height
    picture = Image.new("L", (w * SUBPIXELS, h * SUBPIXELS))
    draw = ImageDraw.Draw(picture)
    for triangle in (world_to_pixels(view, vertices) * SUBPIXELS)[faces].reshape(-1, 6):
        draw.polygon(triangle.tolist(), fill=1)
    return np.asarray(picture, np.float64).reshape(h, SUBPIXELS, w, SUBPIXELS).mean((1, 3))


def shift_between(silhouette, mask):
    """How far (x, y) in pixels the mask lies from the silhouette: least squares over the outline, with growth as a third unknown."""
    gy, gx = np.gradient(silhouette)
    outline = np.abs(gx) + np.abs(gy) > 0
    system = np.stack([gx, gy, np.hypot(gx, gy)], axis=-1)[outline]
    return -np.linalg.lstsq(system, (mask - silhouette)[outline], rcond=None)[0][:2]


def mask_of(view):
    image = Image.open(view.mask).convert("L") if view.mask else Image.open(view.image).getchannel("A")
    return np.asarray(image, np.float64) / 255


@pytest.mark.parametrize("name, format", [("nefertiti", "transforms"), ("nefertiti", "idr"), ("bob", "transforms")])
def test_silhouettes_of_the_true_mesh_meet_the_masks(shared_data, name, format):
    import trimesh

    mesh = trimesh.load_mesh(shared_data / name / "gt" / "mesh.ply", process=False)
    views = load(shared_data / name, format).views
    for view in (views[0], views[len(views) // 2], views[-1]):
        silhouette, mask = coverage(view, mesh.vertices, mesh.faces), mask_of(view)
        assert np.minimum(silhouette, mask).sum() / np.maximum(silhouette, mask).sum() > 0.99
        np.testing.assert_allclose(shift_between(silhouette, mask), 0, atol=0.1)
    off = replace(views[0], camera=shift_centers(views[0].camera))  # the other rule for pixel centres would show
    np.testing.assert_allclose(shift_between(coverage(off, mesh.vertices, mesh.faces), mask_of(views[0])), -0.5, atol=0.1)


@pytest.mark.parametrize("name", ["nefertiti", "table"])
def test_two_formats_of_one_scene_agree(shared_data, name):
    formats = sniff(shared_data / name)
    assert len(formats) == 2
    points = np.load(shared_data / name / "gt" / "points.npz")["points"][::1000]
    first, second = (load(shared_data / name, format).views[:64] for format in formats)
    for one, other in zip(first, second, strict=True):
        np.testing.assert_allclose(world_to_pixels(one, points), world_to_pixels(other, points), atol=2e-3)


# COLMAP's own observations


def test_observations_of_the_true_points_of_table(shared_data):
    """Through the cameras of transforms.json, which know nothing of the COLMAP model."""
    model = shared_data / "table" / "sparse" / "0"
    points = {int(row.split()[0]): [float(x) for x in row.split()[1:4]]
              for row in (model / "points3D.txt").read_text().splitlines() if not row.startswith("#")}  # fmt: skip
    rows = [row for row in (model / "images.txt").read_text().splitlines() if not row.startswith("#")]
    views = {Path(view.name).name: view for view in load(shared_data / "table", "transforms").views}
    errors = []
    for head, body in zip(rows[::2], rows[1::2], strict=True):
        seen = np.array(body.split(), np.float64).reshape(-1, 3)
        seen = seen[seen[:, 2] >= 0]
        world = np.array([points[int(i)] for i in seen[:, 2]])
        errors.append(np.linalg.norm(world_to_pixels(views[head.split()[9]], world) - seen[:, :2], axis=1))
    assert len(np.concatenate(errors)) > 10_000
    assert np.concatenate(errors).max() < 0.01


def test_observations_of_the_chessman_model(shared_data):
    pycolmap = load_pycolmap() or pytest.skip("no pycolmap")
    model = pycolmap.Reconstruction(str(shared_data / "colmap_chessman" / "sparse"))
    views = {view.name: view for view in load(shared_data / "colmap_chessman").views}
    errors = []
    for image in model.images.values():
        seen = [p for p in image.points2D if p.has_point3D()]
        world = np.array([model.points3D[p.point3D_id].xyz for p in seen])
        errors.append(np.linalg.norm(world_to_pixels(views[image.name], world) - [p.xy for p in seen], axis=1))
    assert np.mean(np.concatenate(errors)) == pytest.approx(0.296, abs=0.001)  # as published with the files


def test_the_temple_fills_the_box_that_middlebury_states(shared_data):
    """Its bright pixels lie inside the projected corners and reach close to them."""
    folder = shared_data / "middlebury_templesparsering"
    corners = np.array(re.findall(r"^\((\S+) (\S+) (\S+)\)", (folder / "README.txt").read_text(), re.MULTILINE), np.float64)
    corners = np.array(np.meshgrid(*corners.T)).reshape(3, -1).T
    for view in load(folder).views:
        uv = world_to_pixels(view, corners)
        picture = np.asarray(Image.open(view.image).convert("L")) > 60
        bright = np.argwhere(picture)[:, ::-1] + 0.5
        low, high = np.quantile(bright, [0.002, 0.998], axis=0)
        assert (low > uv.min(0) - 1).all() and (high < uv.max(0) + 1).all()
        assert ((high - low) > 0.65 * np.ptp(uv, axis=0)).all()


# originals for the full size beside reduced photographs


def linked(shared_data, name, folder, leave_out):
    """A copy of a capture made of links, without some of its files."""
    for entry in (shared_data / name).iterdir():
        if entry.name not in leave_out:
            (folder / entry.name).symlink_to(entry)
    return folder


@pytest.mark.parametrize(
    "name, adapted, sizes",
    [
        ("dtu_scan65", "cameras_sphere.npz", ("1600x1200", "800x600")),
        ("strecha_fountain_p11", "gt_dense_cameras", ("3072x2048", "768x512")),
        ("nerd_moldgoldcape", "poses_bounds.npy", ("3648x3648", "800x800")),
    ],
)
def test_cameras_of_full_size_photographs_equal_the_adapted_ones(shared_data, tmp_path, name, adapted, sizes):
    reference = load(shared_data / name)
    original = load(linked(shared_data, name, tmp_path, (adapted,)))
    n = len(reference.views)
    assert f"intrinsics were for {sizes[0]}, rescaled to {sizes[1]} ({n} of {n} photographs)" in original.notes
    for one, other in zip(reference.views, original.views, strict=True):
        points = one.center + one.c2w[:, 2] * 5 + np.random.default_rng(0).uniform(-1, 1, (20, 3))
        np.testing.assert_allclose(world_to_pixels(one, points), world_to_pixels(other, points), atol=0.02)


# real photographs: matched features meet their epipolar lines


def features(view, extractor):
    gray = np.ascontiguousarray(Image.open(view.image).convert("L"))
    keypoints, descriptors = extractor.extract_from_uint8_array(gray)
    descriptors = np.asarray(descriptors.data, np.float32)
    return np.array([[p.x, p.y] for p in keypoints]), descriptors / np.linalg.norm(descriptors, axis=1, keepdims=True)


def matches(one, other):
    """Pixels (n, 2) and (n, 2) of mutual nearest features that are clearly nearer than the second."""
    similarity = one[1] @ other[1].T
    nearest = np.argsort(-similarity, axis=1)[:, :2]
    rows = np.arange(len(nearest))
    first, second = (np.sqrt(np.maximum(2 - 2 * similarity[rows, nearest[:, k]], 0)) for k in (0, 1))
    keep = (first < 0.7 * second) & (similarity.argmax(0)[nearest[:, 0]] == rows)
    return one[0][keep], other[0][nearest[keep, 0]]


def epipolar_distance(one, other, xy_one, xy_other):
    """Pixels between points and the lines on which the other camera sees them, (n,)."""
    rotation = other.c2w[:, :3].T @ one.c2w[:, :3]
    x, y, z = other.c2w[:, :3].T @ (one.center - other.center)
    essential = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]]) @ rotation
    a, b = (np.c_[unproject(v.camera, xy), np.ones(len(xy))] for v, xy in ((one, xy_one), (other, xy_other)))
    line_b, line_a = a @ essential.T, b @ essential
    residual = np.abs((b * line_b).sum(1))
    return residual / np.hypot(np.linalg.norm(line_a[:, :2], axis=1), np.linalg.norm(line_b[:, :2], axis=1)) * np.mean(one.camera.focal)


@pytest.mark.parametrize("name", [name for name in EXPECTED if name != "bob"])  # bob shines too much for features
def test_features_meet_their_epipolar_lines(shared_data, name):
    pycolmap = load_pycolmap() or pytest.skip("no pycolmap")
    options = pycolmap.FeatureExtractionOptions()
    options.num_threads = 1
    options.sift.max_num_features = 1500
    options.sift.first_octave = 0
    extractor = pycolmap.FeatureExtractor.create(options, pycolmap.Device.cpu)
    views = load(shared_data / name).views
    distances = []
    for i in (0, len(views) // 3, 2 * len(views) // 3):
        apart = [np.linalg.norm(view.center - views[i].center) if j != i else np.inf for j, view in enumerate(views)]
        pair = views[i], views[int(np.argmin(apart))]
        xy = matches(*(features(view, extractor) for view in pair))
        distances.append(epipolar_distance(*pair, *xy))
    assert len(np.concatenate(distances)) > 100
    assert np.median(np.concatenate(distances)) < HALF_PIXEL


def test_distortion_of_the_fox_counts(shared_data):
    """Its corners move by several pixels: a loader that dropped k1, k2 would be found out."""
    camera = load(shared_data / "ngp_fox").views[0].camera
    corner = np.array([[20.0, 20.0]])
    straight = replace(camera, model="PINHOLE", params=camera.params[:4])
    moved = project(straight, np.c_[unproject(camera, corner), 1.0])
    assert 3 < np.linalg.norm(moved - corner) < 60
