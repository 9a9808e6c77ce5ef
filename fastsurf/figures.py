"""Pictures that compare meshes: errors as colours with their scale, and sheets of pictures with captions."""

from collections.abc import Callable, Sequence

import numpy as np

from .cameras import Camera, rescale
from .mesh import Mesh
from .shade import Floats, Picture, rasterise

HEAT = np.array([(38, 52, 118), (52, 140, 158), (170, 208, 130), (250, 205, 80), (226, 96, 48), (128, 8, 32)], float)  # 0 to the limit
UNKNOWN = (205, 205, 205)
TEXT, GAP, CAPTION = 15, 6, 22  # pixels


def heat(values: Floats, limit: float) -> Picture:
    """Colours (n, 3) of values (n,): blue at 0, dark red at `limit` and beyond, grey where NaN."""
    known = np.isfinite(values)
    place = np.where(known, values, 0).clip(0, limit) / limit * (len(HEAT) - 1)
    colors = np.stack([np.interp(place, np.arange(len(HEAT)), channel) for channel in HEAT.T], -1)
    painted: Picture = np.where(known[:, None], colors, UNKNOWN).round().astype(np.uint8)
    return painted


def draw_error(mesh: Mesh, distance: Callable[[Floats], Floats], limit: float, camera: Camera, c2w: Floats) -> Picture:
    """The mesh (h, w, 3) in the colours of `heat`, four samples a pixel, on white.

    Args:
        distance: of points (n, 3) from the truth, (n,); NaN where there is none.
        limit: the distance at which colours end, in the mesh's units.
    """
    raster = rasterise(mesh, rescale(camera, 2 * camera.width, 2 * camera.height), c2w)
    picture = np.full((*raster.face.shape, 3), 255.0)
    hit = raster.face >= 0
    points = np.einsum("nk,nkj->nj", raster.weights[hit].astype(np.float64), mesh.vertices[mesh.faces[raster.face[hit]]])
    if len(points):
        picture[hit] = heat(distance(points), limit)
    reduced: Picture = (picture.reshape(camera.height, 2, camera.width, 2, 3).mean((1, 3)) + 0.5).clip(0, 255).astype(np.uint8)
    return reduced


def color_bar(width: int, limit: float, note: str = "") -> Picture:
    """The colours of `heat` from 0 to `limit` with both written beside them, (h, width, 3)."""
    left, right = "distance from the truth   0", f"{limit:.4g} and more   {note}"
    space = [10 + 9 * len(text) for text in (left, right)]
    bar = heat(np.linspace(0, limit, max(width - sum(space), 60)), limit)
    parts = [caption(left, space[0]), np.broadcast_to(bar, (CAPTION, *bar.shape)), caption(right, space[1])]
    return _padded(np.concatenate(parts, 1), (CAPTION, width))


def caption(text: str, width: int) -> Picture:
    """One line of text in black on white, (CAPTION, width, 3); what doesn't fit is cut."""
    from PIL import Image, ImageDraw, ImageFont

    image = Image.new("RGB", (width, CAPTION), "white")
    ImageDraw.Draw(image).text((4, (CAPTION - TEXT) // 2 - 1), text, fill="black", font=ImageFont.load_default(size=TEXT))
    return np.array(image)


def contact_sheet(
    columns: Sequence[str], rows: Sequence[tuple[str, Sequence[Picture]]], foot: Callable[[int], Picture] | None = None
) -> Picture:
    """Rows of pictures under the names of their columns, each row under its own caption.

    Args:
        foot: makes a last strip of a given width.
    """
    heights = [max(p.shape[0] for p in pictures) for _, pictures in rows]
    widths = [max(pictures[k].shape[1] for _, pictures in rows) + GAP for k in range(len(columns))]
    strips = [np.concatenate([caption(name, w) for name, w in zip(columns, widths, strict=True)], 1)]
    for (name, pictures), h in zip(rows, heights, strict=True):
        strips.append(caption(name, sum(widths)))
        strips.append(np.concatenate([_padded(p, (h + GAP, w)) for p, w in zip(pictures, widths, strict=True)], 1))
    if foot is not None:
        strips.append(foot(sum(widths)))
    return np.concatenate(strips)


def _padded(picture: Picture, size: tuple[int, int]) -> Picture:
    """In the upper left of a white picture of `size` (h, w); what is larger is cut."""
    h, w = size
    out = np.full((h, w, 3), 255, np.uint8)
    part = picture[:h, :w]
    out[: part.shape[0], : part.shape[1]] = part
    return out
