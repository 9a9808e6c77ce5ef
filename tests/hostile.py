"""Good files of every kind that is read, and how they are read: what fuzzing breaks. By name: (make, read).

`make(folder)` writes them and returns those to break, `read(folder)` reads them.
"""

import importlib.util
import json
import subprocess

import numpy as np
import rings
from PIL import Image

from fastsurf import formats
from fastsurf.checkpoint import load_model, read_begun, read_header
from fastsurf.config import Config, check, load_config, to_dict, to_toml
from fastsurf.footage import lens, sharpest_frames, up_in_picture
from fastsurf.formats import colmap
from fastsurf.guard import picture
from fastsurf.mesh import Mesh
from fastsurf.meshio import read_mesh, write_mesh
from fastsurf.metrics import read_truth
from fastsurf.scene import load_scene

VIEWS = 3
POINTS = [(0.1 * i, 0.05 * i, -0.02 * i) for i in range(6)]


def _scene(write, *patterns, **options):
    """A capture whose files of these patterns are to break."""

    def make(folder):
        write(folder, n=VIEWS, **options)
        return sorted(file for pattern in patterns for file in folder.glob(pattern))

    return make


def _binary_model(folder):
    import pycolmap

    rings.colmap(folder, n=VIEWS, points=POINTS)
    where = folder / "sparse/0"
    pycolmap.Reconstruction(str(where)).write_binary(str(where))
    for file in where.glob("*.txt"):
        file.unlink()
    return [where / f"{name}.bin" for name in ("cameras", "images", "points3D")]


def _transforms(folder):
    rings.transforms(folder, n=VIEWS, frame=lambda i: {"k1": 0.01, "p1": 0.001, "mask_path": f"images/{i:03d}.png"})
    return [folder / "transforms.json"]


def _whole_scene(folder):
    rings.transforms(folder, n=VIEWS, frame=lambda i: {"k1": 0.01} if i else {})
    return [folder / "transforms.json"]


def _pictures(folder):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 255, (24, 32, 3), np.uint8)
    exif = Image.Exif()
    exif[0x0110], exif[0x0112] = "a camera", 6
    files = []
    for suffix in ("png", "jpg", "webp", "tif", "bmp", "ppm"):
        files.append(folder / f"a.{suffix}")
        Image.fromarray(pixels).save(files[-1], **({"exif": exif} if suffix in ("png", "jpg", "webp", "tif") else {}))
    for suffix, compression in (("lzw.tif", "tiff_lzw"), ("jpeg.tif", "jpeg")):
        files.append(folder / f"a.{suffix}")
        Image.fromarray(pixels).save(files[-1], compression=compression)
    files.append(folder / "palette.png")
    Image.fromarray(pixels).quantize(8).save(files[-1], transparency=0)
    return files


def _look(folder):
    for file in sorted(folder.iterdir()):
        formats.checks._has_alpha(file)
        with picture(file) as image:
            image.convert("RGBA").getchannel("A").getextrema()
        lens(file)
        up_in_picture(file)


def _heic(folder):
    """A photograph of a telephone."""
    import pillow_heif

    pillow_heif.register_heif_opener()
    exif = Image.Exif()
    exif[0x010F], exif[0x0110], exif[0x0112] = "a maker", "a telephone", 6
    exif.get_ifd(0x8769)[0x920A] = 4.2
    pixels = np.random.default_rng(0).integers(0, 255, (48, 64, 3), np.uint8)
    Image.fromarray(pixels).save(folder / "a.heic", exif=exif, quality=80)
    return [folder / "a.heic"]


CODECS = {"mp4": "libx264", "mov": "prores", "avi": "mjpeg", "mkv": "mpeg4", "webm": "libvpx-vp9"}


def _video(suffix, codec):
    """Two thirds of a second, with a picture that moves; the .mp4 says that it is to be turned."""

    def make(folder):
        import imageio_ffmpeg

        program, file = imageio_ffmpeg.get_ffmpeg_exe(), folder / f"a.{suffix}"
        turned = folder / f"turned.{suffix}"
        source = ["-v", "error", "-f", "lavfi", "-i", "testsrc=size=64x48:rate=12:duration=0.67"]
        subprocess.run([program, *source, "-c:v", codec, "-pix_fmt", "yuv422p10le" if codec == "prores" else "yuv420p", file], check=True)
        if suffix == "mp4":
            subprocess.run([program, "-v", "error", "-display_rotation", "90", "-i", file, "-c", "copy", turned], check=True)
            turned.replace(file)
        return [file]

    return make, lambda folder: list(sharpest_frames(folder / f"a.{suffix}", 4, lambda done, what: None))


def _begun(folder):
    tree = {
        "format": 1, "config": to_dict(small_config()), "scene": "/nowhere", "scene_format": "transforms", "center": [0.0, 0.0, 0.0],
        "radius": 1.0, "background": "model", "device": "cpu", "step": 0, "progress": 0.0, "seconds": 0.0, "squared_error": 1.0,
        "photographs": ["a.png"],
    }  # fmt: skip
    (folder / "begun.json").write_text(json.dumps(tree))
    return [folder / "begun.json"]


