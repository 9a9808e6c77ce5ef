"""Photographs of the demo's solid, traced from cameras all round it, and its exact surface: a scene whose truth is known.

World frame: z up. Pictures are sRGB with straight alpha. They can be spoiled as photographs taken in the wild are (demo_wild.py).
"""

import json
import math
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .demo_solid import Array, distance, normals, radiance
from .demo_wild import Light, Wild, dome, lights, passers_by
from .exposure import coded
from .files import write_whole
from .mesh import Mesh, extract, sample_surface
from .meshio import write_mesh
from .shade import look_at

CENTER = np.array([0.01, 0.0, 0.82])  # of the solid's bounding box
RADIUS = 1.25  # of the cube round CENTER that holds the solid
FIELD_OF_VIEW = math.radians(38)
DISTANCE = 4.0  # of the cameras from CENTER
LOWEST, HIGHEST = math.radians(-28), math.radians(72)  # elevation of the cameras
SPOILED = "gt/photographs.json"

_CHUNK = 1 << 15  # points at once: the temporaries of one evaluation stay in the cache
_HIT = 2e-4  # distance at which a ray has arrived
_LEAST = 4e-3  # step of a ray
_MARGIN = 0.9  # share of the distance that is stepped: lobes and tapers stretch it by up to a tenth
_BLOCK = 8  # pixels along the side of a block whose rays start together


CLEAN = Wild()


def make_scene(
    out: Path,
    views: int = 48,
    test: int = 6,
    size: int = 320,
    seed: int = 0,
    on_progress: Callable[[float], None] | None = None,
    wild: Wild = CLEAN,
) -> None:
    """Write photographs, cameras and ground truth into the folder `out`; the cameras last, so that half a scene is none.

    `transforms_train.json`, `transforms_test.json` (OpenGL axes, pixel centres at +0.5), `images/*.png` (RGBA, straight alpha; RGB with
    `wild.sky`), `gt/mesh.ply` (closed), `gt/points.npz` (`points`, `normals`: what two or more training cameras see), `gt/region.json`.

    Where training photographs are spoiled: `gt/photographs.json` (by name: exposure and white balance in stops, share covered by
    passers-by), and `ignore/*.png` (255: a passer-by) if `wild.occluder_masks`. Alpha stays that of the solid. Held-out ones are clean.
    """
    poses = camera_ring(views + test, np.random.default_rng(seed))
    held_out = {round((k + 0.5) * (views + test) / test) for k in range(test)} if test else set()
    splits = {
        "train": [pose for k, pose in enumerate(poses) if k not in held_out],
        "test": [pose for k, pose in enumerate(poses) if k in held_out],
    }
    (out / "images").mkdir(parents=True, exist_ok=True)
    (out / "gt").mkdir(exist_ok=True)
    for path in (*(out / f"transforms_{split}.json" for split in splits), out / SPOILED, *(out / "ignore").glob("train_*.png")):
        path.unlink(missing_ok=True)
    focal, done = 0.5 * size / math.tan(0.5 * FIELD_OF_VIEW), 0
    settings = {"train": lights(wild, len(splits["train"]), seed), "test": [Light()] * len(splits["test"])}
    spoiled = {}
    for split, members in splits.items():
        crowd = wild.occluders if split == "train" else 0
        for k, c2w in enumerate(members):
            name, rng = f"{split}_{k:03d}.png", np.random.default_rng([seed, 2, k])
            cover = _take(out, name, c2w, focal, size, wild, settings[split][k], passers_by(crowd, size, rng))
            spoiled[name] = asdict(settings[split][k]) | {"covered": cover}
            done += 1
            if on_progress:
                on_progress(0.9 * done / len(poses))
    _write_truth(out / "gt", [c2w[:, 3] for c2w in splits["train"]], seed)
    if wild != CLEAN:
        write_whole(out / SPOILED, json.dumps(spoiled, indent=1).encode())
    for split, members in splits.items():
        if members:
            write_whole(out / f"transforms_{split}.json", json.dumps(_transforms(split, members, focal, size), indent=1).encode())
    if on_progress:
        on_progress(1.0)


