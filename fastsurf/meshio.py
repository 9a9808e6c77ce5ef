"""Meshes to files and back: PLY (the default), OBJ, GLB and STL, the middle two also with a texture. Written whole or not at all.

Coordinates stay the world's own. Where 32 bits are too few for them (geo-referenced scenes: the centre is far from the origin against
the extent), PLY and OBJ carry 64-bit ones, GLB an offset beside 32-bit ones, and STL, which can do neither, is refused.
"""

import io
import json
import re
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from .errors import MeshError, UsageError
from .exposure import linear
from .files import png, whole, write_whole
from .guard import parse_json
from .mesh import Mesh, Texture
from .output import companions

Floats = npt.NDArray[np.float64]

READ = ("ply", "obj", "glb", "stl", "off")
Y_UP = np.array([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]])  # turns the world, whose z is up, into glTF's axes


def write_mesh(path: Path, mesh: Mesh, comments: Sequence[str] = (), texture: Texture | None = None) -> None:
    """Write by suffix: .ply .obj .glb .stl. `comments` go into the headers of PLY and OBJ, and into GLB's extras.

    A texture is embedded in a .glb, and stands beside an .obj as .png and .mtl.

    Raises:
        UsageError: another suffix, or one that holds no texture.
        MeshError: the mesh is empty or not finite, or the format can't hold its coordinates.
        OSError: the disk didn't take it.
    """
    write = writer(path)
    if not len(mesh.faces):
        raise MeshError(f"{path} not written: the mesh is empty")
    _check_finite(path, mesh.vertices)
    lines = _lines(comments)
    if texture is not None:
        _write_textured(path, mesh, texture, lines)
        return
    with whole(path) as file:
        write(file, mesh, lines)


def write_points(path: Path, points: Mesh, comments: Sequence[str] = ()) -> None:
    """The vertices of `points`, normals and colours with them, as a PLY without faces.

    Raises:
        MeshError, OSError: as for a mesh.
    """
    _check_finite(path, points.vertices)
    with whole(path) as file:
        _write_ply(file, points, _lines(comments))


def _check_finite(path: Path, vertices: Floats) -> None:
    if not np.isfinite(vertices).all():
        raise MeshError(f"{path} not written: {np.sum(~np.isfinite(vertices).all(1))} vertices are not finite")


def _lines(comments: Sequence[str]) -> list[str]:
    return [line.encode("ascii", "replace").decode() for comment in comments for line in comment.splitlines()]


def _write_textured(path: Path, mesh: Mesh, texture: Texture, lines: Sequence[str]) -> None:
    """The mesh last, so that it never names a picture that isn't there."""
    picture = png(texture.picture)
    if path.suffix.lower() == ".glb":
        with whole(path) as file:
            _write_glb(file, mesh, lines, texture, picture)
        return
    beside, material = companions(path, True)
    write_whole(beside, picture)
    write_whole(material, f"newmtl photographs\nKa 0 0 0\nKd 1 1 1\nKs 0 0 0\nillum 1\nmap_Kd {beside.name}\n".encode())
    with whole(path) as file:
        _write_obj(file, mesh, [*lines], texture, material.name)


def writer(path: Path) -> Callable[[IO[bytes], Mesh, Sequence[str]], None]:
    """The function that writes files named like `path`; UsageError if there is none. Worth a call before an hour of work."""
    writers = {".ply": _write_ply, ".obj": _write_obj, ".glb": _write_glb, ".stl": _write_stl}
    if path.suffix.lower() not in writers:
        raise UsageError(f"{path}: meshes are written as {', '.join(writers)}, not as {path.suffix or 'a name without suffix'}")
    return writers[path.suffix.lower()]


