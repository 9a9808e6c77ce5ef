"""A texture from the photographs: xatlas lays the surface out flat, and each texel takes the colour of the views that see it best.

A texel stands for the point of the surface under its middle. What a view has to say there is
    w = cos^2(angle) (f / z)^2 e,
about how many of its pixels show a unit of the surface, once more for looking straight at it, and for e in [0, 1], which rises with the
distance from outlines, masks' borders and the picture's own: there the smallest error of pose or shape shows something else. Of the KEPT
views with the largest w those off the median lose their say (a highlight, a passer-by), and the best is blended with others nearly as good.
Where photographs differ in exposure or white balance, their colours are evened out before (exposure.py).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .cameras import View, project, rescale
from .errors import MeshError
from .exposure import Photographs, evened, gains
from .mesh import Bools, Faces, Floats, Ints, Mesh, Texture
from .shade import Raster, cover, furthest_around, rasterise

LEAST_COS = 0.15  # views that look more aslant have nothing to say
KEPT = 6  # views of a texel
DEPTH_SIDE = 800  # pixels of the longer side of the depth pictures that tell what hides what
EDGE = 8.0  # pixels of those over which e rises
JUMP = 12.0  # pixels' widths that depth changes by within three pixels, where something begins
OFF = 40.0  # of 255: so far off the median a view loses 1 - 1/e of its say
BAND = 0.3  # views down to 1 - BAND of the best one's say are blended with it
CLIPPED = 0.1  # of its say keeps a view that is too bright to tell the colour, where others are darker
FAINT = 0.05  # of the usual say: where the best has less, the field's colour comes in
_AT_ONCE = 1 << 18  # texels

Colors = npt.NDArray[np.uint8]
Weights = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Photograph:
    """What a texture is made of."""

    view: View  # its camera is for pictures of the image's size
    image: Colors  # (h, w, 3) sRGB
    counts: Bools | None  # (h, w): the object, nothing to be ignored; None: all


@dataclass(frozen=True, eq=False)
class Texels:
    """The texels that faces cover: index into the flattened picture, point in the world, normal, colour of the mesh there."""

    at: Ints  # (n,)
    points: Floats  # (n, 3)
    normals: npt.NDArray[np.float32]  # (n, 3) unit
    colors: Colors  # (n, 3)


def unwrap(mesh: Mesh, side: int) -> tuple[Floats, Faces]:
    """Places `uv (t, 2)` in a square picture of `side` texels and `corners (f, 3)` into them, as Texture has them.

    Raises:
        MeshError: it can't lay out this mesh.
    """
    import xatlas

    middle, extent = mesh.vertices.mean(0), float(np.ptp(mesh.vertices, axis=0).max())
    atlas = xatlas.Atlas()
    atlas.add_mesh(((mesh.vertices - middle) / extent).astype(np.float32), mesh.faces.astype(np.uint32), mesh.normals)
    options = xatlas.PackOptions()
    options.resolution, options.padding, options.bilinear = side, max(2, side // 512), True
    atlas.generate(xatlas.ChartOptions(), options)
    if atlas.atlas_count != 1:
        raise MeshError(f"no texture: {len(mesh.faces):,} faces don't fit into {side} x {side} texels; want more texels or fewer faces")
    vertex_of, corners, uv = atlas[0]
    if not (vertex_of[corners] == mesh.faces).all():
        raise MeshError("no texture: xatlas changed the order of the faces; leave out --texture and report this, with its version")
    size = np.array([atlas.width, atlas.height], np.float64)
    return uv.astype(np.float64) * size / size.max(), corners.astype(np.int32)


def bake(
    mesh: Mesh,
    uv: Floats,
    corners: Faces,
    side: int,
    photographs: Sequence[Photograph],
    paint: Callable[[Floats], Colors],
    on_progress: Callable[[float], None] = lambda _: None,
) -> tuple[Texture, float, float]:
    """The texture of a mesh with colours, the share of its texels that photographs see, and the most stops that one was evened out by.

    Args:
        paint: world points (n, 3) on the surface -> colours (n, 3), for what no photograph sees.
        on_progress: called with the share done, in [0, 1].
    """
    texels = _texels(mesh, uv, corners, side)
    says = np.zeros((len(texels.at), KEPT), np.float32)
    seen = np.zeros((len(texels.at), KEPT, 3), np.uint8)
    whose = np.zeros((len(texels.at), KEPT), np.min_scalar_type(len(photographs)))
    for k, photograph in enumerate(photographs):
        _look(k, photograph, mesh, texels, says, seen, whose)
        on_progress((k + 1) / len(photographs))
    stops = gains(seen, whose, says > 0, len(photographs))
    for start in range(0, len(texels.at) if stops.any() else 0, _AT_ONCE):
        part = slice(start, start + _AT_ONCE)
        seen[part], clipped = evened(seen[part], whose[part], stops)
        says[part][clipped] *= CLIPPED
    blended, trust = _blend(says, seen, texels.colors)
    unseen = np.flatnonzero(trust < 1)
    if len(unseen):
        share = trust[unseen, None]
        blended[unseen] = share * blended[unseen] + (1 - share) * paint(texels.points[unseen])
    flat = np.zeros((side * side, 3), np.uint8)
    flat[texels.at] = (blended + 0.5).clip(0, 255).astype(np.uint8)
    made = Texture(uv, corners, _spread(flat.reshape(side, side, 3), texels.at))
    return made, float((says > 0).any(1).mean()), float(np.abs(stops).max(initial=0.0))


def _texels(mesh: Mesh, uv: Floats, corners: Faces, side: int) -> Texels:
    assert mesh.colors is not None
    face = np.full(side * side, -1, np.int32)
    weights = np.zeros((side * side, 3), np.float32)
    for of, texel, bary in cover(side * np.stack([uv[:, 0], 1 - uv[:, 1]], 1), corners, (side, side)):
        face[texel], weights[texel] = of, bary
    at = np.flatnonzero(face >= 0)
    points, normals, colors = np.empty((len(at), 3)), np.empty((len(at), 3), np.float32), np.empty((len(at), 3), np.uint8)
    for start in range(0, len(at), _AT_ONCE):
        part = slice(start, start + _AT_ONCE)
        vertices, w = mesh.faces[face[at[part]]], weights[at[part]].astype(np.float64)
        points[part] = np.einsum("nk,nkj->nj", w, mesh.vertices[vertices])
        normal = np.einsum("nk,nkj->nj", w, mesh.normals[vertices])
        normals[part] = normal / np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-12)
        colors[part] = (np.einsum("nk,nkj->nj", w, mesh.colors[vertices]) + 0.5).clip(0, 255)
    return Texels(at, points, normals, colors)


def _look(k: int, photograph: Photograph, mesh: Mesh, texels: Texels, says: Weights, seen: Colors, whose: Photographs) -> None:
    """Let one view have its say: where it has more than the least of those kept, it takes its place."""
    camera, c2w = photograph.view.camera, photograph.view.c2w
    smaller = min(1.0, DEPTH_SIDE / max(camera.width, camera.height))
    reduced = rescale(camera, max(1, round(camera.width * smaller)), max(1, round(camera.height * smaller)))
    raster = rasterise(mesh, reduced, c2w)
    behind, edge = furthest_around(raster), _edge(raster, photograph.counts, min(reduced.focal))
    scale = np.array([reduced.width / camera.width, reduced.height / camera.height])
    for start in range(0, len(texels.at), _AT_ONCE):
        towards = texels.points[start : start + _AT_ONCE] - c2w[:, 3]
        cos = -np.einsum("nj,nj->n", towards, texels.normals[start : start + _AT_ONCE]) / np.linalg.norm(towards, axis=1)
        rows = np.flatnonzero(cos > LEAST_COS)
        local = towards[rows] @ c2w[:, :3]
        with np.errstate(invalid="ignore"):
            xy = project(camera, local)
            inside = ((xy >= 0) & (xy < (camera.width, camera.height))).all(1)
        rows, local, xy = rows[inside], local[inside], xy[inside]
        column, row = np.minimum((xy * scale).astype(np.int64), (reduced.width - 1, reduced.height - 1)).T
        z = local[:, 2]
        visible = (z <= behind[row, column] + z / min(reduced.focal)) & (edge[row, column] > 0)
        rows, xy, z = rows[visible], xy[visible], z[visible]
        say = (cos[rows] ** 2 * (min(camera.focal) / z) ** 2 * edge[row[visible], column[visible]]).astype(np.float32)
        rows += start
        least = says[rows].argmin(1)
        more = say > says[rows, least]
        rows, least = rows[more], least[more]
        says[rows, least], seen[rows, least], whose[rows, least] = say[more], _bilinear(photograph.image, xy[more]), k


def _edge(raster: Raster, counts: Bools | None, focal: float) -> npt.NDArray[np.float32]:
    """e of every pixel, (h, w)."""
    from scipy.ndimage import distance_transform_edt, maximum_filter, minimum_filter

    hit = raster.face >= 0
    depth = np.where(hit, raster.depth, 0)
    h, w = hit.shape
    good = minimum_filter(hit, 3) & (maximum_filter(depth, 3) - minimum_filter(depth, 3) < JUMP * depth / focal)
    if counts is not None:
        rows, columns = ((np.arange(n) + 0.5) * full / n for n, full in ((h, counts.shape[0]), (w, counts.shape[1])))
        good &= counts[rows.astype(int)[:, None], columns.astype(int)]
    distance = distance_transform_edt(np.pad(good, 1))[1:-1, 1:-1]
    return np.asarray((distance / EDGE).clip(0, 1), np.float32)


def _bilinear(image: Colors, xy: Floats) -> Colors:
    """Colours (n, 3) at pixels xy (n, 2) inside the picture."""
    h, w = image.shape[:2]
    place = (xy - 0.5).clip(0, (w - 1, h - 1))
    low = np.minimum(place.astype(np.int64), (max(w - 2, 0), max(h - 2, 0)))
    (x, y), (u, v) = low.T, (place - low).astype(np.float32).T[..., None]
    right, down = np.minimum(x + 1, w - 1), np.minimum(y + 1, h - 1)
    above, below = (1 - u) * image[y, x] + u * image[y, right], (1 - u) * image[down, x] + u * image[down, right]
    return np.asarray((1 - v) * above + v * below + 0.5, np.uint8)


def _blend(says: Weights, seen: Colors, painted: Colors) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Colours (n, 3) in [0, 255], and how far to trust them, (n,) in [0, 1]. The mesh's own colour has a vote for the median."""
    colors, best = np.zeros(painted.shape, np.float32), says.max(1)
    usual = float(np.median(best[best > 0])) if (best > 0).any() else 1.0
    for start in range(0, len(says), _AT_ONCE):
        part = slice(start, start + _AT_ONCE)
        say, shown = says[part], seen[part].astype(np.float32)
        votes = np.concatenate([np.where(say[..., None] > 0, shown, np.inf), painted[part, None].astype(np.float32)], 1)
        votes.sort(1)
        count = (say > 0).sum(1) + 1
        lower, upper = (np.take_along_axis(votes, k[:, None, None], 1) for k in ((count - 1) // 2, count // 2))
        off = np.abs(shown - 0.5 * (lower + upper)).max(2)  # (n, KEPT)
        say = say * np.exp(-((off / OFF) ** 2))
        rise = (say / np.maximum(say.max(1, keepdims=True), 1e-30) - (1 - BAND)).clip(0) / BAND
        rise = rise * rise * (3 - 2 * rise)
        colors[part] = np.einsum("nk,nkj->nj", rise, shown) / np.maximum(rise.sum(1, keepdims=True), 1e-30)
    return colors, np.asarray((best / (FAINT * usual)).clip(0, 1), np.float32)


def _spread(picture: Colors, covered: Ints) -> Colors:
    """Every texel outside the faces takes the colour of the nearest inside, so that nothing bleeds in at their edges."""
    from scipy.ndimage import distance_transform_edt

    outside = np.ones(picture.shape[:2], bool)
    outside.reshape(-1)[covered] = False
    rows, columns = distance_transform_edt(outside, return_distances=False, return_indices=True)
    spread: Colors = picture[rows, columns]
    return spread


def faces_for(side: int, faces: int) -> int:
    """How many of a mesh's faces a texture carries where nothing is said: one for about 100 texels, and no more than 30,000, for which
    xatlas takes some ten seconds."""
    return min(faces, 30_000, max(math.ceil(side * side / 100), 500))
