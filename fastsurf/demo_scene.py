"""Photographs of a teapot that never was: a procedural solid of exactly known shape, traced from cameras all round it.

The solid is a signed distance function (negative inside): a lobed, glazed body with lid, spout and handle on a hard-edged wooden block
with four bored holes. Points are structures of arrays, `p (3, n)`, so that every operation runs over contiguous memory.
World frame: z up, the block stands on z = 0, about 2.2 units wide. Colours are linear until they are written (sRGB).
"""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from .mesh import Mesh, extract, sample_surface
from .meshio import write_mesh

Array: TypeAlias = npt.NDArray[np.floating[Any]]  # float32 for pictures, float64 for the truth

CENTER = np.array([0.01, 0.0, 0.82])  # of the solid's bounding box
RADIUS = 1.25  # of the cube round CENTER that holds the solid
FIELD_OF_VIEW = math.radians(36)
DISTANCE = 4.0  # of the cameras from CENTER
LOWEST, HIGHEST = math.radians(-28), math.radians(72)  # elevation of the cameras

_CHUNK = 1 << 15  # points at once: the temporaries of one evaluation stay in the cache
_HIT = 4e-4  # distance at which a ray has arrived
_MARGIN = 0.9  # share of the distance that is stepped: lobes and tapers stretch it by up to a tenth
_BLOCK = 8  # pixels along the side of a block whose rays start together


@dataclass(frozen=True)
class Shot:
    """A photograph to take: `c2w (3, 4)` with OpenGL axes (x right, y up, looking along -z), and its name."""

    name: str
    c2w: npt.NDArray[np.float64]


def make_scene(
    out: Path, views: int = 48, test: int = 6, size: int = 320, seed: int = 0, on_progress: Callable[[float], None] | None = None
) -> None:
    """Write photographs, cameras and ground truth into the folder `out`.

    `transforms_train.json`, `transforms_test.json` (OpenGL axes, pixel centres at +0.5), `images/*.png` (RGBA, straight alpha),
    `gt/mesh.ply` (closed), `gt/points.npz` (`points`, `normals`: what two or more training cameras see), `gt/region.json`.
    """
    from PIL import Image

    shots = _shots(views + test, np.random.default_rng(seed))
    kept_out = {round((k + 0.5) * (views + test) / test) for k in range(test)} if test else set()
    splits: dict[str, list[Shot]] = {
        "train": [s for k, s in enumerate(shots) if k not in kept_out],
        "test": [s for k, s in enumerate(shots) if k in kept_out],
    }
    (out / "images").mkdir(parents=True, exist_ok=True)
    (out / "gt").mkdir(exist_ok=True)
    focal, done = 0.5 * size / math.tan(0.5 * FIELD_OF_VIEW), 0
    for split, members in splits.items():
        frames = []
        for k, shot in enumerate(members):
            name = f"images/{split}_{k:03d}.png"
            Image.fromarray(photograph(shot.c2w, focal, size)).save(out / name)
            frames.append({"file_path": name, "transform_matrix": [*shot.c2w.tolist(), [0.0, 0.0, 0.0, 1.0]]})
            done += 1
            if on_progress:
                on_progress(0.9 * done / len(shots))
        header = {"camera_angle_x": FIELD_OF_VIEW, "camera_angle_y": FIELD_OF_VIEW, "fl_x": focal, "fl_y": focal,
                  "cx": size / 2, "cy": size / 2, "w": size, "h": size}
        (out / f"transforms_{split}.json").write_text(json.dumps({**header, "frames": frames}, indent=1))
    mesh = truth()
    write_mesh(out / "gt" / "mesh.ply", mesh)
    points, normals = surface_points(mesh, 100_000, np.random.default_rng(seed))
    seen = seen_by(points, normals, [s.c2w[:, 3] for s in splits["train"]], at_least=2)
    np.savez_compressed(out / "gt" / "points.npz", points=points[seen].astype(np.float32), normals=normals[seen].astype(np.float32))
    low, high = mesh.vertices.min(0), mesh.vertices.max(0)
    pad = 0.05 * float(np.linalg.norm(high - low))
    (out / "gt" / "region.json").write_text(json.dumps({"min": (low - pad).tolist(), "max": (high + pad).tolist()}))
    if on_progress:
        on_progress(1.0)