def read_geometry(path: Path) -> Any:
    """The trimesh.Scene of a PLY, OBJ, GLB, STL or OFF file. The file alone is read, not what it refers to: textures, materials.

    Raises:
        MeshError: no such file, of another kind, broken, or claiming more than it holds.
    """
    import trimesh

    if not path.is_file():
        raise MeshError(f"{path}: no such file")
    kind = path.suffix.lower().removeprefix(".")
    if kind not in READ:
        raise MeshError(f"{path}: meshes are read from {', '.join(READ)}, not from {kind or 'a name without suffix'}")
    data = path.read_bytes()
    try:
        _check_claims(data, kind)
        options: Any = {"skip_materials": True} if kind in ("obj", "glb") else {}
        return trimesh.load_scene(io.BytesIO(data), file_type=kind, process=False, **options)
    except Exception as e:  # trimesh raises many kinds on broken files
        raise MeshError(f"{path}: neither a mesh nor points that can be read ({type(e).__name__}: {e})") from None


def _check_claims(data: bytes, kind: str) -> None:
    """ValueError where a header speaks of more elements than there are bytes: memory is asked for before they are looked for."""
    claims = []
    if kind == "ply":
        claims = [int(n[:20]) for n in re.findall(rb"^\s*element\s+\S+\s+(\d+)", data[: data.find(b"end_header")], re.MULTILINE)]
    elif kind == "glb":
        (length,) = struct.unpack_from("<I", data, 12)
        accessors = parse_json(data[20 : 20 + length], "header", MeshError).get("accessors", [])
        claims = [int(accessor["count"]) for accessor in accessors]
    if max(claims, default=0) > len(data):
        raise ValueError(f"claims {max(claims)} elements in {len(data)} bytes")


def read_mesh(path: Path) -> Mesh:
    """Any triangle mesh, with its normals and colours where it has them. glTF's y axis, up, becomes the world's z.

    Raises:
        MeshError: see `read_geometry`; no faces, or faces of vertices that aren't there.
    """
    import trimesh

    scene = read_geometry(path)
    upright = np.eye(4)
    if path.suffix.lower() == ".glb":
        upright[:3, :3] = Y_UP.T
    try:
        placed = [(scene.geometry[name], upright @ place) for place, name in (scene.graph[node] for node in scene.graph.nodes_geometry)]
        with np.errstate(all="ignore"):
            parts = [_placed(part, place) for part, place in placed if isinstance(part, trimesh.Trimesh) and len(part.faces)]
    except Exception as e:  # it looks at much of a file only when asked for it
        raise MeshError(f"{path}: not a mesh that can be read ({type(e).__name__}: {e})") from None
    if not parts:
        raise MeshError(f"{path}: holds no faces")
    if not all(np.isfinite(part.vertices).all() for part in parts):
        raise MeshError(f"{path}: has vertices that are not finite")
    first = np.cumsum([0] + [len(part.vertices) for part in parts[:-1]])
    colors = [part.colors for part in parts if part.colors is not None]
    return Mesh(
        np.concatenate([part.vertices for part in parts]),
        np.concatenate([part.faces + np.int32(k) for part, k in zip(parts, first, strict=True)]),
        np.concatenate([part.normals for part in parts]),
        np.concatenate(colors) if len(colors) == len(parts) else None,
    )


def _placed(geometry: Any, place: Floats) -> Mesh:
    """A trimesh.Trimesh put into the world by a (4, 4) matrix. By hand: trimesh's own way forgets the file's normals."""
    if geometry.faces.min() < 0 or geometry.faces.max() >= len(geometry.vertices):
        raise ValueError(f"faces of vertices {geometry.faces.min()} to {geometry.faces.max()}, of {len(geometry.vertices)}")
    vertices = np.array(geometry.vertices, np.float64) @ place[:3, :3].T + place[:3, 3]
    normals = np.array(geometry.vertex_normals, np.float64) @ np.linalg.inv(place[:3, :3])
    normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-30)
    colors = np.array(geometry.visual.vertex_colors[:, :3], np.uint8) if geometry.visual.kind == "vertex" else None
    return Mesh(vertices, np.array(geometry.faces, np.int32), normals.astype(np.float32), colors)


def _needs_double(vertices: Floats) -> bool:
    """Whether 32-bit coordinates would lose more than a millionth of the extent."""
    extent = float(np.ptp(vertices, axis=0).max())
    return float(np.spacing(np.abs(vertices).max().astype(np.float32))) > 1e-6 * extent


