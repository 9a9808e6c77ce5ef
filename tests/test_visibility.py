"""What photographs show of a mesh: analytic balls, seen from one side, hidden by each other, and by pixels that don't count."""

import json
import shutil
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import torch
from captures import ball
from solids import Sphere, grid_around
from torch import Tensor

from fastsurf.backends.reference import ReferenceBackend
from fastsurf.config import MeshConfig, SceneConfig, load_config
from fastsurf.hooks import Note
from fastsurf.mesh import extract, face_areas, is_watertight
from fastsurf.rays import Rays
from fastsurf.reconstruction import reconstruct
from fastsurf.runs import mesh_run
from fastsurf.scene import load_scene
from fastsurf.visibility import MOST_ASKED, photographs_asked, times_shown, trim, trims

SILENT = lambda event: None  # noqa: E731


@dataclass
class Balls(Sphere):
    """Balls in a row along x, as much of a model as a search needs."""

    middles: tuple[float, ...] = (0.0,)
    size: float = 0.4
    backend: ReferenceBackend = field(default_factory=ReferenceBackend)

    @torch.no_grad()
    def level(self, x: Tensor) -> Tensor:
        return torch.stack([self.size - (x - torch.tensor([m, 0.0, 0.0])).norm(dim=-1) for m in self.middles]).amax(0)

    def corrected(self, rays: Rays) -> Rays:
        return rays

    def mesh(self, resolution=64):
        return extract(self.level, grid_around(self.level), resolution, closed=True)


def scene_of(folder, toward, least):
    """Photographs of cameras whose direction from the middle has so much of `toward`."""
    capture = ball(folder, n=32, masks=False)
    views = tuple(v for v in capture.views if v.center @ np.array(toward) > least * np.linalg.norm(v.center))
    config = SceneConfig(center=(0.0, 0.0, 0.0), radius=1.0, masks="ignore", background="model")
    return load_scene(replace(capture, views=views), config)


def cosines(scene, vertices, faces):
    """Of each face's normal with the way to each camera, (f, n), and the middles of the faces."""
    a, b, c = np.moveaxis(vertices[faces], 1, 0)
    normal, middle = np.cross(b - a, c - a), (a + b + c) / 3
    normal /= np.linalg.norm(normal, axis=1, keepdims=True)
    eyes = np.stack([scene.to_scene(scene.capture.views[i].center[None])[0] for i in scene.train])
    way = eyes - middle[:, None]
    return np.einsum("fi,fni->fn", normal, way / np.linalg.norm(way, axis=-1, keepdims=True)), middle


def test_a_ball_is_shown_where_it_faces_a_camera(tmp_path):
    scene, solid = scene_of(tmp_path, (1, 0, 0), 0.4), Balls()
    vertices, faces = solid.mesh(48)
    cosine, _ = cosines(scene, vertices, faces)
    enough = 2
    times = times_shown(solid, scene, vertices, faces, np.full(len(faces), enough), SILENT)
    assert len(scene.train) > 5 and times.max() == enough
    assert (times <= (cosine > -1e-4).sum(1).clip(max=enough)).all() and (times >= (cosine > 0.5).sum(1).clip(max=enough)).all()
    assert 0.5 < (times > 0).mean() < 0.9


def test_what_lies_behind_something_else_is_not_shown(tmp_path):
    scene, solid = scene_of(tmp_path, (1, 0, 0), 0.86), Balls(middles=(0.45, -0.45))
    vertices, faces = solid.mesh()
    _, middle = cosines(scene, vertices, faces)
    times = times_shown(solid, scene, vertices, faces, np.ones(len(faces), int), SILENT)
    assert len(scene.train) >= 2
    near, far = middle[:, 0] > 0.8, (middle[:, 0] > -0.1) & (middle[:, 0] < 0) & (np.abs(middle[:, 1:]).max(1) < 0.1)
    assert near.sum() > 50 and (times[near] > 0).all()
    assert far.sum() > 50 and (times[far] == 0).all()


