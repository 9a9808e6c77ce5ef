"""A ball of known colours, photographed through every lens: the texture has them where the photographs do, and files put them in place."""

from dataclasses import replace

import numpy as np
import pytest
import trimesh
from captures import LENSES, ball_mask, sphere_of_cameras
from test_mesh import near, sphere

from fastsurf.cameras import View, rescale, unproject
from fastsurf.exposure import coded, linear
from fastsurf.mesh import Mesh, extract, sample_surface
from fastsurf.meshio import Y_UP, write_mesh
from fastsurf.solidity import simplify
from fastsurf.texture import Photograph, bake, unwrap

pytest.importorskip("xatlas")
SIDE = 256
UNSEEN = np.array([250, 0, 250], np.uint8)


def true_colors(points):
    """(n, 3) in [0, 255] of points (n, 3), by direction."""
    direction = points / np.linalg.norm(points, axis=1, keepdims=True)
    return 127.5 + 100 * np.sin(3 * direction + (0.3, 1.1, 2.0))


def photograph(i, c2w, camera, center, hidden=False):
    """What a camera sees of the ball of radius 1."""
    view = View(f"{i}.png", None, None, camera, c2w)
    h, w = camera.height, camera.width
    xy = np.stack(np.meshgrid(np.arange(w) + 0.5, np.arange(h) + 0.5), -1).reshape(-1, 2)
    rays = np.concatenate([unproject(camera, xy), np.ones((len(xy), 1))], 1) @ c2w[:, :3].T
    rays /= np.linalg.norm(rays, axis=1, keepdims=True)
    start = c2w[:, 3] - center
    along = -(rays @ start)
    inside = 1 - (start @ start - along**2)
    t = along - np.sqrt(np.maximum(inside, 0))
    image = np.where(inside[:, None] > 0, true_colors(start + t[:, None] * rays), 0)
    mask = ball_mask(view, center, 1.0)
    return Photograph(view, (image + 0.5).astype(np.uint8).reshape(h, w, 3), np.zeros_like(mask) if hidden else mask)


CENTER = np.array([100.0, -40.0, 7.0])


@pytest.fixture(scope="module")
def ball():
    """The ball in the world, in some 1200 faces."""
    vertices, faces = simplify(*extract(sphere(0.8), near(sphere(0.8)), 64, closed=True), 1200)
    vertices = vertices / np.linalg.norm(vertices, axis=1, keepdims=True)
    return Mesh(vertices + CENTER, faces, vertices.astype(np.float32), np.full((len(vertices), 3), 128, np.uint8))


@pytest.fixture(scope="module")
def photographs():
    poses = sphere_of_cameras(16, CENTER)
    return [photograph(i, pose, rescale(LENSES[i % 4], 192, 144), CENTER) for i, pose in enumerate(poses)]


@pytest.fixture(scope="module")
def places(ball):
    return unwrap(ball, SIDE)


def baked(ball, places, photographs):
    return bake(ball, *places, SIDE, photographs, lambda points: np.broadcast_to(UNSEEN, points.shape))


def shown(picture, uv):
    """Bilinear colours (n, 3) of a picture at uv (n, 2) from its lower left corner."""
    h, w = picture.shape[:2]
    x, y = np.clip(uv[:, 0] * w - 0.5, 0, w - 1.001), np.clip((1 - uv[:, 1]) * h - 0.5, 0, h - 1.001)
    column, row = x.astype(int), y.astype(int)
    u, v = (x - column)[:, None], (y - row)[:, None]
    corner = picture.astype(float)
    above = (1 - u) * corner[row, column] + u * corner[row, column + 1]
    return (1 - v) * above + v * ((1 - u) * corner[row + 1, column] + u * corner[row + 1, column + 1])


def errors(vertices, faces, uv_of_corners, picture):
    """Largest channel's error of the texture at random points of the surface, (n,)."""
    rng = np.random.default_rng(0)
    points, _, of = sample_surface(vertices, faces, 4000, rng)
    corners = vertices[faces[of]]  # (n, 3, 3)
    weights = np.stack([np.linalg.norm(np.cross(corners[:, (k + 1) % 3] - points, corners[:, (k + 2) % 3] - points), axis=1)
                        for k in range(3)], 1)  # fmt: skip
    weights /= weights.sum(1, keepdims=True)
    uv = np.einsum("nk,nkj->nj", weights, uv_of_corners[of])
    return np.abs(shown(picture, uv) - true_colors(points - CENTER)).max(1)


def test_the_layout_keeps_faces_apart(ball, places):
    uv, corners = places
    assert corners.shape == ball.faces.shape and uv.min() >= 0 and uv.max() <= 1
    a, b, c = (uv[corners[:, k]] for k in range(3))
    area = 0.5 * np.abs((b - a)[:, 0] * (c - a)[:, 1] - (b - a)[:, 1] * (c - a)[:, 0])
    assert 0.3 < area.sum() < 1