def _shots(n: int, rng: np.random.Generator) -> list[Shot]:
    """Cameras on a spiral of golden angles, a little disturbed, looking at the solid."""
    shots = []
    for k in range(n):
        rise = math.sin(LOWEST) + (math.sin(HIGHEST) - math.sin(LOWEST)) * (k + 0.5) / n
        turn = k * math.pi * (3 - math.sqrt(5)) + rng.normal(0, 0.05)
        flat = math.sqrt(1 - rise * rise)
        eye = CENTER + DISTANCE * rng.uniform(0.97, 1.05) * np.array([flat * math.cos(turn), flat * math.sin(turn), rise])
        shots.append(Shot(f"{k:03d}", look_at(eye, CENTER + rng.normal(0, 0.02, 3))))
    return shots


def look_at(eye: Array, target: Array) -> npt.NDArray[np.float64]:
    """Camera-to-world (3, 4), OpenGL axes, world z up in the picture."""
    back = (eye - target) / np.linalg.norm(eye - target)
    right = np.cross([0.0, 0.0, 1.0], back)
    right /= np.linalg.norm(right)
    return np.stack([right, np.cross(back, right), back, eye], 1)


# The solid


def distance(p: Array) -> Array:
    """Signed distance (n,) of points p (3, n), negative inside; a lower bound of the true one up to a factor of about 1.1."""
    glaze, trim, wood = _parts(p)
    return np.minimum(np.minimum(glaze, trim), wood)


def _parts(p: Array) -> tuple[Array, Array, Array]:
    """Distances to the three materials: body with lid and spout, handle with knob and foot, block."""
    x, y, z = p
    rho2 = x * x + y * y
    rho = np.sqrt(rho2)

    lobes = _cos8(x, rho) * np.minimum(rho, 0.62)
    body = _ellipsoid(rho2, z - 0.94, 0.62, 0.50) - 0.030 * lobes
    lower = _taper(x, y, z, (0.42, 0.80), (0.82, 0.93), 0.19, 0.125)
    upper = _taper(x, y, z, (0.82, 0.93), (1.01, 1.32), 0.125, 0.085)
    glaze = _smooth_min(body, _smooth_min(lower, upper, 0.12), 0.10)
    lid = _ellipsoid(rho2, z - 1.36, 0.36, 0.12)
    glaze = _smooth_min(glaze, lid, 0.02)
    glaze = np.maximum(glaze, -_taper(x, y, z, (0.955, 1.20), (1.05, 1.42), 0.052, 0.052))  # the spout's mouth

    handle = np.sqrt((np.sqrt((x + 0.67) ** 2 + (z - 0.98) ** 2) - 0.36) ** 2 + y * y) - 0.062
    knob = np.sqrt(rho2 + (z - 1.545) ** 2) - 0.10
    foot = np.sqrt(np.maximum(rho - 0.34, 0) ** 2 + (z - 0.42) ** 2) - 0.085
    trim = np.minimum(np.minimum(handle, knob), foot)

    ax, ay, az = np.abs(x) - 0.66, np.abs(y) - 0.66, np.abs(z - 0.18) - 0.18
    outside = np.sqrt(np.maximum(ax, 0) ** 2 + np.maximum(ay, 0) ** 2 + np.maximum(az, 0) ** 2)
    block = outside + np.minimum(np.maximum(np.maximum(ax, ay), az), 0)
    bores = 0.11 - np.sqrt((ax + 0.18) ** 2 + (ay + 0.18) ** 2)
    return glaze, trim, np.maximum(block, bores)


def _cos8(x: Array, rho: Array) -> Array:
    """cos of eight times the angle round z, by doubling it three times."""
    c = x / np.maximum(rho, 1e-6)
    for _ in range(3):
        c = 2 * c * c - 1
    return c