def _take(
    out: Path, name: str, c2w: Array, focal: float, size: int, wild: Wild, light: Light, crowd: tuple[Array, Array]
) -> float:
    """Write one photograph; returns the share of it that passers-by cover."""
    from PIL import Image

    theirs, cover = crowd
    seen, alpha = traced(c2w, focal, size)
    if wild.sky:
        v, u = np.indices((size, size), np.float32).reshape(2, -1) + 0.5
        behind = dome(c2w[:, 3:].astype(np.float32), _directions(c2w, focal, size, u, v)).reshape(3, size, size)
        seen, alpha = behind + (seen - behind) * alpha, np.ones_like(alpha)
    picture = developed(light.gains * (seen + (theirs - seen) * cover), alpha)
    Image.fromarray(picture[..., :3] if wild.sky else picture).save(out / "images" / name)
    if wild.occluder_masks and name.startswith("train"):
        (out / "ignore").mkdir(exist_ok=True)
        Image.fromarray(np.where(cover > 0, 255, 0).astype(np.uint8)).save(out / "ignore" / name)
    return round(float((cover > 0).mean()), 4)


def _write_truth(folder: Path, eyes: list[npt.NDArray[np.float64]], seed: int) -> None:
    mesh = truth()
    write_mesh(folder / "mesh.ply", mesh)
    points, directions = surface_points(mesh, 100_000, np.random.default_rng(seed))
    seen = seen_by(points, directions, eyes, at_least=2)
    np.savez_compressed(folder / "points.npz", points=points[seen].astype(np.float32), normals=directions[seen].astype(np.float32))
    low, high = mesh.vertices.min(0), mesh.vertices.max(0)
    pad = 0.05 * float(np.linalg.norm(high - low))
    write_whole(folder / "region.json", json.dumps({"min": (low - pad).tolist(), "max": (high + pad).tolist()}).encode())


def _transforms(split: str, poses: list[npt.NDArray[np.float64]], focal: float, size: int) -> dict[str, Any]:
    frames = []
    for k, c2w in enumerate(poses):
        opengl = [*(c2w * (1, -1, -1, 1)).tolist(), [0.0, 0.0, 0.0, 1.0]]
        frames.append({"file_path": f"images/{split}_{k:03d}.png", "transform_matrix": opengl})
    intrinsics = {"fl_x": focal, "fl_y": focal, "cx": size / 2, "cy": size / 2, "w": size, "h": size}
    return {"camera_angle_x": FIELD_OF_VIEW, "camera_angle_y": FIELD_OF_VIEW, **intrinsics, "frames": frames}


def camera_ring(n: int, rng: np.random.Generator) -> list[npt.NDArray[np.float64]]:
    """Poses (3, 4), OpenCV axes, on a spiral of golden angles, a little disturbed, looking at the solid."""
    poses = []
    for k in range(n):
        rise = math.sin(LOWEST) + (math.sin(HIGHEST) - math.sin(LOWEST)) * (k + 0.5) / n
        turn = k * math.pi * (3 - math.sqrt(5)) + rng.normal(0, 0.05)
        flat = math.sqrt(1 - rise * rise)
        eye = CENTER + DISTANCE * rng.uniform(0.97, 1.05) * np.array([flat * math.cos(turn), flat * math.sin(turn), rise])
        poses.append(look_at(eye, CENTER + rng.normal(0, 0.02, 3)))
    return poses


def photograph(c2w: Array, focal: float, size: int) -> npt.NDArray[np.uint8]:
    """The solid as a camera of pose c2w (3, 4), OpenCV axes, sees it: (size, size, 4) sRGB with straight alpha; white where alpha is 0."""
    return developed(*traced(c2w, focal, size))


def developed(light: Array, alpha: Array) -> npt.NDArray[np.uint8]:
    """Linear light (3, h, w), straight, with alpha (h, w) as a picture (h, w, 4)."""
    rgb = np.where(alpha > 0, coded(light.clip(0, 1)), 1)
    rgba = np.concatenate([rgb, alpha[None]]).transpose(1, 2, 0)
    return (rgba * 255 + 0.5).astype(np.uint8)