def _write_ply(file: IO[bytes], mesh: Mesh, comments: Sequence[str]) -> None:
    kind, code = ("double", "<f8") if _needs_double(mesh.vertices) else ("float", "<f4")
    fields: list[tuple[str, str]] = [(axis, code) for axis in "xyz"] + [(f"n{axis}", "<f4") for axis in "xyz"]
    if mesh.colors is not None:
        fields += [(name, "u1") for name in ("red", "green", "blue")]
    names = {code: kind, "<f4": "float", "u1": "uchar"}
    header = [
        "ply", "format binary_little_endian 1.0", *(f"comment {line}" for line in comments),
        f"element vertex {len(mesh.vertices)}", *(f"property {names[c]} {name}" for name, c in fields),
        *([f"element face {len(mesh.faces)}", "property list uchar int vertex_indices"] if len(mesh.faces) else []), "end_header",
    ]  # fmt: skip
    rows = np.empty(len(mesh.vertices), np.dtype(fields))
    for k, axis in enumerate("xyz"):
        rows[axis], rows[f"n{axis}"] = mesh.vertices[:, k], mesh.normals[:, k]
    if mesh.colors is not None:
        rows["red"], rows["green"], rows["blue"] = mesh.colors.T
    faces = np.empty(len(mesh.faces), np.dtype([("n", "u1"), ("v", "<i4", 3)]))
    faces["n"], faces["v"] = 3, mesh.faces
    file.write(("\n".join(header) + "\n").encode())
    file.write(rows.tobytes())
    file.write(faces.tobytes())


def _write_obj(
    file: IO[bytes], mesh: Mesh, comments: Sequence[str], texture: Texture | None = None, material: str | None = None
) -> None:
    def put(line: str, rows: npt.NDArray[Any]) -> None:
        for k in range(0, len(rows), 1 << 14):
            part = rows[k : k + (1 << 14)]
            file.write((line * len(part) % tuple(part.ravel().tolist())).encode())

    number = "%.17g" if _needs_double(mesh.vertices) else "%.9g"
    file.write("".join(f"# {line}\n" for line in comments).encode())
    if material is not None:
        file.write(f"mtllib {material}\nusemtl photographs\n".encode())
    if mesh.colors is None or texture is not None:
        put(f"v {number} {number} {number}\n", mesh.vertices)
    else:
        put(f"v {number} {number} {number} %.4g %.4g %.4g\n", np.concatenate([mesh.vertices, mesh.colors / 255], 1))
    put("vn %.6g %.6g %.6g\n", mesh.normals)
    if texture is None:
        put("f %d//%d %d//%d %d//%d\n", np.repeat(mesh.faces + 1, 2, axis=1))
    else:
        put("vt %.7g %.7g\n", texture.uv)
        put("f %d/%d/%d %d/%d/%d %d/%d/%d\n", np.stack([mesh.faces, texture.corners, mesh.faces], 2).reshape(-1, 9) + 1)


def as_glb(mesh: Mesh) -> bytes:
    """A .glb that shows its colours as they are."""
    buffer = io.BytesIO()
    _write_glb(buffer, mesh, (), unlit=True)
    return buffer.getvalue()