def _ellipsoid(rho2: Array, z: Array, flat: float, tall: float) -> Array:
    """Distance to an ellipsoid of revolution, exact to first order at its surface."""
    near = np.sqrt(rho2 / (flat * flat) + z * z / (tall * tall))
    slope = np.sqrt(rho2 / flat**4 + z * z / tall**4)
    return near * (near - 1) / np.maximum(slope, 1e-6)


def _taper(x: Array, y: Array, z: Array, start: tuple[float, float], end: tuple[float, float], r0: float, r1: float) -> Array:
    """Distance to a capsule in the plane y = 0, from `start` (x, z) to `end`, whose radius goes from r0 to r1."""
    dx, dz = end[0] - start[0], end[1] - start[1]
    px, pz = x - start[0], z - start[1]
    along = np.clip((px * dx + pz * dz) / (dx * dx + dz * dz), 0, 1)
    return np.sqrt((px - along * dx) ** 2 + y * y + (pz - along * dz) ** 2) - (r0 + (r1 - r0) * along)


def _smooth_min(a: Array, b: Array, width: float) -> Array:
    blend = np.maximum(width - np.abs(a - b), 0)
    return np.minimum(a, b) - blend * blend * (0.25 / width)


def normals(p: Array, step: float = 1e-3) -> Array:
    """Outward unit normals (3, n), from four evaluations at the corners of a tetrahedron."""
    n = np.zeros_like(p)
    for corner in ((1, -1, -1), (-1, -1, 1), (-1, 1, -1), (1, 1, 1)):
        offset = np.array(corner, p.dtype)[:, None]
        n += offset * distance(p + step * offset)
    return n / np.maximum(np.sqrt((n * n).sum(0)), 1e-12)


# Its looks


def albedo(p: Array) -> Array:
    """Reflectance (3, n), linear: harlequin glaze, roped copper, walnut."""
    glaze, trim, wood = _parts(p)
    x, y, z = p
    angle = np.arctan2(y, x)
    speckle = np.sin(31 * x + 3 * np.sin(17 * y)) * np.sin(29 * y + 3 * np.sin(19 * z)) * np.sin(33 * z + 3 * np.sin(23 * x))

    rise = z - 0.94
    diamonds = np.sin(8 * angle + 15 * rise) * np.sin(8 * angle - 15 * rise)
    ink = _step(diamonds, 0.04)[None]
    color = _mix((0.86, 0.80, 0.66), (0.03, 0.09, 0.36), ink)
    color = _mix(color, (0.80, 0.36, 0.04), _step(-diamonds - 0.62, 0.06)[None])
    color = _mix(color, (0.05, 0.42, 0.44), _step(diamonds - 0.62, 0.06)[None])
    reach = np.sqrt(x * x + y * y)
    petals = np.sin(38 * reach + 1.7 * np.cos(8 * angle))
    flower = _mix((0.88, 0.82, 0.68), (0.03, 0.09, 0.36), _step(petals - 0.25, 0.15)[None])
    flower = _mix(flower, (0.66, 0.09, 0.05), _step(petals * np.cos(8 * angle) - 0.72, 0.10)[None])
    flower = _mix(flower, (0.80, 0.40, 0.05), _step(-petals * np.sin(16 * angle) - 0.45, 0.12)[None])
    color = _mix(color, flower, _step(rise - 0.27, 0.012)[None])
    spiral = np.sin(34 * (0.8 * x + 0.6 * z) + 2.0 * np.arctan2(y, z - 0.3 - 0.9 * x + 0.35))
    on_spout = _step(x - 0.66, 0.015)[None]
    color = _mix(color, _mix((0.82, 0.75, 0.60), (0.05, 0.42, 0.44), _step(spiral, 0.25)[None]), on_spout)
    color = color * (1 + 0.22 * speckle)

    round_handle = np.arctan2(z - 0.98, x + 0.67)
    across = np.arctan2(y, np.sqrt((x + 0.67) ** 2 + (z - 0.98) ** 2) - 0.36)
    rope = np.sin(np.where(x < -0.3, 22 * round_handle + 2 * across, 9 * angle + 40 * z))
    copper = _mix((0.62, 0.20, 0.07), (0.90, 0.52, 0.20), _step(rope, 0.4)[None]) * (1 + 0.3 * speckle)

    warp = 0.05 * np.sin(5 * x + 1) + 0.04 * np.sin(7 * y + 4 * x) + 0.03 * np.sin(9 * z + 3 * y)
    rings = np.sqrt((y + 0.35 + warp) ** 2 + (1.5 * z + 0.5 + 0.25 * x + warp) ** 2)
    grain = 0.5 + 0.5 * np.sin(70 * rings + 2.5 * np.sin(6 * x + 4 * y))
    fibre = np.sin(90 * (y + warp) + 3 * np.sin(5 * x)) * np.sin(85 * (z + 0.3 * warp) + 6 * np.sin(3 * x)) * np.sin(14 * x + 9 * y)
    walnut = _mix((0.42, 0.21, 0.085), (0.13, 0.05, 0.02), (grain * grain)[None]) * (1 + 0.35 * fibre + 0.2 * speckle)

    least = np.minimum(np.minimum(glaze, trim), wood)
    return np.clip(np.where(wood == least, walnut, np.where(trim == least, copper, color)), 0.01, 0.95)