@pytest.mark.parametrize("behind", [-1.1, -0.98])
def test_where_the_box_cuts_a_solid_nothing_is_shown(tmp_path, behind):
    """A wall that looks towards the cameras, with nothing before it, and just behind another one that begins outside the box."""
    @dataclass
    class Walls(Balls):
        def level(self, x: Tensor) -> Tensor:
            return torch.maximum(behind - x[:, 0], x[:, 0] + 0.95)

    scene, solid = scene_of(tmp_path, (-1, 0, 0), 0.86), Walls()
    vertices = np.array([(-0.95, y, z) for y in (-0.1, 0.1) for z in (-0.1, 0.1)])
    faces = np.array([(0, 1, 2), (3, 2, 1)])
    cosine, _ = cosines(scene, vertices, faces)
    assert len(scene.train) >= 2 and (cosine > 0.8).all()
    assert times_shown(solid, scene, vertices, faces, np.ones(len(faces), int), SILENT).tolist() == ([1, 1] if behind < -1 else [0, 0])


def test_pixels_to_ignore_show_nothing(tmp_path):
    scene, solid = scene_of(tmp_path, (1, 0, 0), 0.4), Balls()
    vertices, faces = solid.mesh(48)
    scene.ignored = [torch.ones(image.shape[:2], dtype=torch.bool) for image in scene.images]
    assert not times_shown(solid, scene, vertices, faces, np.ones(len(faces), int), SILENT).any()


def test_small_hidden_patches_stay_and_backs_go():
    vertices, faces = Balls().mesh(48)
    middle = vertices[faces].mean(1)
    back, dimple = middle[:, 0] < -0.1, np.linalg.norm(middle - (0.4, 0, 0), axis=1) < 0.05
    shown = ~back & ~dimple
    kept, triangles = trim(vertices, faces, shown, 0.0)
    assert dimple.any() and len(triangles) == (~back).sum() and not is_watertight(triangles)
    assert kept[:, 0].min() > -0.2
    larger = ~back & (np.linalg.norm(middle - (0.4, 0, 0), axis=1) > 0.1)
    _, bare = trim(vertices, faces, larger, 0.0)
    assert len(bare) == larger.sum()
    _, whole = trim(vertices, faces, np.ones(len(faces), bool), 0.0)
    assert len(whole) == len(faces)
    area = face_areas(kept, triangles).sum() / face_areas(vertices, faces).sum()
    assert area == pytest.approx(0.5 * (1 + 0.1 / 0.4), abs=0.02)


def test_a_mesh_that_nothing_shows_stays():
    vertices, faces = Balls().mesh(32)
    _, kept = trim(vertices, faces, np.zeros(len(faces), bool), 0.01)
    assert kept is faces


@pytest.mark.parametrize("config, masks, wanted", [
    (MeshConfig(closed=False), False, True), (MeshConfig(closed=False), True, False), (MeshConfig(), False, False),
    (MeshConfig(closed=False, shown_by=0), False, False), (MeshConfig(shown_by=2), True, True),
])  # fmt: skip
def test_open_meshes_without_masks_are_trimmed(config, masks, wanted):
    assert trims(config, masks) == wanted


def test_the_more_photographs_have_a_face_in_the_frame_the_more_must_show_it(tmp_path):
    capture = ball(tmp_path, n=32, masks=False)
    narrow = [replace(v, camera=replace(v.camera, params=(3.0 * v.camera.width, 3.0 * v.camera.height, *v.camera.params[2:])))
              for v in capture.views[:15]]  # fmt: skip
    config = SceneConfig(center=(0.0, 0.0, 0.0), radius=1.0, masks="ignore", background="model")
    vertices, faces = Balls(size=0.9).mesh(32)
    middle = vertices[faces].mean(1)
    for views, most in ((capture.views[:15], 2), (capture.views, MOST_ASKED), (narrow, 2)):
        scene = load_scene(replace(capture, views=tuple(views)), config)
        asked = photographs_asked(MeshConfig(closed=False), scene, vertices, faces)
        framed = np.zeros(len(faces))
        for view in views:
            x, y, z = ((middle - view.center) @ view.c2w[:, :3]).T
            f, (w, h) = view.camera.focal, (view.camera.width, view.camera.height)
            framed += (np.abs(x / z * f[0]) < w / 2) & (np.abs(y / z * f[1]) < h / 2)
        assert asked.min() >= 1 and asked.max() == most and (views is not narrow or asked.min() == 1)
        assert (np.abs(asked - np.ceil(0.1 * framed).clip(1, 4)) <= 1).all()
        assert (asked == np.ceil(0.1 * framed).clip(1, 4)).mean() > 0.9
        assert (photographs_asked(MeshConfig(shown_by=7), scene, vertices, faces) == 7).all()