def traced(c2w: Array, focal: float, size: int) -> tuple[Array, Array]:
    """Light (3, size, size) from the solid, straight, and its alpha (size, size), as a camera of pose c2w (3, 4), OpenCV axes, sees it.

    One sample a pixel, four where depth, normal or coverage change from a pixel to its neighbours.
    """
    start = _block_starts(c2w, focal, size)  # (size, size)
    v, u = np.indices((size, size), np.float32)
    light, n, t = _expose(c2w, focal, size, u.ravel() + 0.5, v.ravel() + 0.5, start.ravel())
    hit = np.isfinite(t)
    alpha = hit.astype(np.float32)
    straight = light
    edge = np.flatnonzero(_edges(n.reshape(3, size, size), t.reshape(size, size)))
    du, dv = np.array([[0.25, 0.75, 0.25, 0.75], [0.25, 0.25, 0.75, 0.75]], np.float32)[:, :, None]
    u4, v4 = (u.ravel()[edge] + du).ravel(), (v.ravel()[edge] + dv).ravel()
    light, _, t = _expose(c2w, focal, size, u4, v4, np.tile(start.ravel()[edge], 4))
    count = np.isfinite(t).reshape(4, -1).sum(0)
    straight[:, edge] = light.reshape(3, 4, -1).sum(1) / np.maximum(count, 1)
    alpha[edge] = count / 4
    return straight.reshape(3, size, size), alpha.reshape(size, size)


def _directions(c2w: Array, focal: float, size: int, u: Array, v: Array) -> npt.NDArray[np.float32]:
    """Unit directions (3, n) through pixels (u, v) of a centred square picture."""
    d = np.stack([(u - size / 2) / focal, (v - size / 2) / focal, np.ones_like(u)])
    turned: npt.NDArray[np.float32] = c2w[:, :3].astype(np.float32) @ d.astype(np.float32)
    turned /= np.sqrt((turned * turned).sum(0))
    return turned