def shade(p: Array, n: Array, to_eye: Array | None) -> Array:
    """Light (3, n) that leaves p: sky and ground, a key light with soft shadows, a fill light, and highlights towards `to_eye (3, n)`."""
    key, fill = _unit(0.45, -0.55, 0.75, p.dtype), _unit(-0.75, 0.35, 0.25, p.dtype)
    openness = _openness(p, n)
    lit = np.maximum((n * key).sum(0), 0)
    lit = lit * _unshadowed(p + 4e-3 * n, key, lit > 0)
    sky = 0.5 + 0.5 * n[2]
    ambient = (_column(0.34, 0.30, 0.27) + _column(0.18, 0.24, 0.31) * sky) * openness
    light = ambient + _column(0.98, 0.92, 0.82) * lit + _column(0.16, 0.19, 0.24) * (np.maximum((n * fill).sum(0), 0) * openness)
    color = albedo(p) * light.astype(p.dtype)
    if to_eye is not None:
        half = key + to_eye
        half /= np.sqrt((half * half).sum(0))
        shine = np.maximum((n * half).sum(0), 0) ** 40 * (lit > 0) * np.where(p[2] > 0.37, 0.30, 0.05)
        color = color + shine * np.minimum(lit * 4, 1)
    return color.astype(p.dtype)


def _openness(p: Array, n: Array) -> Array:
    """How freely p sees its surroundings, (n,) in [0, 1]: distances met on a short walk along the normal."""
    closed = np.zeros(p.shape[1], p.dtype)
    for walk, weight in ((0.03, 0.9), (0.08, 0.6), (0.17, 0.4), (0.34, 0.25)):
        closed += weight / walk * np.maximum(walk - distance(p + walk * n), 0)
    return 1 / (1 + 0.75 * closed)


def _unshadowed(p: Array, light: Array, lit: npt.NDArray[np.bool_]) -> Array:
    """Share of the key light (n,) that reaches p: 1 minus how closely anything comes to the way there."""
    share = np.ones(p.shape[1], p.dtype)
    active = np.flatnonzero(lit)
    t = np.full(len(active), 0.02, p.dtype)
    for _ in range(40):
        d = distance(p[:, active] + t * light)
        share[active] = np.minimum(share[active], np.maximum(d, 0) * 12 / t)
        t = t + np.maximum(d, 0.015)
        keep = (d > 1e-3) & (t < 2.2)
        active, t = active[keep], t[keep]
        if not len(active):
            break
    return share * share * (3 - 2 * share)


def _mix(a: Any, b: Any, share: Array) -> Array:
    a, b = (np.array(c, share.dtype)[:, None] if isinstance(c, tuple) else c for c in (a, b))
    return a + (b - a) * share


def _step(v: Array, width: float) -> Array:
    """0 below -width, 1 above width, smooth between: edges a pixel or two wide instead of jagged."""
    s = np.clip(0.5 + 0.5 * v / width, 0, 1)
    return s * s * (3 - 2 * s)