def test_rags_that_one_photograph_of_many_shows_are_left_out(tmp_path):
    """A floor that ends at the box for all cameras but one, which looks in underneath it and sees a ball there."""
    @dataclass
    class Floor(Balls):
        def level(self, x: Tensor) -> Tensor:
            return torch.maximum(super().level(x - torch.tensor([0.0, 0.0, -0.6])), 0.05 - x[:, 2].abs())

    capture = ball(tmp_path, n=64, masks=False)
    above = [v for v in capture.views if v.center[2] > 2.5]
    below = min(capture.views, key=lambda v: abs(v.center[2] + 0.6))
    config = SceneConfig(center=(0.0, 0.0, 0.0), radius=1.0, masks="ignore", background="model")
    scene, solid = load_scene(replace(capture, views=(*above, below)), config), Floor(size=0.2)
    vertices, faces = solid.mesh(64)
    asked = photographs_asked(MeshConfig(closed=False), scene, vertices, faces)
    shown, hanging = times_shown(solid, scene, vertices, faces, asked, SILENT), vertices[faces].mean(1)[:, 2] < -0.2
    top = vertices[faces].mean(1)[:, 2] > 0.04
    assert shown[hanging].max() == 1 and asked[hanging].min() == 2 and (shown >= asked)[top].mean() > 0.9
    _, left = trim(vertices, faces, shown >= asked, 0.01)
    kept, _ = trim(vertices, faces, shown >= 1, 0.01)
    assert kept[:, 2].min() < -0.2 and len(left) < (~hanging).sum() + 1


def test_a_run_without_masks_leaves_out_what_nothing_shows(tiny_folder, tmp_path):
    folder = tmp_path / "photos"
    shutil.copytree(tiny_folder, folder)
    tree = json.loads((folder / "transforms_train.json").read_text())
    tree["frames"] = [frame for frame in tree["frames"] if frame["transform_matrix"][0][3] > 0]
    (folder / "transforms_train.json").write_text(json.dumps(tree))
    config = load_config("scene", ["mesh.resolution=48", "train.steps=20", "train.minutes=none", "train.rays=64", "scene.points=ignore"])
    told, said = [], []
    result = reconstruct(folder, config, run=tmp_path / "run", hooks=[told.append])
    same, _ = mesh_run(tmp_path / "run", tmp_path / "same.ply")
    assert np.array_equal(same.faces, result.mesh.faces)
    folder.rename(tmp_path / "elsewhere")
    whole, _ = mesh_run(tmp_path / "run", tmp_path / "whole.ply", hooks=[told.append])
    assert len(whole.faces) > len(same.faces)
    left_out, kept = [e.text for e in told if isinstance(e, Note) and ("left out" in e.text or "stays" in e.text)]
    assert left_out.startswith("left out ") and left_out.endswith("of the faces, which too few photographs show (mesh.shown_by)")
    assert kept.startswith("what no photograph shows stays in the mesh: the photographs of this run are gone")
    (tmp_path / "elsewhere").rename(folder)
    hidden = replace(config, mesh=replace(config.mesh, shown_by=99))
    reconstruct(folder, hidden, run=tmp_path / "run", go_on=True, hooks=[said.append])
    stay = "all faces stay, though fewer than 99 photographs show any of them (mesh.shown_by)"
    assert stay in [e.text for e in said if isinstance(e, Note)]


def test_an_open_mesh_with_masks_needs_no_photographs(tiny_folder, tmp_path):
    shutil.copytree(tiny_folder, tmp_path / "photos")
    config = load_config(None, ["mesh.resolution=24", "train.steps=5", "train.minutes=none", "train.rays=64", "mesh.closed=false"])
    reconstruct(tmp_path / "photos", config, run=tmp_path / "run")
    shutil.rmtree(tmp_path / "photos")
    told = []
    mesh_run(tmp_path / "run", tmp_path / "again.ply", hooks=[told.append])
    assert not [e for e in told if isinstance(e, Note)]
