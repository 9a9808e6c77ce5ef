"""What leaves a run: fewer faces, a solid, a texture, points, depth, films, at any scale; and what is refused before any work."""

import io
import json

import numpy as np
import pytest
import trimesh
from PIL import Image
from test_checkpoint import SMALL
from test_cli import fails, run, stopping_at

from fastsurf.config import load_config
from fastsurf.errors import UsageError
from fastsurf.export import scale_factor, scaled
from fastsurf.meshio import read_mesh
from fastsurf.output import Output
from fastsurf.reconstruction import reconstruct
from fastsurf.runs import begun, depth_run, mesh_run, write_animation
from fastsurf.solidity import inspect


@pytest.fixture(scope="module")
def made(tiny_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("export")
    output = Output(faces=600, scale="train_000.png,train_001.png=3")
    config = load_config(None, [*SMALL, "threads=1"])
    return reconstruct(tiny_folder, config, run=folder / "r", out=folder / "new" / "small.glb", output=output)


def distances(points, mesh):
    """From points (n, 3) to the nearest of the mesh's triangles, (n,)."""
    from scipy.spatial import cKDTree

    corners = mesh.vertices[mesh.faces]
    _, near = cKDTree(corners.mean(1)).query(points, 32)  # (n, 32)
    flat = [trimesh.triangles.closest_point(corners[near[:, k]], points) for k in range(32)]
    return np.min([np.linalg.norm(place - points, axis=1) for place in flat], 0)


def test_reconstruct_makes_what_is_asked_beside_the_plain_mesh(made, tiny):
    plain, small = read_mesh(made.run / "mesh.ply"), read_mesh(made.mesh_path)
    a, b = (tiny.capture.views[tiny.train[k]].center for k in (0, 1))
    factor = 3 / np.linalg.norm(a - b)
    assert len(small.faces) <= 660 < len(plain.faces)
    np.testing.assert_allclose(np.ptp(small.vertices, axis=0), factor * np.ptp(plain.vertices, axis=0), rtol=0.05)
    known = json.loads((made.run / "mesh.json").read_text())
    assert set(known) == {"mesh.ply", str(made.mesh_path)} and known["mesh.ply"]["watertight"]
    assert known[str(made.mesh_path)] == {**made.report.tree(), "scale": pytest.approx(factor)}
    assert f"scaled by {factor:.9g}" in made.mesh_path.read_bytes().decode("latin1")


def test_a_solid_is_one_for_programs_that_weld_equal_places(made, tmp_path):
    pytest.importorskip("manifold3d")
    mesh, report = mesh_run(made.run, tmp_path / "solid.stl", output=Output(faces=500, watertight=True))
    assert report.watertight and not report.nonmanifold_vertices
    read = trimesh.load_mesh(tmp_path / "solid.stl")  # welded
    assert read.is_watertight and read.volume == pytest.approx(report.volume, rel=1e-3)
    with pytest.raises(UsageError, match="can't be watertight"):
        mesh_run(made.run, tmp_path / "open.ply", closed=False, output=Output(watertight=True))
    assert len(mesh.faces) <= 550 and not (tmp_path / "open.ply").exists()


def test_new_vertices_have_the_field_s_normals(made, tmp_path):
    mesh, _ = mesh_run(made.run, tmp_path / "few.ply", output=Output(faces=300))
    read = trimesh.load_mesh(tmp_path / "few.ply", process=False)
    np.testing.assert_allclose(read.metadata["_ply_raw"]["vertex"]["data"]["nx"].reshape(-1), mesh.normals[:, 0])
    assert np.mean((read.vertex_normals * mesh.normals).sum(1) > 0.5) > 0.9


def test_points_lie_on_the_mesh_with_normals_and_colours(made, tmp_path):
    mesh, _ = mesh_run(made.run, tmp_path / "points.ply", output=Output(points=500, scale="2"))
    header = (tmp_path / "points.ply").read_bytes().split(b"end_header\n")[0].decode()
    assert "element vertex 500" in header and "element face" not in header and "comment scaled by 2 " in header
    assert all(f"property {name}" in header for name in ("float nx", "uchar red"))
    points = np.array(trimesh.load(tmp_path / "points.ply", process=False).vertices)
    assert distances(points[::5], mesh).max() < 1e-5 * np.ptp(mesh.vertices)
    known = json.loads((made.run / "mesh.json").read_text())
    assert known[str(tmp_path / "points.ply")] == {"points": 500, "scale": 2.0}
    again = tmp_path / "again.ply"
    mesh_run(made.run, again, output=Output(points=500, scale="2"))
    assert again.read_bytes() == (tmp_path / "points.ply").read_bytes()


def test_points_are_no_solid(made, tmp_path, capsys):
    code, out, err = run(capsys, "mesh", made.run, "-o", tmp_path / "p.ply", "--points", "1234")
    lines = out.splitlines()[-5:]
    assert code == 0 and err == "" and [line.split()[0] for line in lines] == ["points", "number", "size", "time", "next"]
    assert lines[0] == f"points {tmp_path / 'p.ply'}" and lines[1] == "number 1,234, with normals and colours"
    assert lines[4] == f"next   fastsurf render {made.run} --views orbit"  # eval scores meshes


def test_a_texture_comes_with_its_files(made, tmp_path, capsys):
    pytest.importorskip("xatlas")
    words = ("mesh", made.run, "-o", tmp_path / "t.obj", "--texture", "128", "--faces", "400")
    code, out, _ = run(capsys, *words)
    assert code == 0 and "solid  watertight" in out
    assert {p.name for p in tmp_path.iterdir()} == {"t.obj", "t.mtl", "t.png"}
    read = trimesh.load_mesh(tmp_path / "t.obj")
    assert read.visual.material.image.size == (128, 128) and read.visual.uv.shape == (len(read.vertices), 2)
    (tmp_path / "t.obj").unlink()
    fails(capsys, 2, r"t\.png exists: --force", *words)


def test_depth_goes_on_where_it_was_stopped(made, tmp_path):
    whole, again = tmp_path / "whole", tmp_path / "again"
    depth_run(made.run, "test", whole)
    with pytest.raises(KeyboardInterrupt):
        depth_run(made.run, "test", again, hooks=[stopping_at(1)])
    first = next(again.glob("*.npy")).stat()
    assert not list(again.glob("*.png")) and begun(made.run, "test", again, depth_scale="1").begun
    assert not begun(made.run, "test", again, depth_scale="2").begun and not begun(made.run, "test", again).begun
    depth_run(made.run, "test", again)
    assert {p.name: p.read_bytes() for p in again.iterdir()} == {p.name: p.read_bytes() for p in whole.iterdir()}
    assert first.st_mtime_ns in {p.stat().st_mtime_ns for p in again.glob("*.npy")}


def test_depth_maps_meet_the_mesh(made, tiny, tmp_path):
    """Put back into the world by cameras.json alone, from floats and from 16 bits; scaled like the mesh."""
    written = depth_run(made.run, "test", tmp_path, scale="10")
    tree = json.loads((tmp_path / "cameras.json").read_text())
    assert len(written) == 2 * len(tree["frames"]) + 1 == 5 and tree["scale"] == 10
    mesh = scaled(read_mesh(made.run / "mesh.ply"), 10)
    for frame in tree["frames"]:
        name = tmp_path / frame["depth_path"]
        z = np.load(name.with_suffix(".npy"))
        with Image.open(name) as picture:
            steps = np.array(picture)
            assert picture.mode.startswith("I;16") and float(picture.text["depth_unit"]) == tree["depth_unit"]
        np.testing.assert_allclose(steps * tree["depth_unit"], z, atol=0.51 * tree["depth_unit"])
        assert 6553 < steps.max() <= 65535 and 0.05 < (z > 0).mean() < 0.9
        v, u = np.nonzero(z)
        local = np.stack([(u + 0.5 - frame["cx"]) / frame["fl_x"], -(v + 0.5 - frame["cy"]) / frame["fl_y"], -np.ones(len(u))], 1)
        pose = np.array(frame["transform_matrix"])
        points = (local * z[v, u, None]) @ pose[:3, :3].T + pose[:3, 3]
        assert np.percentile(distances(points[::7], mesh), 95) < 0.02 * 10 * tiny.radius


def test_depth_has_its_own_folder_and_scale(made, capsys):
    code, out, _ = run(capsys, "render", made.run, "--views", "test", "--depth", "--scale", "2")
    assert code == 0 and "5 files" in out
    assert json.loads((made.run / "test_depth" / "cameras.json").read_text())["scale"] == 2


@pytest.mark.parametrize("kind", ["webp", "gif", "mp4"])
def test_films_have_their_frames(kind, tmp_path):
    pytest.importorskip("imageio_ffmpeg")
    frames = [np.full((64, 64, 3), 20 * k, np.uint8) for k in range(12)]
    write_animation(tmp_path / f"film.{kind}", frames)
    assert [p.name for p in tmp_path.iterdir()] == [f"film.{kind}"]
    if kind == "mp4":
        import imageio_ffmpeg

        count, seconds = imageio_ffmpeg.count_frames_and_secs(str(tmp_path / "film.mp4"))
        assert count == 12 and seconds == pytest.approx(12 * 0.066, abs=0.1)
    else:
        with Image.open(io.BytesIO((tmp_path / f"film.{kind}").read_bytes())) as film:
            assert film.n_frames == 12


def test_a_scale_is_a_factor_or_a_distance(tiny):
    views = tiny.capture.views
    apart = np.linalg.norm(views[0].center - views[3].center)
    assert scale_factor("2.5", ()) == 2.5
    assert scale_factor("train_000.png,train_003=1.2", views) == pytest.approx(1.2 / apart)
    with pytest.raises(UsageError, match=r"'train_0000\.png'; did you mean .*train_000"):
        scale_factor("train_0000.png,train_003.png=1", views)


@pytest.mark.parametrize("words, pattern", [
    (("-o", "a.glb", "--scale", "0"), "--scale wants a factor"),
    (("-o", "a.glb", "--scale", "x.jpg=2"), "--scale wants a factor"),
    (("-o", "a.glb", "--scale", "x.jpg,x.jpg=2"), "--scale wants a factor"),
    (("-o", "a.ply", "--texture", "256"), "a texture wants a file ending in .glb"),
    (("-o", "a.glb", "--texture", "7"), "--texture wants 64 to 16384"),
    (("-o", "a.glb", "--points", "5"), "--points wants a file ending in .ply"),
    (("-o", "a.ply", "--points", "5", "--watertight"), "--points makes points instead"),
    (("-o", "a.ply", "--faces", "0"), "--faces wants 1 or more"),
])  # fmt: skip
def test_what_makes_no_sense_is_refused_before_any_work(words, pattern, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fails(capsys, 2, pattern, "mesh", tmp_path / "none", *words)
    assert not list(tmp_path.iterdir())


def test_what_is_not_installed_is_named(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("fastsurf.output.importlib.util.find_spec", lambda name: None)
    mesh = ("mesh", "r", "-o", tmp_path / "a.glb")
    fails(capsys, 2, r"xatlas is not installed: pip install 'fastsurf\[texture\]'", *mesh, "--texture", "64")
    fails(capsys, 2, r"manifold3d is not installed: pip install 'fastsurf\[solid\]'", *mesh, "--watertight")


def test_outputs_want_a_file(capsys, tmp_path, tiny_folder):
    fails(capsys, 2, "want -o FILE", "reconstruct", tiny_folder, "--run", tmp_path / "r", "--faces", "100")
    fails(capsys, 2, "--depth wants --views", "render", tmp_path / "r", "--depth")
    fails(capsys, 2, "--scale is of --depth", "render", tmp_path / "r", "--scale", "2")
    fails(capsys, 3, "no checkpoint", "mesh", tmp_path / "r", "-o", tmp_path / "deep" / "er" / "m.ply", "--quiet")
    assert not list(tmp_path.iterdir())


def test_a_mesh_of_the_run_is_told_of(made, capsys, tmp_path):
    code, out, _ = run(capsys, "mesh", made.run, "-o", tmp_path / "m.ply")
    mesh = read_mesh(tmp_path / "m.ply")
    assert code == 0 and inspect(mesh.vertices, mesh.faces).line() in out