def _write_glb(
    file: IO[bytes], mesh: Mesh, comments: Sequence[str], texture: Texture | None = None, picture: bytes = b"", unlit: bool = False
) -> None:
    """glTF 2.0, whose y axis points up: the world's z. The middle of the mesh goes into the node, in full precision.

    With a texture, a vertex stands once for each of its places in the picture.

    Args:
        unlit: the material asks to be shown so, as it does with a texture: photographs hold their light.
    """
    middle = 0.5 * (mesh.vertices.min(0) + mesh.vertices.max(0))
    if texture is not None:
        vertex_of = np.zeros(len(texture.uv), np.int32)
        vertex_of[texture.corners] = mesh.faces
        mesh = Mesh(mesh.vertices[vertex_of], texture.corners, mesh.normals[vertex_of])
    positions = ((mesh.vertices - middle) @ Y_UP.T).astype("<f4")
    arrays: list[tuple[str, npt.NDArray[Any]]] = [("POSITION", positions), ("NORMAL", (mesh.normals @ Y_UP.T).astype("<f4"))]
    if mesh.colors is not None:
        light = linear(mesh.colors)  # which glTF's vertex colours are
        opaque = np.concatenate([light, np.ones((len(light), 1))], 1)
        arrays.append(("COLOR_0", (opaque * 65535 + 0.5).astype("<u2")))
    if texture is not None:
        arrays.append(("TEXCOORD_0", np.stack([texture.uv[:, 0], 1 - texture.uv[:, 1]], 1).astype("<f4")))  # from the upper left
    arrays.append(("indices", mesh.faces.astype("<u4").reshape(-1)))
    component = {"<f4": 5126, "<u2": 5123, "<u4": 5125}
    shape = {(): "SCALAR", (2,): "VEC2", (3,): "VEC3", (4,): "VEC4"}
    accessors: list[dict[str, Any]] = []
    views, blob = [], b""
    for name, array in arrays:
        views.append({"buffer": 0, "byteOffset": len(blob), "byteLength": array.nbytes, "target": 34963 if name == "indices" else 34962})
        accessors.append({
            "bufferView": len(views) - 1, "componentType": component[array.dtype.str], "count": len(array), "type": shape[array.shape[1:]],
        })  # fmt: skip
        if array.dtype.str == "<u2":
            accessors[-1]["normalized"] = True
        blob += array.tobytes()
    accessors[0] |= {"min": positions.min(0).tolist(), "max": positions.max(0).tolist()}
    attributes = {name: k for k, (name, _) in enumerate(arrays[:-1])}
    primitive = {"attributes": attributes, "indices": len(arrays) - 1, "material": 0}
    material: dict[str, Any] = {"pbrMetallicRoughness": {"metallicFactor": 0.0, "roughnessFactor": 0.9}}
    tree: dict[str, Any] = {
        "asset": {"version": "2.0", "generator": "fastsurf", "extras": {"comments": list(comments)}},
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0, "translation": (Y_UP @ middle).tolist()}],
        "meshes": [{"primitives": [primitive]}],
        "materials": [material],
        "buffers": [{"byteLength": len(blob)}],
        "bufferViews": views,
        "accessors": accessors,
    }
    if unlit or texture is not None:
        material["extensions"] = {"KHR_materials_unlit": {}}
        tree["extensionsUsed"] = ["KHR_materials_unlit"]
    if texture is not None:
        material["pbrMetallicRoughness"]["baseColorTexture"] = {"index": 0}
        smooth_and_clamped = {"magFilter": 9729, "minFilter": 9987, "wrapS": 33071, "wrapT": 33071}
        tree |= {
            "textures": [{"source": 0, "sampler": 0}],
            "samplers": [smooth_and_clamped],
            "images": [{"bufferView": len(views), "mimeType": "image/png"}],
        }
        views.append({"buffer": 0, "byteOffset": len(blob), "byteLength": len(picture)})
        blob += picture + b"\0" * (-len(picture) % 4)
        tree["buffers"] = [{"byteLength": len(blob)}]
    text = json.dumps(tree, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 4)
    file.write(struct.pack("<4sII", b"glTF", 2, 12 + 8 + len(text) + 8 + len(blob)))
    file.write(struct.pack("<I4s", len(text), b"JSON") + text)
    file.write(struct.pack("<I4s", len(blob), b"BIN\0") + blob)


def _write_stl(file: IO[bytes], mesh: Mesh, comments: Sequence[str]) -> None:
    if _needs_double(mesh.vertices):
        raise MeshError("STL's 32-bit coordinates can't hold a mesh so far from the origin; write .ply, .obj or .glb")
    rows = np.zeros(len(mesh.faces), np.dtype([("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("spare", "<u2")]))
    corners = mesh.vertices[mesh.faces]
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    rows["normal"] = normals / np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-30)
    rows["corners"] = corners
    file.write(b"fastsurf".ljust(80) + struct.pack("<I", len(rows)) + rows.tobytes())
