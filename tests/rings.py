"""A ring of cameras round the origin, written in every format that fastsurf reads."""

import json

import numpy as np
from PIL import Image

WIDTH, HEIGHT, FOCAL = 48, 36, 60.0
MIDDLE = (WIDTH / 2, HEIGHT / 2)
OFF_MIDDLE = (25.3, 17.1)


def poses(n=5):
    """c2w (n, 3, 4), OpenCV axes, looking at the origin from distance 3 and a little above."""
    found = []
    for angle in np.linspace(0, 2 * np.pi, n, endpoint=False):
        center = 3 * np.array([np.cos(angle), np.sin(angle), 0.4])
        forward = -center / np.linalg.norm(center)
        right = np.cross(forward, [0, 0, 1])
        right /= np.linalg.norm(right)
        found.append(np.stack([right, np.cross(forward, right), forward, center], axis=1))
    return np.array(found)


def calibration(principal=OFF_MIDDLE, offset=0.0):
    """K (3, 3); an offset of -0.5 states it for pixel centres at integers."""
    return np.array([[FOCAL, 0, principal[0] + offset], [0, FOCAL, principal[1] + offset], [0, 0, 1]])


def world_to_camera(c2w):
    """4x4."""
    return np.linalg.inv(np.vstack([c2w, [0, 0, 0, 1]]))


def expected(points, c2w, principal=OFF_MIDDLE):
    """Pixels (n, 2) of world points, centres at half integers, by the textbook."""
    homogeneous = np.c_[points, np.ones(len(points))] @ (calibration(principal) @ world_to_camera(c2w)[:3]).T
    return homogeneous[:, :2] / homogeneous[:, 2:]


def write_images(folder, names, size=(WIDTH, HEIGHT), mode="RGB", alpha=128):
    """Plain pictures; with an alpha channel its left half is `alpha`, the rest opaque."""
    w, h = size
    for i, name in enumerate(names):
        pixels = np.full((h, w, len(mode)), 40 + i, np.uint8)
        if mode == "RGBA":
            pixels[..., 3] = 255
            pixels[:, : w // 2, 3] = alpha
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.squeeze()).save(folder / name)


def names(n, folder="images", suffix=".png"):
    return [f"{folder}/{i:03d}{suffix}" for i in range(n)]


def opengl(c2w):
    """transform_matrix of a pose."""
    return np.vstack([c2w * [1, -1, -1, 1], [0, 0, 0, 1]]).tolist()


def intrinsics(principal=OFF_MIDDLE):
    return {"fl_x": FOCAL, "fl_y": FOCAL, "cx": principal[0], "cy": principal[1], "w": WIDTH, "h": HEIGHT}


def transforms(folder, size=(WIDTH, HEIGHT), n=5, name="transforms.json", top=None, frame=None, mode="RGB", images=None):
    """`top` replaces the shared keys, `frame(i)` adds keys to a frame."""
    images = names(n) if images is None else images
    write_images(folder, images, size, mode)
    frames = [{"file_path": image, "transform_matrix": opengl(c2w), **(frame(i) if frame else {})}
              for i, (image, c2w) in enumerate(zip(images, poses(n), strict=True))]  # fmt: skip
    (folder / name).write_text(json.dumps({**(intrinsics() if top is None else top), "frames": frames}))
    return OFF_MIDDLE


def idr(folder, size=(WIDTH, HEIGHT), n=5, name="cameras.npz", principal=OFF_MIDDLE, offset=-0.5, sign=1):
    write_images(folder, names(n, "image"), size)
    matrices = {}
    for i, c2w in enumerate(poses(n)):
        world = np.eye(4)
        world[:3] = sign * calibration(principal, offset) @ world_to_camera(c2w)[:3]
        scale = np.diag([1.5, 1.5, 1.5, 1.0])
        scale[:3, 3] = [0.1, 0.2, 0.3]
        matrices |= {f"world_mat_{i}": world, f"scale_mat_{i}": scale}
    np.savez(folder / name, **matrices)
    return principal


def unisurf(folder, size=(WIDTH, HEIGHT), n=5):
    write_images(folder, names(n, "image"), size)
    to_unit = np.array([[2 / WIDTH, 0, -1], [0, 2 / HEIGHT, -1], [0, 0, 1]])
    camera = np.eye(4)
    camera[:3, :3] = to_unit @ calibration()
    matrices = {}
    for i, c2w in enumerate(poses(n)):
        matrices |= {f"world_mat_{i}": world_to_camera(c2w), f"camera_mat_{i}": camera, f"scale_mat_{i}": np.eye(4)}
    np.savez(folder / "cameras.npz", **matrices)
    return OFF_MIDDLE