def test_texels_have_the_colours_that_photographs_show_through_any_lens(ball, places, photographs):
    texture, share, _ = baked(ball, places, photographs)
    off = errors(ball.vertices, ball.faces, texture.uv[texture.corners], texture.picture)
    assert share > 0.999 and np.median(off) < 3 and np.percentile(off, 99) < 12


@pytest.mark.parametrize("suffix", [".obj", ".glb"])
def test_files_put_the_colours_in_their_places(ball, places, photographs, suffix, tmp_path):
    """As trimesh reads them: glTF counts v downwards, OBJ upwards, and glTF's y axis is up."""
    texture, *_ = baked(ball, places, photographs)
    path = tmp_path / f"ball{suffix}"
    write_mesh(path, ball, ("scaled by 1",), texture)
    assert {p.name for p in tmp_path.iterdir()} == {"ball.glb"} if suffix == ".glb" else {"ball.obj", "ball.mtl", "ball.png"}
    read = trimesh.load_mesh(path, process=False)
    vertices = np.array(read.vertices) @ Y_UP if suffix == ".glb" else np.array(read.vertices)
    material = read.visual.material
    picture = np.array((material.baseColorTexture if suffix == ".glb" else material.image).convert("RGB"))
    faces = np.array(read.faces, np.int32)
    assert len(faces) == len(ball.faces)
    off = errors(vertices, faces, np.array(read.visual.uv)[faces], picture)
    assert np.median(off) < 3 and np.percentile(off, 99) < 12


def test_one_spoilt_photograph_is_outvoted(ball, places, photographs):
    spoilt = [Photograph(p.view, 255 - p.image if i == 5 else p.image, p.counts) for i, p in enumerate(photographs)]
    texture, *_ = baked(ball, places, spoilt)
    off = errors(ball.vertices, ball.faces, texture.uv[texture.corners], texture.picture)
    assert np.percentile(off, 95) < 12 and np.mean(off > 60) < 0.01


def test_what_no_photograph_shows_has_the_field_s_colour(ball, places, photographs):
    blind = [Photograph(p.view, p.image, np.zeros_like(p.counts)) for p in photographs]
    texture, share, _ = baked(ball, places, blind)
    assert share == 0 and (texture.picture == UNSEEN).all()
    half = [p for p in photographs if p.view.center[2] > CENTER[2] + 2]
    texture, share, _ = baked(ball, places, half)
    vertices, _, of = sample_surface(ball.vertices, ball.faces, 2000, np.random.default_rng(1))
    colors = shown(texture.picture, texture.uv[texture.corners][of].mean(1))
    below = vertices[:, 2] < CENTER[2] - 0.8
    assert 0.4 < share < 0.95 and np.abs(colors[below] - UNSEEN).max() < 60


def test_a_view_does_not_see_through_the_mesh(ball, places, photographs):
    """A wall before one camera hides the ball from it."""
    first = photographs[0].view
    wall = first.center + (0.5 * first.c2w[:, 2]) + 0.6 * np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) @ first.c2w[:, :2].T
    n = len(ball.vertices)
    faces = np.concatenate([ball.faces, np.array([[n, n + 1, n + 2], [n, n + 2, n + 3]], np.int32)])
    normals = np.concatenate([ball.normals, np.repeat(-first.c2w[None, :, 2], 4, 0).astype(np.float32)])
    walled = Mesh(np.concatenate([ball.vertices, wall]), faces, normals, np.full((n + 4, 3), 128, np.uint8))
    uv, corners = unwrap(walled, SIDE)
    texture, share, _ = bake(walled, uv, corners, SIDE, photographs[:1], lambda points: np.broadcast_to(UNSEEN, points.shape))
    on_ball = texture.uv[corners[: len(ball.faces)]].mean(1)
    assert share < 0.9 and np.abs(shown(texture.picture, on_ball) - UNSEEN).max() < 1


def test_exposure_is_evened_out_and_nothing_else_is(ball, places, photographs):
    """Photographs up to a stop too bright or too dark, too warm or too cold, give the colours of clean ones, which stay the same."""
    n = len(photographs)
    stops = np.linspace(-1, 1, n)[np.random.default_rng(0).permutation(n), None] + np.linspace(-0.3, 0.3, n)[:, None] * (1, 0, -1)
    stops -= stops.mean(0)
    spoilt = [replace(p, image=brighter(p.image, s)) for p, s in zip(photographs, stops, strict=True)]
    clean, _, none = baked(ball, places, photographs)
    texture, _, most = baked(ball, places, spoilt)
    assert none == 0 and most == pytest.approx(np.abs(stops).max(), abs=0.1)
    off = errors(ball.vertices, ball.faces, texture.uv[texture.corners], texture.picture)
    assert np.median(off) < 4 and np.percentile(off, 90) < 12
    rough = [np.abs(np.diff(t.picture.astype(float), axis=0)).mean() for t in (clean, texture)]
    assert rough[1] < 1.05 * rough[0], "seams"


def brighter(image, stops):
    """An sRGB picture with so many stops more light in each channel."""
    return (255 * coded(linear(image) * np.exp2(stops))).clip(0, 255).round().astype(np.uint8)
