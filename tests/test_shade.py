"""Pictures of solids whose silhouette, depth and normals are known in closed form."""

import numpy as np
import pytest

from fastsurf.cameras import Camera
from fastsurf.mesh import Mesh
from fastsurf.shade import Style, draw, look_at, rasterise, seen, sheet

CAMERA = Camera("PINHOLE", 120, 90, (150.0, 150.0, 60.0, 45.0))


def ball(subdivisions: int = 5) -> Mesh:
    import trimesh

    unit = trimesh.creation.icosphere(subdivisions=subdivisions)
    vertices = np.array(unit.vertices)
    colors = np.where(vertices[:, :1] > 0, (200, 30, 30), (30, 30, 200)).astype(np.uint8)
    return Mesh(vertices, np.array(unit.faces, np.int32), vertices.astype(np.float32), colors)


def wall(z: float, half: float = 5.0) -> Mesh:
    """Two big triangles across the view, facing -z."""
    vertices = np.array([[-half, -half, z], [half, -half, z], [half, half, z], [-half, half, z]])
    return Mesh(vertices, np.array([[0, 2, 1], [0, 3, 2]], np.int32), np.tile(np.float32([0, 0, -1]), (4, 1)))


def joined(*meshes: Mesh) -> Mesh:
    first = np.cumsum([0] + [len(m.vertices) for m in meshes[:-1]])
    faces = np.concatenate([m.faces + np.int32(k) for m, k in zip(meshes, first, strict=True)])
    return Mesh(np.concatenate([m.vertices for m in meshes]), faces, np.concatenate([m.normals for m in meshes]))


@pytest.mark.parametrize("eye", [(4.0, 0.0, 0.0), (2.0, -3.0, 1.5), (0.1, 0.0, -4.0)])
@pytest.mark.parametrize("subdivisions", [3, 6])  # faces larger and smaller than a pixel
def test_sphere_has_its_silhouette_and_depth(eye: tuple[float, ...], subdivisions: int) -> None:
    c2w = look_at(np.array(eye), np.zeros(3))
    raster = rasterise(ball(subdivisions), CAMERA, c2w)
    y, x = np.mgrid[:90, :120] + 0.5
    d = np.stack([(x - 60) / 150, (y - 45) / 150, np.ones_like(x)], -1)
    scale = np.linalg.norm(d, axis=-1)
    along = (d / scale[..., None]) @ (c2w[:, :3].T @ (-np.array(eye)))
    under_root = along**2 - (np.dot(eye, eye) - 1)
    clear = np.abs(under_root) > (0.15 if subdivisions == 3 else 0.03)  # away from the rim
    np.testing.assert_array_equal((raster.face >= 0)[clear], (under_root > 0)[clear])
    hit = clear & (under_root > 0)
    depth = (along - np.sqrt(np.maximum(under_root, 0))) / scale
    np.testing.assert_allclose(raster.depth[hit], depth[hit], atol=0.02 if subdivisions == 3 else 1e-3)
    np.testing.assert_allclose(raster.weights[hit].sum(-1), 1, atol=1e-5)
    assert np.isinf(raster.depth[raster.face < 0]).all()


def test_weights_give_back_the_point_seen_in_perspective() -> None:
    """On a wall that recedes steeply, linear weights on the picture would be far off."""
    c2w = look_at(np.array([0.0, -1.0, 0.0]), np.array([0.0, -0.3, 5.0]), up=(0, -1, 0))
    corners = np.array([[-9.0, 0, 0.5], [9, 0, 0.5], [9, 0, 40], [-9, 0, 40]])
    floor = Mesh(corners, np.array([[0, 2, 1], [0, 3, 2]], np.int32), np.zeros((4, 3), np.float32))
    raster = rasterise(floor, CAMERA, c2w)
    v, u = np.nonzero(raster.face >= 0)
    assert len(v) > 1000
    points = np.einsum("nk,nkj->nj", raster.weights[v, u], floor.vertices[floor.faces[raster.face[v, u]]])
    local = (points - c2w[:, 3]) @ c2w[:, :3]
    np.testing.assert_allclose(local[:, 0] / local[:, 2] * 150 + 60, u + 0.5, atol=1e-3)
    np.testing.assert_allclose(local[:, 1] / local[:, 2] * 150 + 45, v + 0.5, atol=1e-3)
    np.testing.assert_allclose(local[:, 2], raster.depth[v, u], rtol=1e-4)


def test_neighbouring_faces_leave_no_gap() -> None:
    rng = np.random.default_rng(0)
    grid = np.stack(np.meshgrid(np.linspace(-3, 3, 60), np.linspace(-3, 3, 60), indexing="ij"), -1).reshape(-1, 2)
    vertices = np.concatenate([grid + rng.uniform(-0.02, 0.02, grid.shape), rng.uniform(4, 4.3, (3600, 1))], 1)
    a = (np.arange(59)[:, None] * 60 + np.arange(59)).ravel()
    faces = np.concatenate([np.stack([a, a + 1, a + 61], 1), np.stack([a, a + 61, a + 60], 1)]).astype(np.int32)
    raster = rasterise(Mesh(vertices, faces, np.zeros((3600, 3), np.float32)), CAMERA, np.eye(4)[:3])
    assert (raster.face >= 0).all()