def quaternion(rotation):
    """w, x, y, z."""
    from scipy.spatial.transform import Rotation

    return Rotation.from_matrix(rotation).as_quat()[[3, 0, 1, 2]]


def colmap(folder, size=(WIDTH, HEIGHT), n=5, model="sparse/0", images="images", camera=None, points=(), tracks=()):
    """Text model; tracks: for each of the first points the images that observe it."""
    write_images(folder / images, [f"{i:03d}.png" for i in range(n)], size)
    where = folder / model
    where.mkdir(parents=True, exist_ok=True)
    camera = camera or f"PINHOLE {WIDTH} {HEIGHT} {FOCAL} {FOCAL} {OFF_MIDDLE[0]} {OFF_MIDDLE[1]}"
    (where / "cameras.txt").write_text(f"# cameras\n7 {camera}\n")
    lines = ["# images"]
    for i, c2w in enumerate(poses(n)):
        w2c = world_to_camera(c2w)
        numbers = " ".join(repr(float(x)) for x in (*quaternion(w2c[:3, :3]), *w2c[:3, 3]))
        seen = [k for k, track in enumerate(tracks) if i in track]
        lines += [f"{i + 1} {numbers} 7 {i:03d}.png", " ".join(["1.5 2.5 -1", *(f"{k + 0.5} 3.5 {k + 1}" for k in seen)] if tracks else [])]
    (where / "images.txt").write_text("\n".join(lines) + "\n")
    rows = [f"{i + 1} {' '.join(repr(float(x)) for x in p)} 200 100 50 0.5" for i, p in enumerate(points)]
    for k, track in enumerate(tracks):
        rows[k] += "".join(f" {i + 1} {1 + sum(i in other for other in tracks[:k])}" for i in track)
    (where / "points3D.txt").write_text("\n".join(["# points", *rows]) + "\n")
    return OFF_MIDDLE


def llff(folder, size=(WIDTH, HEIGHT), n=5, name="poses_bounds.npy"):
    write_images(folder, names(n), size)
    rows = []
    for c2w in poses(n):
        right, down, forward, center = c2w.T
        matrix = np.stack([down, right, -forward, center, [HEIGHT, WIDTH, FOCAL]], axis=1)
        rows.append([*matrix.ravel(), 2.0, 5.0])
    np.save(folder / name, rows)
    return MIDDLE


def middlebury(folder, size=(WIDTH, HEIGHT), n=5):
    write_images(folder, names(n, "."), size)
    lines = [str(n)]
    for name, c2w in zip(names(n, "."), poses(n), strict=True):
        w2c = world_to_camera(c2w)
        values = [*calibration(offset=-0.5).ravel(), *w2c[:3, :3].ravel(), *w2c[:3, 3]]
        lines.append(f"{name} " + " ".join(repr(float(x)) for x in values))
    (folder / "ring_par.txt").write_text("\n".join(lines) + "\n")
    return OFF_MIDDLE


def blendedmvs(folder, size=(WIDTH, HEIGHT), n=5):
    write_images(folder / "blended_images", [f"{i:08d}{kind}.jpg" for i in range(n) for kind in ("", "_masked")], size)
    (folder / "cams").mkdir()
    (folder / "cams" / "pair.txt").write_text("5\n")
    for i, c2w in enumerate(poses(n)):
        extrinsic, intrinsic = (
            "\n".join(" ".join(repr(float(x)) for x in row) for row in matrix) for matrix in (world_to_camera(c2w), calibration())
        )
        (folder / "cams" / f"{i:08d}_cam.txt").write_text(f"extrinsic\n{extrinsic}\n\nintrinsic\n{intrinsic}\n\n425.0 2.5 128 742.5\n")
    return OFF_MIDDLE


def strecha(folder, size=(WIDTH, HEIGHT), n=5):
    write_images(folder, names(n), size)
    (folder / "gt_dense_cameras").mkdir()
    for i, c2w in enumerate(poses(n)):
        rows = [*calibration(offset=-0.5), [0, 0, 0], *c2w[:, :3], c2w[:, 3], [WIDTH, HEIGHT]]
        text = "\n".join(" ".join(repr(float(x)) for x in row) for row in rows[:-1]) + f"\n{WIDTH} {HEIGHT}\n"
        (folder / "gt_dense_cameras" / f"{i:03d}.png.camera").write_text(text)
    return OFF_MIDDLE