def tetrahedron():
    corners = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]], float)
    faces = np.array([[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]], np.int32)
    normals = (corners - corners.mean(0)) / np.linalg.norm(corners - corners.mean(0), axis=1, keepdims=True)
    return Mesh(corners, faces, normals.astype(np.float32), np.full((4, 3), 100, np.uint8))


def _mesh(suffix):
    def make(folder):
        write_mesh(folder / f"a{suffix}", tetrahedron())
        return [folder / f"a{suffix}"]

    return make, lambda folder: (read_mesh(folder / f"a{suffix}"), read_truth(folder / f"a{suffix}"))


def _ascii_ply(folder):
    head = ["ply", "format ascii 1.0", "element vertex 3", *(f"property float {axis}" for axis in "xyz"), "element face 1"]
    rows = ["property list uchar int vertex_indices", "end_header", "0 0 0", "1 0 0", "0 1 0", "3 0 1 2", ""]
    (folder / "a.ply").write_text("\n".join(head + rows))
    return [folder / "a.ply"]


def _truth(folder):
    write_mesh(folder / "mesh.ply", tetrahedron())
    np.savez(folder / "points.npz", points=np.eye(3), normals=np.eye(3, dtype=np.float32))
    (folder / "region.json").write_text(json.dumps({"min": [-1, -1, -1], "max": [1, 1, 1], "world_to_box": np.eye(4).tolist()}))
    return [folder / "points.npz", folder / "region.json"]


def small_config():
    return load_config(None, ["field.levels=2", "field.log2_entries=6", "field.finest_resolution=32", "field.width=16", "color.width=16",
                              "grid.resolution=8", "backend=reference"])  # fmt: skip


def _small_model(config, header=None):
    from fastsurf.backends import choose_backend
    from fastsurf.model import Model

    return Model(config, choose_backend("reference", 1), "model" if header is None else header.background, 0)


def _checkpoint(folder):
    from safetensors.torch import save

    config = small_config()
    header = {
        "format": 1, "config": to_dict(config), "scene": "/nowhere", "scene_format": "transforms", "center": [0.0, 0.0, 0.0], "radius": 1.0,
        "background": "model", "device": "cpu", "step": 10, "progress": 0.5, "seconds": 1.0, "squared_error": 0.1, "photographs": ["a.png"],
    }  # fmt: skip
    tensors = {f"model.{name}": t.contiguous() for name, t in _small_model(config).state_dict().items()}
    (folder / "a.safetensors").write_bytes(save(tensors, metadata={"fastsurf": json.dumps(header)}))
    return [folder / "a.safetensors"]


def _open_checkpoint(folder):
    header = read_header(folder / "a.safetensors")
    if to_dict(header.config) == to_dict(small_config()):  # another model may be large, and is no matter of reading
        load_model(folder / "a.safetensors", _small_model(header.config, header))


def _config(folder):
    (folder / "a.toml").write_text(to_toml(Config()))
    return [folder / "a.toml"]


READ = formats.load
CASES = {
    "transforms": (_transforms, READ),
    "scene": (_whole_scene, load_scene),
    "idr": (_scene(rings.idr, "cameras.npz"), READ),
    "unisurf": (_scene(rings.unisurf, "cameras.npz"), READ),
    "colmap-text": (_scene(rings.colmap, "sparse/0/*.txt", points=POINTS), READ),
    "colmap-binary": (_binary_model, lambda folder: (READ(folder), colmap.read(folder / "sparse/0"))),
    "llff": (_scene(rings.llff, "poses_bounds.npy"), READ),
    "middlebury": (_scene(rings.middlebury, "*_par.txt"), READ),
    "strecha": (_scene(rings.strecha, "gt_dense_cameras/000*"), READ),
    "blendedmvs": (_scene(rings.blendedmvs, "cams/00000000_cam.txt"), READ),
    "pictures": (_pictures, _look),
    "ply": _mesh(".ply"),
    "ply-ascii": (_ascii_ply, lambda folder: read_mesh(folder / "a.ply")),
    "obj": _mesh(".obj"),
    "glb": _mesh(".glb"),
    "stl": _mesh(".stl"),
    "truth": (_truth, read_truth),
    "checkpoint": (_checkpoint, _open_checkpoint),
    "begun": (_begun, lambda folder: read_begun(folder / "begun.json")),
    "config": (_config, lambda folder: check(load_config(str(folder / "a.toml")))),
}
if importlib.util.find_spec("pillow_heif") is not None:
    CASES["heic"] = (_heic, _look)
if importlib.util.find_spec("imageio_ffmpeg") is not None:
    CASES |= {f"video-{suffix}": _video(suffix, codec) for suffix, codec in CODECS.items()}
