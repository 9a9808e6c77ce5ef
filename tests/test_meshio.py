"""Files that others read back: geometry, normals, colours, frame; and nothing half-written."""

import json
import struct
from pathlib import Path

import numpy as np
import pytest

from fastsurf import meshio
from fastsurf.errors import MeshError, UsageError
from fastsurf.mesh import Mesh, signed_volumes
from fastsurf.meshio import read_mesh, write_mesh

UTM = np.array([500_123.456, 4_649_776.225, 212.75])


def ellipsoid(center: np.ndarray, colors: bool = True) -> Mesh:
    """Semi-axes 3, 2 and 1, so that a turn shows; every vertex its own colour."""
    import trimesh

    ball = trimesh.creation.icosphere(subdivisions=3)
    axes = np.array([3.0, 2.0, 1.0])
    normals = ball.vertices / axes
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    rng = np.random.default_rng(0)
    paint = rng.integers(0, 256, (len(ball.vertices), 3)).astype(np.uint8) if colors else None
    return Mesh(np.array(ball.vertices) * axes + center, np.array(ball.faces, np.int32), normals.astype(np.float32), paint)


@pytest.mark.parametrize("suffix", [".ply", ".obj"])
@pytest.mark.parametrize("center, precision", [(np.zeros(3), 1e-6), (UTM, 1e-5)])
def test_round_trip_keeps_geometry_normals_and_colours(tmp_path: Path, suffix: str, center: np.ndarray, precision: float) -> None:
    mesh, path = ellipsoid(center), tmp_path / f"mesh{suffix}"
    write_mesh(path, mesh, comments=("made for a test", "two\nlines, and an umlaut: ü"))
    back = read_mesh(path)
    np.testing.assert_array_equal(back.faces, mesh.faces)
    np.testing.assert_allclose(back.vertices, mesh.vertices, atol=precision, rtol=0)
    np.testing.assert_allclose(back.normals, mesh.normals, atol=1e-4)
    assert back.colors is not None and mesh.colors is not None
    assert np.abs(back.colors.astype(int) - mesh.colors).max() <= 1
    assert signed_volumes(back.vertices, back.faces).sum() == pytest.approx(signed_volumes(mesh.vertices, mesh.faces).sum(), rel=1e-4)


def test_a_mesh_for_a_browser_is_shown_in_its_own_light(tmp_path: Path) -> None:
    mesh, path = ellipsoid(UTM), tmp_path / "mesh.glb"
    data = meshio.as_glb(mesh)
    tree = json.loads(data[20 : 20 + struct.unpack_from("<I", data, 12)[0]])
    assert tree["extensionsUsed"] == ["KHR_materials_unlit"] and tree["materials"][0]["extensions"] == {"KHR_materials_unlit": {}}
    path.write_bytes(data)
    np.testing.assert_allclose(read_mesh(path).vertices, mesh.vertices, atol=1e-5, rtol=0)
    write_mesh(path, mesh)
    assert b"KHR_materials_unlit" not in path.read_bytes()


def test_ply_header_is_what_viewers_expect(tmp_path: Path) -> None:
    for center, kind in ((np.zeros(3), "float"), (UTM, "double")):
        write_mesh(tmp_path / "mesh.ply", ellipsoid(center), comments=("frame: input",))
        header = (tmp_path / "mesh.ply").read_bytes().split(b"end_header\n")[0].decode("ascii").splitlines()
        assert header[:3] == ["ply", "format binary_little_endian 1.0", "comment frame: input"]
        assert header[4:-2] == [
            *(f"property {kind} {axis}" for axis in "xyz"),
            *(f"property float n{axis}" for axis in "xyz"),
            *(f"property uchar {name}" for name in ("red", "green", "blue")),
        ]
        assert header[-1] == "property list uchar int vertex_indices"


def test_without_colours_there_are_none(tmp_path: Path) -> None:
    for suffix in (".ply", ".obj"):
        write_mesh(tmp_path / f"mesh{suffix}", ellipsoid(np.zeros(3), colors=False))
        assert read_mesh(tmp_path / f"mesh{suffix}").colors is None