def _unit(x: float, y: float, z: float, dtype: npt.DTypeLike) -> Array:
    v = np.array([[x], [y], [z]], dtype)
    return v / np.sqrt((v * v).sum())


def _column(r: float, g: float, b: float) -> npt.NDArray[np.float32]:
    return np.array([[r], [g], [b]], np.float32)


# The camera


def photograph(c2w: Array, focal: float, size: int) -> npt.NDArray[np.uint8]:
    """The solid as one camera sees it, (size, size, 4) sRGB with straight alpha; white where alpha is 0.

    One sample a pixel, four where depth, normal or coverage change from a pixel to its neighbours.
    """
    start = _block_starts(c2w, focal, size)  # (size, size)
    v, u = np.indices((size, size), np.float32)
    light, n, t = _expose(c2w, focal, size, u.ravel() + 0.5, v.ravel() + 0.5, start.ravel())
    hit = np.isfinite(t)
    rgb, alpha = light, hit.astype(np.float32)
    edge = np.flatnonzero(_edges(n.reshape(3, size, size), t.reshape(size, size)))
    du, dv = np.array([[0.25, 0.75, 0.25, 0.75], [0.25, 0.25, 0.75, 0.75]], np.float32)[:, :, None]
    u4, v4 = (u.ravel()[edge] + du).ravel(), (v.ravel()[edge] + dv).ravel()
    light, _, t = _expose(c2w, focal, size, u4, v4, np.tile(start.ravel()[edge], 4))
    count = np.isfinite(t).reshape(4, -1).sum(0)
    rgb[:, edge] = light.reshape(3, 4, -1).sum(1) / np.maximum(count, 1)
    alpha[edge] = count / 4
    rgb = np.where(alpha > 0, _srgb(rgb), 1)
    rgba = np.concatenate([rgb, alpha[None]]).T.reshape(size, size, 4)
    return (rgba * 255 + 0.5).astype(np.uint8)


def _srgb(linear: Array) -> Array:
    linear = np.clip(linear, 0, 1)
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * np.maximum(linear, 0.0031308) ** (1 / 2.4) - 0.055)


def _directions(c2w: Array, focal: float, size: int, u: Array, v: Array) -> npt.NDArray[np.float32]:
    """Unit directions (3, n) through pixels (u, v) of a centred square picture."""
    d = np.stack([(u - size / 2) / focal, -(v - size / 2) / focal, -np.ones_like(u)])
    d = c2w[:, :3].astype(np.float32) @ d.astype(np.float32)
    return (d / np.sqrt((d * d).sum(0))).astype(np.float32)


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
        light[:, part] = shade(p, n[:, part], -d)
    return light, n, t


def trace(eye: Array, d: Array, start: Array, far: float = DISTANCE + 2) -> Array:
    """Depth (n,) at which rays from `eye (3, 1 or n)` along `d (3, n)` meet the solid, by sphere tracing; inf where they don't.

    A ray that still creeps along the solid after all steps has met it: the tolerance widens with the steps, to a quarter of a pixel.
    """
    result = np.full(d.shape[1], np.inf, d.dtype)
    active, t = np.arange(d.shape[1]), start.astype(d.dtype)
    at = np.broadcast_to(eye, d.shape)
    for step in range(96):
        room = distance(at + t * d)
        hit = room < _HIT * max(1, step / 16)
        result[active[hit]] = t[hit] + room[hit]
        keep = np.flatnonzero(~hit & (t < far))
        if not len(keep):
            break
        active, t, at, d = active[keep], t[keep] + _MARGIN * room[keep], at[:, keep], d[:, keep]
    else:
        result[active] = t
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


# The truth


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
    colors = _in_chunks(lambda q: _srgb(shade(q, normals(q), None)), p.astype(np.float32))
    return Mesh(np.ascontiguousarray(p.T), faces, n.T.astype(np.float32), (colors.T * 255 + 0.5).astype(np.uint8))


def surface_points(mesh: Mesh, n: int, rng: np.random.Generator) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
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