def _block_starts(c2w: Array, focal: float, size: int) -> npt.NDArray[np.float32]:
    """How far along each pixel's ray (size, size) nothing can be: one cone of rays a block of pixels; inf where a whole block misses."""
    n = -(-size // _BLOCK)
    v, u = np.indices((n, n), np.float32)
    d = _directions(c2w, focal, size, (u.ravel() + 0.5) * _BLOCK, (v.ravel() + 0.5) * _BLOCK)
    spread = 0.75 * _BLOCK / focal  # more than half the diagonal of a block, at distance 1
    eye = c2w[:, 3:].astype(np.float32)
    t = np.full(n * n, DISTANCE - 2, np.float32)
    active = np.arange(n * n)
    for _ in range(64):
        room = _MARGIN * distance(eye + t[active] * d[:, active]) - spread * t[active]
        t[active] += np.maximum(room, 0) / (1 + spread)
        active = active[(room > 5e-3) & (t[active] < DISTANCE + 2)]
    t[t >= DISTANCE + 2] = np.inf
    return np.repeat(np.repeat(t.reshape(n, n), _BLOCK, 0), _BLOCK, 1)[:size, :size]


def _expose(c2w: Array, focal: float, size: int, u: Array, v: Array, start: Array) -> tuple[Array, Array, Array]:
    """Light (3, n), normal (3, n) and depth along the ray (n,) at picture positions (u, v); depth inf, the rest 0 where nothing is hit."""
    light, n, t = np.zeros((3, len(u)), np.float32), np.zeros((3, len(u)), np.float32), np.full(len(u), np.inf, np.float32)
    eye = c2w[:, 3:].astype(np.float32)
    todo = np.flatnonzero(np.isfinite(start))
    for k in range(0, len(todo), _CHUNK):
        part = todo[k : k + _CHUNK]
        d = _directions(c2w, focal, size, u[part], v[part])
        depth = trace(eye, d, start[part])
        found = np.isfinite(depth)
        part, d = part[found], d[:, found]
        t[part] = depth[found]
        p = eye + t[part] * d
        n[:, part] = normals(p)
        light[:, part] = radiance(p, n[:, part], -d)
    return light, n, t


def trace(eye: Array, d: Array, start: Array, far: float = DISTANCE + 2) -> Array:
    """Depth (n,) at which rays from `eye (3, 1 or n)` along `d (3, n)` meet the solid, by sphere tracing; inf where they don't.

    Steps are at least half a pixel wide, so that a ray along a wall gets by, or in, and doesn't creep; what enters is put back.
    """
    result = np.full(d.shape[1], np.inf, d.dtype)
    active, t = np.arange(d.shape[1]), start.astype(d.dtype)
    at = np.broadcast_to(eye, d.shape)
    for _ in range(256):
        room = distance(at + t * d)
        hit = room < _HIT
        result[active[hit]] = t[hit] + room[hit]
        keep = np.flatnonzero(~hit & (t < far))
        if not len(keep):
            break
        active, t, at, d = active[keep], t[keep] + np.maximum(_MARGIN * room[keep], _LEAST), at[:, keep], d[:, keep]
    return result


def _edges(n: Array, t: Array) -> npt.NDArray[np.bool_]:
    """Pixels (h, w) whose 4-neighbours differ in coverage, depth or normal."""
    edge = np.zeros(t.shape, bool)
    depth = np.where(np.isfinite(t), t, 1e3)
    whole, first, second = slice(None), slice(None, -1), slice(1, None)
    for a, b in (((first, whole), (second, whole)), ((whole, first), (whole, second))):
        differ = (np.abs(depth[a] - depth[b]) > 0.08) | ((n[:, *a] * n[:, *b]).sum(0) < 0.85) & (depth[a] < 1e3)
        edge[a] |= differ
        edge[b] |= differ
    return edge


def truth(resolution: int = 320) -> Mesh:
    """The closed surface as a mesh, coloured without highlights: marching cubes of the distance, vertices put onto the exact surface."""
    import torch

    center = CENTER.astype(np.float32)[:, None]

    def inside(x: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(-_in_chunks(distance, center + np.float32(RADIUS) * x.numpy().T))

    cells = 64
    middle = (np.indices((cells,) * 3, np.float32).reshape(3, -1) + 0.5) * (2 / cells) - 1
    near = _in_chunks(distance, center + np.float32(RADIUS) * middle) < RADIUS * 2 / cells
    vertices, faces = extract(inside, torch.from_numpy(near.reshape((cells,) * 3)), resolution, closed=True)
    p = CENTER[:, None] + RADIUS * vertices.T
    for _ in range(2):
        p = p - _in_chunks(lambda q: normals(q, 1e-5) * distance(q), p)
    n = _in_chunks(lambda q: normals(q, 1e-5), p)
    colors = _in_chunks(lambda q: coded(radiance(q, normals(q), None).clip(0, 1)), p.astype(np.float32))
    return Mesh(np.ascontiguousarray(p.T), faces, n.T.astype(np.float32), (colors.T * 255 + 0.5).astype(np.uint8))


def surface_points(mesh: Mesh, n: int, rng: np.random.Generator) -> tuple[Array, Array]:
    """About n points (n, 3), uniform by area, on the exact surface, and their normals."""
    p = sample_surface(mesh.vertices, mesh.faces, n, rng)[0].T
    for _ in range(2):
        p = p - _in_chunks(lambda q: normals(q, 1e-5) * distance(q), p)
    p = p[:, np.abs(_in_chunks(distance, p)) < 1e-4]
    return p.T.copy(), _in_chunks(lambda q: normals(q, 1e-5), p).T.copy()


def seen_by(points: Array, directions: Array, eyes: list[npt.NDArray[np.float64]], at_least: int) -> npt.NDArray[np.bool_]:
    """Which points (n, 3) with outward normals `directions (n, 3)` are seen, unhidden, by `at_least` of the cameras."""
    count = np.zeros(len(points), np.int64)
    for eye in eyes:
        todo = np.flatnonzero((count < at_least) & (((eye - points) * directions).sum(1) > 0))
        way = eye - points[todo]
        length = np.linalg.norm(way, axis=1)
        d = (way / length[:, None]).T.astype(np.float32)
        origin = (points[todo] + 3e-3 * directions[todo]).T.astype(np.float32)
        for k in range(0, len(todo), _CHUNK):
            part = slice(k, k + _CHUNK)
            free = ~np.isfinite(trace(origin[:, part], d[:, part], np.zeros(d[:, part].shape[1], np.float32), far=3.0))
            count[todo[part][free]] += 1
    return count >= at_least


def _in_chunks(f: Callable[[Array], Array], p: Array) -> Array:
    return np.concatenate([f(p[:, k : k + _CHUNK]) for k in range(0, p.shape[1], _CHUNK)], -1)
