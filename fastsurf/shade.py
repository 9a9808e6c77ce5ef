"""Draw meshes without a graphics card: a z-buffer in numpy, for previews, for looking at results, and to tell what a camera sees.

Triangles become pixels all at once: every triangle lists the pixel centres in its bounding box, those inside keep their depth, and the
nearest wins. Triangles between pixel centres drop out first, which is most of a fine mesh.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from .cameras import Camera, project, rescale
from .mesh import Mesh

Floats = npt.NDArray[np.float64]
Picture = npt.NDArray[np.uint8]
Style = Literal["clay", "color", "normal"]

_CANDIDATES = 1 << 21  # pixel centres looked at together


@dataclass(frozen=True, eq=False)
class Raster:
    """What each pixel sees, row-major: (h, w) arrays."""

    face: npt.NDArray[np.int32]  # -1: nothing
    depth: npt.NDArray[np.float32]  # along the camera's axis, inf: nothing
    weights: npt.NDArray[np.float32]  # (h, w, 3) of the face's corners, perspective taken into account


def rasterise(mesh: Mesh, camera: Camera, c2w: Floats) -> Raster:
    """The nearest face in every pixel.

    Distorted cameras bend vertices, not edges, which is right for small faces. Faces that reach behind the camera are left out.

    Args:
        c2w: (3, 4) camera to world, OpenCV axes.
    """
    local = (mesh.vertices - c2w[:, 3]) @ c2w[:, :3]
    in_front = local[:, 2] > 0
    pixels = np.full((len(local), 2), np.nan)
    pixels[in_front] = project(camera, local[in_front])
    w, h = camera.width, camera.height
    face = np.full(h * w, -1, np.int32)
    depth = np.full(h * w, np.inf, np.float32)
    weights = np.zeros((h * w, 3), np.float32)

    for of, pixel, bary in cover(pixels, mesh.faces, (w, h)):
        z = local[mesh.faces[of], 2]
        bary /= z
        near = 1 / bary.sum(1)
        order = np.argsort(-near, kind="stable")  # of several writes to one pixel the last, nearest, stays
        order = order[near[order] < depth[pixel[order]]]
        at = pixel[order]
        depth[at], face[at], weights[at] = near[order], of[order], bary[order] * near[order, None]
    return Raster(face.reshape(h, w), depth.reshape(h, w), weights.reshape(h, w, 3))


def cover(
    places: Floats, faces: npt.NDArray[np.int32], size: tuple[int, int]
) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], Floats]]:
    """Pixel centres of a picture inside triangles, a part at a time: triangle (n,), pixel index (n,), weights of its corners (n, 3).

    Args:
        places: (v, 2) on the picture, in pixels; triangles with a corner that is not finite cover nothing.
        faces: (f, 3) into them.
        size: width and height of the picture.
    """
    whole = np.asarray(np.isfinite(places).all(1))
    usable = np.arange(len(faces)) if whole.all() else np.flatnonzero(whole[faces].all(1))
    first, span = _bounds(np.where(whole[:, None], places, 0), faces[usable], size)
    kept = (span > 0).all(1)
    usable, first, span = usable[kept], first[kept], span[kept]
    corners = places[faces[usable]]  # (f, 3, 2)
    cost = np.cumsum(span.prod(1))
    start = 0
    while start < len(usable):
        end = max(start + 1, int(np.searchsorted(cost, (cost[start - 1] if start else 0) + _CANDIDATES, "right")))
        part = slice(start, end)
        pick, pixel, bary = _cover(corners[part], first[part], span[part], size[0])
        yield usable[pick + start], pixel, bary
        start = end


def _bounds(
    pixels: Floats, faces: npt.NDArray[np.int32], size: tuple[int, int]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """First pixel centre in each face's bounding box and how many there are, (f, 2) each, as x and y."""
    first, span = np.empty((2, len(faces), 2), np.int64)
    a, b, c = faces.T
    for axis, n in enumerate(size):
        after = np.ceil(pixels[:, axis] - 0.5).clip(0, n).astype(np.int32)  # first centre at or after each vertex
        before = np.floor(pixels[:, axis] - 0.5).clip(-1, n - 1).astype(np.int32)
        first[:, axis] = np.minimum(np.minimum(after[a], after[b]), after[c])
        span[:, axis] = np.maximum(np.maximum(before[a], before[b]), before[c]) - first[:, axis] + 1
    return first, span


def _cover(
    corners: Floats, first: npt.NDArray[np.int64], span: npt.NDArray[np.int64], width: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], Floats]:
    """Pixel centres inside triangles (f, 3, 2): triangle (n,), pixel index (n,), weights of the corners on the picture (n, 3)."""
    count = span.prod(1)
    pick = np.repeat(np.arange(len(corners)), count)
    within = np.arange(len(pick)) - np.repeat(np.cumsum(count) - count, count)
    dy, dx = np.divmod(within, span[pick, 0])
    x, y = first[pick, 0] + dx, first[pick, 1] + dy
    a, b, c = (corners[:, k] for k in range(3))
    twice_area = (b[:, 0] - a[:, 0]) * (c[:, 1] - a[:, 1]) - (b[:, 1] - a[:, 1]) * (c[:, 0] - a[:, 0])
    bary = np.empty((len(pick), 3))
    for k, (p, q) in enumerate(((b, c), (c, a), (a, b))):
        edge = (q - p)[pick]
        bary[:, k] = edge[:, 0] * (y + 0.5 - p[pick, 1]) - edge[:, 1] * (x + 0.5 - p[pick, 0])
    bary /= np.where(twice_area == 0, np.nan, twice_area)[pick, None]
    inside = (bary >= -1e-9).all(1)
    return pick[inside], (y * width + x)[inside], bary[inside]