def test_the_nearer_wins_in_any_order() -> None:
    near, far = wall(2.0, half=0.3), wall(4.0)
    for mesh in (joined(near, far), joined(far, near)):
        depth = rasterise(mesh, CAMERA, np.eye(4)[:3]).depth
        assert set(np.unique(depth)) == {2.0, 4.0}
        assert (depth == 2).sum() == pytest.approx((0.6 * 150 / 2) ** 2, rel=0.05)


def test_what_lies_behind_the_camera_is_not_drawn() -> None:
    assert (rasterise(wall(-2.0), CAMERA, np.eye(4)[:3]).face < 0).all()


def test_a_camera_that_distorts_bends_the_picture() -> None:
    bent = Camera("OPENCV", 120, 90, (150.0, 150.0, 60.0, 45.0, -0.3, 0.0, 0.0, 0.0))
    c2w = look_at(np.array([2.9, 0.0, 0.0]), np.zeros(3))
    assert (rasterise(ball(), bent, c2w).face >= 0).sum() < 0.98 * (rasterise(ball(), CAMERA, c2w).face >= 0).sum()


def test_styles_show_what_they_say() -> None:
    c2w = look_at(np.array([4.0, 0.0, 0.0]), np.zeros(3))  # looks along -x with z up: right is +y
    middle, corner = (45, 60), (0, 0)
    pictures: dict[Style, np.ndarray] = {style: draw(ball(), CAMERA, c2w, style) for style in ("clay", "color", "normal")}
    for picture in pictures.values():
        assert picture.shape == (90, 120, 3) and picture.dtype == np.uint8
        assert (picture[corner] == 255).all()
    np.testing.assert_allclose(pictures["color"][middle], (200, 30, 30), atol=1)
    np.testing.assert_allclose(pictures["normal"][middle], (128, 128, 255), atol=4)
    right, top = pictures["normal"][45, 85], pictures["normal"][20, 60]
    assert right[0] > 190 and abs(int(right[1]) - 128) < 8 and top[1] > 190 and abs(int(top[0]) - 128) < 8
    clay = pictures["clay"].astype(int)
    assert np.ptp(clay[middle]) < 12 and clay[30, 45, 0] > clay[60, 75, 0]  # grey, lit from the upper left


def test_inner_sides_stand_out() -> None:
    mesh = ball()
    inverted = Mesh(mesh.vertices, mesh.faces[:, ::-1].copy(), mesh.normals)
    c2w = look_at(np.array([4.0, 0.0, 0.0]), np.zeros(3))
    styles: tuple[Style, ...] = ("clay", "normal")
    for style in styles:
        assert tuple(draw(inverted, CAMERA, c2w, style)[45, 60]) == (110, 40, 130) != tuple(draw(mesh, CAMERA, c2w, style)[45, 60])


def test_edges_are_smooth() -> None:
    picture = draw(ball(), CAMERA, look_at(np.array([4.0, 0.0, 0.0]), np.zeros(3)), "color")
    half_way = (picture[..., 1] > 60) & (picture[..., 1] < 240)
    assert half_way.sum() > 50


def test_seen_is_the_side_that_faces_the_camera() -> None:
    rng = np.random.default_rng(0)
    points = rng.normal(size=(20_000, 3))
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    eye = np.array([5.0, 0.0, 0.0])
    visible = seen(ball(), points, CAMERA, look_at(eye, np.zeros(3)))
    facing = points[:, 0] - 1 / 5  # the rim as seen from a distance of 5
    clear = (facing < -0.02) | (facing > 0.2)  # within a pixel of the rim a camera is not asked
    np.testing.assert_array_equal(visible[clear], facing[clear] > 0)
    assert not seen(ball(), 0.8 * points, CAMERA, look_at(eye, np.zeros(3))).any()
    assert not seen(ball(), points + np.array([0, 20, 0]), CAMERA, look_at(eye, np.zeros(3))).any()  # outside the picture


def test_a_sheet_keeps_every_picture() -> None:
    pictures = [np.full((4, 6, 3), k, np.uint8) for k in range(5)]
    table = sheet([pictures[:3], pictures[3:]], gap=2)
    assert table.shape == (10, 22, 3)
    for k, (y, x) in enumerate([(0, 0), (0, 8), (0, 16), (6, 0), (6, 8)]):
        assert (table[y : y + 4, x : x + 6] == k).all()
    assert (table[6:, 16:] == 255).all() and (table[4:6] == 255).all()