@pytest.mark.parametrize("center", [np.zeros(3), UTM])
def test_glb_is_y_up_and_linear_and_keeps_its_place(tmp_path: Path, center: np.ndarray) -> None:
    import trimesh

    mesh, path = ellipsoid(center), tmp_path / "mesh.glb"
    write_mesh(path, mesh)
    inside = trimesh.load_mesh(path, process=False)
    x, y, z = mesh.vertices.T
    np.testing.assert_allclose(inside.vertices, np.stack([x, z, -y], 1), atol=1e-5, rtol=0)
    back = read_mesh(path)
    np.testing.assert_allclose(back.vertices, mesh.vertices, atol=1e-5, rtol=0)
    np.testing.assert_allclose(back.normals, mesh.normals, atol=1e-6)
    assert signed_volumes(back.vertices, back.faces).sum() > 0

    data = path.read_bytes()
    magic, version, length, chunk = struct.unpack_from("<4sIII", data)
    assert (magic, version, length, chunk % 4) == (b"glTF", 2, len(data), 0)
    tree = json.loads(data[20 : 20 + chunk])
    color = tree["accessors"][tree["meshes"][0]["primitives"][0]["attributes"]["COLOR_0"]]
    start = 28 + chunk + tree["bufferViews"][color["bufferView"]]["byteOffset"]
    linear = np.frombuffer(data, "<u2", 4 * color["count"], start).reshape(-1, 4)[:, :3] / 65535
    encoded = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)  # IEC 61966-2-1
    np.testing.assert_allclose(255 * encoded, mesh.colors, atol=0.1)


def test_stl_holds_the_faces_and_refuses_what_it_would_spoil(tmp_path: Path) -> None:
    mesh = ellipsoid(np.array([1.0, 2.0, 3.0]))
    write_mesh(tmp_path / "mesh.stl", mesh)
    back = read_mesh(tmp_path / "mesh.stl")
    np.testing.assert_allclose(back.vertices[back.faces], mesh.vertices[mesh.faces], atol=1e-6)
    with pytest.raises(MeshError, match=r"\.ply"):
        write_mesh(tmp_path / "far.stl", ellipsoid(UTM))
    assert [p.name for p in tmp_path.iterdir()] == ["mesh.stl"]


def test_nothing_is_written_that_is_no_mesh(tmp_path: Path) -> None:
    mesh = ellipsoid(np.zeros(3))
    with pytest.raises(MeshError, match="empty"):
        write_mesh(tmp_path / "a.ply", Mesh(mesh.vertices, mesh.faces[:0], mesh.normals))
    broken = mesh.vertices.copy()
    broken[7] = np.nan
    with pytest.raises(MeshError, match="1 vertices are not finite"):
        write_mesh(tmp_path / "b.ply", Mesh(broken, mesh.faces, mesh.normals))
    with pytest.raises(UsageError, match=r"\.ply, \.obj, \.glb, \.stl"):
        write_mesh(tmp_path / "c.fbx", mesh)
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        write_mesh(tmp_path / "file" / "d.ply", mesh)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_full_disk_leaves_the_old_file_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "mesh.ply"
    write_mesh(path, ellipsoid(np.zeros(3)))
    before = path.read_bytes()

    def full(file: object, mesh: Mesh, comments: object) -> None:
        file.write(b"ply\n")  # type: ignore[attr-defined]
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(meshio, "_write_ply", full)
    with pytest.raises(OSError, match="No space left"):
        write_mesh(path, ellipsoid(UTM))
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["mesh.ply"]


def test_files_get_the_rights_of_any_other_file(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("")
    write_mesh(tmp_path / "mesh.ply", ellipsoid(np.zeros(3)))
    assert (tmp_path / "mesh.ply").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_what_cannot_be_read_is_said(tmp_path: Path) -> None:
    with pytest.raises(MeshError, match="no such file"):
        read_mesh(tmp_path / "none.ply")
    (tmp_path / "garbage.ply").write_bytes(b"ply\nformat nonsense\n")
    with pytest.raises(MeshError, match="garbage"):
        read_mesh(tmp_path / "garbage.ply")
    (tmp_path / "points.ply").write_text(
        "ply\nformat ascii 1.0\nelement vertex 1\nproperty float x\nproperty float y\nproperty float z\nend_header\n0 0 0\n"
    )
    with pytest.raises(MeshError, match="points"):
        read_mesh(tmp_path / "points.ply")