def draw(mesh: Mesh, camera: Camera, c2w: Floats, style: Style = "clay", background: int = 255) -> Picture:
    """The mesh as a picture (h, w, 3), four samples a pixel.

    Args:
        style: "clay", grey and lit from beside the camera; "color", its vertex colours as they are (clay if it has none); "normal",
            camera-space normals (red right, green up, blue towards the camera). Inner sides of faces come out purple, in all three:
            where they show, the mesh is open or inside out.
    """
    raster = rasterise(mesh, rescale(camera, 2 * camera.width, 2 * camera.height), c2w)
    picture = np.full((*raster.face.shape, 3), float(background))
    hit = raster.face >= 0
    corners = mesh.faces[raster.face[hit]]  # (n, 3)
    weights = raster.weights[hit].astype(np.float64)

    normals = np.einsum("nk,nkj->nj", weights, mesh.normals[corners]) @ c2w[:, :3]
    normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12)
    if style == "normal":
        paint = 127.5 * (1 + normals * (1, -1, -1))
    elif style == "color" and mesh.colors is not None:
        paint = np.einsum("nk,nkj->nj", weights, mesh.colors[corners])
    else:
        paint = _clay(normals)
    paint[_inner_side(mesh, raster.face[hit], c2w)] = (110, 40, 130)
    picture[hit] = paint
    h, w = camera.height, camera.width
    reduced: Picture = (picture.reshape(h, 2, w, 2, 3).mean((1, 3)) + 0.5).clip(0, 255).astype(np.uint8)
    return reduced


def _clay(normals: Floats) -> Floats:
    """Grey (n, 3) of camera-space normals (n, 3): a light over the left shoulder, a weaker one from the right, some from all round."""
    shade = 0.16 + 0.10 * (0.5 - 0.5 * normals[:, 1])
    for light, strength in (((-0.5, -0.6, -0.65), 0.62), ((0.8, 0.1, -0.5), 0.18)):
        shade += strength * np.maximum(normals @ (np.array(light) / np.linalg.norm(light)), 0)
    grey: Floats = 255 * np.clip(shade, 0, 1)[:, None] ** (1 / 2.2) * (1.0, 0.985, 0.96)
    return grey


def _inner_side(mesh: Mesh, face: npt.NDArray[np.int32], c2w: Floats) -> npt.NDArray[np.bool_]:
    """Which of the faces (n,) turn their back to the camera."""
    a, b, c = np.moveaxis(mesh.vertices[mesh.faces[face]] - c2w[:, 3], 1, 0)
    back: npt.NDArray[np.bool_] = (np.cross(b - a, c - a) * a).sum(1) > 0
    return back


def look_at(eye: Floats, target: Floats, up: tuple[float, float, float] = (0.0, 0.0, 1.0)) -> Floats:
    """Camera-to-world (3, 4), OpenCV axes, from `eye` towards `target` with `up` upwards in the picture."""
    forward = (target - eye) / np.linalg.norm(target - eye)
    right = np.cross(forward, up)
    right /= np.linalg.norm(right)
    return np.stack([right, np.cross(forward, right), forward, eye], 1)


def sheet(rows: list[list[Picture]], gap: int = 8) -> Picture:
    """Pictures of one size in a table, `gap` white pixels apart."""
    h, w = rows[0][0].shape[:2]
    table = np.full((len(rows) * (h + gap) - gap, max(map(len, rows)) * (w + gap) - gap, 3), 255, np.uint8)
    for i, row in enumerate(rows):
        for j, picture in enumerate(row):
            table[i * (h + gap) : i * (h + gap) + h, j * (w + gap) : j * (w + gap) + w] = picture
    return table


def seen(mesh: Mesh, points: Floats, camera: Camera, c2w: Floats) -> npt.NDArray[np.bool_]:
    """Which points (n, 3) on or near the mesh the camera sees: in the picture, and not behind the mesh.

    Behind means further than the mesh in all of the 3x3 pixels around, and by more than a pixel's width; so a slanted surface does
    not hide itself.
    """
    raster = rasterise(mesh, camera, c2w)
    local = (points - c2w[:, 3]) @ c2w[:, :3]
    with np.errstate(invalid="ignore"):
        x, y = np.floor(project(camera, local)).T
    visible: npt.NDArray[np.bool_] = (x >= 0) & (y >= 0) & (x < camera.width) & (y < camera.height)
    x, y = x[visible].astype(np.int64), y[visible].astype(np.int64)
    z = local[visible, 2]
    visible[visible] = z <= furthest_around(raster)[y, x] + z / min(camera.focal)
    return visible


def furthest_around(raster: Raster) -> npt.NDArray[np.float32]:
    """The furthest depth in the 3x3 pixels around each, (h, w); inf where no mesh is near, so that nothing hides a point there."""
    h, w = raster.depth.shape
    padded = np.pad(np.where(np.isfinite(raster.depth), raster.depth, -np.inf), 1, constant_values=-np.inf)
    furthest = np.stack([padded[dy : dy + h, dx : dx + w] for dy in range(3) for dx in range(3)]).max(0)
    return np.where(np.isfinite(furthest), furthest, np.float32(np.inf))
